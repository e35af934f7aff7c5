"""The commands that remove rows: delete and purge, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import os
import pty
import select as files
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, select

from otel_chatdebug.cli import main
from otel_chatdebug.records import Record
from otel_chatdebug.tables import database, merge, migrations, schema
from tests.support.records import attempt_content, attempt_record, run_record, step_content, step_record

HOUR = 3600 * 1_000_000
DAY = 24 * HOUR


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


def turn(name: str, chat_id: str, at: int, **more: Any) -> list[Record]:
    step, attempt = f"step {name}", f"attempt {name}"
    return [
        run_record(name, chat_id=chat_id, started_at=at, finished_at=at, **more),
        step_record(step, run_id=name, chat_id=chat_id, started_at=at),
        attempt_record(attempt, run_id=name, step_id=step, chat_id=chat_id, started_at=at),
        step_content(step, run_id=name, chat_id=chat_id, updated_at=at),
        attempt_content(attempt, run_id=name, step_id=step, chat_id=chat_id, updated_at=at, request_body="x" * 5000),
    ]


@pytest.fixture
def filled(engine: Engine, database_url: str) -> str:
    """Two old turns of the chat c-1, and new ones of c-1 and c-2."""
    now = time.time_ns() // 1000
    with engine.begin() as connection:
        merge.write(
            connection,
            [
                *turn("old 1", "c-1", now - 10 * DAY, trigger_message_id="1"),
                *turn("old 2", "c-1", now - 9 * DAY, trigger_message_id="2"),
                *turn("new 3", "c-1", now - HOUR, trigger_message_id="3"),
                *turn("new", "c-2", now - HOUR),
            ],
        )
    return database_url


def invoke(url: str, *arguments: str, status: int = 0, **environment: str) -> Result:
    result = CliRunner().invoke(main, ["--database-url", url, *arguments], env=environment, prog_name="otel-chatdebug")
    assert result.exit_code == status, result.output
    return result


def runs(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(select(schema.runs.c.id)))


def contents(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(select(schema.attempt_contents.c.run_id)))


# -- delete


def test_a_chat_is_deleted(filled: str, engine: Engine) -> None:
    said = invoke(filled, "delete", "--chat", "c-1", "--yes").stdout
    assert said == "Deleted 3 runs, 3 steps, 3 attempts.\n"
    assert runs(engine) == contents(engine) == ["new"]
    assert "Nothing to do" in invoke(filled, "delete", "--chat", "c-1").stdout


def test_what_comes_after_a_message_is_deleted(filled: str, engine: Engine) -> None:
    said = invoke(filled, "delete", "--chat", "c-1", "--after-message", "1", "--yes", "--json").stdout
    assert json.loads(said) == {"runs": 2, "steps": 2, "attempts": 2}
    assert runs(engine) == ["new", "old 1"]


def test_nobody_is_asked_where_nobody_answers_and_nothing_is_deleted(filled: str, engine: Engine) -> None:
    for more in ([], ["--json"]):
        said = invoke(filled, "delete", "--chat", "c-1", *more, status=2)
        assert "3 runs, 3 steps, 3 attempts" in said.stderr
        assert "--yes" in said.stderr
    assert len(runs(engine)) == 4


def test_a_message_that_nobody_knows_is_a_sentence(filled: str, engine: Engine) -> None:
    said = invoke(filled, "delete", "--chat", "c-1", "--after-message", "zulu", "--yes", status=1)
    assert "zulu" in said.stderr
    assert len(runs(engine)) == 4


def on_a_terminal(url: str, *arguments: str, answers: str = "") -> str:
    """What the command writes on a terminal, on which ``answers`` are typed."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "otel_chatdebug.cli", "--database-url", url, *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(its)
    written = b""
    try:
        os.write(ours, answers.encode())
        while True:
            assert files.select([ours], [], [], 60)[0], written
            try:
                written += os.read(ours, 65536)
            except OSError:  # Linux: it has ended
                break
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return written.decode()


def test_on_a_terminal_it_asks(filled: str, engine: Engine) -> None:
    assert "Aborted" in on_a_terminal(filled, "delete", "--chat", "c-1", answers="n\n")
    assert len(runs(engine)) == 4
    said = on_a_terminal(filled, "delete", "--chat", "c-1", answers="y\n")
    assert "Delete 3 runs, 3 steps, 3 attempts of the chat c-1, with their contents? [y/N]" in said
    assert "Deleted 3 runs" in said
    assert runs(engine) == ["new"]


