"""Durations and times as people type them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from otel_chatdebug import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("5 min", 300),
        ("2h", 7200),
        ("7d", 604_800),
        ("1w", 604_800),
        ("250ms", 0.25),
        ("90", 90),
        ("0", 0),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1h30m", 5400),
        (" 1D 2H ", 93_600),
    ],
)
def test_a_duration_is_a_number_of_seconds(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "-5s", "+5s", "5x", "s", "1h30", "5 5s", "1e9d", "nan", "inf", "٣s", "5s!", "9" * 400, "101w" * 99],
)
def test_anything_else_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|hundred years"):
        durations.parse(text)


def test_a_time_is_told_by_how_long_ago_it_was_or_as_iso_8601() -> None:
    before = datetime.now(UTC)
    assert before - timedelta(hours=2) <= durations.moment("2h") <= datetime.now(UTC) - timedelta(hours=2)
    assert durations.moment("2026-01-31T14:30+02:00") == datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    assert durations.moment("2026-01-31T12:30Z") == datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    assert durations.moment("2026-01-31") == durations.moment("20260131") == datetime(2026, 1, 31).astimezone()
    for bad in ("yesterday", "2026", "2026-13-01", "0001-01-01T00:00+99:00", ""):
        with pytest.raises(click.BadParameter, match="is no time"):
            durations.moment(bad)
