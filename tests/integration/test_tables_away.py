"""A database that goes away, breaks off, is refused or hangs: what happens to what is recorded meanwhile."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select

from otel_chatdebug.demo.provider import Provider
from otel_chatdebug.records import size_of
from otel_chatdebug.settings import state_folder
from otel_chatdebug.tables import queries, schema, spool, troubles
from otel_chatdebug.tables.writer import Beat, Writer
from tests.support import apps, leaks
from tests.support.apps import until
from tests.support.postgres import Postgres
from tests.support.records import attempt_content, ended_run
from tests.support.sources import Live

SOON = 60.0
"""Seconds that a test waits for what must come, on a machine that others use, too."""

EXIT_SECONDS = 5.0
"""What leaving takes at most, whatever the database does."""


@pytest.fixture(autouse=True)
def _home(chatdebug_home: Path) -> None:
    """The spool is the test's own."""


@pytest.fixture
def make() -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(url: str, **options: Any) -> Writer:
        made.append(Writer(url, **({"replica_id": "replica", "heartbeat_interval": 3600.0, "beat": Beat} | options)))
        return made[-1]

    with leaks.no_leaks():
        yield make
        for each in made:
            each.close(1.0)


@pytest.fixture
def fast_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troubles, "BACKOFF_MOST", 0.2)


def ids(url: str) -> list[str]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return list(connection.scalars(select(schema.runs.c.id).order_by(schema.runs.c.id)))
    finally:
        engine.dispose()


HUNDRED_RUNS = """
def work(first, last):
    for number in range(first, last):
        with chatdebug.run("chat_turn", chat_id=f"chat {number}"):
            call()

work(0, 1)
chatdebug.flush() if hasattr(chatdebug, "flush") else None
say("began")
while not os.path.exists(os.environ["GO"]):
    threading.Event().wait(0.01)
work(1, 101)
import time
began = time.monotonic()
chatdebug.shutdown()
say(f"took {time.monotonic() - began}")
"""

TAKES_UP = """
say("began")
while not os.path.exists(os.environ["GO"]):
    threading.Event().wait(0.01)
"""


def hundred_runs(provider: Provider, url: str, go: Path, break_it: Callable[[], None]) -> str:
    """One run, then `break_it`, then a hundred runs and the end of the application; what it logged."""
    environment = {"OTEL_CHATDEBUG_DATABASE_URL": url, "GO": str(go)}
    with apps.started(HUNDRED_RUNS, provider.url, **environment) as app:
        app.wait_for("began")
        break_it()
        go.touch()
        assert float(app.wait_for("took ")) <= EXIT_SECONDS
        ended = app.ended()
        assert ended.returncode == 0, ended.stderr
    go.unlink()
    return ended.stderr


def start_again(provider: Provider, url: str, go: Path) -> None:
    """Any application of that database, which records nothing itself, until the spool is empty."""

    def is_empty() -> bool:
        with sqlite3.connect(state_folder() / spool.FILE) as connection:
            (count,) = connection.execute("SELECT count(*) FROM records").fetchone()
        connection.close()
        return not count

    with apps.started(TAKES_UP, provider.url, OTEL_CHATDEBUG_DATABASE_URL=url, GO=str(go)) as app:
        app.wait_for("began")
        until(is_empty)
        go.touch()
        assert app.ended().returncode == 0


def assert_all_hundred(url: str) -> None:
    engine = queries.open_for_reading(url)
    try:
        runs = list(queries.list_runs(engine, limit=500))
        assert {run["chat_id"] for run in runs} >= {f"chat {number}" for number in range(1, 101)}
        assert len(runs) in (100, 101)  # what was written of the first one before is no matter here
        for run in runs:
            loaded = queries.load_run(engine, run["id"])
            (step,) = loaded["steps"]
            (attempt,) = step["attempts"]
            assert (loaded["status"], step["status"], attempt["status"]) == ("completed",) * 3
            assert "Hello?" in attempt["request_body"]
            assert attempt["response_body"]
            assert step["normalized_request"]["messages"]
    finally:
        engine.dispose()


@pytest.mark.slow
def test_a_hundred_runs_that_end_while_postgresql_is_away_are_there_after_the_next_start(
    own_postgres: Callable[..., Postgres], tmp_path: Path
) -> None:
    server = own_postgres()
    url, go = server.url(server.new_database()), tmp_path / "go"
    with Provider() as provider:
        told = hundred_runs(provider, url, go, server.kill)
        assert "are kept in" in told
        assert "dropped" not in told
        server.start()
        start_again(provider, url, go)
    assert_all_hundred(url)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["locked", "its folder is gone"])
def test_a_hundred_runs_that_end_while_sqlite_is_away_are_there_after_the_next_start(
    trouble: str, tmp_path: Path
) -> None:
    folder, elsewhere, go = tmp_path / "data", tmp_path / "elsewhere", tmp_path / "go"
    folder.mkdir()
    url = f"sqlite:///{folder / 'tables.db'}"
    holder: list[sqlite3.Connection] = []

    def break_it() -> None:
        if trouble == "locked":
            until((folder / "tables.db").exists)
            connection = sqlite3.connect(folder / "tables.db", isolation_level=None, timeout=SOON)
            connection.execute("BEGIN IMMEDIATE")
            holder.append(connection)
        else:
            folder.rename(elsewhere)

    with Provider() as provider:
        assert "are kept in" in hundred_runs(provider, url, go, break_it)
        for connection in holder:
            connection.close()
        if elsewhere.exists():
            elsewhere.rename(folder)
        start_again(provider, url, go)
    assert_all_hundred(url)


