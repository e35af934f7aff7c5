"""The thread that writes: what it promises about rows, troubles, time and leftovers."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from otel_chatdebug import settings
from otel_chatdebug.tables import chores, database, forks, migrations, opened, queries, spool, troubles
from otel_chatdebug.tables import writer as tables_writer
from otel_chatdebug.tables.spool import Spool
from otel_chatdebug.tables.writer import Beat, Keep, Writer
from tests.support import leaks
from tests.support.records import NOW, attempt_content, attempt_record, ended_run, run_record, step_content, step_record
from tests.support.sources import Live

SOON = 10.0
"""Seconds that a test waits for what must come, on a machine that others use, too."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tables.db"


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Writer]]:
    """Makes writers, by default to ``path``, that have ended after the test, with no thread and no file left."""
    made: list[Writer] = []

    def make(url: str = f"sqlite:///{path}", **options: Any) -> Writer:
        defaults: dict[str, Any] = {"replica_id": "replica", "heartbeat_interval": 3600.0, "beat": Beat}
        made.append(Writer(url, **(defaults | options)))
        return made[-1]

    with leaks.no_leaks():
        yield make
        for each in made:
            each.close(1.0)


@pytest.fixture
def fast_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(troubles, "BACKOFF_FIRST", 0.001)
    monkeypatch.setattr(troubles, "BACKOFF_MOST", 0.01)


def ids(path: Path, table: str = "runs") -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [id for (id,) in connection.execute(f"SELECT id FROM chat_debug_{table} ORDER BY id")]
    finally:
        connection.close()


