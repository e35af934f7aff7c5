"""What is in progress, where it hangs, and since when nothing came."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypedDict

from sqlalchemy import Connection, Engine, Table, func, select

from otel_chatdebug.records import AttemptRank
from otel_chatdebug.settings import STALE_AFTER
from otel_chatdebug.tables import schema
from otel_chatdebug.tables.queries.rows import batches, fetch, fetch_by_ids, iso, microseconds, now

MOST_OPEN = 2_000
"""Open runs that are looked at: those whose last sign of life is the longest ago."""


class Where(StrEnum):
    """Where something in progress stands."""

    HEADERS = "waiting_for_headers"
    """A request was sent, no answer has begun."""
    BODY = "waiting_for_body"
    """The headers came, no byte of the body yet."""
    STREAMING = "streaming"
    """The body comes, or came to a halt."""
    UNCLOSED = "unclosed"
    """The body has ended; the application has not closed it yet."""
    BEFORE_ATTEMPT = "before_attempt"
    """A step began, no request was sent yet."""
    BETWEEN_ATTEMPTS = "between_attempts"
    """A request has ended, the next one has not begun: a back-off, or the application's own work."""
    BEFORE_STEP = "before_step"
    """A run began, no step yet."""
    BETWEEN_STEPS = "between_steps"
    """All steps have ended, the run goes on: a tool runs, or the application does other work."""


class Waiting(TypedDict):
    """The innermost thing of a run that is open: an attempt, else a step, else the run itself.

    A run with several requests at once has several of them. What is not there is None.
    """

    run_id: str
    step_id: str | None
    attempt_id: str | None
    chat_id: str | None
    kind: str
    """The run's."""
    provider: str | None
    model: str | None
    first_message: str | None
    step_number: int | None
    attempt_number: int | None
    """The open attempt's; between attempts that of the last one."""
    method: str | None
    url: str | None
    response_status: int | None
    """Of the open attempt; between attempts of the last one, as the error is."""
    error: Any
    where: str
    """A `Where`."""
    started_at: str
    """The run's."""
    since: str
    """When the last thing came, began or ended. The counters of an open attempt are written every few seconds, so it
    may be that much later in truth."""
    idle_seconds: float
    """From then to now, by the database's clock."""
    bytes_received: int
    events: int
    heartbeat_at: str | None
    heartbeat_age_seconds: float | None
    is_stale: bool
    """No heartbeat for longer than ``stale_after``: its process is dead or cut off, and the sweep will close it."""
    replica_id: str
    service_name: str | None


