"""Servers and pools that fork after recording was configured: each child for itself, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.tables import consent, database, migrations, queries, schema
from otel_chatdebug.tables.deletion import take_up_spooled
from otel_chatdebug.tables.spool import Spool
from tests.support.apps import PATIENCE, run, started, until

WORKERS = 2

WSGI = """
import os
import httpx
{configure}

URL = os.environ["MODEL_URL"] + "/v1/chat/completions"
BODY = {{"model": "gpt-5-mini", "messages": []}}

def app(environ, start_response):
    import otel_chatdebug as chatdebug
    with chatdebug.run(chat_id=environ["PATH_INFO"]) as run:
        with httpx.Client(trust_env=False, timeout=None) as client:
            client.post(URL, json=BODY)
    start_response("200 OK", [("content-type", "text/plain")])
    return [f"{{os.getpid()}} {{run.id}}".encode()]
"""

ASGI = """
import os
import httpx
{configure}

URL = os.environ["MODEL_URL"] + "/v1/chat/completions"
BODY = {{"model": "gpt-5-mini", "messages": []}}

async def app(scope, receive, send):
    import otel_chatdebug as chatdebug
    if scope["type"] != "http":
        return
    async with chatdebug.run(chat_id=scope["path"]) as run:
        async with httpx.AsyncClient(trust_env=False, timeout=None) as client:
            await client.post(URL, json=BODY)
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": f"{{os.getpid()}} {{run.id}}".encode()}})
"""

OPEN_IN_MASTER = """
import otel_chatdebug as chatdebug
chatdebug.configure()
kept = httpx.Client(trust_env=False, timeout=None)
of_master = chatdebug.run("of_master")
with of_master.attach():
    stream = kept.send(
        kept.build_request("POST", os.environ["MODEL_URL"] + "/v1/chat/completions",
                           json={"model": "gpt-5-mini", "messages": [], "stream": True}),
        stream=True,
    )
    pieces = stream.iter_raw()
    next(pieces)
"""
"""Configured, with an open run and a stream half read, before the workers are forked."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


