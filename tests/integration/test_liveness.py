"""Who lives and who does not: replica rows, heartbeats, and the sweep of what the dead left open; on both databases."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, select, text

import otel_chatdebug as chatdebug
from otel_chatdebug import lifecycle
from otel_chatdebug.cli import main
from otel_chatdebug.records import AttemptRank, Record
from otel_chatdebug.status import Outcome, Status
from otel_chatdebug.tables import chores, database, liveness, merge, migrations, replicas, schema
from otel_chatdebug.tables.liveness import Swept
from otel_chatdebug.tables.writer import Beat, Writer
from otel_chatdebug.version import __version__
from tests.support.at_once import at_once
from tests.support.records import NOW, attempt_record, run_record, step_record
from tests.support.sources import Live

ROOT = Path(migrations.__file__).parents[3]
SECOND = 1_000_000
PATIENCE = 60.0
"""Seconds that something in the background may take on a busy machine."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def row(engine: Engine, table: Any, id: str) -> dict[str, Any]:
    with engine.connect() as connection:
        return dict(connection.execute(select(table).where(table.c.id == id)).mappings().one())


def all_rows(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for table in schema.STATE_TABLES for row in connection.execute(select(table)).mappings()]


def last_beat(engine: Engine, at: int, *tables: Any) -> None:
    with engine.begin() as connection:
        for table in tables or schema.STATE_TABLES:
            connection.execute(table.update().values(heartbeat_at=at))


def beat(engine: Engine, **ids: list[str]) -> dict[str, Outcome]:
    with engine.begin() as connection:
        return liveness.heartbeat(connection, **ids)


EVERYTHING = {"runs": ["run"], "steps": ["step"], "attempts": ["attempt"]}