def list_waiting(
    engine: Engine,
    *,
    idle: float = 0.0,
    chat_id: str | None = None,
    run_id: str | None = None,
    stale_after: float = STALE_AFTER,
) -> list[Waiting]:
    """All that is in progress and where nothing came for ``idle`` seconds, what waits longest first."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        time = now(connection)
        found = [
            _waiting(place, time, stale_after)
            for place in _places(connection, chat_id, run_id)
            if (time - place.since) / 1e6 >= idle
        ]
    return sorted(found, key=lambda one: -one["idle_seconds"])


def count_open(engine: Engine) -> int:
    """How many runs are in progress; no more than `MOST_OPEN` are counted."""
    some = select(schema.runs.c.id).where(schema.OPEN).limit(MOST_OPEN).subquery()
    with engine.connect() as connection:
        count: int = connection.execute(select(func.count()).select_from(some)).scalar_one()
    return count


@dataclass(slots=True)
class _Place:
    """Where a run stands, before it is told in words."""

    run: dict[str, Any]
    where: Where
    since: int
    step: dict[str, Any] | None = None
    attempt: dict[str, Any] | None = None
    """The open one; between attempts the last one."""


def _places(connection: Connection, chat_id: str | None, run_id: str | None) -> Iterator[_Place]:
    runs, steps, attempts = schema.STATE_TABLES
    query = select(runs).where(schema.OPEN).order_by(runs.c.heartbeat_at).limit(MOST_OPEN)
    if chat_id is not None:
        query = query.where(runs.c.chat_id == chat_id)
    if run_id is not None:
        query = query.where(runs.c.id == run_id)
    open_runs = fetch(connection, query)
    ids = [run["id"] for run in open_runs]
    open_steps = _by(_open_below(connection, steps, ids), "run_id")
    open_attempts = _by(_open_below(connection, attempts, ids), "step_id")
    every_step = [step for group in open_steps.values() for step in group]
    last_attempts = _last_attempts(connection, [step["id"] for step in every_step if step["id"] not in open_attempts])
    last_steps = _last_steps(connection, [run["id"] for run in open_runs if run["id"] not in open_steps])
    for run in open_runs:
        if run["id"] not in open_steps:
            ended = last_steps.get(run["id"])
            if ended is None:
                yield _Place(run, Where.BEFORE_STEP, microseconds(run["started_at"]))
            else:
                yield _Place(run, Where.BETWEEN_STEPS, ended)
        for step in open_steps.get(run["id"], ()):
            for attempt in open_attempts.get(step["id"], ()):
                yield _Place(run, *_halt(attempt), step, attempt)
            if step["id"] not in open_attempts:
                last = last_attempts.get(step["id"])
                if last is None:
                    yield _Place(run, Where.BEFORE_ATTEMPT, microseconds(step["started_at"]), step)
                else:
                    unclosed = last["rank"] == AttemptRank.PROVISIONAL
                    since = microseconds(last["finished_at"] or last["updated_at"])
                    yield _Place(run, Where.UNCLOSED if unclosed else Where.BETWEEN_ATTEMPTS, since, step, last)


def _halt(attempt: dict[str, Any]) -> tuple[Where, int]:
    came = attempt["last_byte_at"] or attempt["first_byte_at"]
    if came is not None:
        return Where.STREAMING, microseconds(came)
    where = Where.HEADERS if attempt["response_status"] is None else Where.BODY
    return where, microseconds(attempt["started_at"])


def _open_below(connection: Connection, table: Table, run_ids: list[str]) -> list[dict[str, Any]]:
    # As an expression: SQLite's planner is to go by the run's id, not through all that is open.
    return fetch_by_ids(connection, select(table).where(table.c.status + "" == "in_progress"), table.c.run_id, run_ids)


def _last_attempts(connection: Connection, step_ids: list[str]) -> dict[str, dict[str, Any]]:
    attempts = schema.attempts
    later = attempts.alias("later")
    highest = (
        select(func.max(later.c.number)).where(later.c.step_id == attempts.c.step_id).correlate(attempts)
    ).scalar_subquery()
    found = fetch_by_ids(connection, select(attempts).where(attempts.c.number == highest), attempts.c.step_id, step_ids)
    return {attempt["step_id"]: attempt for attempt in found}


def _last_steps(connection: Connection, run_ids: list[str]) -> dict[str, int]:
    """When the last step of each run ended; in microseconds."""
    steps = schema.steps
    ended = func.max(func.coalesce(steps.c.finished_at, steps.c.updated_at), type_=schema.Time())
    found: dict[str, int] = {}
    for some in batches(run_ids):
        query = select(steps.c.run_id, ended).where(steps.c.run_id.in_(some)).group_by(steps.c.run_id)
        for run, time in connection.execute(query):
            found[run] = time
    return found


def _by(rows: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _waiting(place: _Place, time: int, stale_after: float) -> Waiting:
    run, step, attempt = place.run, place.step or {}, place.attempt or {}
    is_open = attempt.get("status") == "in_progress"
    innermost = attempt if is_open else step or run
    beat = innermost["heartbeat_at"]
    age = None if beat is None else max(0.0, (time - microseconds(beat)) / 1e6)
    return Waiting(
        run_id=run["id"],
        step_id=step.get("id"),
        attempt_id=attempt.get("id") if is_open else None,
        chat_id=run["chat_id"],
        kind=run["kind"],
        provider=step.get("provider") or run["provider"],
        model=step.get("model") or run["model"],
        first_message=(run["summary"] or {}).get("first_message"),
        step_number=step.get("step_number"),
        attempt_number=attempt.get("number"),
        method=attempt.get("method"),
        url=attempt.get("url"),
        response_status=attempt.get("response_status"),
        error=attempt.get("error"),
        where=str(place.where),
        started_at=run["started_at"],
        since=iso(place.since),
        idle_seconds=max(0.0, (time - place.since) / 1e6),
        bytes_received=attempt.get("bytes_received") or 0,
        events=attempt.get("events") or 0,
        heartbeat_at=beat,
        heartbeat_age_seconds=age,
        is_stale=age is not None and age > stale_after,
        replica_id=innermost["replica_id"],
        service_name=run["service_name"],
    )
