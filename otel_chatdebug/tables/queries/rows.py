"""What rows look like, pages of them, and the cursors between pages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, overload

from sqlalchemy import Connection, RowMapping, Select, select

from otel_chatdebug.tables import schema

T = TypeVar("T")

IDS_PER_SELECT = 500
"""Ids in one ``IN (...)``; below the lowest limit on parameters that an SQLite of our time is built with (999)."""


class _State(TypedDict):
    """What runs, steps and attempts have in common."""

    id: str
    chat_id: str | None
    trace_id: str | None
    span_id: str | None
    status: str
    rank: int
    source: int
    error: Any
    replica_id: str
    started_at: str
    updated_at: str
    heartbeat_at: str | None
    finished_at: str | None
    changed_at: str | None


class Run(_State):
    """A row of ``chat_debug_runs``."""

    root_chat_id: str | None
    parent_chat_id: str | None
    owner_id: str | None
    model_config_id: str | None
    trigger_message_id: str | None
    history_tip_message_id: str | None
    kind: str
    provider: str | None
    model: str | None
    summary: dict[str, Any] | None
    service_name: str | None


class StepContent(TypedDict):
    """The messages of a step, normalized."""

    normalized_request: Any
    normalized_response: Any


class AttemptContent(TypedDict):
    """Headers are ``[[name, value], ...]`` in the order of the wire."""

    request_headers: Any
    request_body: str | None
    response_headers: Any
    response_body: str | None


class Step(_State):
    """A row of ``chat_debug_steps``."""

    run_id: str
    step_number: int | None
    operation: str | None
    provider: str | None
    model: str | None
    history_tip_message_id: str | None
    assistant_message_id: str | None
    usage: dict[str, Any] | None
    metadata: dict[str, Any] | None


class Attempt(_State):
    """A row of ``chat_debug_attempts``."""

    step_id: str
    run_id: str
    number: int | None
    end_reason: str | None
    method: str | None
    url: str | None
    path: str | None
    response_status: int | None
    bytes_received: int
    events: int
    first_byte_at: str | None
    last_byte_at: str | None
    duration_ms: float | None
    longest_gap_at: str | None
    longest_gap_ms: float | None


class Chat(TypedDict):
    """A chat and how many runs it has, by status."""

    chat_id: str
    runs: int
    in_progress: int
    interrupted: int
    error: int
    completed: int
    first_started_at: str
    latest: Run
    """Its newest run."""


@dataclass(frozen=True, slots=True)
class Page(Sequence[T], Generic[T]):
    """Some rows of a list, the newest first; a sequence of them.

    The cursors stay right whatever is written meanwhile: a page goes on exactly where the other one ended.
    """

    rows: tuple[T, ...]
    older: str | None = None
    """The cursor of the next page; None at the end of the list. A page may have few rows, or none, and yet go on."""
    newer: str | None = None
    """The cursor of the page before; None where that is not known to exist."""

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)


class NotFound(LookupError):
    """Nothing has this id; the message says what to do."""


class BadCursor(ValueError):
    """A cursor that is none of ours; the message says so."""


class Cursor(NamedTuple):
    """A place between two rows of a list."""

    started_at: int
    """Microseconds, as in the row."""
    id: str
    to_newer: bool = False

    def encode(self) -> str:
        """Opaque and fit for a URL."""
        text = f"{'+' if self.to_newer else '-'}{self.started_at}.{self.id}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Raises `BadCursor`."""
        try:
            plain = base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True).decode()
            time, _, id = plain[1:].partition(".")
            if plain[0] not in "+-" or not id or abs(int(time)) > LATEST:
                raise ValueError
            return cls(int(time), id, plain[0] == "+")
        except (ValueError, IndexError, binascii.Error):
            raise BadCursor("This cursor is not one of a page of this list: begin with the first page.") from None


LATEST = 253_402_300_799_999_999
"""The last microsecond of the year 9999: what a `datetime`, and so both databases, can hold."""


def iso(microseconds: int) -> str:
    """``2026-01-31T12:00:00.000000Z``."""
    moment = schema.EPOCH + timedelta(microseconds=microseconds)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def microseconds(text: str) -> int:
    """The reverse of `iso`, for any ISO 8601 time with an offset. Raises ``ValueError``."""
    from datetime import datetime

    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs an offset from UTC")
    return (moment - schema.EPOCH) // timedelta(microseconds=1)


def fetch(connection: Connection, query: Select[Any]) -> list[dict[str, Any]]:
    """The rows of a query, as all functions here give them."""
    times = {c.name for c in query.selected_columns if isinstance(c.type, schema.Time)}
    return [_row(row, times) for row in connection.execute(query).mappings()]


def fetch_by_ids(connection: Connection, query: Select[Any], column: Any, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The rows whose ``column`` is one of ``ids``, in no order."""
    found: list[dict[str, Any]] = []
    for some in batches(ids):
        found += fetch(connection, query.where(column.in_(some)))
    return found


def batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), IDS_PER_SELECT):
        yield ids[start : start + IDS_PER_SELECT]


def now(connection: Connection) -> int:
    """The database's clock, in microseconds: what heartbeats and ``changed_at`` are told in."""
    time: int = connection.execute(select(schema.utc_now())).scalar_one()
    return time


def _row(row: RowMapping, times: set[str]) -> dict[str, Any]:
    return {name: iso(value) if name in times and value is not None else value for name, value in row.items()}