def locked(path: Path) -> sqlite3.Connection:
    """Another connection, which holds the write lock until it is closed."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def wait_for(what: Callable[[], object]) -> None:
    ends = time.monotonic() + SOON
    while not what():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.005)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_put_is_written_when_flush_returns(make: Callable[..., Writer], path: Path) -> None:
    writer = make()
    source = Live(run_record(), step_record(), attempt_record(), step_content(), attempt_content())
    writer.put(source)
    assert writer.flush(SOON)
    assert not source.queued
    assert ids(path) == ["run"]
    assert ids(path, "steps") == ["step"]
    assert ids(path, "attempts") == ["attempt"]
    assert writer.stats.written == 5
    assert writer.stats.last_write_seconds is not None


def test_nothing_is_opened_before_the_first_put(make: Callable[..., Writer], path: Path) -> None:
    writer = make()
    assert writer.flush(SOON)
    assert writer.close()
    assert not path.exists()


def test_close_writes_what_waits_and_can_be_repeated(make: Callable[..., Writer], path: Path) -> None:
    writer = make()
    for number in range(1000):
        writer.put(Live(run_record(f"{number:04}")))
    assert writer.close()
    assert writer.close()
    assert len(ids(path)) == 1000


def test_what_is_put_after_close_is_counted_and_starts_nothing(make: Callable[..., Writer], path: Path) -> None:
    writer = make()
    writer.close()
    late = Live(run_record())
    writer.put(late)
    assert not late.queued
    assert writer.stats.dropped == 1
    assert writer.flush(0)
    assert not path.exists()


def test_fifty_writers_leave_no_thread_and_no_descriptor(path: Path) -> None:
    with leaks.no_leaks():
        for number in range(50):
            writer = Writer(f"sqlite:///{path}", replica_id="r", heartbeat_interval=9, beat=Beat)
            writer.put(Live(run_record(str(number))))
            assert writer.close()
    assert len(ids(path)) == 50


def test_a_relative_path_means_the_folder_that_was_current_when_the_writer_was_made(
    make: Callable[..., Writer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    writer = make("sqlite:///here.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    writer.put(Live(run_record()))
    assert writer.close()
    assert ids(tmp_path / "here.db") == ["run"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_only_the_user_may_read_what_is_recorded(
    umask: int, make: Callable[..., Writer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default folder is made with mode 0700; the database, its -wal and its -shm with 0600."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = os.umask(umask)
    try:
        writer = make(settings.default_database_url())
        writer.put(Live(run_record()))
        assert writer.flush(SOON)
    finally:
        os.umask(before)
    folder = settings.state_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"chatdebug.db": 0o600, "chatdebug.db-wal": 0o600, "chatdebug.db-shm": 0o600}


def test_the_first_start_in_a_new_place_is_told_once(
    make: Callable[..., Writer], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        writer = make()
        writer.put(Live(run_record()))
        writer.close()
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(path) in message
    assert "OTEL_CHATDEBUG_ENABLED=never" in message


def test_the_thread_is_not_instrumented(make: Callable[..., Writer]) -> None:
    seen: list[bool] = []
    writer = make()
    writer.put(Live(run_record(), before=lambda: seen.append(is_instrumentation_enabled())))
    writer.flush(SOON)
    assert seen == [False]


def test_an_application_that_logs_its_sql_does_not_log_ours(
    make: Callable[..., Writer], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "sqlalchemy.engine"), caplog.at_level(logging.DEBUG, "sqlalchemy.pool"):
        writer = make()
        writer.put(Live(run_record(chat_id="secret")))
        writer.close()
    assert not [record for record in caplog.records if record.name.startswith("sqlalchemy")]


def test_a_source_that_raises_hurts_no_other(make: Callable[..., Writer], path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("a defect of ours")

    writer = make()
    writer.put(Live(run_record("bad"), before=fail))
    writer.put(Live(run_record("good")))
    assert writer.flush(SOON)
    assert ids(path) == ["good"]
    assert writer.stats.failed == 1


def test_a_record_that_cannot_be_written_is_dropped_alone_and_told_once(
    make: Callable[..., Writer], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    good = [run_record(f"{number:03}") for number in range(99)]
    bad = [run_record("bad time", started_at=10**30), run_record("no kind", kind=None)]
    writer.put(Live(*good[:20], bad[0], *good[20:70], bad[1], *good[70:]))
    assert writer.flush(SOON)
    assert ids(path) == [record.id for record in good]
    assert writer.stats.dropped == 2
    told = warnings(caplog)
    assert len(told) == 2
    assert any("bad time" in line for line in told)
    assert any("no kind" in line for line in told)


def test_a_beat_writes_what_has_moved_and_the_heartbeats(make: Callable[..., Writer], path: Path) -> None:
    beats = iter(range(1, 1000))

    def beat() -> Beat:
        moved = attempt_record(updated_at=NOW + next(beats), bytes_received=77)
        return Beat([Live(moved, queued=False)], runs=["run", "nobody"], steps=["step"], attempts=["attempt"])

    writer = make(heartbeat_interval=0.01, beat=beat)
    writer.put(Live(run_record(), step_record(), attempt_record()))
    assert writer.flush(SOON)
    engine = queries.open_for_reading(f"sqlite:///{path}")

    def run() -> dict[str, Any]:
        return queries.load_run(engine, "run")

    first = run()
    wait_for(lambda: run()["heartbeat_at"] > first["heartbeat_at"])
    wait_for(lambda: run()["steps"][0]["heartbeat_at"] > first["steps"][0]["heartbeat_at"])
    wait_for(lambda: run()["steps"][0]["attempts"][0]["bytes_received"] == 77)
    assert run()["updated_at"] == first["updated_at"]
    engine.dispose()
    assert ids(path) == ["run"]


@pytest.mark.usefixtures("fast_backoff")
def test_what_moves_while_nothing_can_be_written_waits_once(make: Callable[..., Writer], path: Path) -> None:
    """However many beats come meanwhile: else they would push out what has ended, and be counted as lost."""
    came = threading.Semaphore(0)
    stream = Live(run_record("stream"), queued=False)

    def beat() -> Beat:
        came.release()
        return Beat([stream])

    writer = make(heartbeat_interval=0.001, beat=beat)
    writer.put(Live(run_record("first")))
    assert writer.flush(SOON)
    other = locked(path)
    for _ in range(50):
        assert came.acquire(timeout=SOON)
    assert writer.stats.queue_length <= 1
    other.close()
    assert writer.flush(SOON)
    wait_for(lambda: ids(path) == ["first", "stream"])
    assert writer.stats.dropped == 0


def test_beats_come_in_steady_traffic_too(make: Callable[..., Writer]) -> None:
    came = threading.Semaphore(0)
    busy = threading.Event()

    def beat() -> Beat:
        came.release()
        return Beat()

    writer = make(heartbeat_interval=0.2, beat=beat)

    def produce() -> None:
        while not busy.wait(0.001):
            writer.put(Live(run_record()))

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for _ in range(3):
            assert came.acquire(timeout=SOON)
    finally:
        busy.set()
        producer.join()


def test_where_nothing_is_open_a_beat_writes_nothing(make: Callable[..., Writer], path: Path) -> None:
    came = threading.Semaphore(0)

    def beat() -> Beat:
        came.release()
        return Beat()

    writer = make(heartbeat_interval=0.01, beat=beat)
    writer.put(Live(run_record()))
    assert writer.flush(SOON)
    reader = sqlite3.connect(path)
    before = reader.execute("PRAGMA data_version").fetchone()  # changes when another connection has committed
    for _ in range(6):
        assert came.acquire(timeout=SOON)
    after = reader.execute("PRAGMA data_version").fetchone()
    reader.close()
    assert after == before


@pytest.mark.usefixtures("fast_backoff")
def test_a_locked_database_is_told_once_and_written_when_the_lock_is_gone(
    make: Callable[..., Writer], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    writer.put(Live(run_record("first")))
    assert writer.flush(SOON)
    other = locked(path)
    writer.put(Live(run_record("second")))
    wait_for(lambda: warnings(caplog))
    assert not writer.flush(0.2)
    other.close()
    assert writer.flush(SOON)
    assert ids(path) == ["first", "second"]
    (told,) = warnings(caplog)
    assert "another connection holds its lock" in told


@pytest.mark.usefixtures("fast_backoff")
def test_a_missing_folder_is_told_once_and_used_when_it_is_there(
    make: Callable[..., Writer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make(f"sqlite:///{tmp_path}/missing/tables.db")
    writer.put(Live(run_record()))
    wait_for(lambda: warnings(caplog))
    (told,) = warnings(caplog)
    assert "its folder is missing: create it" in told
    assert not (tmp_path / "missing").exists()
    (tmp_path / "missing").mkdir()
    assert writer.flush(SOON)
    assert ids(tmp_path / "missing" / "tables.db") == ["run"]


@pytest.mark.usefixtures("fast_backoff")
def test_a_read_only_database_is_told_once(
    make: Callable[..., Writer], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sqlite3.connect(path).close()
    path.touch()
    writer = make(f"sqlite:///file:{path}?mode=ro&uri=true")  # file modes do not stop a test that runs as root
    writer.put(Live(run_record()))
    wait_for(lambda: warnings(caplog))
    assert not writer.flush(0.1)
    (told,) = warnings(caplog)
    assert "read-only" in told


@pytest.mark.usefixtures("fast_backoff")
def test_a_file_that_is_no_database_is_told_once_and_left_as_it_is(
    make: Callable[..., Writer], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("Dear diary, " * 1000)
    writer = make()
    writer.put(Live(run_record()))
    wait_for(lambda: warnings(caplog))
    assert not writer.flush(0.1)
    (told,) = warnings(caplog)
    assert "no SQLite database" in told
    assert path.read_text() == "Dear diary, " * 1000


@pytest.mark.usefixtures("fast_backoff")
def test_a_full_disk_is_told_once_and_written_when_there_is_room(
    make: Callable[..., Writer], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    writer.put(Live(run_record()))
    assert writer.flush(SOON)
    full = f"PRAGMA max_page_count = {writer._database.raw.execute('PRAGMA page_count').fetchone()[0]}"
    writer._database.raw.execute(full)
    on_connect = writer._database._connected

    def connected(connection: Any, record: object) -> None:
        on_connect(connection, record)
        if room.is_set():
            return
        connection.execute(full)

    room = threading.Event()
    writer._database._connected = connected  # type: ignore[method-assign]
    writer.put(Live(attempt_content(request_body="x" * 1_000_000)))
    wait_for(lambda: warnings(caplog))
    (told,) = warnings(caplog)
    assert "the disk is full" in told
    room.set()
    assert writer.flush(SOON)
    assert len(warnings(caplog)) == 1
    assert writer.stats.dropped == 0


def test_a_newer_schema_is_refused_once_with_both_versions(
    make: Callable[..., Writer], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {migrations.VERSION_TABLE} (version_num TEXT)")
    connection.execute(f"INSERT INTO {migrations.VERSION_TABLE} VALUES ('9999')")
    connection.commit()
    connection.close()
    writer = make()
    for _ in range(3):
        writer.put(Live(run_record()))
        assert writer.flush(SOON)
    assert writer.stats.dropped == 3
    assert writer._thread is not None
    thread = writer._thread
    wait_for(lambda: not thread.is_alive())  # there is nothing for it to do any more
    (told,) = warnings(caplog)
    assert "9999" in told
    assert migrations.HEAD in told


@pytest.mark.parametrize(
    "url", ["", "chatdebug.db", "mysql://root:secret@host/db", "postgresql://host:secret/db", "sqlite://secret/x.db"]
)
def test_a_bad_url_is_one_warning_without_what_stands_in_it(
    url: str, make: Callable[..., Writer], caplog: pytest.LogCaptureFixture
) -> None:
    writer = make(url)
    for _ in range(3):
        writer.put(Live(run_record()))
        assert writer.flush(SOON)
    assert writer.stats.dropped == 3
    (told,) = warnings(caplog)
    assert "OTEL_CHATDEBUG_DATABASE_URL" in told
    assert "secret" not in told


def test_a_missing_driver_is_named_with_the_extra_that_has_it(
    make: Callable[..., Writer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    writer = make("postgresql://user:secret@127.0.0.1/db")
    writer.put(Live(run_record()))
    assert writer.flush(SOON)
    (told,) = warnings(caplog)
    assert "otel-chatdebug[postgres]" in told
    assert "secret" not in told


@pytest.mark.usefixtures("fast_backoff")
def test_memory_is_bounded_and_what_is_in_progress_is_dropped_first(
    make: Callable[..., Writer], path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    writer.put(Live(run_record("first")))
    assert writer.flush(SOON)
    monkeypatch.setattr("otel_chatdebug.tables.backlog.MAX_QUEUE", 10)
    monkeypatch.setattr("otel_chatdebug.tables.writer.BATCH", 1)
    other = locked(path)
    writer.put(Live(run_record("in work")))
    wait_for(lambda: len(writer._batch))
    final_ones = [Live(ended_run(f"final {number}"), final=True) for number in range(10)]
    open_ones = [Live(run_record(f"open {number}")) for number in range(30)]
    # The first final ones are older than any in progress, and stay all the same.
    for source in final_ones[:5] + open_ones[:5] + final_ones[5:] + open_ones[5:]:
        writer.put(source)
    assert writer.stats.queue_length <= 20
    wait_for(lambda: writer.stats.queue_length == 10)
    assert writer.stats.dropped == 30
    assert not any(source.queued for source in open_ones)
    other.close()
    assert writer.flush(SOON)
    assert ids(path) == sorted([f"final {number}" for number in range(10)] + ["first", "in work"])
    assert len([line for line in warnings(caplog) if "dropped" in line]) == 1


def test_close_ends_within_its_time_while_another_holds_the_lock(
    make: Callable[..., Writer], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    writer.put(Live(run_record("first")))
    assert writer.flush(SOON)
    other = locked(path)
    writer.put(Live(run_record("second")))
    assert not writer.close(2.0)
    assert writer._thread is not None
    assert not writer._thread.is_alive()  # though one statement may wait for the lock for a second
    assert writer.stats.dropped == 1
    assert any("dropped 1 records" in line for line in warnings(caplog))
    other.close()
    assert ids(path) == ["first"]


def test_a_close_whose_time_is_over_reads_no_more_sources(make: Callable[..., Writer]) -> None:
    """Reading them, redaction, may be what takes the time."""
    first_is_read, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        first_is_read.set()
        assert go_on.wait(SOON)

    writer = make()
    read: list[int] = []
    writer.put(Live(run_record(), before=slow))
    for number in range(5):
        writer.put(Live(run_record(), before=partial(read.append, number)))
    assert first_is_read.wait(SOON)
    assert not writer.close(0.05)
    go_on.set()
    wait_for(lambda: writer._stopped.is_set())
    assert read == []
    assert writer.stats.dropped == 5


def test_a_close_keeps_what_waits_though_the_thread_is_in_a_call_that_does_not_return(
    make: Callable[..., Writer], path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Importing on a machine that is busy, a folder on a network that is gone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    opening, go_on = threading.Event(), threading.Event()
    upgrade = migrations.upgrade

    def stuck(engine: Any) -> Any:
        opening.set()
        assert go_on.wait(SOON)
        return upgrade(engine)

    writer = make()
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "upgrade", stuck)
        for number in range(3):
            writer.put(Live(ended_run(str(number)), final=True))
        assert opening.wait(SOON)
        writer.put(Live(ended_run("later"), final=True))
        assert not writer.close(2.0)
        assert writer.flush(SOON)
        assert (writer.stats.spooled, writer.stats.dropped) == (4, 0)
        go_on.set()
        wait_for(lambda: writer._thread is not None and not writer._thread.is_alive())
    assert ids(path) == []  # the thread, come back, wrote nothing of it
    other = make()
    other.start()
    wait_for(lambda: other.stats.written == 4)
    assert ids(path) == ["0", "1", "2", "later"]


def test_a_close_keeps_what_waits_though_the_database_is_opened_only_when_its_time_is_over(
    make: Callable[..., Writer], path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    opening = threading.Event()
    upgrade = migrations.upgrade
    writer = make()

    def late(engine: Any) -> Any:
        opening.set()
        wait_for(writer._late)
        return upgrade(engine)

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "upgrade", late)
        for number in range(3):
            writer.put(Live(ended_run(str(number)), final=True))
        assert opening.wait(SOON)
        writer.close(2.0)
    assert (writer.stats.spooled, writer.stats.dropped) == (3, 0)
    other = make()
    other.start()
    wait_for(lambda: other.stats.written == 3)
    assert ids(path) == ["0", "1", "2"]


def test_the_database_stays_closed_between_the_forks_of_a_pool(
    make: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each but the first waits for a connection that is being opened, a second where that takes long."""
    monkeypatch.setattr(forks, "BURST_SECONDS", SOON)
    writer = make()
    writer.put(Live(run_record()))
    assert writer.flush(SOON)
    opened_again = []
    engine = writer._database.engine
    monkeypatch.setattr(writer._database, "engine", lambda: opened_again.append(None) or engine())
    writer.put(Live(run_record("while it forks")))
    for _ in range(3):
        writer.pause()
        assert writer._database.raw is None
        writer.resume()
    assert opened_again == []
    assert writer.flush(SOON)  # which does not wait for the next fork
    assert opened_again != []