@pytest.mark.usefixtures("fast_backoff")
def test_connections_that_postgresql_ends_lose_nothing(make: Callable[..., Writer], postgres: Postgres) -> None:
    name = postgres.new_database()
    url = postgres.url(name)
    writer = make(url)
    stop = threading.Event()
    put: list[str] = []

    def produce() -> None:
        while not stop.wait(0.001):
            put.append(f"{len(put):06}")
            writer.put(Live(ended_run(put[-1]), final=True))

    producer = threading.Thread(target=produce)
    producer.start()
    kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    try:
        killed = 0
        while killed < 10:
            before = writer.stats.written
            killed += len(postgres.sql(kill))
            until(lambda before=before: writer.stats.written > before)  # type: ignore[misc]
    finally:
        stop.set()
        producer.join()
    assert writer.flush(SOON)
    assert ids(url) == put
    assert writer.stats.dropped == 0


@pytest.mark.slow
@pytest.mark.usefixtures("fast_backoff")
def test_a_server_that_is_killed_and_started_again_is_written_again_by_itself(
    make: Callable[..., Writer], own_postgres: Callable[..., Postgres], caplog: pytest.LogCaptureFixture
) -> None:
    server = own_postgres()
    url = server.url(server.new_database())
    writer = make(url)
    caplog.set_level(logging.INFO, "otel_chatdebug")
    put: list[str] = []
    for number, go_down in enumerate([server.stop, server.kill]):
        for _ in range(2):
            put.append(f"{len(put):03}")
            writer.put(Live(ended_run(put[-1]), final=True))
            assert writer.flush(SOON)
            go_down()
            for _ in range(20):
                put.append(f"{len(put):03}")
                writer.put(Live(ended_run(put[-1]), final=True))
            until(lambda: writer._troubles)
            server.start()
            assert writer.flush(SOON)
        assert ids(url) == put, number
    assert writer.stats.dropped == 0
    ours = [item.getMessage() for item in caplog.records if item.name == "otel_chatdebug"]
    assert len([line for line in ours if "cannot be written" in line]) == 1  # once a minute, whatever happens
    assert server.url("x").split(":")[2].split("@")[0] not in caplog.text  # the password


@pytest.mark.slow
def test_a_server_that_hangs_in_the_middle_does_not_hold_up_the_end_and_nothing_is_lost(
    make: Callable[..., Writer], own_postgres: Callable[..., Postgres]
) -> None:
    """It stands still with open connections: nothing is refused, and nothing ever answers."""
    server = own_postgres()
    url = server.url(server.new_database())
    writer = make(url)
    writer.put(Live(ended_run("before"), final=True))
    assert writer.flush(SOON)
    server.freeze()
    began = time.monotonic()
    try:
        for number in range(100):
            writer.put(Live(ended_run(f"{number:03}"), final=True))
        assert not writer.flush(0.5)
        for number in range(100, 200):
            writer.put(Live(ended_run(f"{number:03}"), final=True))
        writer.close(EXIT_SECONDS)
        # The limit is a promise, not a measurement; the margin is that of a machine that others use.
        assert time.monotonic() - began < EXIT_SECONDS + 5
    finally:
        server.thaw()
    assert writer.stats.spooled == 200
    assert writer.stats.dropped == 0
    other = make(url)
    other.start()
    until(lambda: other.stats.written == 200)
    assert ids(url) == [f"{number:03}" for number in range(200)] + ["before"]


@pytest.mark.usefixtures("fast_backoff")
def test_a_writer_that_runs_takes_up_what_another_left_when_its_database_is_back(
    make: Callable[..., Writer], own_postgres: Callable[..., Postgres]
) -> None:
    server = own_postgres()
    url = server.url(server.new_database())
    leaves, stays = make(url), make(url)
    for writer in (leaves, stays):
        writer.put(Live(ended_run(f"{id(writer)}"), final=True))
        assert writer.flush(SOON)
    server.kill()
    leaves.put(Live(ended_run("left"), final=True))
    stays.put(Live(ended_run("stays"), final=True))
    assert leaves.close(EXIT_SECONDS)
    assert leaves.stats.spooled == 1
    until(lambda: stays._troubles)
    server.start()
    until(lambda: {"left", "stays"} <= set(ids(url)))


def test_memory_is_bounded_by_size_while_the_database_is_away_and_the_facts_are_kept(
    make: Callable[..., Writer], own_postgres: Callable[..., Postgres], caplog: pytest.LogCaptureFixture
) -> None:
    server = own_postgres()
    url = server.url(server.new_database())
    writer = make(url, max_queue_size=10**6)
    writer.put(Live(ended_run("before"), final=True))
    assert writer.flush(SOON)
    server.kill()
    body = "x" * 50_000
    each = size_of(ended_run()) + size_of(attempt_content(response_body=body))
    for number in range(200):
        id = f"{number:03}"
        content = attempt_content(id, response_body=body)
        writer.put(Live(ended_run(id), content, final=True, size=each))
        assert writer.stats.queue_size <= 2 * 10**6
    until(lambda: writer.stats.queue_size <= 10**6)
    assert writer.stats.dropped >= 180  # contents
    server.start()
    assert writer.flush(SOON)
    assert ids(url) == [f"{number:03}" for number in range(200)] + ["before"]
    engine = create_engine(url)
    with engine.connect() as connection:
        kept = connection.scalar(select(func.count()).select_from(schema.attempt_contents))
    engine.dispose()
    assert kept == 200 - writer.stats.dropped
    assert 10 <= kept < 20
    assert len([line for line in caplog.messages if "dropped" in line]) == 1
