"""The sweep: rows that dead processes left open are told so."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, func, literal, select, update

from otel_chatdebug.records import AttemptRank
from otel_chatdebug.status import Status
from otel_chatdebug.tables import schema


class Swept(NamedTuple):
    """How many rows a sweep has called interrupted."""

    runs: int
    steps: int
    attempts: int


def finalize_stale(engine: Engine, stale_after: float) -> Swept:
    """Calls the open rows interrupted that had no heartbeat for ``stale_after`` seconds, by the database's clock.

    They end at their last heartbeat, which is also when they were updated: whatever their process says later wins
    over it. One transaction.
    """
    swept = []
    with engine.begin() as connection:
        before = _now(connection) - round(stale_after * 1_000_000)
        for table in schema.STATE_TABLES:
            last = func.coalesce(table.c.heartbeat_at, table.c.started_at)
            changes: dict[str, Any] = {
                "status": Status.INTERRUPTED,
                "rank": AttemptRank.LEFT,  # the priority of interrupted, for runs and steps: 1 as well
                "updated_at": last,
                "finished_at": last,
                "changed_at": schema.utc_now(),
            }
            if table is schema.attempts:
                changes["end_reason"] = "stale"
            result = connection.execute(update(table).where(schema.OPEN, last < _time(before)).values(changes))
            swept.append(result.rowcount)
    return Swept(*swept)


def _time(microseconds: int) -> ColumnElement[int]:
    return literal(microseconds, schema.Time())


def _now(connection: Connection) -> int:
    now: int = connection.execute(select(schema.utc_now())).scalar_one()
    return now
