"""What becomes of rows when processes live, hang, die, exit and fork. Real processes against a provider in this one."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from otel_chatdebug.demo.provider import Behaviour, Provider
from tests.support.apps import rows, run, started, sweep, until

PROMISED_SOON = 1.0
"""Seconds within which the rows of a run, step and attempt are there after their start."""

PROMISED_COUNTERS = 6.0
"""Seconds within which a stuck stream's row has its counters."""

SLACK = 2.0
"""Seconds more, for a machine that is busy with other things."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


def stalled(after: int = 3) -> Behaviour:
    return Behaviour(chunks=after + 2, stall_after=after)


STREAM_ON = """
with chatdebug.run(chat_id="c") as run, chatdebug.step() as step:
    response = open_stream()
    say("started")
    for _ in response.iter_raw():
        pass
"""


# -- live


def test_rows_are_there_within_a_second_of_their_start_and_counters_move(
    chatdebug_home: Path, provider: Provider
) -> None:
    """The process is warm: it has loaded SQLAlchemy, and the tables are there."""
    provider.script(Behaviour(), stalled())
    with started("call(); chatdebug.flush(30)\n" + STREAM_ON, provider.url) as app:
        app.wait_for("started")
        for table in ("runs", "steps", "attempts"):
            found = until(lambda table=table: rows(chatdebug_home, table, "status")[1:], PROMISED_SOON + SLACK)  # type: ignore[misc]
            assert found == [("in_progress",)]
        ((received, events, last),) = until(
            lambda: [
                row for row in rows(chatdebug_home, "attempts", "bytes_received, events, last_byte_at")[1:] if row[1]
            ],
            PROMISED_COUNTERS + SLACK,
        )
        assert received > 0
        assert events >= 3
        assert last is not None


def test_after_a_kill_the_text_so_far_is_there_and_a_sweep_says_that_it_is_over(
    chatdebug_home: Path, provider: Provider
) -> None:
    provider.script(stalled(20))
    with started(STREAM_ON, provider.url, OTEL_CHATDEBUG_STALE_AFTER="1") as app:

        def text() -> str:
            found = rows(chatdebug_home, "attempt_contents", "response_body", "attempt_id")
            return found[0][0] or "" if found else ""

        until(lambda: "wörd20 " in text(), 8 + SLACK)
        app.process.send_signal(signal.SIGKILL)
        app.process.wait()
    for table in ("runs", "steps", "attempts"):
        assert rows(chatdebug_home, table, "status, finished_at") == [("in_progress", None)]

    until(lambda: "Marked as interrupted: 1 run, 1 step, 1 attempt" in sweep(OTEL_CHATDEBUG_STALE_AFTER="1").stdout)

    for table in ("runs", "steps", "attempts"):
        ((status, rank, finished, heartbeat, updated),) = rows(
            chatdebug_home, table, "status, rank, finished_at, heartbeat_at, updated_at"
        )
        assert (status, rank) == ("interrupted", 1)
        assert finished == heartbeat == updated
        assert finished is not None
    assert rows(chatdebug_home, "attempts", "end_reason") == [("stale",)]
    again = sweep(OTEL_CHATDEBUG_STALE_AFTER="1")
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    assert "wörd20 " in text()


def test_heartbeats_come_often_enough_for_the_shortest_threshold(chatdebug_home: Path, provider: Provider) -> None:
    """Twice at least in OTEL_CHATDEBUG_STALE_AFTER seconds; the smallest distance is what a busy machine leaves."""
    provider.script(stalled())
    with started(STREAM_ON, provider.url, OTEL_CHATDEBUG_STALE_AFTER="1") as app:
        app.wait_for("started")
        beats: dict[str, set[str]] = {"runs": set(), "steps": set(), "attempts": set()}

        def look() -> bool:
            for table, seen in beats.items():
                seen.update(beat for (beat,) in rows(chatdebug_home, table, "heartbeat_at") if beat)
            return all(len(seen) >= 6 for seen in beats.values())

        until(look)
        assert rows(chatdebug_home, "runs", "status") == [("in_progress",)]
    for seen in beats.values():
        times = sorted(map(datetime.fromisoformat, seen))
        assert min(later - earlier for earlier, later in pairwise(times)) <= timedelta(seconds=0.5)


def test_a_process_that_was_only_thought_dead_corrects_what_the_sweep_said(
    chatdebug_home: Path, provider: Provider
) -> None:
    """The sweep has a shorter threshold than the process beats for."""
    stuck = stalled()
    provider.script(stuck)
    with started(STREAM_ON, provider.url) as app:
        app.wait_for("started")
        until(lambda: rows(chatdebug_home, "attempts"))
        until(
            lambda: (
                sweep(OTEL_CHATDEBUG_STALE_AFTER="0.1")
                and rows(chatdebug_home, "attempts", "status, end_reason") == [("interrupted", "stale")]
            )
        )
        stuck.release()
        assert app.ended().returncode == 0
    for table in ("runs", "steps", "attempts"):
        assert rows(chatdebug_home, table, "status") == [("completed",)]
    assert rows(chatdebug_home, "attempts", "end_reason") == [("sse_eof",)]


# -- the end of the interpreter


EXITS = {
    "the end of the script": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an unhandled exception": ("raise LookupError('unhandled')", 1),
    "SIGINT": ("signal.raise_signal(signal.SIGINT)", 1),
}


@pytest.mark.parametrize("how", EXITS)
def test_at_exit_what_is_open_was_interrupted_by_it(how: str, chatdebug_home: Path, provider: Provider) -> None:
    """The stream is half read, and nobody has left the run."""
    provider.script(stalled())
    code, status = EXITS[how]
    done = run(
        f"""
        handle = chatdebug.run(chat_id="c")
        attached = handle.attach()
        attached.__enter__()
        response = open_stream()
        pieces = response.iter_raw()
        next(pieces)
        {code}
        """,
        provider.url,
    )
    assert abs(done.returncode) in (status, signal.SIGINT), done.stderr
    assert done.stderr.count("Traceback") == (how in ("an unhandled exception", "SIGINT"))
    assert rows(chatdebug_home, "runs", "status") == [("interrupted",)]
    assert rows(chatdebug_home, "steps", "status") == [("interrupted",)]
    assert rows(chatdebug_home, "attempts", "status, end_reason") == [("interrupted", "shutdown")]


LEFT_BY_EXIT = {
    "sys.exit": ("sys.exit(3)", 3, "error"),
    "a clean sys.exit": ("sys.exit()", 0, "interrupted"),
    "an unhandled exception": ("raise LookupError('unhandled')", 1, "error"),
    "SIGINT": ("signal.raise_signal(signal.SIGINT)", 1, "interrupted"),
}


@pytest.mark.parametrize("how", LEFT_BY_EXIT)
def test_a_block_that_is_left_by_the_exit_says_so(how: str, chatdebug_home: Path, provider: Provider) -> None:
    code, status, expected = LEFT_BY_EXIT[how]
    done = run(
        f"""
        with chatdebug.run(chat_id="c"):
            call()
            {code}
        """,
        provider.url,
    )
    assert abs(done.returncode) in (status, signal.SIGINT), done.stderr
    assert rows(chatdebug_home, "runs", "status") == [(expected,)]
    assert rows(chatdebug_home, "attempts", "status") == [("completed",)]


def test_sigterm_without_a_handler_leaves_rows_that_the_sweep_finds(chatdebug_home: Path, provider: Provider) -> None:
    """The default kills at once, as SIGKILL does; nothing of ours changes that."""
    provider.script(stalled())
    with started(STREAM_ON, provider.url, OTEL_CHATDEBUG_STALE_AFTER="1") as app:
        app.wait_for("started")
        until(lambda: rows(chatdebug_home, "attempts"))
        app.process.terminate()
        assert app.process.wait() == -signal.SIGTERM
    until(lambda: "1 run, 1 step, 1 attempt" in sweep(OTEL_CHATDEBUG_STALE_AFTER="1").stdout)
    assert rows(chatdebug_home, "runs", "status") == [("interrupted",)]


def test_the_last_words_before_the_exit_are_written(chatdebug_home: Path, provider: Provider) -> None:
    """No `shutdown()`, no sleep: what came a moment ago is there."""
    done = run("for _ in range(20): call()", provider.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(chatdebug_home, "attempts", "status") == [("completed",)] * 20


def test_a_daemon_thread_in_the_middle_of_a_stream_does_not_hold_the_exit(
    chatdebug_home: Path, provider: Provider
) -> None:
    provider.script(stalled())
    done = run(
        """
        begun = threading.Event()
        def work():
            for _ in open_stream().iter_raw():
                begun.set()
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        """,
        provider.url,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(chatdebug_home, "attempts", "status, end_reason") == [("interrupted", "shutdown")]


def test_shutdown_takes_no_longer_than_five_seconds_with_a_locked_database(
    chatdebug_home: Path, provider: Provider
) -> None:
    assert run("call()", provider.url).returncode == 0
    lock = sqlite3.connect(chatdebug_home / "chatdebug.db", isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        done = run(
            """
            import time
            call()
            began = time.monotonic()
            chatdebug.shutdown()
            say("took " + str(time.monotonic() - began))
            """,
            provider.url,
        )
    finally:
        lock.close()
    assert done.returncode == 0
    assert float(done.stdout.split()[1]) < 5.2
    assert len(done.stderr.splitlines()) <= 3
    assert "Traceback" not in done.stderr


# -- forks


def test_a_forked_child_records_its_own_and_the_parents_handles_are_inert_in_it(
    chatdebug_home: Path, provider: Provider
) -> None:
    """Both have a run, an open stream and an exit handler: nothing is told twice."""
    provider.script(Behaviour(), Behaviour(hold_end=True))
    held = provider._script[1]
    with started(
        """
        with chatdebug.run("parent", chat_id="c") as handle:
            call()
            response = open_stream()
            pieces = response.iter_raw()
            next(pieces)
            child = os.fork()
            if not child:
                client = httpx.Client(trust_env=False)
                told = handle.finish("error", error="of the child")
                with chatdebug.run("child") as own:
                    call()
                call()
                say(f"child {bool(told)} {handle.id} {own.id}")
                sys.exit(0)
            _, status = os.waitpid(child, 0)
            say(f"parent {status} {handle.id}")
            for _ in pieces:
                pass
        """,
        provider.url,
    ) as app:
        told, parent_id, own_id = app.wait_for("child").split()
        assert told == "False"
        assert app.wait_for("parent").split() == ["0", parent_id]
        held.release()
        done = app.ended()
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    runs = {kind: (id, status) for kind, id, status in rows(chatdebug_home, "runs", "kind, id, status")}
    assert runs["parent"] == (parent_id, "completed")
    assert runs["child"] == (own_id, "completed")
    assert runs["auto"][1] == "completed"
    assert len(runs) == 3
    attempts = rows(chatdebug_home, "attempts", "run_id, status, end_reason")
    assert Counter(id for id, *_ in attempts) == {parent_id: 2, own_id: 1, runs["auto"][0]: 1}
    assert {status for _, status, _ in attempts} == {"completed"}
    replicas = rows(chatdebug_home, "runs", "kind, replica_id")
    assert len({replica for _, replica in replicas}) == 2


def test_a_fork_while_another_thread_records_leaves_no_deadlock(chatdebug_home: Path, provider: Provider) -> None:
    done = run(
        """
        call()
        chatdebug.flush(30)
        stop = threading.Event()
        def work():
            own = httpx.Client(trust_env=False)
            while not stop.is_set():
                own.post(URL, json=BODY)
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            child = os.fork()
            if not child:
                client = httpx.Client(trust_env=False)
                with chatdebug.run("child"):
                    call()
                chatdebug.shutdown()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        """,
        provider.url,
    )
    assert done.returncode == 0, done.stderr
    assert rows(chatdebug_home, "runs", "kind, status").count(("child", "completed")) == 10
    assert {status for (status,) in rows(chatdebug_home, "attempts", "status")} == {"completed"}
    assert len(rows(chatdebug_home, "attempts")) == len(provider.requests)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_record_their_own(method: str, chatdebug_home: Path, provider: Provider) -> None:
    """They end without the interpreter's exit handlers; what they recorded last is written all the same."""
    code = f"""
import multiprocessing
import os, sys
import httpx
import otel_chatdebug as chatdebug

def work(number):
    if {method!r} != "fork":
        chatdebug.configure()
    with chatdebug.run("child", chat_id=str(number)):
        with httpx.Client(trust_env=False) as client:
            client.post(os.environ["MODEL_URL"] + "/v1/chat/completions", json={{"model": "m"}})

if __name__ == "__main__":
    chatdebug.configure()
    context = multiprocessing.get_context({method!r})
    with chatdebug.run("parent"):
        children = [context.Process(target=work, args=(number,)) for number in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    sys.exit(sum(child.exitcode for child in children))
"""
    path = chatdebug_home / "application.py"
    path.write_text(code)
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "MODEL_URL": provider.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(rows(chatdebug_home, "runs", "kind, chat_id, status", "1, 2")) == [
        ("child", "0", "completed"),
        ("child", "1", "completed"),
        ("child", "2", "completed"),
        ("parent", None, "completed"),
    ]
    assert rows(chatdebug_home, "attempts", "status") == [("completed",)] * 3


# -- growth


@pytest.mark.slow
def test_a_hundred_thousand_runs_that_were_never_finished_leave_no_growth(
    chatdebug_home: Path, provider: Provider
) -> None:
    done = run(
        """
        import gc, json, resource
        from otel_chatdebug import lifecycle
        from tests.support.recording import Sink
        chatdebug.shutdown()
        class Drop(Sink):
            def put(self, source):
                source.queued = False
        recorder = lifecycle.arm(writer=Drop())
        def size():
            lifecycle.flush()
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()
        def start(count):
            for _ in range(count):
                handle = chatdebug.run(chat_id="c")
                with handle.attach(), chatdebug.step():
                    pass
        start(5_000)
        before = size()
        start(95_000)
        grown = size() - before
        say(json.dumps([grown, len(recorder.open_runs), len(recorder.open_steps), len(recorder.auto_roots)]))
        """,
        provider.url,
        PYTHONPATH=str(Path(__file__).parents[2]),
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    grown, *still_open = json.loads(done.stdout)
    assert still_open == [0, 0, 0]
    assert grown < 16 * 1024 * 1024
