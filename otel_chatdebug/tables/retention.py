"""Removing what is too old or too much, and giving its space back.

In transactions that take a moment each, with a pause as long after each of them: writers wait for no more than one, on
SQLite, where there is one lock for all, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    delete,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    text,
    union_all,
)

from otel_chatdebug.tables import database, deletion, replicas, schema
from otel_chatdebug.tables.chores import Keep

FEWEST_PER_TRANSACTION, MOST_PER_TRANSACTION = 1, 200
"""Rows of one table that a transaction removes; runs go with all that belongs to them."""

TRANSACTION_SECONDS = 0.1
"""What a transaction should take: one that takes longer is followed by a smaller one, and a quicker one by a larger."""

PAUSE_SECONDS = 0.5
"""The longest pause between two transactions."""

VACUUM_PAGES = 256
"""Pages (4 KiB each) that are given back to the file system at a time."""

CHECKPOINT_MILLISECONDS = 100
"""How long writers may have to wait for the emptying of SQLite's -wal file."""

DAY = 86_400.0
"""Seconds."""

_CONTENTS = (schema.step_contents, schema.attempt_contents)


class Removed(NamedTuple):
    """Numbers of rows. ``contents`` are those of the two content tables."""

    runs: int = 0
    steps: int = 0
    attempts: int = 0
    contents: int = 0


def cutoff(engine: Engine, seconds: float) -> int:
    """The moment that is so long ago, by the database's clock: what is older than that is old."""
    with engine.connect() as connection:
        now: int = connection.execute(select(schema.utc_now())).scalar_one()
    return max(0, now - round(seconds * 1_000_000))


def count_old(engine: Engine, before: int | None, content_before: int | None = None) -> Removed:
    """What `remove_old` up to ``before`` and `remove_old_content` up to ``content_before`` would remove together; None
    for what is not to be removed. Only reads."""
    runs = schema.runs
    old = select(runs.c.id).where(*_old(before or 0))
    with engine.connect() as connection:

        def count(table: Table, which: ColumnElement[bool]) -> int:
            found: int = connection.execute(select(func.count()).select_from(table).where(which)).scalar_one()
            return found

        contents = 0
        for table in _CONTENTS:
            which: list[ColumnElement[bool]] = [false()]
            if before is not None:
                which += [table.c.run_id.in_(old), and_(*_orphans(table, before))]
            if content_before is not None:
                which.append(table.c.updated_at < _time(content_before))
            contents += count(table, or_(*which))
        if before is None:
            return Removed(contents=contents)
        return Removed(
            runs=count(runs, and_(*_old(before))),
            steps=count(schema.steps, schema.steps.c.run_id.in_(old)),
            attempts=count(schema.attempts, schema.attempts.c.run_id.in_(old)),
            contents=contents,
        )


def remove_old(
    engine: Engine,
    before: int,
    *,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int], None] = lambda runs: None,
) -> bool:
    """Removes the runs that ended, or gave their last sign of life, before that moment (microseconds since 1970), with
    all that belongs to them, content that old whose run is gone, and processes that were not heard of since.

    ``told`` hears how many runs each transaction has removed; after it ``stop`` is asked whether to make way: False is
    returned then. Raises what the database raises; what was removed stays removed.
    """
    runs = schema.runs
    oldest = select(runs.c.id).where(*_old(before)).order_by(runs.c.started_at)

    def remove(connection: Connection, most: int) -> int:
        ids = list(connection.scalars(oldest.limit(most)))
        if ids:
            deletion.remove_runs(connection, ids)
        return len(ids)

    if not _in_batches(engine, remove, stop, told):
        return False
    with engine.begin() as connection:
        replicas.remove_old(connection, before)
    return all(_remove_content(engine, table, _orphans(table, before), stop, lambda rows: None) for table in _CONTENTS)


def remove_old_content(
    engine: Engine,
    before: int,
    *,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int], None] = lambda rows: None,
) -> bool:
    """Removes messages, headers and bodies that were last written before that moment. Their runs, steps and attempts
    stay. All else as for `remove_old`."""
    return all(_remove_content(engine, table, (table.c.updated_at < _time(before),), stop, told) for table in _CONTENTS)


def trim_content(engine: Engine, max_size: int, *, stop: Callable[[], bool] = lambda: False) -> bool:
    """Removes the oldest content until what is kept fits into ``max_size`` bytes; runs, steps and attempts stay.

    0 is no bound. Measured is, on SQLite, the database without its free pages (the rest is small beside the content),
    and on PostgreSQL the stored size of the content rows. ``stop`` as in `remove_old`.
    """
    if max_size <= 0:
        return True
    ages = union_all(*(select(table.c.updated_at) for table in _CONTENTS)).subquery()
    oldest = select(ages.c.updated_at).order_by(ages.c.updated_at)

    def remove(connection: Connection, most: int) -> int:
        times = list(connection.scalars(oldest.limit(most))) if _content_size(connection) > max_size else []
        if times:
            for table in _CONTENTS:
                connection.execute(delete(table).where(table.c.updated_at <= _time(times[-1])))
        return len(times)

    return _in_batches(engine, remove, stop, lambda rows: None)


