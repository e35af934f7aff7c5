"""One run with its steps and attempts, their content as a whole or in pieces, and ids by their beginnings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from sqlalchemy import Connection, Engine, Select, Table, func, literal, select

from otel_chatdebug.tables import schema
from otel_chatdebug.tables.queries.rows import AttemptContent, NotFound, StepContent, fetch
from otel_chatdebug.words import failed_attempts

MOST_MATCHES = 5
"""Candidates that are named where the beginning of an id is not unique."""

PIECE = 20_000
"""Characters of a body in one piece, where nobody says otherwise."""

MESSAGES_PIECE = 50
"""Messages in one piece, where nobody says otherwise."""

STEP_CONTENT = ("normalized_request", "normalized_response")
ATTEMPT_CONTENT = ("request_headers", "request_body", "response_headers", "response_body")

RunTree: TypeAlias = dict[str, Any]
"""A `rows.Run` with ``steps``: each a `rows.Step` with ``attempts``, each a `rows.Attempt`."""


class Ambiguous(LookupError):
    """More than one id begins like this; the message names the candidates."""


class Found(NamedTuple):
    """What an id belongs to."""

    kind: Literal["run", "step", "attempt"]
    id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A part of a body."""

    text: str
    offset: int
    """Of its first character."""
    total: int
    """Characters of the whole."""

    @property
    def next(self) -> int | None:
        """The offset of the next piece; None after the last one."""
        end = self.offset + len(self.text)
        return end if end < self.total and self.text else None


@dataclass(frozen=True, slots=True)
class MessagesPiece:
    """Some messages of a step's request or response."""

    messages: tuple[Any, ...]
    offset: int
    """The place of the first one, from 0."""
    total: int

    @property
    def next(self) -> int | None:
        """The offset of the next piece; None after the last one."""
        end = self.offset + len(self.messages)
        return end if end < self.total and self.messages else None


def load_run(engine: Engine, id: str, *, content: bool = True) -> RunTree:
    """A run with all below it: ``run["steps"]``, each with ``step["attempts"]``, in the order of their numbers, and
    ``step["failed_attempts"]``, those that failed in one line each.

    With ``content`` a step has the keys of `StepContent` too, and an attempt those of `AttemptContent`; None where
    there is no content (any more). One snapshot: all is read in one transaction. Raises `NotFound`.
    """
    runs, steps, attempts = schema.STATE_TABLES
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        found = fetch(connection, select(runs).where(runs.c.id == id))
        if not found:
            raise NotFound(f"There is no run {id}: `otel-chatdebug runs` lists them.")
        below = fetch(
            connection,
            _rows(steps, schema.step_contents, "step_id", STEP_CONTENT if content else ())
            .where(steps.c.run_id == id)
            .order_by(steps.c.step_number.is_(None), steps.c.step_number, steps.c.started_at),
        )
        requests = fetch(
            connection,
            _rows(attempts, schema.attempt_contents, "attempt_id", ATTEMPT_CONTENT if content else ())
            .where(attempts.c.step_id.in_(select(steps.c.id).where(steps.c.run_id == id)))
            .order_by(attempts.c.number.is_(None), attempts.c.number, attempts.c.started_at),
        )
    by_id = {step["id"]: step for step in below}
    for step in below:
        step["attempts"] = []
    for attempt in requests:
        by_id[attempt["step_id"]]["attempts"].append(attempt)
    for step in below:
        step["failed_attempts"] = failed_attempts(step["attempts"])
    return {**found[0], "steps": below}


def load_step_content(engine: Engine, step_id: str) -> StepContent | None:
    """None where there is none (any more)."""
    return cast("StepContent | None", _content(engine, schema.step_contents, "step_id", STEP_CONTENT, step_id))


def load_attempt_content(engine: Engine, attempt_id: str) -> AttemptContent | None:
    """None where there is none (any more)."""
    found = _content(engine, schema.attempt_contents, "attempt_id", ATTEMPT_CONTENT, attempt_id)
    return cast("AttemptContent | None", found)


