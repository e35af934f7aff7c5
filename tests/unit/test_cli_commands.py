"""The commands, on a database of their own."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from otel_chatdebug import settings
from otel_chatdebug.cli import main
from otel_chatdebug.records import (
    AttemptContent,
    AttemptRank,
    AttemptRecord,
    ContentRank,
    Record,
    RunRecord,
    StepContent,
    StepRecord,
)
from otel_chatdebug.settings import Settings
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, merge, migrations
from otel_chatdebug.tables.spool import Spool
from otel_chatdebug.version import __version__

SECOND = 1_000_000
STARTED = time.time_ns() // 1000 - 3600 * SECOND
RUN, OTHER, STEP, ATTEMPT = "3f2a" + "1" * 28, "3f2b" + "2" * 28, "aaaa" + "3" * 12, "bbbb" + "4" * 12


def records() -> list[Record]:
    """A run that was answered, and one that was left open an hour ago."""

    def common(id: str, rank: int) -> dict[str, Any]:
        return {"id": id, "rank": rank, "updated_at": STARTED, "replica_id": "test"}

    done: dict[str, Any] = {"status": Status.COMPLETED, "started_at": STARTED, "finished_at": STARTED + 2 * SECOND}
    answer = {"messages": [{"role": "assistant", "parts": [{"type": "text", "text": "Hello \x1b[31mDave"}]}]}
    return [
        RunRecord(
            **common(RUN, Status.COMPLETED.priority), **done, kind="chat_turn", chat_id="c-1", model="gpt-5-mini"
        ),
        StepRecord(
            **common(STEP, Status.COMPLETED.priority),
            **done,
            run_id=RUN,
            step_number=1,
            model="gpt-5-mini",
            usage={"input_tokens": 12, "output_tokens": 3},
        ),
        AttemptRecord(
            **common(ATTEMPT, AttemptRank.FINAL),
            **done,
            step_id=STEP,
            run_id=RUN,
            number=1,
            method="POST",
            url="https://api.example/v1/chat/completions",
            response_status=200,
            end_reason="body_close",
        ),
        StepContent(**common(STEP, ContentRank.COMPLETE), run_id=RUN, normalized_response=answer),
        AttemptContent(
            **common(ATTEMPT, ContentRank.COMPLETE), step_id=STEP, run_id=RUN, response_body='{"a": "\x9b1m"}'
        ),
        RunRecord(
            **common(OTHER, Status.IN_PROGRESS.priority),
            status=Status.IN_PROGRESS,
            kind="compaction",
            chat_id="c-2",
            started_at=STARTED - SECOND,
        ),
    ]


@pytest.fixture
def url(chatdebug_home: Path) -> str:
    """Of an empty place; the environment names it too."""
    return f"sqlite:///{chatdebug_home / 'chatdebug.db'}"


@pytest.fixture
def filled(url: str) -> str:
    """Of a database with `records`, the open one without a heartbeat for an hour."""
    engine = database.open_engine(url)
    migrations.upgrade(engine)
    with engine.begin() as connection:
        merge.write(connection, records())
        connection.exec_driver_sql("UPDATE chat_debug_runs SET heartbeat_at = started_at")
    engine.dispose()
    return url


def invoke(*arguments: str, status: int = 0, **environment: str) -> Result:
    """The command's result; its exit status must be this."""
    result = CliRunner().invoke(main, arguments, env=environment, prog_name="otel-chatdebug")
    assert result.exit_code == status, result.output
    return result


def test_the_version() -> None:
    assert invoke("--version").output == f"otel-chatdebug, version {__version__}\n"


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [path]
    for name, command in group.commands.items():
        inner = (*path, name)
        found += commands(command, inner) if isinstance(command, click.Group) else [inner]
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    output = invoke(*path, "--help").output
    assert re.search(rf"^ +(OTEL_\w+=\S+ )?otel-chatdebug {' '.join(path)}", output, re.MULTILINE) or path == ("db",)
    assert "--database-url URL" in output
    assert "..." not in output.partition("Commands:")[2]  # each command says in one line what it is for