def test_what_another_process_spools_is_written_with_the_next_heartbeat(
    make: Callable[..., Writer], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by one in which nothing happens: the parent of a pool, whose children come and go."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    writer = make(heartbeat_interval=0.01)
    writer.put(Live(run_record("mine")))
    assert writer.flush(SOON)
    for number in range(3):
        Spool(f"sqlite:///{path}", 10**6).keep([ended_run(f"theirs {number}")])
        wait_for(lambda number=number: f"theirs {number}" in ids(path))  # type: ignore[misc]


def test_what_a_process_was_taking_up_when_it_died_is_written_when_its_claim_has_lapsed(
    make: Callable[..., Writer], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(spool, "CLAIM_SECONDS", 0.2)
    monkeypatch.setattr(chores, "CLAIM_SECONDS", 0.2)
    left = Spool(f"sqlite:///{path}", 10**6)
    left.keep([ended_run("theirs")])
    with contextlib.closing(sqlite3.connect(left.path)) as connection, connection:
        connection.execute("UPDATE records SET claim = 'of a dead one', claimed_at = ?", (time.time(),))
    past = time.time() - 60
    os.utime(left.path, (past, past))
    writer = make(heartbeat_interval=0.01)
    writer.put(Live(run_record("mine")))
    assert writer.flush(SOON)
    wait_for(lambda: ids(path) == ["mine", "theirs"])


def test_a_fork_waits_for_imports_until_all_are_done_also_where_the_first_opening_failed(
    make: Callable[..., Writer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_backoff: None
) -> None:
    monkeypatch.setattr(forks, "FORK_SECONDS", 0.0)
    importing, imported = threading.Event(), threading.Event()

    def load() -> None:
        importing.set()
        assert imported.wait(SOON)

    monkeypatch.setattr(tables_writer, "_load", load)
    writer = make(f"sqlite:///{tmp_path / 'missing' / 'tables.db'}")
    writer.put(Live(run_record()))
    assert importing.wait(SOON)
    forking = threading.Thread(target=writer.pause)
    forking.start()
    forking.join(0.2)
    assert forking.is_alive()
    imported.set()
    forking.join(SOON)
    assert not forking.is_alive()
    writer.resume()


def test_close_interrupts_a_statement_that_does_not_end(make: Callable[..., Writer], path: Path) -> None:
    writer = make()
    writer.put(Live(run_record()))
    assert writer.flush(SOON)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    running = threading.Event()

    def run_endless() -> None:
        running.set()
        writer._database.raw.execute(endless)

    writer.put(Live(run_record("second"), before=run_endless))
    assert running.wait(SOON)
    assert writer.close(1.0) in (True, False)
    assert writer._thread is not None
    assert not writer._thread.is_alive()


def test_a_file_that_is_removed_is_made_anew(make: Callable[..., Writer], path: Path) -> None:
    writer = make()
    writer.put(Live(run_record("first")))
    assert writer.flush(SOON)
    for file in path.parent.iterdir():
        file.unlink()
    writer.put(Live(run_record("second")))
    assert writer.flush(SOON)
    assert ids(path) == ["second"]


def test_put_needs_no_lock_of_threading_or_logging(make: Callable[..., Writer], path: Path) -> None:
    """A finalizer may run in the middle of their locked sections. Here another thread holds the locks meanwhile."""
    writer = make()
    returned = threading.Event()
    held = threading.Event()

    def put() -> None:
        assert held.wait(SOON)
        writer.put(Live(run_record()))
        returned.set()

    thread = threading.Thread(target=put)
    thread.start()
    names = ("_active_limbo_lock", "_shutdown_locks_lock")  # the second one is gone in Python 3.13
    with contextlib.ExitStack() as locks:
        for lock in [getattr(threading, name) for name in names if hasattr(threading, name)]:
            locks.enter_context(lock)
        locks.enter_context(logging._lock)  # type: ignore[attr-defined]
        held.set()
        came_back = returned.wait(SOON)
    thread.join()
    assert came_back
    assert writer.flush(SOON)
    assert ids(path) == ["run"]


def test_old_rows_are_removed_at_the_start(make: Callable[..., Writer], path: Path) -> None:
    day = 86_400 * 1_000_000
    now = time.time_ns() // 1000
    first = make()
    first.put(Live(run_record("old", started_at=now - 3 * day, finished_at=now - 3 * day), run_record("new")))
    first.put(Live(run_record("new", started_at=now)))
    assert first.close()
    second = make(keep=Keep(days=2.0))
    second.put(Live(run_record("newest", started_at=now)))
    wait_for(lambda: "old" not in ids(path))
    assert ids(path) == ["new", "newest"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_writes_by_itself_and_loses_nothing_when_its_parent_closes(
    make: Callable[..., Writer], path: Path
) -> None:
    writer = make()
    writer.put(Live(run_record("before")))
    assert writer.flush(SOON)
    child_wrote, parent_closed = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            writer.forget()
            writer.put(Live(run_record("child 1")))
            assert writer.flush(SOON)
            os.write(child_wrote[1], b"x")
            os.read(parent_closed[0], 1)
            writer.put(Live(run_record("child 2")))
            assert writer.flush(SOON)
            assert writer.close()
            code = 0
        finally:
            os._exit(code)
    os.read(child_wrote[0], 1)
    writer.put(Live(run_record("parent")))
    assert writer.close()
    os.write(parent_closed[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in child_wrote + parent_closed:
        os.close(descriptor)
    assert ids(path) == ["before", "child 1", "child 2", "parent"]


def test_diagnose_never_takes_a_defect_for_an_outage() -> None:
    assert database.diagnose(TypeError("x"))[0] is database.Fault.RECORD
    assert database.diagnose(OSError(errno.ENOSPC, "No space left on device")) == (
        database.Fault.AWAY,
        "No space left on device",
    )
