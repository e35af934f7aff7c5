"""The sweep, retention and the bound on content."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from otel_chatdebug.records import AttemptRank, Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import cleanup, database, merge, migrations, schema
from otel_chatdebug.tables.cleanup import Swept
from tests.support.records import NOW, attempt_content, attempt_record, run_record, step_content, step_record

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


def whole_run(name: str, started_at: int, **more: Any) -> list[Record]:
    step, attempt = f"step of {name}", f"attempt of {name}"
    return [
        run_record(name, started_at=started_at, **more),
        step_record(step, run_id=name, started_at=started_at),
        attempt_record(attempt, run_id=name, step_id=step, started_at=started_at),
        step_content(step, run_id=name, updated_at=started_at, normalized_request="x" * 1000),
        attempt_content(attempt, run_id=name, step_id=step, updated_at=started_at, request_body="x" * 10_000),
    ]


def test_old_runs_go_with_all_that_belongs_to_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "RUNS_PER_TRANSACTION", 2)
    now = time.time_ns() // 1000
    for number in range(5):
        write(engine, *whole_run(f"old {number}", now - 3 * DAY, finished_at=now - 3 * DAY + HOUR))
    write(engine, *whole_run("new", now - HOUR), *whole_run("long", now - 3 * DAY, finished_at=now - HOUR))
    write(engine, *whole_run("alive", now - 3 * DAY))
    assert cleanup.remove_old(engine, 2.0)
    assert set(count(engine).values()) == {3}
    assert row(engine, schema.runs, "long")
    assert row(engine, schema.runs, "alive")
    assert row(engine, schema.runs, "new")


def test_old_content_whose_run_is_gone_goes_too(engine: Engine) -> None:
    now = time.time_ns() // 1000
    write(engine, step_content("old", updated_at=now - 3 * DAY), attempt_content("new", updated_at=now))
    assert cleanup.remove_old(engine, 2.0)
    assert (count(engine)["step_contents"], count(engine)["attempt_contents"]) == (0, 1)


def test_no_retention_keeps_all(engine: Engine) -> None:
    write(engine, *whole_run("old", 0, finished_at=1))
    assert cleanup.remove_old(engine, 0)
    assert cleanup.trim_content(engine, 0)
    assert set(count(engine).values()) == {1}


def test_a_removal_makes_way_and_goes_on_later(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "RUNS_PER_TRANSACTION", 2)
    for number in range(4):
        write(engine, run_record(str(number), started_at=number, finished_at=number))
    assert not cleanup.remove_old(engine, 1.0, stop=lambda: True)
    assert count(engine)["runs"] == 2
    assert cleanup.remove_old(engine, 1.0)
    assert count(engine)["runs"] == 0


def test_the_oldest_content_beyond_the_bound_goes_and_its_space_comes_back(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "CONTENTS_PER_TRANSACTION", 10)
    for number in range(200):
        write(engine, *whole_run(f"{number:03}", NOW + number))
    bound = 1_500_000

    def size() -> int:
        with engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.exec_driver_sql("BEGIN")
        return (tmp_path / "tables.db").stat().st_size

    assert size() > bound
    assert cleanup.trim_content(engine, bound)
    assert size() <= bound
    left = count(engine)
    assert left["runs"] == left["steps"] == left["attempts"] == 200
    assert 0 < left["attempt_contents"] < 200
    with engine.connect() as connection:
        oldest = connection.execute(select(func.min(schema.attempt_contents.c.updated_at))).scalar_one()
    assert oldest == NOW + 200 - left["attempt_contents"]