class TestSweep:
    def test_ends_open_rows_at_their_last_heartbeat(self, engine: Engine) -> None:
        write(engine, run_record(), step_record(), attempt_record())
        last_beat(engine, NOW + 5)
        assert liveness.finalize_stale(engine, 1.0) == Swept(1, 1, 1)
        for swept in all_rows(engine):
            assert swept["status"] == "interrupted"
            assert swept["rank"] == 1
            assert swept["updated_at"] == swept["finished_at"] == swept["heartbeat_at"] == NOW + 5
            assert swept["changed_at"] > NOW + 5  # live views see it
        assert row(engine, schema.attempts, "attempt")["end_reason"] == "stale"

    def test_goes_by_the_clock_that_it_is_given_and_else_by_the_databases(self, engine: Engine) -> None:
        write(engine, run_record())
        last_beat(engine, NOW)
        assert liveness.finalize_stale(engine, 300.0, now=NOW + 300 * SECOND) == Swept(0, 0, 0)
        assert liveness.finalize_stale(engine, 300.0, now=NOW + 300 * SECOND + 1) == Swept(1, 0, 0)
        write(engine, run_record("new"))  # its heartbeat is the database's clock
        assert liveness.finalize_stale(engine, 300.0) == Swept(0, 0, 0)

    def test_leaves_what_lives_and_what_has_ended(self, engine: Engine) -> None:
        write(engine, run_record("lives"), run_record("done", status=Status.COMPLETED, rank=3, finished_at=NOW))
        before = row(engine, schema.runs, "done")
        assert liveness.finalize_stale(engine, 60.0) == Swept(0, 0, 0)
        assert row(engine, schema.runs, "lives")["status"] == "in_progress"
        last_beat(engine, NOW)
        assert liveness.finalize_stale(engine, 60.0) == Swept(1, 0, 0)
        assert row(engine, schema.runs, "done") == before | {"heartbeat_at": NOW}

    def test_a_row_without_a_heartbeat_ends_where_it_started(self, engine: Engine) -> None:
        write(engine, run_record(started_at=NOW - 7))
        with engine.begin() as connection:
            connection.execute(schema.runs.update().values(heartbeat_at=None))
        assert liveness.finalize_stale(engine, 1.0).runs == 1
        assert row(engine, schema.runs, "run")["finished_at"] == NOW - 7

    def test_with_a_run_go_what_its_process_had_open_in_it(self, engine: Engine) -> None:
        """A step that began after the last beat of the run has a younger heartbeat; what another process works on in
        the same run is that one's."""
        write(engine, run_record(), step_record(), attempt_record())
        write(engine, step_record("theirs", step_number=2, replica_id="another"))
        last_beat(engine, NOW, schema.runs)
        last_beat(engine, NOW + 9 * SECOND, schema.steps, schema.attempts)
        assert liveness.finalize_stale(engine, 10.0, now=NOW + 11 * SECOND) == Swept(1, 1, 1)
        assert row(engine, schema.steps, "step")["finished_at"] == NOW + 9 * SECOND
        assert row(engine, schema.steps, "theirs")["status"] == "in_progress"

    @pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.ERROR, Status.COMPLETED])
    def test_the_process_has_the_last_word(self, engine: Engine, status: Status) -> None:
        """It was only asleep, and says how its run ended."""
        write(engine, run_record(), step_record(), attempt_record())
        last_beat(engine, NOW)
        liveness.finalize_stale(engine, 1.0)
        ended = {"status": status, "updated_at": NOW + 1, "finished_at": NOW + 1}
        write(
            engine,
            run_record(rank=status.priority, **ended),
            step_record(rank=status.priority, **ended),
            attempt_record(rank=AttemptRank.FINAL, end_reason="body_close", **ended),
        )
        assert {(row["status"], row["finished_at"]) for row in all_rows(engine)} == {(status, NOW + 1)}
        assert row(engine, schema.attempts, "attempt")["end_reason"] == "body_close"

    def test_several_at_once_sweep_each_row_once(self, engine: Engine, database_url: str) -> None:
        names = [f"{n:03}" for n in range(300)]
        write(engine, *map(run_record, names))
        last_beat(engine, NOW)
        engines = [database.open_engine(database_url) for _ in range(3)]
        found = at_once([partial(liveness.finalize_stale, each, 1.0) for each in engines])
        assert sum(swept.runs for swept in found) == len(names)
        assert {row["status"] for row in all_rows(engine)} == {"interrupted"}
        for each in engines:
            each.dispose()

    def test_waits_neither_for_a_row_that_is_being_written_nor_for_another_sweep(self, postgres_url: str) -> None:
        """PostgreSQL: whose row is written just now lives; and one sweep in the background is enough."""
        one, other = (database.open_engine(postgres_url, busy_seconds=0.05) for _ in range(2))
        migrations.upgrade(one)
        write(one, run_record("written"), run_record("dead"))
        last_beat(one, NOW)
        with other.begin() as connection:
            connection.execute(schema.runs.update().where(schema.runs.c.id == "written").values(chat_id="c"))
            assert liveness.finalize_stale(one, 1.0) == Swept(1, 0, 0)
        with other.begin() as connection:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({liveness.SWEEP_LOCK})"))
            assert liveness.finalize_stale(one, 1.0, in_turn=False) == Swept(0, 0, 0)
        assert liveness.finalize_stale(one, 1.0, in_turn=False) == Swept(1, 0, 0)
        one.dispose()
        other.dispose()


