"""Durations and moments as people type them: ``30s``, ``5m``, ``2h``, ``7d``, and ISO 8601 times. One place for all."""

from __future__ import annotations

import contextlib
import math
import re
from datetime import UTC, datetime, timedelta

import click

SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
"""How many a unit has. A number without one is in seconds."""

LONGEST = 100 * 365 * 86_400.0
"""Seconds: a hundred years. More is a mistake, and times before the year 1 cannot be told."""

TAKES = "30s, 5m, 2h, 7d or a sum of them (1h30m)"

_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", re.ASCII)


def parse(text: str) -> float:
    """Seconds. Units are ms, s, m (or min), h, d and w; several of them are added; none means seconds.

    Raises ``ValueError`` with a sentence for what is no duration, negative, or longer than `LONGEST`.
    """
    rest, seconds = text.strip().lower(), 0.0
    if not rest:
        raise ValueError(f"a duration is needed: {TAKES}")
    while rest:
        match = _PART.match(rest)
        if match is None or match[2] not in SECONDS or (not match[2] and match[0] != text.strip().lower()):
            raise ValueError(f"{text!r} is no duration: write {TAKES}")
        seconds += float(match[1]) * SECONDS[match[2]]
        rest = rest[match.end() :]
    if not math.isfinite(seconds) or seconds > LONGEST:
        raise ValueError(f"{text!r} is longer than a hundred years")
    return seconds


def duration(value: str) -> float:
    """The type of an option that takes a duration: seconds."""
    try:
        return parse(value)
    except ValueError as exc:
        raise click.BadParameter(f"{exc}.") from None


def moment(value: str) -> datetime:
    """The type of an option that takes a time, or how long ago it was; with a time zone."""
    with contextlib.suppress(ValueError):
        if not value.strip().isdigit():  # 20260131 is a date, and 2026 neither
            return datetime.now(UTC) - timedelta(seconds=parse(value))
    try:
        time = datetime.fromisoformat(value.strip())
        # A time without a zone is that of the wall clock here.
        return time if time.tzinfo is not None else time.astimezone()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value!r} is no time: write how long ago (30m, 2h, 7d) or a time (2026-01-31, 2026-01-31T14:30)."
        ) from None
