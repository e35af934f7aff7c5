"""Documentation that runs: every Python block of the pages and every example, with real SDKs and real servers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.tables import database, queries
from tests.support.apps import PATIENCE, until
from tests.support.markdown import ROOT, Block, blocks

SERVERS = [block for block in blocks("docs/frameworks.md", "python") if "app = " in block.code]
SCRIPTS = [
    *blocks("README.md", "python"),
    *blocks("docs/why.md", "python"),
    *blocks("docs/shared.md", "python"),
    *blocks("docs/operations.md", "python"),
    *(block for block in blocks("docs/frameworks.md", "python") if block not in SERVERS),
]

ANSWER = "Sunlight is scattered by the air."


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as started:
        yield started


def environment(provider: Provider, **more: str) -> dict[str, str]:
    """Where the SDKs find their model: what the pages leave to the environment, as the SDKs do."""
    return {
        **os.environ,
        "OPENAI_BASE_URL": f"{provider.url}/v1",
        "OPENAI_API_KEY": "any",
        "ANTHROPIC_BASE_URL": provider.url,
        "ANTHROPIC_API_KEY": "any",
        "NO_PROXY": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def recorded(home: Path) -> list[dict[str, Any]]:
    """All runs with their steps and attempts, the oldest first; none where the tables are not there yet."""
    try:
        engine = queries.open_for_reading(f"sqlite:///{home / 'chatdebug.db'}")
    except database.NoDatabase:
        return []
    try:
        return [queries.load_run(engine, run["id"]) for run in reversed(queries.list_runs(engine, limit=100))]
    finally:
        engine.dispose()


def run(command: list[str], provider: Provider, **more: str) -> str:
    """Runs an application to its good end, and returns what it printed."""
    done = subprocess.run(
        command, env=environment(provider, **more), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@contextmanager
def serving(command: list[str], folder: Path, provider: Provider) -> Iterator[str]:
    """A server under way: its URL. It ends with the block, as by Ctrl-C, and has written everything then."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(provider, PORT="0"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            log = ""
            for line in process.stdout:
                log += line
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield found[0]
                    break
            else:
                pytest.fail(f"it does not serve:\n{log}")
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=PATIENCE)
            assert "Traceback" not in rest, rest
        finally:
            process.kill()


def server(block: Block, folder: Path) -> list[str]:
    """Writes a block into a file, and returns the command that serves it."""
    (folder / "app.py").write_text(block.code, "utf-8")
    if "flask" in block.code:
        return [sys.executable, "-m", "flask", "--app", "app", "run", "--port", "0"]
    return [sys.executable, "-m", "uvicorn", "app:app", "--port", "0"]


def names(found: list[Block]) -> list[str]:
    return [block.heading for block in found]


def test_the_pages_have_blocks_to_run() -> None:
    """Else the tests below would hold of nothing."""
    assert names(SERVERS) == [
        "FastAPI",
        "Starlette: the stream returned from inside of the run",
        "Starlette: a generator that is not async",
        "Flask",
    ]
    assert "Threads" in names(SCRIPTS)
    assert blocks("README.md", "python")


@pytest.mark.parametrize("block", SERVERS, ids=names(SERVERS))
def test_a_framework_streams_a_turn_in_one_run(
    block: Block, chatdebug_home: Path, tmp_path: Path, provider: Provider
) -> None:
    """The answer arrives, and the run, its steps and their attempts are completed and belong together."""
    calls = 2 if "two model calls" in block.code else 1
    provider.script(*[Behaviour(text=ANSWER)] * calls)
    with serving(server(block, tmp_path), tmp_path, provider) as url:
        answer = httpx.post(f"{url}/chats/my-chat", params={"question": "Why?"}, trust_env=False, timeout=PATIENCE)

    assert answer.text == ANSWER * calls
    (found,) = recorded(chatdebug_home)
    assert (found["kind"], found["status"], found["chat_id"]) == ("chat_turn", "completed", "my-chat")
    assert found["summary"]["first_message"] == "Why?"
    steps = [(step["status"], [attempt["status"] for attempt in step["attempts"]]) for step in found["steps"]]
    assert steps == [("completed", ["completed"])] * calls