def load_body(
    engine: Engine,
    attempt_id: str,
    which: Literal["request_body", "response_body"],
    *,
    offset: int = 0,
    length: int = PIECE,
) -> TextPiece | None:
    """The body from ``offset``, at most ``length`` characters. None where there is none (any more)."""
    contents = schema.attempt_contents
    body = contents.c[which]
    query = select(func.substr(body, offset + 1, length), func.length(body)).where(contents.c.attempt_id == attempt_id)
    with engine.connect() as connection:
        found = connection.execute(query).one_or_none()
    return None if found is None or found[1] is None else TextPiece(found[0], offset, found[1])


def load_messages(
    engine: Engine,
    step_id: str,
    side: Literal["request", "response"],
    *,
    offset: int = 0,
    limit: int = MESSAGES_PIECE,
) -> MessagesPiece | None:
    """The messages of a step from ``offset``, at most ``limit``. None where there are none (any more)."""
    contents = schema.step_contents
    query = select(contents.c[f"normalized_{side}"]).where(contents.c.step_id == step_id)
    with engine.connect() as connection:
        found = connection.execute(query).scalar_one_or_none()
    messages = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(messages, list):
        return None
    return MessagesPiece(tuple(messages[offset : offset + limit]), offset, len(messages))


def find_run(engine: Engine, prefix: str) -> str:
    """The id of the one run whose id begins with ``prefix``. Raises `NotFound` and `Ambiguous`."""
    return _find(engine, prefix, {"run": schema.runs}, "No run has an id").id


def find(engine: Engine, prefix: str) -> Found:
    """The one run, step or attempt whose id begins with ``prefix``. Raises `NotFound` and `Ambiguous`.

    A whole id is never ambiguous, also where others begin with it.
    """
    return _find(engine, prefix, _KINDS, "No run, step or attempt has an id")


_KINDS = dict(zip(("run", "step", "attempt"), schema.STATE_TABLES, strict=True))


def _find(engine: Engine, prefix: str, kinds: dict[str, Table], nobody: str) -> Found:
    prefix = prefix.strip().lower()
    found: list[Found] = []
    with engine.connect() as connection:
        for kind, table in kinds.items() if prefix else ():
            found += [Found(kind, *row) for row in _ids(connection, table, prefix)]  # type: ignore[arg-type]
    if not found:
        raise NotFound(f"{nobody} that begins with {prefix!r}: `otel-chatdebug runs` lists the runs.")
    whole = [one for one in found if one.id == prefix]
    if len(found) == 1 or whole:
        return whole[0] if whole else found[0]
    found.sort(key=lambda one: one.id)
    named = ", ".join(one.id if len(kinds) == 1 else f"{one.kind} {one.id}" for one in found[:MOST_MATCHES])
    more = ", ..." if len(found) > MOST_MATCHES else ""
    what = "runs have an id that begins" if len(kinds) == 1 else "ids begin"
    raise Ambiguous(f"Several {what} with {prefix!r}, give more of it: {named}{more}")


def _ids(connection: Connection, table: Table, prefix: str) -> Iterable[tuple[str, str]]:
    run_id = table.c.id if table is schema.runs else table.c.run_id
    # A range, not LIKE: SQLite would look at every row. It ends before the first text that does not begin so.
    beyond = prefix[:-1] + chr(min(ord(prefix[-1]) + 1, 0x10FFFF))
    query = (
        select(table.c.id, run_id)
        .where(table.c.id >= literal(prefix, table.c.id.type), table.c.id < literal(beyond, table.c.id.type))
        .order_by(table.c.id)
        .limit(MOST_MATCHES + 1)
    )
    return [(id, run) for id, run in connection.execute(query)]


def _rows(table: Table, contents: Table, key: str, columns: Iterable[str]) -> Select[Any]:
    wanted = [contents.c[name] for name in columns]
    if not wanted:
        return select(table)
    return select(*table.c, *wanted).select_from(table.outerjoin(contents, contents.c[key] == table.c.id))


def _content(engine: Engine, contents: Table, key: str, columns: Iterable[str], id: str) -> dict[str, Any] | None:
    with engine.connect() as connection:
        found = fetch(connection, select(*(contents.c[name] for name in columns)).where(contents.c[key] == id))
    return found[0] if found else None