class TestHeartbeat:
    def test_takes_a_sweep_back(self, engine: Engine) -> None:
        """The process lives: what it says is open, is. Only what was swept; what has ended by itself has ended."""
        write(engine, run_record(), step_record(), attempt_record())
        before = all_rows(engine)
        last_beat(engine, NOW)
        liveness.finalize_stale(engine, 1.0)
        assert beat(engine, **EVERYTHING) == {}
        volatile = {"heartbeat_at": 0, "changed_at": 0, "updated_at": 0}
        assert [row | volatile for row in all_rows(engine)] == [row | volatile for row in before]
        write(engine, run_record(updated_at=NOW + 1, chat_id="goes on"))
        assert row(engine, schema.runs, "run")["chat_id"] == "goes on"

    def test_leaves_an_interruption_that_the_process_itself_has_told(self, engine: Engine) -> None:
        ended = {"rank": 1, "status": Status.INTERRUPTED, "finished_at": NOW}
        write(engine, run_record(**ended), step_record(**ended), attempt_record(end_reason="run_end", **ended))
        before = all_rows(engine)
        beat(engine, **EVERYTHING)
        assert [row | {"heartbeat_at": 0} for row in all_rows(engine)] == [row | {"heartbeat_at": 0} for row in before]

    def test_says_what_it_could_not_touch(self, engine: Engine) -> None:
        write(engine, run_record(), run_record("over", status=Status.COMPLETED, rank=3, finished_at=NOW))
        untouched = beat(engine, runs=["run", "over", "gone"], attempts=["gone too"])
        assert untouched == {
            "over": Outcome.ALREADY_FINISHED,
            "gone": Outcome.NOT_FOUND,
            "gone too": Outcome.NOT_FOUND,
        }


def working_on(run_id: str) -> Callable[[], Beat]:
    """The beat of a process in which one run is open."""
    run = Live(run_record(run_id), queued=False)
    return lambda: Beat([run], runs=[run_id])


def until(holds: Callable[[], bool]) -> None:
    """Comes back when it holds: another process, or another thread, is at work."""
    waiting = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if holds():
            return
        waiting.wait(0.02)
    raise AssertionError("it did not come to be")


class TestInTheBackground:
    """What the writer's thread does by itself."""

    def test_a_process_has_a_row_that_says_who_it_is_and_when_it_ended(self, engine: Engine, database_url: str) -> None:
        told = Beat(service_name="shop", inspection_url="http://127.0.0.1:1/")
        writer = Writer(database_url, replica_id="me", heartbeat_interval=60, beat=lambda: told, stale_after=300)
        writer.start()
        until(lambda: replicas.find(engine, "me") is not None)
        found = replicas.find(engine, "me")
        assert found is not None
        assert (found["host"], found["pid"], found["version"]) == (socket.gethostname(), os.getpid(), __version__)
        assert found["boot_id"] == replicas.boot_id()
        assert (found["service_name"], found["inspection_url"]) == ("shop", "http://127.0.0.1:1/")
        assert found["heartbeat_at"] is not None
        assert found["stopped_at"] is None
        assert [live["id"] for live in replicas.list_live(engine, 60)] == ["me"]
        writer.close()
        ended = replicas.find(engine, "me")
        assert ended is not None
        assert ended["stopped_at"] is not None
        assert ended["inspection_url"] is None
        assert replicas.list_live(engine, 60) == []

    def test_sweeps_the_runs_of_the_dead_and_keeps_its_own(self, engine: Engine, database_url: str) -> None:
        write(engine, run_record("dead", replica_id="another"))
        last_beat(engine, NOW)
        writer = Writer(database_url, replica_id="me", heartbeat_interval=0.1, beat=working_on("mine"), stale_after=30)
        writer.start()
        until(lambda: row(engine, schema.runs, "dead")["status"] == "interrupted")
        first = row(engine, schema.runs, "mine")["heartbeat_at"]
        until(lambda: row(engine, schema.runs, "mine")["heartbeat_at"] > first)
        assert row(engine, schema.runs, "mine")["status"] == "in_progress"
        writer.close()

    def test_the_pace_follows_the_threshold_while_it_runs(self, engine: Engine, database_url: str) -> None:
        """Until then nothing comes for hours."""
        writer = Writer(
            database_url, replica_id="me", heartbeat_interval=9999, beat=working_on("mine"), stale_after=99999
        )
        writer.start()
        until(lambda: replicas.find(engine, "me") is not None and writer.flush(PATIENCE))
        write(engine, run_record("dead", replica_id="another"))
        last_beat(engine, NOW)
        writer.keep_pace(0.6)
        until(lambda: row(engine, schema.runs, "dead")["status"] == "interrupted")
        until(lambda: row(engine, schema.runs, "mine")["heartbeat_at"] > NOW)
        writer.close()

    @pytest.mark.parametrize("stale_after", [0.1, 1.0, 3.0, 300.0, 86400.0])
    def test_a_beat_comes_at_least_twice_within_any_threshold(self, stale_after: float) -> None:
        heart = chores.Heart(Beat, 1.0, "me")
        heart.keep_pace(stale_after)
        assert heart.interval <= stale_after / 2
        assert heart.idle_interval <= stale_after / 2

    def test_who_was_away_gives_the_others_time_to_come_back(self) -> None:
        """After an outage of the database everybody's heartbeats are old."""
        sweeper = chores.Sweeper(300.0)
        assert sweeper.due < 0  # at once
        sweeper.heard_after(140.0)
        assert sweeper.due < 0
        sweeper.heard_after(160.0)
        assert sweeper.due > 0

    def test_a_run_that_is_deleted_meanwhile_is_told_at_debug_level(
        self, engine: Engine, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "otel_chatdebug")
        writer = Writer(database_url, replica_id="me", heartbeat_interval=0.1, beat=lambda: Beat(runs=["deleted"]))
        writer.start()
        until(lambda: "the row deleted, which is open here, could not be touched: not found" in caplog.text)
        writer.close()


