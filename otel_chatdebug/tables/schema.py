"""The eight tables, as SQLAlchemy Core declares them. `migrations` creates them; a test compares the two.

Written for SQLite and PostgreSQL alike; what differs between them stands in the types below. Records carry times as
whole microseconds since 1970 (UTC), and so do rows that are read through this schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Float,
    FunctionElement,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    TypeDecorator,
    UniqueConstraint,
    literal,
    literal_column,
    select,
)
from sqlalchemy import Text as SQLText
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from otel_chatdebug import storable

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


class Text(TypeDecorator[str]):
    """Text of any length, made storable on the way in.

    Compared by code point everywhere (collation "C" on PostgreSQL): the merge rule compares ``replica_id``, and
    Python must agree about which is higher.
    """

    impl = SQLText
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(SQLText(collation="C"))
        return dialect.type_descriptor(SQLText())

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        return None if value is None else storable.text(value)


class Name(Text):
    """Text that names something: an id, a model, a kind. Bounded on the way in, in rows and in conditions alike (see
    `storable.name`), so that what is too long for an index can be recorded, and is found by the whole name."""

    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        return None if value is None else stored_name(value)


def stored_name(value: object) -> str:
    """``value`` as a column of the type `Name` holds it."""
    return storable.name(storable.text(value))


class JSON(TypeDecorator[Any]):
    """JSON text in SQLite, JSONB in PostgreSQL. An absent value is SQL NULL, never JSON ``null``."""

    impl = SQLText
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSONB(none_as_null=True))
        return dialect.type_descriptor(SQLText())

    def process_bind_param(self, value: object, dialect: Dialect) -> Any:
        if value is None:
            return None
        if dialect.name == "postgresql":
            return storable.json_value(value)  # JSONB encodes it
        return storable.json_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return json.loads(value)


class Time(TypeDecorator[int]):
    """A moment with microseconds: TIMESTAMPTZ in PostgreSQL, ``YYYY-MM-DD HH:MM:SS.ffffff`` (UTC) in SQLite.

    In Python a whole number of microseconds since 1970. The text is of fixed width, so that it sorts as time does.
    """

    impl = SQLText
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(SQLText())

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        return EPOCH + timedelta(microseconds=value) if dialect.name == "postgresql" else _time_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        if value is None:
            return None
        since = value - EPOCH if dialect.name == "postgresql" else datetime.fromisoformat(value) - _NAIVE_EPOCH
        microseconds: int = since // _MICROSECOND
        return microseconds


def _time_text(value: int) -> str:
    seconds, microseconds = divmod(value, 1_000_000)
    return f"{_second_text(seconds)}.{microseconds:06d}"


@lru_cache(maxsize=128)
def _second_text(seconds: int) -> str:
    """Remembered: the rows of a call have a dozen times, nearly all of the same few seconds."""
    return (_NAIVE_EPOCH + timedelta(seconds=seconds)).isoformat(" ")


def _time_text_with_zone(value: int) -> str:
    return _time_text(value) + "+00"


def converter(column: Column[Any], dialect: str) -> Callable[[Any], Any] | None:
    """What makes a driver's parameter of a value of the column that is not None, where the statement names its type.

    None: it is handed over as it is. The rows are those that SQLAlchemy's own parameters give, at a third of the cost:
    JSON is written as text once, and no driver has to look at what it is handed.
    """
    if isinstance(column.type, Name):
        return stored_name
    if isinstance(column.type, Text):
        return storable.text
    if isinstance(column.type, JSON):
        return storable.json_text
    if isinstance(column.type, Time):
        return _time_text if dialect == "sqlite" else _time_text_with_zone
    return None


class utc_now(FunctionElement[int]):
    """The database's clock, as a `Time`: what heartbeats are told in, so that processes need not agree on a clock."""

    type = Time()
    inherit_cache = True


