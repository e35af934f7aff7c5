"""Who lives: heartbeats of open rows, and the sweep that calls interrupted what a process left open when it died.

Whether a process lives is told by its heartbeats alone, and these by the database's clock, so that no two processes
need to agree on one. A process that was only asleep (a suspended laptop, a paused container) takes the verdict back
with its next heartbeat; and what it says of its rows at their end has a higher rank than the sweep's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    Update,
    and_,
    bindparam,
    case,
    false,
    func,
    not_,
    null,
    or_,
    select,
    text,
    update,
)

from otel_chatdebug.records import AttemptRank
from otel_chatdebug.status import Outcome, Status
from otel_chatdebug.tables import schema
from otel_chatdebug.tables.merge import IDS_PER_SELECT

SWEEP_LOCK = 0x6368_6174_7377_70  # "chatswp"
"""The advisory lock on PostgreSQL that one sweep holds. SQLite has but one writer anyway."""

STALE = "stale"
"""The ``end_reason`` of an attempt that was swept."""


def heartbeat(
    connection: Connection, *, runs: Sequence[str] = (), steps: Sequence[str] = (), attempts: Sequence[str] = ()
) -> dict[str, Outcome]:
    """Says that these rows are still being worked on: ``heartbeat_at`` becomes the database's clock, if that is later.

    Creates no row and touches no other column, but in a row that was swept while its process was asleep: that is open
    again. Returns which could not be touched, and why: not found (deleted), or a run that somebody else has finished.
    """
    untouched: dict[str, Outcome] = {}
    for table, ids in zip(schema.STATE_TABLES, (runs, steps, attempts), strict=True):
        in_order = sorted(ids)
        for start in range(0, len(in_order), IDS_PER_SELECT):
            some = in_order[start : start + IDS_PER_SELECT]
            touched = connection.execute(_beat(table), {"ids": some}).rowcount
            if touched != len(some):
                there = {id for (id,) in connection.execute(select(table.c.id).where(table.c.id.in_(some)))}
                finished = {
                    id for (id,) in connection.execute(select(table.c.id).where(table.c.id.in_(some), _over(table)))
                }
                untouched |= {id: Outcome.NOT_FOUND for id in some if id not in there}
                untouched |= dict.fromkeys(finished, Outcome.ALREADY_FINISHED)
    return untouched


def _over(table: Table) -> ColumnElement[bool]:
    """Rows that take no heartbeat any more. Steps and attempts may have an end that is not final yet."""
    if table is not schema.runs:
        return false()
    return and_(table.c.finished_at.is_not(None), table.c.rank > AttemptRank.LEFT)


@cache
def _beat(table: Table) -> Update:
    c, now = table.c, schema.utc_now()
    last = func.coalesce(c.heartbeat_at, c.started_at)
    swept = and_(c.status == Status.INTERRUPTED, c.finished_at == last, c.updated_at == last)
    changes: dict[str, Any] = {}
    if table is schema.attempts:
        swept = and_(swept, c.end_reason == STALE)
        changes["end_reason"] = case((swept, null()), else_=c.end_reason)
    changes |= {
        "heartbeat_at": case((or_(c.heartbeat_at.is_(None), c.heartbeat_at < now), now), else_=c.heartbeat_at),
        "status": case((swept, Status.IN_PROGRESS.value), else_=c.status),
        "rank": case((swept, AttemptRank.OPEN.value), else_=c.rank),
        "finished_at": case((swept, null()), else_=c.finished_at),
        "changed_at": case((swept, now), else_=c.changed_at),
    }
    return update(table).where(c.id.in_(bindparam("ids", expanding=True)), not_(_over(table))).values(changes)


class Swept(NamedTuple):
    """How many rows a sweep has called interrupted."""

    runs: int = 0
    steps: int = 0
    attempts: int = 0


def finalize_stale(engine: Engine, stale_after: float, *, now: int | None = None, in_turn: bool = True) -> Swept:
    """Calls the open rows interrupted that had no heartbeat for ``stale_after`` seconds, by the database's clock.

    They end at their last heartbeat, which is also when they were updated: whatever their process says later wins over
    it. With a run go its open steps and attempts of the same process, also those whose own heartbeat is a moment
    younger. One transaction, safe from any number of processes at once; on PostgreSQL it waits for no row: what
    somebody is writing just now is left to the next sweep.

    ``now`` (microseconds) stands in for the database's clock. Where another sweep is under way, this one waits for it;
    with ``in_turn=False`` it leaves the work to that one.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            if in_turn:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({SWEEP_LOCK})"))
            elif not connection.execute(text(f"SELECT pg_try_advisory_xact_lock({SWEEP_LOCK})")).scalar_one():
                return Swept()
        before = (schema.now(connection) if now is None else now) - round(stale_after * 1_000_000)
        runs = _stale(connection, schema.runs, before)
        _interrupt(connection, schema.runs, [id for id, _ in runs])
        counts = [len(runs)]
        for table in (schema.steps, schema.attempts):
            ids = {id for id, _ in _stale(connection, table, before)} | _open_of(connection, table, dict(runs))
            _interrupt(connection, table, sorted(ids))
            counts.append(len(ids))
    return Swept(*counts)


def _stale(connection: Connection, table: Table, before: int) -> list[tuple[str, str]]:
    """``(id, replica_id)`` of the open rows whose last sign of life was before that; locked."""
    query = (
        select(table.c.id, table.c.replica_id)
        .where(schema.OPEN, func.coalesce(table.c.heartbeat_at, table.c.started_at) < schema.moment(before))
        .order_by(table.c.id)
        .with_for_update(skip_locked=True)  # nothing on SQLite
    )
    return [(id, replica) for id, replica in connection.execute(query)]


def _open_of(connection: Connection, table: Table, runs: dict[str, str]) -> set[str]:
    """The open rows of these runs that were written by the run's own process; locked."""
    found = set()
    ids = sorted(runs)
    for start in range(0, len(ids), IDS_PER_SELECT):
        query = (
            select(table.c.id, table.c.run_id, table.c.replica_id)
            .where(schema.OPEN, table.c.run_id.in_(ids[start : start + IDS_PER_SELECT]))
            .order_by(table.c.id)
            .with_for_update(skip_locked=True)
        )
        found |= {id for id, run, replica in connection.execute(query) if replica == runs[run]}
    return found


def _interrupt(connection: Connection, table: Table, ids: list[str]) -> None:
    last = func.coalesce(table.c.heartbeat_at, table.c.started_at)
    changes: dict[str, Any] = {
        "status": Status.INTERRUPTED,
        "rank": AttemptRank.LEFT,  # the priority of interrupted, for runs and steps: 1 as well
        # All three the same: by this a heartbeat knows a swept row.
        "heartbeat_at": last,
        "updated_at": last,
        "finished_at": last,
        "changed_at": schema.utc_now(),
    }
    if table is schema.attempts:
        changes["end_reason"] = STALE
    for start in range(0, len(ids), IDS_PER_SELECT):
        some = ids[start : start + IDS_PER_SELECT]
        connection.execute(update(table).where(table.c.id.in_(some)).values(changes))