APPLICATION = """
import sys
import otel_chatdebug as chatdebug
chatdebug.configure()
with chatdebug.run("chat_turn", chat_id="c") as run, chatdebug.step() as step:
    chatdebug.flush(60)
    print(run.id, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def application(database_url: str, chatdebug_home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a run."""
    environment = {
        **os.environ,
        "OTEL_CHATDEBUG_DATABASE_URL": database_url,
        "OTEL_CHATDEBUG_STALE_AFTER": "3",
        "PYTHONPATH": str(ROOT),
    }
    with subprocess.Popen(
        [sys.executable, "-c", APPLICATION],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_process_that_is_killed_is_swept_and_one_that_was_asleep_goes_on(
    engine: Engine, database_url: str, application: subprocess.Popen[str]
) -> None:
    """First it only sleeps: swept, then alive again, with its run. Then it is killed: swept for good."""

    def status() -> set[str]:
        return {row["status"] for row in all_rows(engine)}

    def sweep() -> bool:
        command = ["sweep", "--json", "--database-url", database_url]
        result = CliRunner().invoke(main, command, env={"OTEL_CHATDEBUG_STALE_AFTER": "3"})
        return bool(json.loads(result.stdout)["runs"])

    assert application.stdout is not None
    run_id = application.stdout.readline().strip()
    assert status() == {"in_progress"}
    application.send_signal(signal.SIGSTOP)
    until(sweep)
    assert status() == {"interrupted"}
    application.send_signal(signal.SIGCONT)
    until(lambda: status() == {"in_progress"})
    application.kill()
    until(sweep)
    assert status() == {"interrupted"}
    swept = row(engine, schema.runs, run_id)
    assert swept["finished_at"] == swept["heartbeat_at"]
    found = replicas.find(engine, swept["replica_id"])
    assert found is not None
    assert (found["pid"], found["stopped_at"]) == (application.pid, None)


def test_the_public_functions(database_url: str, engine: Engine, chatdebug_home: Path) -> None:
    """The threshold is changed, and the place where this process can be asked is told, while recording goes on."""
    chatdebug.configure(database_url=database_url)
    try:
        chatdebug.set_stale_after(10)
        lifecycle.set_inspection_url("http://127.0.0.1:1/me")
        until(lambda: any(live["inspection_url"] for live in replicas.list_live(engine, 60)))
        with pytest.raises(ValueError, match="number of seconds"):
            chatdebug.set_stale_after(0)
    finally:
        lifecycle.set_inspection_url(None)
        chatdebug.shutdown()
    assert replicas.list_live(engine, 60) == []
