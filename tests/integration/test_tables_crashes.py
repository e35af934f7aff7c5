"""kill -9, wherever it strikes: what was final is there, the tables are consistent, and what was open is swept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, exists, func, select, text

from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.records import Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, liveness, merge, migrations, schema
from tests.support import apps
from tests.support.apps import until
from tests.support.records import attempt_record, ended_run, run_record, step_record

ROOT = Path(__file__).parents[2]

KILLS = 100
"""On each of the two databases."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    yield engine
    engine.dispose()


def assert_consistent(engine: Engine) -> None:
    """The schema is whole, no row is without its parents, and SQLite finds nothing wrong with its file."""
    assert migrations.upgrade(engine) == migrations.HEAD
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        for child, column, parent in [
            (schema.steps, schema.steps.c.run_id, schema.runs),
            (schema.attempts, schema.attempts.c.step_id, schema.steps),
            (schema.attempts, schema.attempts.c.run_id, schema.runs),
        ]:
            orphan = ~exists().where(parent.c.id == column)
            assert connection.scalar(select(func.count()).select_from(child).where(orphan)) == 0


def assert_swept(engine: Engine) -> int:
    """How many runs were open and are not any more."""
    swept = liveness.finalize_stale(engine, 0.0)
    with engine.connect() as connection:
        for table in schema.STATE_TABLES:
            assert not connection.scalars(select(table.c.id).where(table.c.status == Status.IN_PROGRESS)).all()
    return swept.runs


@pytest.mark.slow
def test_random_kills_lose_nothing_that_had_been_final_for_more_than_a_second(
    database_url: str, engine: Engine, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "noted"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kills", database_url, str(KILLS), "1", str(folder)],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    noted = json.loads(done.stdout)
    assert_consistent(engine)
    with engine.connect() as connection:
        there = set(connection.scalars(select(schema.attempts.c.id).where(schema.attempts.c.status == "completed")))
    lost = [id for id in noted["safe"] if id not in there]
    young = sum(id not in there for id in noted["young"])
    said = (
        f"{KILLS} kills ({engine.dialect.name}): {len(lost)} of {len(noted['safe'])} rows lost that had been final for "
        f"more than a second, {young} of {len(noted['young'])} younger ones"
    )
    record_property("said", said)
    print(said)
    assert not lost, said
    assert len(noted["safe"]) > 100
    assert assert_swept(engine) > 0


class _Killer:
    """Kills this process before the statement of that number, counted from 0, the commit included."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.left = number
        event.listen(engine, "before_cursor_execute", self.count)
        event.listen(engine, "commit", self.count)

    def count(self, *args: Any) -> None:
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def upgrade_and_die(url: str, number: int) -> None:
    engine = database.open_engine(url)
    _Killer(engine, number)
    migrations.upgrade(engine)


def write_and_die(url: str, number: int) -> None:
    engine = database.open_engine(url)
    migrations.upgrade(engine)
    _Killer(engine, number)
    with engine.begin() as connection:
        merge.write(connection, SECOND)


FIRST: list[Record] = [
    ended_run("one"),
    step_record("one", run_id="one"),
    attempt_record("one", run_id="one", step_id="one"),
]
SECOND: list[Record] = [
    run_record("two"),
    step_record("two", run_id="two"),
    attempt_record("two", run_id="two", step_id="two"),
    ended_run("one", updated_at=2**50),
]


def load() -> None:
    """Imports and compiles here what each child would have to."""
    engine = database.open_engine("sqlite://")
    migrations.upgrade(engine)
    engine.dispose()


def in_a_fork(function: Callable[[str, int], None], url: str, number: int) -> bool:
    """Whether it was killed before it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            function(url, number)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_in_the_middle_of_a_migration_leaves_nothing_that_the_next_start_cannot_finish(
    database_url: str, engine: Engine
) -> None:
    """Before each statement of it in turn: the next process goes on from what is there, until one comes to the end."""
    load()
    number = 0
    while in_a_fork(upgrade_and_die, database_url, number):
        assert migrations.examine(engine).state is migrations.State.EMPTY
        engine.dispose()  # no child may inherit it
        number += 1
    assert number > 20
    assert_consistent(engine)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_in_the_middle_of_a_commit_leaves_all_of_it_or_nothing(database_url: str, engine: Engine) -> None:
    migrations.upgrade(engine)
    with engine.begin() as connection:
        merge.write(connection, FIRST)
    engine.dispose()
    number = 0
    while in_a_fork(write_and_die, database_url, number):
        number += 1
        assert_consistent(engine)
        with engine.connect() as connection:
            assert list(connection.scalars(select(schema.runs.c.id))) == ["one"]
        engine.dispose()
    assert number > 3
    with engine.connect() as connection:
        assert sorted(connection.scalars(select(schema.runs.c.id))) == ["one", "two"]
    assert assert_swept(engine) == 1


def test_a_kill_in_the_middle_of_a_stream_leaves_its_text_and_a_sweep_says_that_it_is_over(
    database_url: str, engine: Engine, chatdebug_home: Path
) -> None:
    migrations.upgrade(engine)
    with Provider() as provider:
        provider.script(Behaviour(), Behaviour(hold_end=True))
        with apps.started(
            """
            with chatdebug.run("chat_turn", chat_id="c"):
                call()
            pieces = open_stream().iter_raw()
            next(pieces)
            say("chunk")
            threading.Event().wait()
            """,
            provider.url,
            OTEL_CHATDEBUG_DATABASE_URL=database_url,
        ) as app:
            app.wait_for("chunk")
            contents = schema.attempt_contents

            def text_so_far() -> str | None:
                with engine.connect() as connection:
                    return connection.scalar(select(contents.c.response_body).where(contents.c.rank == 0))

            assert "data:" in until(text_so_far)
            app.process.kill()
            app.ended()
    assert_consistent(engine)
    assert assert_swept(engine) == 1
    assert "data:" in str(text_so_far())
