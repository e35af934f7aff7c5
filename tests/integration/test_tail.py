"""``otel-chatdebug tail`` as a process of its own, beside one that records, on both databases."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import queue
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from otel_chatdebug.records import AttemptRank, Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, merge, migrations
from tests.support.records import NOW, attempt_record, run_record, step_record

PATIENCE = 60.0
"""Seconds until a line that does not come is a failure."""


class Tail:
    """The process, and what it has written, line by line."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._thread.start()

    def _read(self, output: int) -> None:
        rest = b""
        while True:
            try:
                piece = os.read(output, 65536)
            except OSError:  # how a terminal ends
                piece = b""
            # A carriage return, too: on a terminal the last line stands without an end until it is drawn anew.
            *lines, rest = re.split(rb"[\r\n]+", rest + piece)
            for line in lines:
                self._lines.put(line.decode())
            if not piece:
                self._lines.put(None)
                os.close(output)
                return

    def until(self, *texts: str) -> str:
        """The next line that has all of these texts."""
        seen = []
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            seen.append(line)
            if all(text in line for text in texts):
                return line
        raise AssertionError(f"it ended before {texts} came: {seen}")

    def leave(self) -> int:
        """What Ctrl-C does; the exit status."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        return status


@contextmanager
def tailing(url: str, *arguments: str, terminal: bool = False) -> Iterator[Tail]:
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "otel_chatdebug.cli", "tail", "--database-url", url, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(writing)
    try:
        yield Tail(process, reading)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


FAILED: dict[str, Any] = {"status": Status.ERROR, "rank": AttemptRank.FINAL, "finished_at": NOW + 5}


def test_each_change_is_a_line_of_json_until_ctrl_c(engine: Engine, database_url: str) -> None:
    write(engine, run_record("before"))
    with tailing(database_url, "--json", "-n", "1") as tail:
        assert json.loads(tail.until("before"))["type"] == "run"  # from here on it follows
        write(engine, run_record("new", chat_id="c\x1b[31m"), step_record(run_id="new"), attempt_record(run_id="new"))
        lines = [json.loads(tail.until(f'"type": "{kind}"')) for kind in ("run", "step", "attempt")]
        assert [line["id"] for line in lines] == ["new", "step", "attempt"]
        write(engine, attempt_record(run_id="new", updated_at=NOW + 1, bytes_received=7))
        assert json.loads(tail.until('"attempt"'))["bytes_received"] == 7
        assert tail.leave() == 0
        assert tail.process.stderr is not None
        assert tail.process.stderr.read() == b""


def test_lines_tell_what_began_failed_and_ended(engine: Engine, database_url: str) -> None:
    write(engine, run_record("waiting", chat_id="mine"))
    with tailing(database_url, "--chat", "mine") as tail:
        assert "\x1b" not in tail.until("waiting", "● in_progress")
        write(engine, run_record("other", chat_id="other"))
        error = {"type": "rate_limit", "message": "slow \x1b[2Jdown"}
        attempt = attempt_record(run_id="waiting", chat_id="mine", error=error, **FAILED)
        write(engine, step_record(run_id="waiting"), attempt)
        assert "✗ attempt 1" in tail.until("rate_limit: slow ␛[2Jdown")
        ended = {"status": Status.COMPLETED, "rank": 3, "finished_at": NOW + 1_500_000, "updated_at": NOW + 9}
        write(engine, run_record("waiting", chat_id="mine", **ended))
        assert "other" not in tail.until("✓ completed", "1.5 s")
        assert tail.leave() == 0


def test_on_a_terminal_what_is_in_progress_moves_below(engine: Engine, database_url: str) -> None:
    with tailing(database_url, terminal=True) as tail:
        tail.until("0 in progress")
        summary = {"first_message": "Hi \x1b]0;evil\x07"}
        write(engine, run_record("running", summary=summary), step_record(run_id="running"))
        assert "␛]0;evil␇" in tail.until("running", "“Hi")
        open_stream = {"response_status": 200, "first_byte_at": NOW, "last_byte_at": NOW, "bytes_received": 2345}
        write(engine, attempt_record(run_id="running", events=5, **open_stream))
        assert "in the middle of the body" in tail.until("2.3 kB, 5 events")
        assert tail.leave() == 0


@pytest.mark.parametrize("how", [["--json", "-n", "0"], []], ids=["json", "lines"])
def test_it_may_be_started_before_the_application(how: list[str], tmp_path: Path) -> None:
    """It says what it waits for, and then misses nothing of what came to be meanwhile."""
    path = tmp_path / "later" / "chatdebug.db"
    with tailing(f"sqlite:///{path}", *how) as tail:
        assert tail.process.stderr is not None
        said = tail.process.stderr.readline().decode()
        assert f"There is no database at {path} yet" in said
        assert "Waiting for it" in said
        path.parent.mkdir()
        engine = database.open_engine(f"sqlite:///{path}")
        migrations.upgrade(engine)
        write(engine, run_record("first"))
        assert "in_progress" in tail.until("first")
        write(engine, run_record("second"))
        tail.until("second")
        engine.dispose()
        assert tail.leave() == 0
        assert tail.process.stderr.read() == b""


def test_it_is_left_while_it_waits(tmp_path: Path) -> None:
    with tailing(f"sqlite:///{tmp_path / 'none.db'}", terminal=True) as tail:
        assert tail.process.stderr is not None
        tail.process.stderr.readline()
        assert tail.leave() == 0
        assert tail.process.stderr.read() == b""
    assert not (tmp_path / "none.db").exists()


def test_a_reader_that_leaves_ends_it(engine: Engine, database_url: str) -> None:
    write(engine, run_record("one"))
    with tailing(database_url, "--json", "-n", "1") as tail:
        tail.until("one")
        assert tail.leave() == 0
    command = [sys.executable, "-m", "otel_chatdebug.cli", "tail", "--json", "--database-url", database_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["id"] == "one"
    process.stdout.close()
    write(engine, run_record("two"))  # which it cannot tell to anybody
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
