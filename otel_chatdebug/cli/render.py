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

STALE_AFTER = 300.0
"""Seconds; as ``Settings.stale_after``."""

MESSAGES = 3
"""The last messages of a request that are shown; the earlier ones are counted."""

FIRST_MESSAGE = 60
"""Characters of the first message that stand beside a run whose messages are not shown."""

TEXT_LENGTH = 1000
"""Characters of a text that are shown; the rest is counted."""

ID_LENGTH = 8
"""Characters of an id in the list, or more where two would look the same."""

STATUS_STYLES = {"completed": "green", "error": "red", "interrupted": "yellow", "in_progress": "cyan"}

_TOTALS = ("input_tokens", "output_tokens")


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
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    columns = [column for column in _COLUMNS if width >= column.needs]
    rows = [
        [column.cell(run, short, now) for column in columns]
        for run, short in zip(runs, unique_ids([str(run["id"]) for run in runs]), strict=True)
    ]
    for place, column in enumerate(columns):
        widest = max([len(column.title), *(row[place].cell_len for row in rows)])
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            # Only the last one gives way where the terminal is too narrow.
            min_width=min(widest, column.most) if column is not columns[-1] else None,
            max_width=column.most,
        )
    for row in rows:
        table.add_row(*row)
    return table


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    value: Callable[[Row, str, datetime], Text | str | None]
    """Of a run, its cut id, and the present time."""
    needs: int = 0
    """The terminal's width below which it is left out."""
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
    _Column("started", lambda run, short, now: local_time(run.get("started_at"), now)),
    _Column("kind", lambda run, short, now: run.get("kind")),
    _Column("chat", lambda run, short, now: run.get("chat_id"), needs=120, most=20),
    _Column("status", lambda run, short, now: status(str(run.get("status")))),
    _Column("duration", lambda run, short, now: lasted(run, now).removesuffix(SO_FAR), right=True),
    _Column("model", lambda run, short, now: run.get("model"), needs=140, most=26),
    _Column("steps", lambda run, short, now: _summary(run, "step_count"), needs=105, right=True),
    _Column("tokens in/out", lambda run, short, now: _tokens(run), needs=90, right=True),
    _Column("first message", lambda run, short, now: _summary(run, "first_message"), most=60),
]
