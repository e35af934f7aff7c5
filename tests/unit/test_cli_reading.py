"""The commands that look at what was recorded: filters, pages, what is stuck, diff, curl, export and import, open."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from otel_chatdebug.cli import main
from otel_chatdebug.records import Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, merge, migrations
from tests.support.records import NOW, attempt_content, attempt_record, run_record, step_content, step_record

A, B, C = ("a1" + "0" * 30, "a2" + "0" * 30, "b3" + "0" * 30)
EVIL = "\x1b[31mevil\u202e\x07"


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "text": text}]}


def done(id: str, **more: Any) -> Record:
    return run_record(id, **({"status": Status.COMPLETED, "rank": 3, "finished_at": NOW + 2_000_000} | more))


def request(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"format": "openai.chat", "model": "m", "messages": list(messages), "tools": [], "options": {}} | more


RECORDS: list[Record] = [
    done(A, chat_id="c/1", model="m", summary={"first_message": f"Blue {EVIL}"}, trace_id="ab" * 16, span_id="cd" * 8),
    step_record("aa00", run_id=A, provider="openai", trace_id="ab" * 16, span_id="aa00"),
    step_content("aa00", run_id=A, normalized_request=request(said("user", "Blue?"), options={"temperature": 0})),
    attempt_record(
        "aaa1", step_id="aa00", run_id=A, method="POST", url="http://127.0.0.1:1/v1", error={"type": "rate_limit"}
    ),
    attempt_record("aaa2", step_id="aa00", run_id=A, number=2, method="POST", url="http://127.0.0.1:1/v2"),
    attempt_content(
        "aaa2",
        step_id="aa00",
        run_id=A,
        request_headers=[["authorization", "[REDACTED]"], ["x", EVIL]],
        request_body='{"a": "it\'s"}',
        response_headers=[["content-type", "text/event-stream"]],
        response_body=f"data: {EVIL}",
    ),
    done(B, chat_id="c/1", started_at=NOW + 1_000_000, status=Status.ERROR, rank=2, error={"type": "overloaded"}),
    step_record("bb00", run_id=B),
    step_content(
        "bb00", run_id=B, normalized_request=request(said("user", "Blue?"), said("assistant", "Yes."), options={})
    ),
    run_record(C, kind="compaction", chat_id=EVIL, started_at=NOW - 1),
]


@pytest.fixture
def url(chatdebug_home: Path) -> str:
    return f"sqlite:///{chatdebug_home / 'chatdebug.db'}"


@pytest.fixture
def engine(url: str) -> Any:
    engine = database.open_engine(url)
    migrations.upgrade(engine)
    with engine.begin() as connection:
        merge.write(connection, RECORDS)
    yield engine
    engine.dispose()


def invoke(*arguments: str, status: int = 0, input: bytes | None = None, **environment: str) -> Result:
    result = CliRunner().invoke(main, arguments, env=environment, input=input, prog_name="otel-chatdebug")
    assert result.exit_code == status, result.output
    assert not set(result.output) & set("\x1b\x07\u202e"), "what was recorded must not reach the terminal as it is"
    return result


def listed(*arguments: str) -> list[str]:
    return [run["id"] for run in json.loads(invoke("runs", "--json", *arguments).stdout)]


class TestRuns:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ((), [B, A, C]),
            (("--chat", "c/1"), [B, A]),
            (("--kind", "compaction"), [C]),
            (("--status", "error"), [B]),
            (("--model", "m"), [A]),
            (("--text", "bLUE"), [A]),
            (("--error", "RATE"), [A]),
            (("--error", ""), [B, A]),
            (("--since", "2026-05-28T20:26:41Z"), [B]),
            (("--until", "2026-05-28T20:26:40Z"), [C]),
            (("--since", "1s"), []),
            (("--chat", "c/1", "--status", "completed", "--text", "blue", "--error", ""), [A]),
            (("--before", "a1"), [C]),
            (("--after", "a1"), [B]),
            (("--limit", "1", "--after", C[:5]), [A]),
        ],
    )
    def test_filters_and_pages(self, engine: Engine, arguments: tuple[str, ...], expected: list[str]) -> None:
        assert listed(*arguments) == expected

    def test_says_what_to_type_for_the_next_page(self, engine: Engine) -> None:
        output = invoke("runs", "--chat", "c/1", "--limit", "1", "--since", "2020-01-01T00:00Z").output
        (command,) = re.findall(r"^otel-chatdebug (runs .*--before \w+)$", output, re.MULTILINE)
        second = invoke(*command.split()).output
        assert A[:8] in second
        assert f"--after {A[:8]}" in second

    def test_what_cannot_be_is_refused(self, engine: Engine) -> None:
        assert "cannot both" in invoke("runs", "--before", "a1", "--after", "a1", status=2).stderr
        assert "is no time" in invoke("runs", "--since", "yesterday", status=2).stderr
        assert "otel-chatdebug runs" in invoke("runs", "--before", "ffff", status=1).stderr


class TestShow:
    @pytest.mark.parametrize("id", ["aa00", "aaa2", "a1"])
    def test_takes_the_id_of_a_step_or_an_attempt_too(self, engine: Engine, id: str) -> None:
        assert A in invoke("show", id).output

    def test_an_ambiguous_beginning_names_runs_steps_and_attempts(self, engine: Engine) -> None:
        error = invoke("show", "aa", status=1).stderr
        assert "attempt aaa1, attempt aaa2" in error
        assert "step aa00" in error

    def test_raw_has_heads_and_bodies_as_they_were(self, engine: Engine) -> None:
        output = invoke("show", "a1", "--raw").output
        assert "> POST http://127.0.0.1:1/v2\n> authorization: [REDACTED]\n" in output
        assert '>\n{"a": "it\'s"}\n\n< no answer\n< content-type: text/event-stream\n<\ndata: ␛[31mevil' in output
        assert "# no body was recorded" in output
        assert invoke("show", "b3", "--raw").output == "No request was sent.\n"


class TestStuck:
    def test_tells_what_hangs_where_and_since_when(self, engine: Engine) -> None:
        output = invoke("stuck").output
        assert "waiting for an answer: no headers yet" not in output, "the run of these attempts has ended"
        assert "the run began, no model call yet" in output
        assert "compaction b3000000" in output
        (waiting,) = json.loads(invoke("stuck", "--json").stdout)
        assert (waiting["run_id"], waiting["where"], waiting["is_stale"]) == (C, "before_step", False)

    def test_a_dead_process_is_told(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE chat_debug_runs SET heartbeat_at = started_at")
        assert "No sign of life from its process" in invoke("stuck").output
        assert "otel-chatdebug sweep" in invoke("stuck").output

    def test_nothing(self, engine: Engine) -> None:
        assert invoke("stuck", "--chat", "nobody").output.startswith("Nothing is stuck")
        assert invoke("stuck", "--chat", "nobody", "--idle", "0").output == "Nothing is in progress.\n"
        assert json.loads(invoke("stuck", "--chat", "nobody", "--json").stdout) == []
        assert "no duration" in invoke("stuck", "--idle", "soon", status=2).stderr


class TestDiff:
    @pytest.mark.parametrize("ids", [("a1", "a2"), ("aa00", "bb00"), ("aaa2", "bb00")])
    def test_tells_what_changed(self, engine: Engine, ids: tuple[str, str]) -> None:
        output = invoke("diff", *ids).output
        assert "1 message the same" in output
        assert "- option temperature: 0" in output
        assert "+ message 2: assistant: Yes." in output
        (pair,) = json.loads(invoke("diff", *ids, "--json").stdout)
        assert [one["part"] for one in pair["differences"]] == ["options", "messages"]

    def test_says_where_there_is_nothing_to_compare(self, engine: Engine) -> None:
        assert "only one of them has this step" in invoke("diff", "a1", "b3").output
        assert "the requests are the same" in invoke("diff", "a1", "a1").output
        assert "Neither" in invoke("diff", "b3", "b3").output
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM chat_debug_step_contents")
        assert "not kept any more" in invoke("diff", "a1", "a2").output


class TestCurl:
    @pytest.mark.parametrize("names", [("a1", "1", "2"), ("a1",), ("a1", "aa00", "aaa2"), ("aaa2",), ("aa00", "2")])
    def test_the_request_is_named_in_many_ways(self, engine: Engine, names: tuple[str, ...]) -> None:
        output = invoke("curl", *names).output
        assert output.startswith("# Set OPENAI_API_KEY: secrets are not recorded.\ncurl http://127.0.0.1:1/v2 \\\n")
        assert """--data-raw '{"a": "it'"'"'s"}'""" in output
        made = json.loads(invoke("curl", *names, "--json").stdout)
        assert made["variables"] == ["OPENAI_API_KEY"]
        assert made["command"] in output

    def test_what_is_not_there_is_said_with_what_is(self, engine: Engine) -> None:
        assert "there are: 1 (aa00)" in invoke("curl", "a1", "7", status=1).stderr
        assert "1 (aaa1), 2 (aaa2)" in invoke("curl", "a1", "1", "9", status=1).stderr
        assert "Several attempts" in invoke("curl", "a1", "1", "aaa", status=1).stderr
        assert "has no step" in invoke("curl", "b3", status=1).stderr
        assert "has no attempt" in invoke("curl", "bb00", status=1).stderr
        assert "already" in invoke("curl", "aaa2", "1", status=2).stderr


class TestTransfer:
    def test_a_file_can_be_imported_elsewhere_and_again(self, engine: Engine, chatdebug_home: Path) -> None:
        file, copy = chatdebug_home / "chat.json", f"sqlite:///{chatdebug_home / 'copy.db'}"
        assert "Wrote 2 runs" in invoke("export", "--chat", "c/1", "-o", str(file)).stderr
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        # The records are of May 2026; an application would remove them, and it says so.
        first = invoke("import", str(file), "--database-url", copy, OTEL_CHATDEBUG_RETENTION="1")
        assert first.stdout == "Imported 2 runs: 2 new.\n"
        again = json.loads(invoke("import", str(file), "--database-url", copy, "--json").stdout)
        assert again == {"added": 0, "updated": 0, "kept": 2}
        both = [
            json.loads(invoke("export", "--chat", "c/1", "--database-url", where).stdout)
            for where in (copy, str(engine.url))
        ]
        assert both[0]["runs"] == both[1]["runs"]
        assert listed("--database-url", copy) == [B, A]

    def test_standard_output_and_input(self, engine: Engine, chatdebug_home: Path) -> None:
        copy = f"sqlite:///{chatdebug_home / 'copy.db'}"
        file = invoke("export", "a1").stdout
        assert invoke("import", "-", "--database-url", copy, input=file.encode()).stdout == "Imported 1 run: 1 new.\n"
        original, imported = (
            json.loads(invoke("show", "a1", "--json", "--database-url", where).stdout)
            for where in (str(engine.url), copy)
        )
        for run in (original, imported):
            for row in (run, *run["steps"], *(attempt for step in run["steps"] for attempt in step["attempts"])):
                del row["changed_at"]
        assert original == imported

    def test_a_file_that_breaks_off_leaves_what_was_there(self, engine: Engine, chatdebug_home: Path) -> None:
        file = chatdebug_home / "chat.json"
        file.write_text("mine")
        file.chmod(0o600)
        assert "no run of the chat" in invoke("export", "--chat", "no\x1b", "-o", str(file), status=1).stderr
        assert file.read_text() == "mine"
        assert "cannot be written" in invoke("export", "a1", "-o", f"{chatdebug_home}/no/x.json", status=1).stderr
        assert sorted(os.listdir(chatdebug_home)) == [
            "chat.json",
            "chatdebug.db",
            "chatdebug.db-shm",
            "chatdebug.db-wal",
        ]

    def test_either_a_run_or_a_chat(self, engine: Engine) -> None:
        assert "either" in invoke("export", status=2).stderr
        assert "either" in invoke("export", "a1", "--chat", "c", status=2).stderr

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (b"{", "no JSON"),
            (b"\xff", "no JSON"),
            (b'{"format": "otel-chatdebug export", "version": 77, "runs": []}', "version 77.*versions up to 1"),
        ],
    )
    def test_a_wrong_file_is_one_sentence_and_makes_no_database(
        self, chatdebug_home: Path, text: bytes, expected: str
    ) -> None:
        result = invoke("import", "-", status=1, input=text)
        assert re.search(expected, result.stderr)
        assert len(result.stderr.splitlines()) == 1
        assert os.listdir(chatdebug_home) == []


class TestOpen:
    def test_prints_the_address_by_the_template(self, engine: Engine) -> None:
        template = {"OTEL_CHATDEBUG_TRACE_URL": "http://jaeger:16686/trace/{trace_id}?uiFind={span_id}"}
        assert invoke("open", "a1", **template).output == f"http://jaeger:16686/trace/{'ab' * 16}?uiFind={'cd' * 8}\n"
        assert invoke("open", "aa00", **template).output.endswith("?uiFind=aa00\n")
        assert json.loads(invoke("open", "a1", "--json", **template).stdout)["url"].startswith("http://jaeger")

    def test_without_one_it_says_what_to_set(self, engine: Engine) -> None:
        output = invoke("open", "a1").output
        assert "OTEL_CHATDEBUG_TRACE_URL='http://localhost:16686/trace/{trace_id}'" in output
        assert "ab" * 16 in output
        assert json.loads(invoke("open", "a1", "--json").stdout)["url"] is None

    def test_a_run_without_a_trace(self, engine: Engine) -> None:
        assert "no trace" in invoke("open", "a2", status=1).stderr


class TestCompletion:
    def complete(self, words: str, shell: str = "bash") -> list[str]:
        typed = words.split(" ")
        environment = {
            "_OTEL_CHATDEBUG_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(typed) - 1),
        }
        result = CliRunner().invoke(main, [], env=environment, prog_name="otel-chatdebug")
        assert not result.stderr
        return [line.partition(",")[2] for line in result.stdout.splitlines() if line]

    def test_offers_commands_runs_chats_and_models(self, engine: Engine) -> None:
        assert self.complete("otel-chatdebug st") == ["stuck"]
        assert self.complete("otel-chatdebug show a") == [B, A]
        assert self.complete("otel-chatdebug curl A1") == [A]
        assert self.complete("otel-chatdebug runs --kind ") == ["chat_turn", "compaction"]
        assert self.complete("otel-chatdebug runs --model ") == ["m"]
        assert self.complete("otel-chatdebug runs --status in") == ["in_progress", "interrupted"]

    def test_a_value_that_could_change_the_line_is_not_offered(self, engine: Engine) -> None:
        assert self.complete("otel-chatdebug tail --chat ") == ["c/1"]

    def test_without_a_database_nothing_is_offered_or_said(self, chatdebug_home: Path) -> None:
        assert self.complete("otel-chatdebug show ") == []
        assert os.listdir(chatdebug_home) == []

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_scripts_of_the_shells_are_made(self, shell: str) -> None:
        result = CliRunner().invoke(
            main, [], env={"_OTEL_CHATDEBUG_COMPLETE": f"{shell}_source"}, prog_name="otel-chatdebug"
        )
        assert "_OTEL_CHATDEBUG_COMPLETE" in result.stdout
