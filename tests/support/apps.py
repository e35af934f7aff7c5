"""Small applications as processes of their own, and the rows that they leave."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds until an application must be done, on a machine that is busy with other things."""

POLL = 0.02
"""Seconds between two looks at something that only polling can tell."""

PRELUDE = """
import os, signal, sys, threading
import httpx
import otel_chatdebug as chatdebug

URL = os.environ["MODEL_URL"] + "/v1/chat/completions"
BODY = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello?"}]}
client = httpx.Client(trust_env=False, timeout=None)  # it is the test that is patient

def call():
    return client.post(URL, json=BODY)

def open_stream():
    return client.send(client.build_request("POST", URL, json={**BODY, "stream": True}), stream=True)

def say(word):
    print(word, flush=True)
"""
"""What every application begins with."""


class App:
    """An application under way; made by `started`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def wait_for(self, word: str) -> str:
        """Reads its output up to a line that begins with ``word``, and returns the rest of that line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line[len(word) :].strip()
        raise AssertionError(f"it ended without saying {word!r}:\n{self.process.stderr.read()}")  # type: ignore[union-attr]

    def ended(self, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Waits for its end. What it wrote after the last `wait_for` is in ``stdout``."""
        stdout, stderr = self.process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, stdout, stderr)


def script(code: str, *, configure: bool = True) -> str:
    """The source of an application: the prelude, ``chatdebug.configure()``, then ``code``."""
    return PRELUDE + ("chatdebug.configure()\n" if configure else "") + textwrap.dedent(code)


@contextmanager
def started(
    code: str, url: str, *, configure: bool = True, command: tuple[str, ...] = (), **environment: str
) -> Iterator[App]:
    """Starts an application (by ``command``), and kills it at the end of the block if it still runs."""
    process = subprocess.Popen(
        [*command, sys.executable, "-c", script(code, configure=configure)],
        env={**os.environ, "MODEL_URL": url, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield App(process)
        finally:
            if process.poll() is None:
                process.kill()


def run(code: str, url: str, *, timeout: float = PATIENCE, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs an application to its end."""
    with started(code, url, **options) as app:
        return app.ended(timeout)


def rows(home: Path, table: str, columns: str = "*", order: str = "started_at") -> list[Any]:
    """Rows of ``chat_debug_<table>``; none where there is no such table yet."""
    path = home / "chatdebug.db"
    if not path.exists():
        return []
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    connection.row_factory = None
    try:
        return connection.execute(f"SELECT {columns} FROM chat_debug_{table} ORDER BY {order}").fetchall()
    except sqlite3.OperationalError:  # it is just being made
        return []
    finally:
        connection.close()


def until(look: Callable[[], T], timeout: float = PATIENCE) -> T:
    """Looks until it sees something true, and returns that. Fails after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s, last seen: {seen!r}"
        time.sleep(POLL)
    return seen


def sweep(**environment: str) -> subprocess.CompletedProcess[str]:
    """``otel-chatdebug sweep``."""
    command = [sys.executable, "-m", "otel_chatdebug.cli", "sweep"]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
