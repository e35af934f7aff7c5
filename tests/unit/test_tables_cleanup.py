"""The sweep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from otel_chatdebug.records import AttemptRank, Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import cleanup, database, merge, migrations, schema
from otel_chatdebug.tables.cleanup import Swept
from tests.support.records import NOW, attempt_record, run_record, step_record

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = database.open_engine(f"sqlite:///{tmp_path / 'tables.db'}")
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def row(engine: Engine, table: Any, id: str) -> dict[str, Any]:
    with engine.connect() as connection:
        return dict(connection.execute(select(table).where(table.c.id == id)).mappings().one())


def count(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table.name.removeprefix("chat_debug_"): connection.execute(
                select(func.count()).select_from(table)
            ).scalar_one()
            for table in (schema.runs, schema.steps, schema.attempts, schema.step_contents, schema.attempt_contents)
        }


def last_beat(engine: Engine, at: int) -> None:
    with engine.begin() as connection:
        for table in schema.STATE_TABLES:
            connection.execute(table.update().values(heartbeat_at=at))


def test_the_sweep_ends_open_rows_at_their_last_heartbeat(engine: Engine) -> None:
    write(engine, run_record(), step_record(), attempt_record())
    last_beat(engine, NOW + 5)
    assert cleanup.finalize_stale(engine, 1.0) == Swept(1, 1, 1)
    for table, id in ((schema.runs, "run"), (schema.steps, "step"), (schema.attempts, "attempt")):
        swept = row(engine, table, id)
        assert swept["status"] == "interrupted"
        assert swept["rank"] == 1
        assert swept["updated_at"] == swept["finished_at"] == swept["heartbeat_at"] == NOW + 5
    assert row(engine, schema.attempts, "attempt")["end_reason"] == "stale"


def test_the_sweep_leaves_what_lives_and_what_has_ended(engine: Engine) -> None:
    write(engine, run_record("lives"), run_record("done", status=Status.COMPLETED, rank=3, finished_at=NOW))
    before = row(engine, schema.runs, "done")
    assert cleanup.finalize_stale(engine, 60.0) == Swept(0, 0, 0)
    assert row(engine, schema.runs, "lives")["status"] == "in_progress"
    last_beat(engine, NOW)
    assert cleanup.finalize_stale(engine, 60.0) == Swept(1, 0, 0)
    assert row(engine, schema.runs, "done") == before | {"heartbeat_at": NOW}


def test_a_row_without_a_heartbeat_ends_where_it_started(engine: Engine) -> None:
    write(engine, run_record(started_at=NOW - 7))
    with engine.begin() as connection:
        connection.execute(schema.runs.update().values(heartbeat_at=None))
    assert cleanup.finalize_stale(engine, 1.0).runs == 1
    assert row(engine, schema.runs, "run")["finished_at"] == NOW - 7


@pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.ERROR, Status.COMPLETED])
def test_the_process_has_the_last_word_after_a_sweep(engine: Engine, status: Status) -> None:
    write(engine, run_record(), step_record(), attempt_record())
    last_beat(engine, NOW)
    cleanup.finalize_stale(engine, 1.0)
    later: dict[str, Any] = {"status": status, "updated_at": NOW + 1, "finished_at": NOW + 1}
    rank = AttemptRank.LEFT if status is Status.INTERRUPTED else AttemptRank.FINAL
    write(
        engine,
        run_record(rank=status.priority, **later),
        step_record(rank=status.priority, **later),
        attempt_record(rank=rank, end_reason="run_end", **later),
    )
    for table, id in ((schema.runs, "run"), (schema.steps, "step"), (schema.attempts, "attempt")):
        assert row(engine, table, id)["status"] == status
        assert row(engine, table, id)["finished_at"] == NOW + 1
    assert row(engine, schema.attempts, "attempt")["end_reason"] == "run_end"