# -- purge


def test_what_is_old_is_removed(filled: str, engine: Engine) -> None:
    said = invoke(filled, "purge", "--older-than", "7d", "--dry-run").stdout
    assert said == "Would remove 2 runs, 2 steps, 2 attempts, 4 content rows.\n"
    assert len(runs(engine)) == 4
    said = invoke(filled, "purge", "--older-than", "7d").stdout
    assert said.startswith("Removed 2 runs, 2 steps, 2 attempts, 4 content rows")
    assert runs(engine) == contents(engine) == ["new", "new 3"]
    assert invoke(filled, "purge", "--older-than", "7d").stdout == "Nothing to do: nothing is that old.\n"


def test_json_has_the_numbers_whether_it_was_done_or_not(filled: str, engine: Engine) -> None:
    counts = {"runs": 2, "steps": 2, "attempts": 2, "contents": 4}
    told = json.loads(invoke(filled, "purge", "--older-than", "228h", "--dry-run", "--json").stdout)
    assert told == {"dry_run": True, **dict.fromkeys(counts, 1), "contents": 2, "freed_bytes": 0, "note": None}
    told = json.loads(invoke(filled, "purge", "--older-than", "1w", "--json").stdout)
    assert told.pop("freed_bytes") >= 0
    assert told == {"dry_run": False, **counts, "note": None}
    assert len(runs(engine)) == 2


def test_only_contents(filled: str, engine: Engine) -> None:
    said = invoke(filled, "purge", "--older-than", "7d", "--content-only").stdout
    assert said.startswith("Removed 4 content rows")
    assert len(runs(engine)) == 4
    assert contents(engine) == ["new", "new 3"]


@pytest.mark.parametrize(
    ("variables", "left", "contents_left"),
    [
        ({}, 4, 4),
        ({"OTEL_CHATDEBUG_RETENTION": "9.5"}, 3, 3),
        ({"OTEL_CHATDEBUG_CONTENT_RETENTION": "7"}, 4, 2),
        ({"OTEL_CHATDEBUG_RETENTION": "9.5", "OTEL_CHATDEBUG_CONTENT_RETENTION": "7"}, 3, 2),
        ({"OTEL_CHATDEBUG_RETENTION": "7", "OTEL_CHATDEBUG_CONTENT_RETENTION": "9.5"}, 2, 2),
        ({"OTEL_CHATDEBUG_RETENTION": "0", "OTEL_CHATDEBUG_CONTENT_RETENTION": "9.5"}, 4, 3),
    ],
)
def test_without_an_age_the_settings_say_it(
    variables: dict[str, str], left: int, contents_left: int, filled: str, engine: Engine
) -> None:
    told = json.loads(invoke(filled, "purge", "--dry-run", "--json", **variables).stdout)
    assert (told["runs"], told["contents"]) == (4 - left, 2 * (4 - contents_left))
    invoke(filled, "purge", **variables)
    assert (len(runs(engine)), len(contents(engine))) == (left, contents_left)


def test_where_all_is_kept_an_age_must_be_given(filled: str) -> None:
    forever = {"OTEL_CHATDEBUG_RETENTION": "0", "OTEL_CHATDEBUG_CONTENT_RETENTION": "0"}
    assert "--older-than 7d" in invoke(filled, "purge", status=2, **forever).stderr


@pytest.mark.parametrize("age", ["7", "7.5", "", "yesterday", "-1d", "7y"])
def test_an_age_that_is_none_is_a_sentence(age: str, filled: str, engine: Engine) -> None:
    """A bare 7 that was meant as days must not remove all but the last seconds."""
    assert "Error: " in invoke(filled, "purge", "--older-than", age, status=2).stderr
    assert len(runs(engine)) == 4


def test_a_terminal_sees_a_bar_and_a_pipe_does_not(filled: str) -> None:
    assert "Removing" in on_a_terminal(filled, "purge", "--older-than", "7d")
    assert invoke(filled, "purge", "--older-than", "1m").stderr == ""