@pytest.mark.parametrize("block", SERVERS, ids=names(SERVERS))
def test_a_reader_who_leaves_interrupts_the_turn(
    block: Block, chatdebug_home: Path, tmp_path: Path, provider: Provider
) -> None:
    """The run, its step and its attempt are interrupted, and nothing is an error. But a run that has returned the
    stream was left normally before, so it is completed."""
    stalling = Behaviour(chunks=1000, stall_after=2, delay=0.001)
    provider.script(stalling)
    with serving(server(block, tmp_path), tmp_path, provider) as url:
        with (
            httpx.Client(trust_env=False, timeout=PATIENCE) as client,
            client.stream("POST", f"{url}/chats/my-chat", params={"question": "Why?"}) as answer,
        ):
            next(answer.iter_raw())
        stalling.release()  # a server with threads sees that nobody reads when it writes
        (found,) = until(lambda: [run for run in recorded(chatdebug_home) if run["status"] != "in_progress"])

    attempts = [attempt for step in found["steps"] for attempt in step["attempts"]]
    assert [row["status"] for row in (*found["steps"], *attempts)] == ["interrupted"] * 2
    returned = "the stream returned" in names([block])[0]
    assert found["status"] == ("completed" if returned else "interrupted")
    assert found["error"] is None
    assert attempts[0]["end_reason"] in ("cancelled", "early_close")


@pytest.mark.parametrize("block", SCRIPTS, ids=names(SCRIPTS))
def test_a_block_runs_as_it_stands(block: Block, chatdebug_home: Path, tmp_path: Path, provider: Provider) -> None:
    """It ends well, and what it recorded is completed."""
    (tmp_path / "app.py").write_text(block.code, "utf-8")
    run([sys.executable, str(tmp_path / "app.py")], provider)
    found = recorded(chatdebug_home)
    assert found
    assert {one["status"] for one in found} == {"completed"}
    assert len(provider.requests) == sum(len(step["attempts"]) for one in found for step in one["steps"])


def test_threads_that_attach_share_the_run(chatdebug_home: Path, tmp_path: Path, provider: Provider) -> None:
    (block,) = (block for block in SCRIPTS if block.heading == "Threads")
    (tmp_path / "app.py").write_text(block.code, "utf-8")
    run([sys.executable, str(tmp_path / "app.py")], provider)
    (found,) = recorded(chatdebug_home)
    assert len(found["steps"]) == 2


def test_two_lines(chatdebug_home: Path, provider: Provider) -> None:
    provider.script(Behaviour(text=ANSWER))
    assert run([sys.executable, str(ROOT / "examples/two_lines.py")], provider) == f"{ANSWER}\n"
    (found,) = recorded(chatdebug_home)
    assert (found["kind"], found["status"]) == ("auto", "completed")


def test_zero_code(chatdebug_home: Path, provider: Provider) -> None:
    """Under `opentelemetry-instrument`, as the file itself says."""
    provider.script(Behaviour(text=ANSWER))
    launcher = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    command = [launcher, sys.executable, str(ROOT / "examples/zero_code.py")]
    assert run(command, provider, OTEL_TRACES_EXPORTER="chatdebug") == f"{ANSWER}\n"
    (found,) = recorded(chatdebug_home)
    assert (found["kind"], found["status"]) == ("auto", "completed")


def test_streaming_starlette(chatdebug_home: Path, provider: Provider) -> None:
    provider.script(Behaviour(text=ANSWER))
    with serving([sys.executable, str(ROOT / "examples/streaming_starlette.py")], ROOT, provider) as url:
        answer = httpx.post(f"{url}/chats/my-chat", content="Why?", trust_env=False, timeout=PATIENCE)
    assert answer.text == ANSWER
    (found,) = recorded(chatdebug_home)
    assert (found["status"], found["chat_id"]) == ("completed", "my-chat")
    assert found["summary"]["first_message"] == "Why?"
    assert found["service_name"] == "streaming-starlette"


def test_every_example_is_run_here() -> None:
    tested = Path(__file__).read_text("utf-8")
    examples = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
    assert examples
    assert [name for name in examples if f"examples/{name}" not in tested] == []
