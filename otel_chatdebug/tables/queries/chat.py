"""One chat as it stands: what is in progress, what ended last, how much went wrong lately, and who runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Connection, Engine, func, select

from otel_chatdebug.runners import leases
from otel_chatdebug.settings import STALE_AFTER
from otel_chatdebug.tables import replicas, schema
from otel_chatdebug.tables.queries.rows import Attempt, Run, Step, batches, fetch, fetch_by_ids, now
from otel_chatdebug.tables.queries.waiting import MOST_OPEN
from otel_chatdebug.tables.replicas import ReplicaRow

LAST_FINISHED = 10
"""Finished runs that are told."""

COUNTED_RUNS = 100
"""Newest runs among which errors are counted: the answer must not take longer for a chat with more of them."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that runs a chat."""

    runner_id: str
    """Its ``replica_id``."""
    replica: ReplicaRow | None
    """Its row; None where whoever holds the lease records nothing."""
    by_lease: bool
    """It holds the runner's lease; else it has the newest run in progress."""
    age_seconds: float | None
    """Since its last heartbeat; None where it never gave one."""
    is_stale: bool
    """Longer ago than ``stale_after``, or it has ended: it is asked no more."""


@dataclass(frozen=True, slots=True)
class ChatState:
    """What the tables know of a chat; by default nothing."""

    taken_at: int
    """By the clock that was asked; microseconds."""
    is_known: bool = False
    """Whether there is any run of it."""
    runs: Sequence[Run] = ()
    """In progress, the newest first."""
    steps: Sequence[Step] = ()
    attempts: Sequence[Attempt] = ()
    finished: Sequence[Run] = ()
    """The last `LAST_FINISHED` that have ended, the newest first."""
    errors: Mapping[str, int] = field(default_factory=lambda: {"runs": 0, "steps": 0, "attempts": 0})
    """Those with status ``error``, of the newest `COUNTED_RUNS` runs."""
    counted_runs: int = 0
    owner: Owner | None = None


def load_chat(
    engine: Engine, chat_id: str, *, stale_after: float = STALE_AFTER, clock: Callable[[], int] | None = None
) -> ChatState:
    """A chat as it stands now. ``clock`` gives microseconds; None: the database's, which heartbeats are told in."""
    runs, steps, attempts = schema.STATE_TABLES
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        time = now(connection) if clock is None else clock()
        newest = connection.execute(
            select(runs.c.id, runs.c.status)  # the index knows both
            .where(runs.c.chat_id == chat_id)
            .order_by(runs.c.started_at.desc(), runs.c.id.desc())
            .limit(COUNTED_RUNS)
        ).all()
        open_runs = fetch(
            connection,
            select(runs).where(schema.OPEN, runs.c.chat_id == chat_id).order_by(runs.c.heartbeat_at).limit(MOST_OPEN),
        )
        is_open = "in_progress"
        ended = [run.id for run in newest if run.status != is_open][:LAST_FINISHED]
        finished = fetch_by_ids(connection, select(runs), runs.c.id, ended)
        for some in (open_runs, finished):
            some.sort(key=lambda run: (run["started_at"], run["id"]), reverse=True)
        ids = [run["id"] for run in open_runs]
        open_steps = fetch_by_ids(connection, select(steps).where(steps.c.status + "" == is_open), steps.c.run_id, ids)
        open_attempts = fetch_by_ids(
            connection, select(attempts).where(attempts.c.status + "" == is_open), attempts.c.run_id, ids
        )
        counted = [run.id for run in newest]
        errors = {
            "runs": sum(run.status == "error" for run in newest),
            "steps": _count_errors(connection, steps, counted),
            "attempts": _count_errors(connection, attempts, counted),
        }
        owner = _owner(connection, chat_id, open_runs, time, stale_after)
    return ChatState(
        taken_at=time,
        is_known=bool(newest or open_runs),
        runs=cast("list[Run]", open_runs),
        steps=cast("list[Step]", open_steps),
        attempts=cast("list[Attempt]", open_attempts),
        finished=cast("list[Run]", finished),
        errors=errors,
        counted_runs=len(newest),
        owner=owner,
    )


def _count_errors(connection: Connection, table: Any, run_ids: list[str]) -> int:
    return sum(
        connection.execute(
            select(func.count()).select_from(table).where(table.c.run_id.in_(some), table.c.status + "" == "error")
        ).scalar_one()
        for some in batches(run_ids)
    )


def _owner(
    connection: Connection, chat_id: str, open_runs: list[dict[str, Any]], time: int, stale_after: float
) -> Owner | None:
    """The holder of the lease; else the process of the newest run in progress that still gives signs of life, or, where
    none does, that of the newest one."""
    leader = leases.holder(connection, chat_id)
    if leader is not None:
        return _as_owner(leader, replicas.load(connection, leader), True, time, stale_after)
    found: Owner | None = None
    for id in dict.fromkeys(run["replica_id"] for run in open_runs):
        owner = _as_owner(id, replicas.load(connection, id), False, time, stale_after)
        if not owner.is_stale:
            return owner
        found = found or owner
    return found


def _as_owner(id: str, row: ReplicaRow | None, by_lease: bool, time: int, stale_after: float) -> Owner:
    beat = None if row is None else row["heartbeat_at"]
    age = None if beat is None else max(0.0, (time - beat) / 1e6)
    has_ended = row is not None and row["stopped_at"] is not None
    return Owner(id, row, by_lease, age, is_stale=age is None or age > stale_after or has_ended)
