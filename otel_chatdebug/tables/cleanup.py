"""What time does to rows: the sweep of those left open, and the removal of what is too old or too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, func, literal, select, text, union_all, update

from otel_chatdebug.records import AttemptRank
from otel_chatdebug.status import Status
from otel_chatdebug.tables import schema

RUNS_PER_TRANSACTION = 200
"""Runs that one transaction removes with all that belongs to them; others wait for the lock meanwhile."""

CONTENTS_PER_TRANSACTION = 200
"""The same for the rows of the two content tables."""

DAY = 86_400 * 1_000_000
"""Microseconds."""

_CONTENTS = (schema.step_contents, schema.attempt_contents)
_CHILDREN = (schema.steps, schema.attempts, *_CONTENTS)


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


def remove_old(engine: Engine, retention_days: float, *, stop: Callable[[], bool] = lambda: False) -> bool:
    """Removes the runs that ended, or gave their last sign of life, more than ``retention_days`` ago, with all that
    belongs to them, and content that old whose run is gone. 0 keeps all.

    In several transactions, between which ``stop`` is asked whether to make way: False is returned then.
    """
    if retention_days <= 0:
        return True
    runs = schema.runs
    with engine.begin() as connection:
        before = _time(_now(connection) - round(retention_days * DAY))
    last = func.coalesce(runs.c.finished_at, runs.c.heartbeat_at, runs.c.started_at)
    oldest = (
        select(runs.c.id)
        .where(runs.c.started_at < before, last < before)
        .order_by(runs.c.started_at)
        .limit(RUNS_PER_TRANSACTION)
    )
    while True:
        with engine.begin() as connection:
            ids = list(connection.scalars(oldest))
            if ids:
                for table in _CHILDREN:
                    connection.execute(delete(table).where(table.c.run_id.in_(ids)))
                connection.execute(delete(runs).where(runs.c.id.in_(ids)))
            else:
                for table in _CONTENTS:
                    orphan = ~exists().where(runs.c.id == table.c.run_id)
                    connection.execute(delete(table).where(table.c.updated_at < before, orphan))
        if len(ids) < RUNS_PER_TRANSACTION:
            _give_back(engine)
            if not ids:
                return True
        if stop():
            return False


def trim_content(engine: Engine, max_size: int, *, stop: Callable[[], bool] = lambda: False) -> bool:
    """Removes the oldest content until what is kept fits into ``max_size`` bytes; runs, steps and attempts stay.

    0 is no bound. Measured is, on SQLite, the database without its free pages (the rest is small beside the content),
    and on PostgreSQL the stored size of the content rows. Transactions and ``stop`` as in `remove_old`.
    """
    if max_size <= 0:
        return True
    ages = union_all(*(select(table.c.updated_at) for table in _CONTENTS)).subquery()
    oldest = select(ages.c.updated_at).order_by(ages.c.updated_at).limit(CONTENTS_PER_TRANSACTION)
    while True:
        with engine.begin() as connection:
            times = list(connection.scalars(oldest)) if _size(connection) > max_size else []
            if times:
                for table in _CONTENTS:
                    connection.execute(delete(table).where(table.c.updated_at <= _time(times[-1])))
        if not times:
            return True
        _give_back(engine)
        if stop():
            return False


def _time(microseconds: int) -> ColumnElement[int]:
    return literal(microseconds, schema.Time())


def _now(connection: Connection) -> int:
    now: int = connection.execute(select(schema.utc_now())).scalar_one()
    return now


def _size(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        pages, free, page = (
            connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page)
    sizes = (f"(SELECT coalesce(sum(pg_column_size(t.*)), 0) FROM {table.name} t)" for table in _CONTENTS)
    return int(connection.execute(text(f"SELECT {' + '.join(sizes)}")).scalar_one())


def _give_back(engine: Engine) -> None:
    """Gives freed pages back to the file system (SQLite). PostgreSQL's autovacuum does its own."""
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        # Outside of a transaction of ours. It steps once for each page, in rows without columns, of which ``execute``
        # takes the first and no more; ``executescript`` goes on to the end.
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.executescript("PRAGMA incremental_vacuum")
