"""What is too old or too much is removed, and its space comes back: on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from otel_chatdebug.records import Record
from otel_chatdebug.tables import database, merge, migrations, retention, schema
from otel_chatdebug.tables.chores import Keep
from otel_chatdebug.tables.retention import Removed
from tests.support.records import NOW, attempt_content, attempt_record, run_record, step_content, step_record

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR
TABLES = (schema.runs, schema.steps, schema.attempts, schema.step_contents, schema.attempt_contents)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def count(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table.name.removeprefix("chat_debug_"): connection.execute(
                select(func.count()).select_from(table)
            ).scalar_one()
            for table in TABLES
        }


def runs(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(select(schema.runs.c.id)))


def whole_run(name: str, started_at: int, *, size: int = 10_000, **more: Any) -> list[Record]:
    step, attempt = f"step of {name}", f"attempt of {name}"
    return [
        run_record(name, started_at=started_at, **more),
        step_record(step, run_id=name, started_at=started_at),
        attempt_record(attempt, run_id=name, step_id=step, started_at=started_at),
        step_content(step, run_id=name, updated_at=started_at, normalized_request="x" * 1000),
        attempt_content(attempt, run_id=name, step_id=step, updated_at=started_at, request_body=text(size)),
    ]


def text(size: int) -> str:
    """That PostgreSQL cannot compress to nothing."""
    return "".join(str(hash((number, size)) % 10**18) for number in range(size // 18 + 1))[:size]


def now() -> int:
    return time.time_ns() // 1000


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_PER_TRANSACTION", 2)


def test_old_runs_go_with_all_that_belongs_to_them(engine: Engine, small_batches: None) -> None:
    for number in range(5):
        write(engine, *whole_run(f"old {number}", now() - 3 * DAY, finished_at=now() - 3 * DAY + HOUR))
    write(engine, *whole_run("new", now() - HOUR), *whole_run("long", now() - 3 * DAY, finished_at=now() - HOUR))
    write(engine, *whole_run("alive", now() - 3 * DAY))
    before = retention.cutoff(engine, 2 * retention.DAY)
    assert retention.count_old(engine, before) == Removed(5, 5, 5, 10)
    told: list[int] = []
    assert retention.remove_old(engine, before, told=told.append)
    assert told == [2, 2, 1]
    assert runs(engine) == ["alive", "long", "new"]
    assert set(count(engine).values()) == {3}
    assert retention.count_old(engine, before) == Removed()


def test_old_content_whose_run_is_gone_goes_too(engine: Engine, small_batches: None) -> None:
    old = [attempt_content(f"old {number}", updated_at=now() - 3 * DAY) for number in range(3)]
    write(engine, step_content("old", updated_at=now() - 3 * DAY), *old, attempt_content("new", updated_at=now()))
    before = retention.cutoff(engine, 2 * retention.DAY)
    assert retention.count_old(engine, before) == Removed(contents=4)
    assert retention.remove_old(engine, before)
    assert (count(engine)["step_contents"], count(engine)["attempt_contents"]) == (0, 1)


def test_contents_go_before_their_rows(engine: Engine, small_batches: None) -> None:
    for number in range(3):
        write(engine, *whole_run(f"old {number}", now() - 3 * DAY))
    write(engine, *whole_run("new", now()))
    before = retention.cutoff(engine, 2 * retention.DAY)
    assert retention.count_old(engine, None, before) == Removed(contents=6)
    assert retention.remove_old_content(engine, before)
    assert count(engine) == {"runs": 4, "steps": 4, "attempts": 4, "step_contents": 1, "attempt_contents": 1}


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        (Keep(), (2, 2)),
        (Keep(days=2), (1, 1)),
        (Keep(content_days=2), (2, 1)),
        (Keep(days=30, content_days=2), (2, 1)),
        (Keep(days=2, content_days=30), (1, 1)),
        (Keep(days=30, content_days=0), (2, 2)),
        (Keep(max_size=1), (2, 0)),
    ],
)
def test_what_the_settings_keep(bounds: Keep, left: tuple[int, int], engine: Engine) -> None:
    write(engine, *whole_run("old", now() - 3 * DAY, finished_at=now() - 3 * DAY), *whole_run("new", now()))
    assert retention.keep(engine, bounds)
    assert (count(engine)["runs"], count(engine)["attempt_contents"]) == left


def test_a_removal_makes_way_and_goes_on_later(engine: Engine, small_batches: None) -> None:
    for number in range(4):
        write(engine, run_record(str(number), started_at=number, finished_at=number))
    before = retention.cutoff(engine, retention.DAY)
    assert not retention.remove_old(engine, before, stop=lambda: True)
    assert count(engine)["runs"] == 2
    assert retention.remove_old(engine, before)
    assert count(engine)["runs"] == 0


def test_a_transaction_that_takes_long_is_followed_by_a_smaller_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_PER_TRANSACTION", 8)
    monkeypatch.setattr(retention, "TRANSACTION_SECONDS", 0.0)  # each of them
    write(engine, *(run_record(str(number), started_at=number, finished_at=number) for number in range(20)))
    told: list[int] = []
    assert retention.remove_old(engine, NOW, told=told.append)
    assert told == [8, 4, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.slow
def test_writers_are_not_held_up_by_a_large_removal(engine: Engine, database_url: str) -> None:
    """A writer that waits for half a second at most, as ours do, gets its turn all the while."""
    for number in range(0, 3000, 100):
        write(
            engine,
            *(
                record
                for each in range(number, number + 100)
                for record in whole_run(f"{each:04}", NOW - DAY + each, finished_at=NOW - DAY, size=30_000)
            ),
        )
    done, failures, written = threading.Event(), [], 0
    other = database.open_engine(database_url)

    def remove() -> None:
        try:
            retention.remove_old(other, NOW)
            retention.give_back(other, vacuum=True)
        except BaseException as exc:
            failures.append(exc)
        finally:
            done.set()

    thread = threading.Thread(target=remove)
    own = database.open_engine(database_url, busy_seconds=0.5)
    thread.start()
    while not done.is_set():
        write(own, *whole_run(f"new {written}", now(), size=100))
        written += 1
    thread.join()
    other.dispose()
    own.dispose()
    assert failures == []
    assert written > 10
    assert count(engine)["runs"] == written


def test_the_oldest_content_beyond_the_bound_goes_and_its_space_comes_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_PER_TRANSACTION", 10)
    write(engine, *(record for number in range(200) for record in whole_run(f"{number:03}", NOW + number)))
    retention.give_back(engine, vacuum=True)
    bound = 1_500_000
    full = retention.disk_size(engine)
    assert full > bound
    assert retention.keep(engine, Keep(max_size=bound))
    assert retention.give_back(engine, vacuum=True) is None
    left = count(engine)
    assert left["runs"] == left["steps"] == left["attempts"] == 200
    assert 0 < left["attempt_contents"] < 200
    with engine.connect() as connection:
        oldest = connection.execute(select(func.min(schema.attempt_contents.c.updated_at))).scalar_one()
    assert oldest == NOW + 200 - left["attempt_contents"]
    if engine.dialect.name == "sqlite":
        assert retention.disk_size(engine) <= bound + 100_000  # the -wal file's own
    else:  # what is freed at the beginning of a table is used again, and not given back
        assert retention.disk_size(engine) <= full


def test_all_of_it_comes_back_when_all_is_removed(engine: Engine) -> None:
    write(engine, *(record for number in range(200) for record in whole_run(f"{number:03}", NOW + number)))
    full = retention.disk_size(engine)
    retention.remove_old(engine, NOW + DAY + now())
    assert retention.give_back(engine, vacuum=True) is None
    assert retention.disk_size(engine) <= full // 2  # what is left are indexes, and on SQLite an empty -wal file


def test_a_file_of_somebody_elses_keeps_its_free_space_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tables.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE of_the_application (id)")
    connection.close()
    engine = database.open_engine(f"sqlite:///{path}")
    migrations.upgrade(engine)
    write(engine, *(record for number in range(100) for record in whole_run(str(number), NOW)))
    retention.remove_old(engine, NOW + DAY + now())
    told = retention.give_back(engine)
    engine.dispose()
    assert told is not None
    assert "VACUUM" in told
