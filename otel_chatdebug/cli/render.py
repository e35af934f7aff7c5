"""How a recorded run looks on a terminal: one tree and one table, for the commands and for the demo.

Pure functions from the dicts of `otel_chatdebug.tables.queries` to what rich prints. Whatever was recorded is somebody
else's text and may hold terminal escapes, so every word of it passes through `clean`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from otel_chatdebug.words import (
    SO_FAR,
    STATUS_SIGNS,
    Row,
    clean,
    lasted,
    moment,
    one_line,
    short_count,
)

ID_LENGTH = 8
"""Characters of an id in the list, or more where two would look the same."""

BETWEEN, EDGES = 3, 2
"""Characters that a table's box takes between two columns, and at its sides."""

LEAST, LEAST_WITH_START = 24, 12
"""Characters of a first message for which the list of runs goes without other columns, and without their start."""

NARROWEST = 4
"""Characters that the last column has on any terminal."""

STATUS_STYLES = {"completed": "green", "error": "red", "interrupted": "yellow", "in_progress": "cyan"}


def status(value: str) -> Text:
    """The status with its sign and colour."""
    return Text(f"{STATUS_SIGNS.get(value, '?')} {clean(value)}", style=STATUS_STYLES.get(value, ""))


def local_time(value: str | None, now: datetime) -> str:
    """Today's time, or the date as well."""
    then = moment(value)
    if then is None:
        return ""
    then = then.astimezone()
    return f"{then:%H:%M:%S}" if then.date() == now.astimezone().date() else f"{then:%Y-%m-%d %H:%M:%S}"


def unique_ids(ids: Sequence[str]) -> list[str]:
    """The ids, cut to the same length: `ID_LENGTH`, or more where two of them would look the same."""
    length = ID_LENGTH
    while len({name[:length] for name in ids}) < len(set(ids)):
        length += 1
    return [name[:length] for name in ids]


def runs_table(runs: Sequence[Row], *, width: int, now: datetime | None = None) -> Table:
    """The list of runs, one line each. On a narrow terminal the less telling columns are left out."""
    now = now or datetime.now(UTC)
    shorts = unique_ids([str(run["id"]) for run in runs])
    cells = {
        column: [column.cell(run, short, now) for run, short in zip(runs, shorts, strict=True)] for column in _COLUMNS
    }
    widths = {
        column: min(column.most, max(len(column.title), *(cell.cell_len for cell in cells[column])))
        for column in _COLUMNS
    }
    *others, last = _COLUMNS
    for column in sorted(others, key=lambda column: -column.spared):
        left = width - sum(widths[one] + BETWEEN for one in others) - EDGES
        if not column.spared or left >= min(widths[last], LEAST if column.spared > 1 else LEAST_WITH_START):
            break
        others.remove(column)
    # The last one gives way where the terminal is narrower still. (rich would cut it off without an ellipsis.)
    widths[last] = min(widths[last], max(left, NARROWEST))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for column in (*others, last):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=widths[column],
            max_width=widths[column],
        )
    for row in zip(*(cells[column] for column in (*others, last)), strict=True):
        table.add_row(*row)
    return table


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    value: Callable[[Row, str, datetime], Text | str | None]
    """Of a run, its cut id, and the present time."""
    spared: int = 0
    """Where the terminal is narrow, the column with the greatest number is left out first, one with 0 never."""
    most: int = 30
    """Its own greatest width."""
    right: bool = False

    def cell(self, run: Row, short: str, now: datetime) -> Text:
        value = self.value(run, short, now)
        return value if isinstance(value, Text) else Text(one_line("" if value is None else value))


def _summary(run: Row, name: str) -> Any:
    return (run.get("summary") or {}).get(name)


def _tokens(run: Row) -> str:
    read, written = _summary(run, "total_input_tokens"), _summary(run, "total_output_tokens")
    if not read and not written:
        return ""
    return f"{short_count(read or 0)} / {short_count(written or 0)}"


_COLUMNS = [
    _Column("id", lambda run, short, now: Text(clean(short), style="bold")),
    _Column("started", lambda run, short, now: local_time(run.get("started_at"), now), spared=1),
    _Column("kind", lambda run, short, now: run.get("kind")),
    _Column("chat", lambda run, short, now: run.get("chat_id"), spared=5, most=20),
    _Column("status", lambda run, short, now: status(str(run.get("status")))),
    _Column("duration", lambda run, short, now: lasted(run, now).removesuffix(SO_FAR), right=True),
    _Column("model", lambda run, short, now: run.get("model"), spared=6, most=26),
    _Column("steps", lambda run, short, now: _summary(run, "step_count"), spared=4, right=True),
    _Column("tokens in/out", lambda run, short, now: _tokens(run), spared=3, right=True),
    _Column("first message", lambda run, short, now: _summary(run, "first_message"), most=60),
]