@pytest.fixture
def home(chatdebug_home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the application; what it records goes into the database of this test's kind."""
    monkeypatch.setenv("OTEL_CHATDEBUG_DATABASE_URL", database_url)
    return chatdebug_home


def nothing_is_spooled(url: str) -> bool:
    take_up_spooled(url)
    return not Spool(url).kept().records


def table(url: str, of: Any, *, taking_up: bool = True) -> list[Any]:
    """Its rows. On a busy machine a child may have had no time for the database at its end: then they are spooled, and
    written by whoever takes them up: we, or with ``taking_up=False`` only a process that is still there."""
    if taking_up:
        until(lambda: nothing_is_spooled(url))  # what one was taking up when it ended is free after half a minute
    try:
        engine = queries.open_for_reading(url)  # no lock: it is asked again and again
    except queries.NoDatabase:
        return []
    try:
        with engine.connect() as connection:
            return list(connection.execute(select(of)))
    finally:
        engine.dispose()


@contextmanager
def gunicorn(
    home: Path, code: str, model_url: str, port: int, *arguments: str, instrument: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A server of `WORKERS` processes, started and answering."""
    (home / "application.py").write_text(code)
    scripts = Path(sys.executable).parent
    command = [str(scripts / "gunicorn"), "application:app", "--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS)]
    if instrument:
        command = [str(scripts / "opentelemetry-instrument"), *command]
    process = subprocess.Popen(
        [*command, "--timeout", "120", "--no-control-socket", *arguments],
        cwd=home,
        env={
            **os.environ,
            "MODEL_URL": model_url,
            "OTEL_TRACES_EXPORTER": "chatdebug",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ask(port: int, path: str) -> list[str] | None:
    """The answer's words: the worker's process id, and the id of its run. None where nobody listens yet."""
    try:
        with httpx.Client(trust_env=False, timeout=PATIENCE) as client:  # a connection of its own
            return client.get(f"http://127.0.0.1:{port}{path}").text.split()
    except httpx.TransportError:
        return None


KINDS = {
    "sync workers": (WSGI, ()),
    "uvicorn workers": (ASGI, ("--worker-class", "uvicorn_worker.UvicornWorker")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_worker_of_gunicorn_records_its_own_and_leaves_the_masters_alone(
    kind: str, home: Path, database_url: str, provider: Provider, free_port: Callable[[], int]
) -> None:
    """Forked after all was configured, with a run and a stream open in the master. Workers end by ``sys.exit``."""
    code, arguments = KINDS[kind]
    stuck = Behaviour(chunks=5, stall_after=3)
    provider.script(stuck)
    port = free_port()
    with gunicorn(home, code.format(configure=OPEN_IN_MASTER), provider.url, port, "--preload", *arguments) as master:
        answers: dict[str, str] = {}  # run id to process id

        def all_have_answered() -> bool:
            answered = ask(port, f"/{len(answers)}")
            if answered is not None:
                answers[answered[1]] = answered[0]
            return len(set(answers.values())) == WORKERS

        until(all_have_answered)
        until(lambda: len(table(database_url, schema.runs)) == len(answers) + 1)
        ours = [row for row in table(database_url, schema.runs) if row.kind == "of_master"]
        victim = next(iter(answers.values()))
        os.kill(int(victim), signal.SIGTERM)  # it leaves in good order, and another takes its place

        def another_has_answered() -> bool:
            answered = ask(port, "/again")
            if answered is not None:
                answers[answered[1]] = answered[0]
            return len(set(answers.values())) == WORKERS + 1

        until(another_has_answered)
        (still,) = [row for row in table(database_url, schema.runs) if row.kind == "of_master"]
        assert (still.status, still.replica_id) == ("in_progress", ours[0].replica_id)
        master.terminate()
        stuck.release()
        output, _ = master.communicate(timeout=PATIENCE)
    assert "Traceback" not in output, output
    runs = {row.id: row for row in table(database_url, schema.runs)}
    (of_master,) = [row for row in runs.values() if row.kind == "of_master"]
    assert set(runs) == {*answers, of_master.id}
    assert {runs[id].status for id in answers} == {"completed"}, output
    assert of_master.status == "interrupted"
    by_process: dict[str, set[str]] = {}
    for id, process in answers.items():
        by_process.setdefault(process, set()).add(runs[id].replica_id)
    assert all(len(replicas) == 1 for replicas in by_process.values())
    assert len({runs[id].replica_id for id in runs}) == WORKERS + 2
    attempts = table(database_url, schema.attempts)
    assert Counter(row.run_id for row in attempts) == dict.fromkeys(runs, 1)
    assert len(provider.requests) == len(attempts)
    ends = {row.run_id: (row.status, row.end_reason) for row in attempts}
    assert ends.pop(of_master.id) == ("interrupted", "shutdown")
    assert {status for status, _ in ends.values()} == {"completed"}


@pytest.mark.parametrize("preload", [True, False], ids=["preload", "each-for-itself"])
def test_gunicorn_under_opentelemetry_instrument(
    preload: bool, home: Path, database_url: str, provider: Provider, free_port: Callable[[], int]
) -> None:
    """An application that configures nothing; all is instrumented in the master."""
    port = free_port()
    code = WSGI.format(configure="")
    with gunicorn(home, code, provider.url, port, *(["--preload"] if preload else []), instrument=True) as master:
        answers: dict[str, str] = {}

        def all_have_answered() -> bool:
            answered = ask(port, "/")
            if answered is not None:
                answers[answered[1]] = answered[0]
            return len(set(answers.values())) == WORKERS

        until(all_have_answered)
        master.terminate()
        output, _ = master.communicate(timeout=PATIENCE)
    assert "Traceback" not in output, output
    runs = {row.id: row for row in table(database_url, schema.runs)}
    assert {id: row.status for id, row in runs.items()} == dict.fromkeys(answers, "completed")
    assert len({(answers[id], row.replica_id) for id, row in runs.items()}) == WORKERS
    assert len({row.replica_id for row in runs.values()}) == WORKERS
    assert Counter(row.run_id for row in table(database_url, schema.attempts)) == dict.fromkeys(runs, 1)


# -- by hand


FORK_IN_A_THREAD = """
call()
chatdebug.flush(30)
response = open_stream()
pieces = response.iter_raw()
next(pieces)

def work():
    child = os.fork()
    if not child:
        try:
            with chatdebug.run("child"):
                httpx.Client(trust_env=False, timeout=None).post(URL, json=BODY)
            chatdebug.shutdown()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say("forked")
for _ in pieces:
    pass
"""


def test_forks_in_several_threads_at_once(home: Path, database_url: str, provider: Provider) -> None:
    held = Behaviour(hold_end=True)
    provider.script(Behaviour(), held)
    with started(FORK_IN_A_THREAD, provider.url) as app:
        app.wait_for("forked")
        held.release()
        done = app.ended()
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    runs = table(database_url, schema.runs)
    assert Counter((row.kind, row.status) for row in runs) == {("auto", "completed"): 2, ("child", "completed"): 4}
    assert len({row.replica_id for row in runs}) == 5
    assert [row.status for row in table(database_url, schema.attempts)] == ["completed"] * 6


POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def work(number):
    with chatdebug.run("child", chat_id=str(number)):
        with httpx.Client(trust_env=False, timeout=None) as own:
            own.post(URL, json=BODY)
    return os.getpid()

handle = chatdebug.run("parent")
handle.__enter__()
call()
response = open_stream()
pieces = response.iter_raw()
next(pieces)
context = multiprocessing.get_context("fork")
"""

POOLS = {
    "multiprocessing.Pool, closed": """
        with context.Pool(2) as pool:
            processes = pool.map(work, range(8), chunksize=1)
            pool.close()
            pool.join()
    """,
    "concurrent.futures": """
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            processes = list(pool.map(work, range(8)))
    """,
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_of_forked_processes_with_a_stream_open_in_the_parent(
    pool: str, home: Path, database_url: str, provider: Provider
) -> None:
    held = Behaviour(hold_end=True)
    provider.script(Behaviour(), held)
    code = (
        POOL
        + textwrap.dedent(POOLS[pool])
        + 'say("processes " + str(len(set(processes))))\nfor _ in pieces: pass\nhandle.__exit__(None, None, None)\n'
    )
    with started(code, provider.url) as app:
        processes = int(app.wait_for("processes"))

        def are_there() -> bool:
            found = table(database_url, schema.runs, taking_up=False)
            return [row.status for row in found if row.kind == "child"] == ["completed"] * 8

        until(are_there)  # also what a child had to spool: the parent takes that up
        held.release()
        done = app.ended()
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    runs = table(database_url, schema.runs)
    children = [row for row in runs if row.kind == "child"]
    assert sorted(row.chat_id for row in children) == list("01234567"), done.stderr
    assert {row.status for row in runs} == {"completed"}
    assert len({row.replica_id for row in children}) == processes
    (parent,) = [row for row in runs if row.kind == "parent"]
    assert parent.replica_id not in {row.replica_id for row in children}
    attempts = Counter(row.run_id for row in table(database_url, schema.attempts))
    assert attempts == {parent.id: 2, **dict.fromkeys((row.id for row in children), 1)}
    assert {row.status for row in table(database_url, schema.attempts)} == {"completed"}


def test_a_childs_child_is_a_process_of_its_own_too(home: Path, database_url: str, provider: Provider) -> None:
    """Each leaves by ``sys.exit`` from the middle of what it has inherited."""
    held = Behaviour(hold_end=True)
    provider.script(held)
    code = """
    def request():
        return httpx.Client(trust_env=False, timeout=None).post(URL, json=BODY)

    with chatdebug.run("0"):
        response = open_stream()
        pieces = response.iter_raw()
        next(pieces)
        for generation in ("1", "2"):
            child = os.fork()
            if child:
                _, status = os.waitpid(child, 0)
                if generation == "1":
                    break
                with chatdebug.run("1 again"):
                    request()
                sys.exit(0)
            with chatdebug.run(generation):
                request()
        else:
            sys.exit(0)
        say(f"parent {status}")
        for _ in pieces:
            pass
    """
    with started(code, provider.url) as app:
        assert app.wait_for("parent") == "0"
        held.release()
        done = app.ended()
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    runs = {row.kind: row for row in table(database_url, schema.runs)}
    assert {kind: row.status for kind, row in runs.items()} == dict.fromkeys(("0", "1", "2", "1 again"), "completed")
    assert len({row.replica_id for row in runs.values()}) == 3
    assert runs["1"].replica_id == runs["1 again"].replica_id
    assert [row.status for row in table(database_url, schema.attempts)] == ["completed"] * 4


def test_a_fork_while_a_deletion_and_a_lookup_are_under_way(home: Path, database_url: str, provider: Provider) -> None:
    """Their connections are closed before it; neither side loses what it writes."""
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    for owner in (consent.EVERYBODY, "u"):
        consent.set_choice(engine, owner, True)
    engine.dispose()
    done = run(
        """
        import datetime
        chatdebug.configure(enabled="opt_in")
        stop = threading.Event()
        now = datetime.datetime.now(datetime.UTC)
        def work(number):
            while not stop.is_set():
                chatdebug.delete_chat(f"gone {number}")
                with chatdebug.run("asks", chat_id=f"gone {number}", owner_id=str(number)):
                    pass
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        with chatdebug.run("parent", owner_id="u"):
            call()
        for thread in threads:
            thread.start()
        for _ in range(5):
            child = os.fork()
            if not child:
                with chatdebug.run("child", owner_id="u"):
                    httpx.Client(trust_env=False, timeout=None).post(URL, json=BODY)
                chatdebug.shutdown()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        """,
        provider.url,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    runs = table(database_url, schema.runs)
    assert Counter((row.kind, row.status) for row in runs) == {("parent", "completed"): 1, ("child", "completed"): 5}
    assert len({row.replica_id for row in runs}) == 6