def test_help_and_version_import_nothing_that_takes_long() -> None:
    code = (
        "import sys, otel_chatdebug.cli as cli\n"
        "cli.main(['show', '--help'], standalone_mode=False)\n"
        "print(sorted({'sqlalchemy', 'alembic', 'rich', 'httpx', 'httpx2', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


class TestRuns:
    def test_lists_the_newest_first(self, filled: str) -> None:
        lines = [line for line in invoke("runs").output.splitlines() if "3f2" in line]
        assert [line.split()[0] for line in lines] == [RUN[:8], OTHER[:8], "otel-chatdebug"]
        assert lines[-1] == f"otel-chatdebug show {RUN[:8]}"

    @pytest.mark.parametrize("choice", [("--chat", "c-2"), ("--status", "in_progress")])
    def test_filters(self, filled: str, choice: tuple[str, str]) -> None:
        assert [run["id"] for run in json.loads(invoke("runs", "--json", *choice).stdout)] == [OTHER]
        assert RUN[:8] not in invoke("runs", *choice).output

    def test_a_limit_that_no_database_takes_is_refused_in_a_sentence(self, filled: str) -> None:
        assert "is not in the range" in invoke("runs", "--limit", "9" * 30, status=2).stderr

    def test_a_limit_says_that_there_may_be_more(self, filled: str) -> None:
        assert f"\notel-chatdebug runs --limit 1 --before {RUN[:8]}\n" in invoke("runs", "--limit", "1").output

    def test_none_is_said_and_json_is_an_empty_list(self, filled: str) -> None:
        assert invoke("runs", "--chat", "nobody").output == "No such run.\n"
        assert json.loads(invoke("runs", "--chat", "nobody", "--json").stdout) == []

    def test_an_unknown_status_is_refused_with_the_choice(self, filled: str) -> None:
        assert "'in_progress'" in invoke("runs", "--status", "odd", status=2).stderr


class TestShow:
    @pytest.mark.parametrize("prefix", [RUN, RUN[:4], RUN[:8].upper()])
    def test_a_unique_prefix_is_enough(self, filled: str, prefix: str) -> None:
        output = invoke("show", prefix).output
        assert RUN in output
        assert "attempt 1  POST https://api.example/v1/chat/completions  200  ✓ completed  2.0 s" in output
        assert "assistant: Hello ␛[31mDave" in output

    def test_json_has_all_ids_and_no_raw_control_character(self, filled: str) -> None:
        output = invoke("show", RUN, "--json").stdout
        run = json.loads(output)
        attempt = run["steps"][0]["attempts"][0]
        assert (run["id"], run["steps"][0]["id"], attempt["id"]) == (RUN, STEP, ATTEMPT)
        assert attempt["response_body"] == '{"a": "\x9b1m"}'
        assert "\x9b" not in output
        assert "\x1b" not in output

    def test_an_ambiguous_prefix_names_the_candidates(self, filled: str) -> None:
        error = invoke("show", "3f2", status=1).stderr
        assert error.startswith("Error: ")
        assert RUN in error
        assert OTHER in error

    @pytest.mark.parametrize("name", ["0000", "%", "_", "nonsense"])
    def test_an_unknown_run_is_one_sentence(self, filled: str, name: str) -> None:
        result = invoke("show", name, "--json", status=1)
        assert "otel-chatdebug runs" in result.stderr
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1


class TestSweep:
    def test_marks_what_is_stale_once(self, filled: str) -> None:
        assert invoke("sweep").output == "Marked as interrupted: 1 run (no heartbeat for 300 s).\n"
        assert json.loads(invoke("show", OTHER, "--json").stdout)["status"] == "interrupted"
        assert invoke("sweep").output == "Nothing to do: no open run without a heartbeat for 300 s.\n"

    def test_obeys_the_setting(self, filled: str) -> None:
        assert "Nothing to do" in invoke("sweep", OTEL_CHATDEBUG_STALE_AFTER="7200").output


class TestDbUpgrade:
    def test_creates_and_then_has_nothing_to_do(self, url: str) -> None:
        assert invoke("db", "upgrade").output.startswith(f"Created the tables, schema version {migrations.head()}, in ")
        assert invoke("db", "upgrade").output.startswith("Nothing to do: ")
        assert invoke("runs").output.startswith("No run yet")


class TestInfo:
    def test_says_what_is_there(self, filled: str, chatdebug_home: Path) -> None:
        output = invoke("info", COLUMNS="250").output  # so that nothing is wrapped
        assert re.search(rf"File +{chatdebug_home}/chatdebug.db", output)
        assert re.search(rf"Schema +{migrations.head()} \(the newest\)", output)
        assert re.search(r"Runs +2 \(1 completed, 1 in_progress\)", output)
        assert re.search(r"Attempts +1 \(1 completed\)", output)
        assert re.search(rf"otel-chatdebug +{__version__}", output)
        for variable, default, _meaning in Settings.table():
            assert variable in output
            assert default.replace("`", "") in output

    def test_json_has_the_same(self, filled: str) -> None:
        found = json.loads(invoke("info", "--json", OTEL_CHATDEBUG_STALE_AFTER="30").stdout)
        assert found["database"]["Schema"] == f"{migrations.head()} (the newest)"
        assert found["settings"]["OTEL_CHATDEBUG_STALE_AFTER"] == "30.0"
        assert found["settings"].keys() == {variable for variable, _default, _meaning in Settings.table()}
        assert found["versions"]["otel-chatdebug"] == __version__

    def test_says_what_is_spooled(self, filled: str) -> None:
        assert re.search(r"Spooled +nothing *\n", invoke("info", COLUMNS="250").output)
        Spool(filled, 10**6).keep([*records()[:1], *records()[:1]])
        Spool("sqlite:////other.db", 10**6).keep(records()[:1])
        output = invoke("info", COLUMNS="250").output
        assert re.search(rf"Spooled +2 records \(\d+ B\) in {settings.state_folder()}/spool.db", output)
        assert "; 1 for other databases" in output
        found = json.loads(invoke("info", "--json").stdout)["spool"]
        assert (found["records"], found["records_of_other_databases"]) == (2, 1)
        assert 200 < found["size"] < 2000
        Path(found["file"]).write_bytes(b"Dear diary" * 1000)
        assert "the file is no SQLite database" in json.loads(invoke("info", "--json").stdout)["spool"]["problem"]

    def test_says_which_settings_are_in_force(self, filled: str) -> None:
        output = invoke("info", OTEL_CHATDEBUG_STALE_AFTER="30", OTEL_EXPORTER_OTLP_ENDPOINT="http://host:4318").output
        assert re.search(r"STALE_AFTER +30.0 +300.0", output)
        assert "http://host:4318" in output

    @pytest.mark.parametrize("endpoint", ["http://u:hush@host:4318", "http://u:hush@hush@host:4318/v1?key=hush"])
    def test_the_secrets_of_an_endpoint_are_not_shown(self, filled: str, endpoint: str) -> None:
        output = invoke("info", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint).output
        assert "http://[REDACTED]@host:4318" in output
        assert "hush" not in output

    def test_without_a_database_it_says_so_and_that_is_no_error(self, url: str) -> None:
        assert "There is no database" in invoke("info").output

    def test_passwords_are_not_shown(self, chatdebug_home: Path) -> None:
        """Also where the driver is missing, or the server (the name cannot exist: RFC 6761)."""
        result = invoke(
            "info", "--database-url", "postgresql://me:hush@localhost.invalid:1/x?sslpassword=hush", status=2
        )
        assert "me:***@localhost.invalid" in result.output
        assert "hush" not in result.output

    def test_a_newer_schema_is_said_with_exit_status_2(self, filled: str, chatdebug_home: Path) -> None:
        make_newer(chatdebug_home)
        result = invoke("info", status=2)
        assert "9999" in result.stdout
        assert "upgrade otel-chatdebug" in result.stderr


def make_newer(home: Path) -> None:
    connection = sqlite3.connect(home / "chatdebug.db")
    with connection:
        connection.execute(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'")
    connection.close()


READERS = [("runs",), ("runs", "--json"), ("show", "3f2a"), ("sweep",)]


class TestErrors:
    @pytest.mark.parametrize("command", READERS, ids=" ".join)
    def test_no_database_yet(self, url: str, chatdebug_home: Path, command: tuple[str, ...]) -> None:
        """One sentence, exit status 2, and none is made by looking."""
        result = invoke(*command, status=2)
        assert "There is no database" in result.stderr
        assert result.stdout == ""
        assert os.listdir(chatdebug_home) == []

    @pytest.mark.parametrize("command", [*READERS, ("db", "upgrade")], ids=" ".join)
    def test_a_newer_schema(self, filled: str, chatdebug_home: Path, command: tuple[str, ...]) -> None:
        make_newer(chatdebug_home)
        error = invoke(*command, status=2).stderr
        assert error.startswith("Error: The database has schema version 9999")
        assert len(error.splitlines()) == 1

    @pytest.mark.parametrize("command", [*READERS, ("info",), ("db", "upgrade")], ids=" ".join)
    @pytest.mark.parametrize("bad", ["nonsense", "mysql://u:hush@h/d", "sqlite://host/path", "sqlite://"])
    def test_a_bad_url(self, chatdebug_home: Path, command: tuple[str, ...], bad: str) -> None:
        error = invoke(*command, "--database-url", bad, status=2).stderr
        assert error.startswith("Error: ")
        assert "OTEL_CHATDEBUG_DATABASE_URL" in error
        assert "hush" not in error
        assert len(error.splitlines()) == 1

    @pytest.mark.parametrize("command", [*READERS, ("db", "upgrade")], ids=" ".join)
    def test_a_file_that_is_no_database(self, url: str, chatdebug_home: Path, command: tuple[str, ...]) -> None:
        (chatdebug_home / "chatdebug.db").write_text("these are the notes of a person, and no database at all\n" * 99)
        error = invoke(*command, status=2).stderr
        assert error.startswith("Error: The database cannot be used: ")
        assert len(error.splitlines()) == 1

    def test_the_option_goes_over_the_environment_before_and_after_the_command(self, filled: str) -> None:
        nowhere = "sqlite:////nowhere/at/all.db"
        assert "/nowhere/at/all.db" in invoke("--database-url", nowhere, "runs", status=2).stderr
        assert "/nowhere/at/all.db" in invoke("runs", "--database-url", nowhere, status=2).stderr
        assert RUN[:8] in invoke("--database-url", nowhere, "runs", "--database-url", filled).output
