"""What the command line writes as a process: colours, encodings, and readers and disks that fail it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, merge, migrations
from tests.support.records import attempt_content, attempt_record, ended_run, run_record, step_content, step_record

RUN = "a1" + "0" * 30
EVIL = "\x1b[31mevil\u202e\x07"


@pytest.fixture(autouse=True)
def _recorded(chatdebug_home: Path) -> None:
    """A run with all that can be shown of one, and another one that failed."""
    engine = database.open_engine(f"sqlite:///{chatdebug_home / 'chatdebug.db'}")
    migrations.upgrade(engine)
    records = [
        ended_run(RUN, chat_id="c", summary={"first_message": f"Blue {EVIL} \u2713"}),
        step_record(run_id=RUN, provider="openai"),
        step_content(run_id=RUN, normalized_request={"messages": [], "format": "openai.chat"}),
        attempt_record(run_id=RUN, method="POST", url="http://127.0.0.1:1/v1", error={"type": "rate_limit"}),
        attempt_content(run_id=RUN, request_headers=[["x", EVIL]], request_body="{}", response_body=f"data: {EVIL}"),
        run_record("b2", status=Status.ERROR, rank=2, error={"type": "overloaded"}),
    ]
    with engine.begin() as connection:
        merge.write(connection, records)
    engine.dispose()


def run(*arguments: str, check: bool = True, stdout: Any = subprocess.PIPE, **environment: str) -> Any:
    command = [sys.executable, "-m", "otel_chatdebug.cli", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=os.environ | environment, check=check)


class TestOutput:
    def test_no_colours_in_a_pipe(self) -> None:
        assert b"\x1b" not in run("runs").stdout

    def test_no_color_is_honoured(self) -> None:
        """FORCE_COLOR makes rich take the pipe for a terminal; NO_COLOR takes the colours away again."""
        assert b"\x1b[32m" in run("runs", FORCE_COLOR="1", TERM="xterm-256color").stdout
        assert b"\x1b[32m" not in run("runs", FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color").stdout

    def test_an_encoding_without_our_signs_ends_no_command(self) -> None:
        assert b"attempt 1" in run("show", "a1", PYTHONIOENCODING="ascii").stdout
        assert json.loads(run("show", "a1", "--json", PYTHONIOENCODING="ascii").stdout)["id"] == RUN

    def test_warnings_do_not_spoil_json(self) -> None:
        done = run("runs", "--json", OTEL_CHATDEBUG_STALE_AFTER="soon")
        assert len(json.loads(done.stdout)) == 2
        assert b"OTEL_CHATDEBUG_STALE_AFTER" in done.stderr

    def test_an_export_for_an_encoding_without_our_signs_is_the_same(self) -> None:
        texts = [run("export", "a1", PYTHONIOENCODING=encoding).stdout for encoding in ("ascii", "utf-8")]
        assert json.loads(texts[0])["runs"] == json.loads(texts[1])["runs"]
        assert texts[0].isascii()


class TestPipes:
    """A reader that leaves, and a disk that is full: no traceback, whatever the command."""

    COMMANDS = (["runs"], ["runs", "--json"], ["show", "a1"], ["show", "a1", "--raw"], ["stuck"], ["export", "a1"])

    @pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
    def test_a_closed_pipe(self, arguments: list[str]) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            result = run(*arguments, stdout=writing, check=False)
        finally:
            os.close(writing)
        assert (result.returncode, result.stderr) == (0, b"")

    @pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
    def test_a_full_disk(self, arguments: list[str]) -> None:
        with open("/dev/full", "wb") as full:
            result = run(*arguments, stdout=full, check=False)
        assert result.returncode == 1
        assert result.stderr == b"Error: The output cannot be written: No space left on device.\n"
