"""The waterfall of a run: where each step and attempt begins and ends on one axis of time, in percent of its width.

Pure: from the rows of `queries.load_run` to numbers and words. What is drawn has its words beside it, for those who
cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from otel_chatdebug import words

Row = Mapping[str, Any]

TICKS = 6
"""At most so many marks on the axis."""

LEAST_GAP = 0.02
"""Of the axis: a shorter silence within a stream is not marked, it could not be seen."""

LEAST_AXIS = 0.01
"""Seconds that an axis shows at least."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the axis."""

    x: float
    width: float
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One line of the waterfall."""

    kind: str
    """``step``, ``attempt``, or ``both`` for a step with its only attempt."""
    id: str
    step_id: str
    name: str
    status: str
    x: float
    width: float
    wait: Span | None = None
    """From the request to the first byte of the body."""
    first: float | None = None
    """Where the first chunk came."""
    gaps: tuple[Span, ...] = ()
    """Where nothing came while it was open."""
    pause: Span | None = None
    """Between the end of the attempt before and this one."""
    end: str = ""
    """What stands at its end."""
    is_open: bool = False
    words: str = ""
    """All of it."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the template draws."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...] = field(default=())


def timeline(run: Row, now: datetime) -> Timeline:
    """Of a run as `queries.load_run` gives it; what is open goes on until ``now``."""
    begin, end = _range(run, now)
    axis = _Axis(begin, max(LEAST_AXIS, (end - begin).total_seconds()), now)
    return Timeline(tuple(_bars(run, axis)), tuple(axis.ticks()))


@dataclass(frozen=True, slots=True)
class _Axis:
    begin: datetime
    seconds: float
    now: datetime

    def place(self, moment: datetime) -> float:
        """In percent. A clock that was set in the meantime must not draw beyond the picture."""
        return round(min(100.0, max(0.0, (moment - self.begin).total_seconds() / self.seconds * 100)), 3)

    def span(self, start: datetime, end: datetime, words: str = "") -> Span:
        x = self.place(start)
        return Span(x, round(max(0.0, self.place(end) - x), 3), words)

    def end_of(self, row: Row) -> datetime:
        """When it ended; of what is open, now; of what nobody ended, the last that was seen of it."""
        if row["status"] == "in_progress":
            return self.now
        seen = (row.get(name) for name in ("finished_at", "last_byte_at", "started_at"))
        return next(moment for value in seen if (moment := words.moment(value)))

    def ticks(self) -> Iterator[tuple[float, str]]:
        rough = self.seconds / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        every = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
        for count in range(int(self.seconds / every) + 1):
            yield round(count * every / self.seconds * 100, 3), _tick(count * every)


def _tick(seconds: float) -> str:
    if seconds == 0:
        return "0"
    if seconds < 1:
        return f"{seconds * 1000:g} ms"
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def _range(run: Row, now: datetime) -> tuple[datetime, datetime]:
    rows = [run, *run["steps"], *(attempt for step in run["steps"] for attempt in step["attempts"])]
    starts = [moment for row in rows if (moment := words.moment(row["started_at"]))]
    ends = [moment for row in rows if (moment := words.moment(row["finished_at"]))]
    if any(row["status"] == "in_progress" for row in rows):
        ends.append(now)
    return min(starts), max([*ends, *starts])


def _bars(run: Row, axis: _Axis) -> Iterator[Bar]:
    for step in run["steps"]:
        name = f"{step['step_number'] or '?'}  {words.one_line(step['model'] or step['operation'] or 'model call')}"
        attempts = step["attempts"]
        if len(attempts) == 1 and attempts[0]["status"] == step["status"]:
            yield _attempt(attempts[0], None, axis, kind="both", name=name)
            continue
        start, end = words.moment(step["started_at"]), axis.end_of(step)
        assert start is not None
        stretch = axis.span(start, end)
        said = [f"{_status(step)} after {words.lasted(step, axis.now)}", words.plural(len(attempts), "attempt")]
        yield Bar(
            kind="step",
            id=step["id"],
            step_id=step["id"],
            name=name,
            status=step["status"],
            x=stretch.x,
            width=stretch.width,
            end=words.lasted(step, axis.now),
            is_open=step["status"] == "in_progress",
            words=", ".join(said),
        )
        before = None
        for attempt in attempts:
            name = f"attempt {attempt['number'] or '?'}"
            if attempt["response_status"]:
                name += f"  {attempt['response_status']}"
            yield _attempt(attempt, before, axis, kind="attempt", name=name)
            before = attempt


def _attempt(attempt: Row, before: Row | None, axis: _Axis, *, kind: str, name: str) -> Bar:
    start, end = words.moment(attempt["started_at"]), axis.end_of(attempt)
    first = words.moment(attempt["first_byte_at"])
    assert start is not None
    stretch = axis.span(start, end)
    is_open = attempt["status"] == "in_progress"
    said = [f"{_status(attempt)} after {words.lasted(attempt, axis.now)}"]
    pause = None
    if before is not None:
        ended = axis.end_of(before)
        if ended < start:
            waited = words.duration((start - ended).total_seconds())
            pause = axis.span(ended, start, f"{waited} after the attempt before")
            said.append(pause.words)
    if first:
        said.append(f"first chunk after {words.duration((first - start).total_seconds())}")
    gaps = tuple(_gaps(attempt, axis))
    said += [gap.words for gap in gaps]
    if is_open and first is None:
        said.append("nothing came yet")
    reason = attempt["end_reason"]
    if reason:
        said.append(words.END_REASONS.get(reason, words.one_line(reason)))
    return Bar(
        kind=kind,
        id=attempt["id"],
        step_id=attempt["step_id"],
        name=name,
        status=attempt["status"],
        x=stretch.x,
        width=stretch.width,
        wait=axis.span(start, first or end),
        first=None if first is None else axis.place(first),
        gaps=gaps,
        pause=pause,
        end=words.lasted(attempt, axis.now),
        is_open=is_open,
        words=", ".join(said),
    )


def _gaps(attempt: Row, axis: _Axis) -> Iterator[Span]:
    """The longest silence within the stream, and the one since its last byte."""
    at, longest = words.moment(attempt.get("longest_gap_at")), attempt.get("longest_gap_ms")
    last = words.moment(attempt["last_byte_at"])
    if at is not None and longest and longest / 1000 >= LEAST_GAP * axis.seconds:
        x = axis.place(at)
        width = round(min(100 - x, longest / 1000 / axis.seconds * 100), 3)
        yield Span(x, width, f"longest gap {words.duration(longest / 1000)}")
    if last is not None:
        end = axis.end_of(attempt)
        silence = (end - last).total_seconds()
        if silence >= LEAST_GAP * axis.seconds and (silence >= words.QUIET_AFTER or attempt["status"] != "in_progress"):
            told = "nothing came for" if attempt["status"] == "in_progress" else "silent before its end for"
            yield axis.span(last, end, f"{told} {words.duration(silence)}")


def _status(row: Row) -> str:
    return str(row["status"]).replace("_", " ")