def keep(engine: Engine, bounds: Keep, *, stop: Callable[[], bool] = lambda: False) -> bool:
    """Removes what is beyond the bounds, and gives its space back. ``stop`` as in `remove_old`."""
    done = True
    if bounds.days > 0:
        done = remove_old(engine, cutoff(engine, bounds.days * DAY), stop=stop)
    if done and bounds.content_days > 0 and not 0 < bounds.days <= bounds.content_days:
        done = remove_old_content(engine, cutoff(engine, bounds.content_days * DAY), stop=stop)
    done = done and trim_content(engine, bounds.max_size, stop=stop)
    if done:
        give_back(engine)
    return done


def give_back(engine: Engine, *, vacuum: bool = False) -> str | None:
    """Gives free space back to the file system, a little at a time.

    On PostgreSQL its autovacuum does that; with ``vacuum`` it is done now, as far as the user may: free space at the
    end of the tables goes back, the rest is used again. Returns a sentence where space stays that could go; raises
    nothing: space is no reason to fail.
    """
    try:
        if engine.dialect.name == "sqlite":
            return _give_back_sqlite(engine)
        return _vacuum(engine) if vacuum else None
    except Exception as exc:
        return f"Free space was not given back: {database.diagnose(exc)[1]}."


def disk_size(engine: Engine) -> int:
    """Bytes that the tables take on the disk, free space included (on SQLite: the whole file, and its -wal)."""
    path = database.sqlite_path(engine.url)
    if path is not None:
        parts = (path, path.with_name(path.name + "-wal"))
        return sum(part.stat().st_size for part in parts if part.exists())
    if engine.dialect.name == "sqlite":
        return 0
    sizes = " + ".join(f"pg_total_relation_size('{table.name}')" for table in schema.metadata.sorted_tables)
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT {sizes}")).scalar_one())


def _old(before: int) -> tuple[ColumnElement[bool], ...]:
    runs = schema.runs
    last = func.coalesce(runs.c.finished_at, runs.c.heartbeat_at, runs.c.started_at)
    return runs.c.started_at < _time(before), last < _time(before)


def _orphans(table: Table, before: int) -> tuple[ColumnElement[bool], ...]:
    return table.c.updated_at < _time(before), ~exists().where(schema.runs.c.id == table.c.run_id)


def _remove_content(
    engine: Engine,
    table: Table,
    which: Iterable[ColumnElement[bool]],
    stop: Callable[[], bool],
    told: Callable[[int], None],
) -> bool:
    (key,) = table.primary_key.columns
    oldest = select(key).where(*which).order_by(table.c.updated_at)

    def remove(connection: Connection, most: int) -> int:
        return connection.execute(delete(table).where(key.in_(oldest.limit(most)))).rowcount

    return _in_batches(engine, remove, stop, told)


def _in_batches(
    engine: Engine,
    remove: Callable[[Connection, int], int],
    stop: Callable[[], bool],
    told: Callable[[int], None],
) -> bool:
    """Has ``remove`` called with how many it may remove at most, each time in a transaction, until nothing is left."""
    size = MOST_PER_TRANSACTION
    while True:
        began = time.monotonic()
        removed = deletion.in_turn(engine, remove, size)
        took = time.monotonic() - began
        if removed:
            told(removed)
        if removed < size:
            return True
        size = (
            max(FEWEST_PER_TRANSACTION, size // 2)
            if took > TRANSACTION_SECONDS
            else min(MOST_PER_TRANSACTION, 2 * size)
        )
        if stop():
            return False
        time.sleep(min(took, PAUSE_SECONDS))


def _time(microseconds: int) -> ColumnElement[int]:
    return literal(microseconds, schema.Time())


def _content_size(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        pages, free, page = (_pragma(connection, name) for name in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * page
    sizes = (f"(SELECT coalesce(sum(pg_column_size(t.*)), 0) FROM {table.name} t)" for table in _CONTENTS)
    return int(connection.execute(text(f"SELECT {' + '.join(sizes)}")).scalar_one())


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.execute(text(f"PRAGMA {name}")).scalar_one())


def _give_back_sqlite(engine: Engine) -> str | None:
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        # All outside of a transaction of ours: each piece is one of its own. It steps once for each page, in rows
        # without columns, of which ``execute`` takes the first and no more; ``executescript`` goes on to the end.
        incremental = raw.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
        free = raw.execute("PRAGMA freelist_count").fetchone()[0]
        while incremental and free:
            began = time.monotonic()
            raw.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            before, free = free, raw.execute("PRAGMA freelist_count").fetchone()[0]
            if free >= before:
                break
            time.sleep(min(time.monotonic() - began, PAUSE_SECONDS))
        # The file shrinks when the log is carried over; the log itself, when nobody is reading it.
        patience = raw.execute("PRAGMA busy_timeout").fetchone()[0]
        raw.execute(f"PRAGMA busy_timeout = {CHECKPOINT_MILLISECONDS}")
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        raw.execute(f"PRAGMA busy_timeout = {patience}")
    if free and not incremental:
        return (
            "The database file was not made by otel-chatdebug, so its free space stays in it and is used again. To "
            "make it smaller, run `PRAGMA auto_vacuum = INCREMENTAL; VACUUM;` in it while no application writes."
        )
    return None


def _vacuum(engine: Engine) -> str | None:
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        notices: list[str] = []
        raw: Any = connection.connection.driver_connection
        raw.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        for table in schema.metadata.sorted_tables:
            connection.execute(text(f"VACUUM (ANALYZE) {table.name}"))
    if any("permission" in notice or "only" in notice for notice in notices):
        return "This user may not vacuum the tables: PostgreSQL's autovacuum will do it."
    return None