@compiles(utc_now, "sqlite")
def _sqlite_now(element: utc_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"  # SQLite's clock has milliseconds


@compiles(utc_now, "postgresql")
def _postgresql_now(element: utc_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_timestamp()"


def now(connection: Connection) -> int:
    """The database's clock, in microseconds."""
    told: int = connection.execute(select(utc_now())).scalar_one()
    return told


def moment(microseconds: int) -> ColumnElement[int]:
    """A time as the database compares it."""
    return literal(microseconds, Time())


metadata = MetaData()


def _key(name: str = "id") -> Column[str]:
    return Column(name, Name(), primary_key=True)


def _required(name: str) -> Column[str]:
    return Column(name, Name(), nullable=False)


def _optional(*names: str) -> list[Column[str]]:
    return [Column(name, Name()) for name in names]


def _texts(*names: str) -> list[Column[str]]:
    return [Column(name, Text()) for name in names]


def _json(*names: str) -> list[Column[Any]]:
    return [Column(name, JSON()) for name in names]


def _times(*names: str) -> list[Column[int]]:
    return [Column(name, Time()) for name in names]


def _time(name: str) -> Column[int]:
    return Column(name, Time(), nullable=False)


def _small(name: str) -> Column[int]:
    return Column(name, SmallInteger(), nullable=False)


def _status() -> Column[str]:
    return Column("status", Name(), nullable=False)


runs = Table(
    "chat_debug_runs",
    metadata,
    _key(),
    *_optional("trace_id", "span_id", "chat_id", "root_chat_id", "parent_chat_id", "owner_id", "model_config_id"),
    *_optional("trigger_message_id", "history_tip_message_id"),
    _required("kind"),
    _status(),
    _small("rank"),
    _small("source"),
    *_optional("provider", "model"),
    *_json("summary", "error"),
    *_optional("service_name"),
    _required("replica_id"),
    _time("started_at"),
    _time("updated_at"),
    # `changed_at` is when the row was last written, by the database's clock: what live views follow. NULL for rows that
    # were not written since revision 0002. `updated_at` cannot be followed: it is each process's clock, and the sweep
    # sets it back to the last heartbeat.
    *_times("heartbeat_at", "finished_at", "changed_at"),
)

steps = Table(
    "chat_debug_steps",
    metadata,
    _key(),
    _required("run_id"),
    *_optional("chat_id", "trace_id", "span_id"),
    # NULL for a stub until the step itself is told: the number is that of the step's own proposal.
    Column("step_number", Integer()),
    *_optional("operation"),
    _status(),
    _small("rank"),
    *_optional("provider", "model", "history_tip_message_id", "assistant_message_id"),
    *_json("usage", "error", "metadata"),
    _small("source"),
    _required("replica_id"),
    _time("started_at"),
    _time("updated_at"),
    *_times("heartbeat_at", "finished_at", "changed_at"),
    UniqueConstraint("run_id", "step_number", name="uq_chat_debug_steps_number"),
)

step_contents = Table(
    "chat_debug_step_contents",
    metadata,
    _key("step_id"),
    _required("run_id"),
    *_optional("chat_id"),
    _small("rank"),
    _small("source"),
    *_json("normalized_request", "normalized_response"),
    _required("replica_id"),
    _time("updated_at"),
)

attempts = Table(
    "chat_debug_attempts",
    metadata,
    _key(),
    _required("step_id"),
    _required("run_id"),
    *_optional("chat_id", "trace_id", "span_id"),
    Column("number", Integer()),
    _status(),
    _small("rank"),
    *_optional("end_reason", "method"),
    *_texts("url", "path"),
    Column("response_status", Integer()),
    *_json("error"),
    Column("bytes_received", BigInteger(), nullable=False),
    Column("events", BigInteger(), nullable=False),
    _small("source"),
    _required("replica_id"),
    _time("started_at"),
    *_times("first_byte_at", "last_byte_at"),
    _time("updated_at"),
    *_times("heartbeat_at", "finished_at"),
    Column("duration_ms", Float(53)),
    *_times("changed_at", "longest_gap_at"),
    Column("longest_gap_ms", Float(53)),
    UniqueConstraint("step_id", "number", name="uq_chat_debug_attempts_number"),
)

attempt_contents = Table(
    "chat_debug_attempt_contents",
    metadata,
    _key("attempt_id"),
    _required("step_id"),
    _required("run_id"),
    *_optional("chat_id"),
    _small("rank"),
    _small("source"),
    *_json("request_headers"),
    *_texts("request_body"),
    *_json("response_headers"),
    *_texts("response_body"),
    _required("replica_id"),
    _time("updated_at"),
)

replicas = Table(
    "chat_debug_replicas",
    metadata,
    _key(),
    *_optional("service_name", "host"),
    Column("pid", BigInteger()),
    _time("started_at"),
    *_times("heartbeat_at"),
    *_optional("boot_id", "version"),
    *_texts("inspection_url"),
    *_times("stopped_at"),
    *_texts("inspection_token"),
)
"""Processes and their heartbeats, see `replicas`."""

runner_leases = Table(
    "chat_debug_runner_leases",
    metadata,
    _key("chat_id"),
    _required("runner_id"),
    _time("acquired_at"),
    _time("expires_at"),
)
"""Which process runs a chat's turns, see `otel_chatdebug.runners`."""

settings = Table(
    "chat_debug_settings",
    metadata,
    _key("owner_id"),
    Column("debug_logging", Boolean(), nullable=False),
    _time("updated_at"),
)
"""Who has debug logging on."""

STATE_TABLES = (runs, steps, attempts)
"""Those with a status and a heartbeat, parents first."""

OPEN: ColumnElement[bool] = literal_column("status = 'in_progress'")
"""Rows that are open. Literal, so that SQLite's planner may use the partial indexes below."""

Index("ix_chat_debug_runs_started", runs.c.started_at, runs.c.id)
# With the status, so that a chat's runs are counted by it without reading them.
Index("ix_chat_debug_runs_chat", runs.c.chat_id, runs.c.started_at, runs.c.id, runs.c.status)
for _column in (runs.c.status, runs.c.kind, runs.c.model):
    Index(f"ix_chat_debug_runs_{_column.name}", _column, runs.c.started_at, runs.c.id)
Index("ix_chat_debug_runs_chat_open", runs.c.chat_id, runs.c.heartbeat_at, sqlite_where=OPEN, postgresql_where=OPEN)
Index("ix_chat_debug_steps_chat", steps.c.chat_id)
Index("ix_chat_debug_attempts_run", attempts.c.run_id)
Index("ix_chat_debug_step_contents_run", step_contents.c.run_id)
Index("ix_chat_debug_step_contents_updated", step_contents.c.updated_at)
Index("ix_chat_debug_attempt_contents_run", attempt_contents.c.run_id)
Index("ix_chat_debug_attempt_contents_updated", attempt_contents.c.updated_at)
for _table in STATE_TABLES:
    Index(f"ix_{_table.name}_open", _table.c.heartbeat_at, sqlite_where=OPEN, postgresql_where=OPEN)
    Index(f"ix_{_table.name}_changed", _table.c.changed_at, _table.c.id)
