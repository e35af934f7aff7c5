"""The snapshot of a chat: three real replicas on PostgreSQL, with turns that hang in threads and in tasks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import text, update
from starlette.testclient import TestClient

from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.runners import leases
from otel_chatdebug.settings import STALE_AFTER, Settings
from otel_chatdebug.status import Status
from otel_chatdebug.tables import queries, schema
from otel_chatdebug.tables.replicas import Replica, beat
from otel_chatdebug.viewer import proxy
from otel_chatdebug.viewer.app import make_app
from otel_chatdebug.viewer.auth import Access
from otel_chatdebug.viewer.snapshot import Snapshots
from tests.support.apps import App, started, until
from tests.support.net import free_port
from tests.support.pages import SECOND, now, tables, turn, write

USER = {"x-user": "ann"}

REPLICA = """
import asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from otel_chatdebug.viewer import chatdebug_app

PORT = int(os.environ["PORT"])
STREAM = {**BODY, "stream": True}

def authorize(request, chat_id):
    return request.headers.get("x-user") == "ann" and not chat_id.startswith("secret")

def hanging_in_a_thread(chat):
    with chatdebug.run("chat_turn", chat_id=chat), client.stream("POST", URL, json=STREAM) as response:
        for _ in response.iter_raw():
            pass

async def hanging_in_a_task(chat):
    async with chatdebug.run("compaction", chat_id=chat), httpx.AsyncClient(trust_env=False, timeout=None) as mine:
        async with mine.stream("POST", URL, json=STREAM) as response:
            async for _ in response.aiter_raw():
                pass

tasks = set()

async def begin(request):
    chat = request.query_params["chat"]
    if request.query_params["how"] == "thread":
        threading.Thread(target=hanging_in_a_thread, args=(chat,), daemon=True).start()
    else:
        tasks.add(asyncio.create_task(hanging_in_a_task(chat)))
    return PlainTextResponse("begun")

def count_messages(chat_id):
    return {"by_role": {"user": 2, "assistant": 1, "referee": 1}, "deleted": 1, "total": 5}

debug = chatdebug_app(
    authorize=authorize, count_messages=count_messages, public_url=f"http://127.0.0.1:{PORT}/debug", token="t"
)
app = Starlette(routes=[Route("/begin", begin, methods=["POST"]), Mount("/debug", debug)])

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        say("serving")

Server(uvicorn.Config(app, port=PORT, log_level="warning", timeout_graceful_shutdown=1)).run()
"""

SLOW_CLOCK = """
import time
real_ns, real = time.time_ns, time.time
time.time_ns = lambda: real_ns() - 900 * 10**9
time.time = lambda: real() - 900
"""


@dataclass
class Served:
    app: App
    url: str

    def begin(self, chat: str, how: str) -> None:
        httpx.post(f"{self.url}/begin", params={"chat": chat, "how": how}, trust_env=False).raise_for_status()

    def ask(self, chat: str, headers: dict[str, str] = USER, **params: str) -> httpx.Response:
        path = f"/debug/api/experimental/chats/{quote(chat, safe='')}/debug/snapshot"
        return httpx.get(self.url + path, headers=headers, params=params, trust_env=False, timeout=30)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture
def replica(chatdebug_home: Path, postgres_url: str, provider: Provider) -> Iterator[Callable[..., Served]]:
    """Starts a replica: an application of its own with the debug pages mounted."""
    with ExitStack() as stack:

        def start(**environment: str) -> Served:
            port = free_port()
            app = stack.enter_context(
                started(REPLICA, provider.url, PORT=str(port), OTEL_CHATDEBUG_DATABASE_URL=postgres_url, **environment)
            )
            app.wait_for("serving")
            return Served(app, f"http://127.0.0.1:{port}")

        yield start


def hang(provider: Provider, server: Served, chat: str, how: str) -> Behaviour:
    """Has a turn of ``chat`` hang in the middle of its stream, and waits until its owner and the tables know that."""
    behaviour = Behaviour(stall_after=3)
    provider.script(behaviour)
    server.begin(chat, how)

    def hangs() -> bool:
        answer = server.ask(chat)
        if answer.status_code != 200 or not answer.json()["in_progress"]["runs"]:
            return False  # by their rows the others know whose it is
        live = answer.json()["live"] or {"runs": []}
        attempts = [one for run in live["runs"] for step in run["steps"] for one in step["attempts"]]
        return any(attempt["events"] >= 3 for attempt in attempts)

    until(hangs)
    return behaviour


@pytest.mark.slow
def test_three_replicas(replica: Callable[..., Served], provider: Provider, postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_CLOCK)
    one, two, slow = replica(), replica(), replica(PYTHONPATH=str(tmp_path / "slow"))

    # A turn in a thread and one in a task hang: the frame that hangs is shown, by the owner and through the others.
    in_thread = hang(provider, one, "chat in a thread", "thread")
    in_task = hang(provider, one, "chat in a task", "task")
    own = one.ask("chat in a thread").json()
    assert own["owner"] == {"replica_id": own["answered_by"]["replica_id"], "by": "run", "reachable": True}
    assert own["heartbeat"]["runner_id"] == own["owner"]["replica_id"]
    assert own["heartbeat"]["is_stale"] is False
    assert own["active_task_kind"] == "chat_turn"
    assert [run["status"] for run in own["in_progress"]["runs"]] == ["in_progress"]
    (run,) = own["live"]["runs"]
    (attempt,) = run["steps"][0]["attempts"]
    assert (attempt["state"], attempt["response_status"]) == ("streaming", 200)
    assert attempt["bytes_received"] > 0
    assert 0 <= attempt["seconds_since_last_byte"] <= attempt["seconds_since_start"]
    (stack,) = run["stacks"]
    assert stack["kind"] == "thread"
    names = [frame["function"] for frame in stack["frames"]]
    assert "hanging_in_a_thread" in names
    assert names.index("hanging_in_a_thread") < len(names) - 1  # and what it waits in, below
    (run,) = one.ask("chat in a task").json()["live"]["runs"]
    assert run["active_task_kind"] == "compaction"
    (stack,) = run["stacks"]
    assert (stack["kind"], stack["state"]) == ("task", "suspended")
    assert stack["frames"][0]["function"] == "hanging_in_a_task"
    assert len(stack["frames"]) > 3
    # Five messages were told of, four with a role.
    assert own["messages"] == {
        "total": 5,
        "deleted": 1,
        "by_role": {"user": 2, "assistant": 1, "referee": 1, "unknown": 1},
    }

    # Any replica hands the request on to the owner, with its path and query as they are.
    handed_on = two.ask("chat in a thread", pretty="1")
    assert handed_on.headers["content-type"] == "application/json"
    assert handed_on.json()["answered_by"] == {"replica_id": own["owner"]["replica_id"], "forwarded": True}
    assert handed_on.json()["live"]["runs"][0]["id"] == own["live"]["runs"][0]["id"]

    # Whatever a chat is called.
    for chat in ("a/b", "50%", "a%2Fb", "grüße 漢字", "x/debug/snapshot", "?q=1#f", "../up", " "):
        hanging = hang(provider, two, chat, "thread")
        for server in (two, one):
            answer = server.ask(chat)
            assert answer.status_code == 200, (chat, answer.text)
            assert answer.json()["chat_id"] == chat
            assert answer.json()["live"]["runs"], chat
        hanging.release()

    # A replica whose clock is wrong is no less alive: heartbeats go by the database's clock.
    on_slow = hang(provider, slow, "chat on a slow clock", "thread")
    told = one.ask("chat on a slow clock").json()
    assert told["heartbeat"]["is_stale"] is False
    assert told["heartbeat"]["age_seconds"] < STALE_AFTER
    assert told["live"]["runs"]

    # What was handed on is answered where it arrives, whoever marked it.
    marked = two.ask("chat in a thread", headers={**USER, proxy.FORWARDED: "somebody says so"}).json()
    assert marked["answered_by"]["replica_id"] != own["owner"]["replica_id"]
    assert marked["live"]["runs"] == []
    assert any("handed on already" in note for note in marked["notes"])
    # ... and a mark opens nothing.
    assert two.ask("chat in a thread", headers={proxy.FORWARDED: "somebody says so"}).status_code == 404

    # What may not be seen and what is not there look the same.
    hidden = hang(provider, one, "public", "thread")
    with tables(postgres_url) as engine, engine.begin() as connection:
        connection.execute(update(schema.runs).where(schema.runs.c.chat_id == "public").values(chat_id="secret"))
    answers = [two.ask("secret"), two.ask("public", headers={}), one.ask("nowhere", headers={"x-user": "eve"})]
    assert {(answer.status_code, answer.content) for answer in answers} == {
        (404, b'{"error":"There is no such chat."}')
    }

    # The lease decides, where there is one.
    replica_two = marked["answered_by"]["replica_id"]
    with tables(postgres_url) as engine:
        assert leases.acquire(engine, "chat in a thread", replica_two)
        assert one.ask("chat in a thread").json()["owner"] == {
            "replica_id": replica_two,
            "by": "lease",
            "reachable": True,
        }
        assert leases.release(engine, "chat in a thread", replica_two)

    # The owner is killed: the tables answer, and say so.
    one.app.process.kill()
    one.app.process.wait()
    left = two.ask("chat in a thread").json()
    assert left["owner"]["reachable"] is False
    assert any("could not be asked" in note for note in left["notes"])
    assert left["in_progress"]["attempts"]
    for behaviour in (in_thread, in_task, on_slow, hidden):
        behaviour.release()


ASKED = 1_000


@pytest.mark.slow
def test_a_replica_that_shuts_down_while_it_is_asked(replica: Callable[..., Served], provider: Provider) -> None:
    leaving, other = replica(), replica()
    hanging = hang(provider, leaving, "chat", "task")
    begun = threading.Barrier(3)
    found: Counter[str] = Counter()

    def ask(server: Served) -> Counter[str]:
        said: Counter[str] = Counter()
        with httpx.Client(trust_env=False, timeout=30, headers=USER) as client:
            begun.wait()
            for number in range(ASKED // 2):
                if number == 20 and server is leaving:
                    leaving.app.process.terminate()
                try:
                    answer = client.get(f"{server.url}/debug/api/experimental/chats/chat/debug/snapshot")
                except httpx.TransportError:
                    said["refused"] += 1  # nobody listens any more
                else:
                    said[str(answer.status_code)] += 1
                    assert answer.json()
        return said

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ask, server) for server in (leaving, other)]
        begun.wait()
        of_leaving, of_other = (one.result() for one in both)
    found = of_leaving + of_other
    assert found.total() == ASKED
    assert set(of_leaving) <= {"200", "503", "refused"}
    assert of_leaving["200"]
    assert of_leaving["refused"] + of_leaving["503"]
    assert set(of_other) == {"200"}
    hanging.release()
    ended = leaving.app.ended()
    assert "Traceback" not in ended.stderr.replace("asyncio.exceptions.CancelledError", ""), ended.stderr


def asked(url: str, snapshots: Snapshots, chat: str, **settings: Any) -> Any:
    app = make_app(Settings.load(database_url=url, **settings), Access("t"), None, snapshots)
    with TestClient(app, headers={"authorization": "Bearer t"}) as client:
        return client.get(f"/api/experimental/chats/{quote(chat, safe='')}/debug/snapshot").json()


def test_a_heartbeat_is_stale_after_the_threshold_of_the_sweep(database_url: str) -> None:
    at = now()
    with tables(database_url) as engine:
        write(engine, *turn("aa01", at=at, status=Status.IN_PROGRESS, chat_id="c", replica_id="r1"))
        with engine.begin() as connection:
            beat(connection, Replica("r1", "host", 7, None, at))
            connection.execute(update(schema.replicas).values(heartbeat_at=at))
    for age, is_stale in ((0.0, False), (STALE_AFTER, False), (STALE_AFTER + 0.001, True)):
        told = asked(database_url, Snapshots(clock=lambda age=age: at + round(age * SECOND)), "c")  # type: ignore[misc]
        assert told["heartbeat"] == {
            "runner_id": "r1",
            "heartbeat_at": queries.iso(at),
            "age_seconds": age,
            "is_stale": is_stale,
        }
        assert told["notes"] == [
            "The process that ran this chat gives no sign of life: this is what the tables know."
            if is_stale
            else "The process that runs this chat has told no URL (public_url=...): this is what the tables know."
        ]


def test_a_chat_that_nobody_runs(database_url: str) -> None:
    with tables(database_url) as engine:
        write(engine, *turn("aa01", at=now() - SECOND, chat_id="c"))
    told = asked(database_url, Snapshots(), "c")
    assert told["heartbeat"] == {"runner_id": None, "heartbeat_at": None, "age_seconds": None, "is_stale": None}
    assert told["owner"] == {"replica_id": None, "by": None, "reachable": None}
    assert [run["id"] for run in told["finished"]] == ["aa01"]
    assert told["in_progress"] == {"runs": [], "steps": [], "attempts": []}
    assert (told["messages"], told["live"], told["notes"]) == (None, None, [])


def test_messages_are_counted_in_a_table_of_the_application(database_url: str) -> None:
    with tables(database_url) as engine:
        write(engine, *turn("aa01", at=now() - SECOND, chat_id="42"))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE messages (chat integer, author text, gone_at timestamp)"))
            for author, gone in (("user", None), ("user", "2026-01-01"), ("wizard", None), (None, None)):
                connection.execute(
                    text("INSERT INTO messages VALUES (42, :author, CAST(:gone AS timestamp))"),
                    {"author": author, "gone": gone},
                )
    columns = {"messages_table": "messages", "messages_columns": "chat, author, gone_at"}
    assert asked(database_url, Snapshots(), "42", **columns)["messages"] == {
        "total": 4,
        "deleted": 1,
        "by_role": {"user": 2, "wizard": 1, "unknown": 1},
    }
    said = asked(database_url, Snapshots(), "42", messages_table="messages", messages_columns="chat, role")["notes"]
    assert said == ["OTEL_CHATDEBUG_MESSAGES_COLUMNS is 'chat, role', and messages has: chat, author, gone_at."]
    assert "could not be counted" in asked(database_url, Snapshots(), "42", messages_table="no_such")["notes"][0]


def test_a_lease_has_one_holder_until_it_runs_out(database_url: str) -> None:
    with tables(database_url) as engine:
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda id: leases.acquire(engine, "c", id), ("r1", "r2", "r3", "r4")))
        assert sum(got) == 1
        owner = ("r1", "r2", "r3", "r4")[got.index(True)]
        assert leases.acquire(engine, "c", owner)
        assert not leases.release(engine, "c", "somebody")
        with engine.begin() as connection:
            assert leases.holder(connection, "c") == owner
            connection.execute(update(schema.runner_leases).values(expires_at=schema.now(connection) - 1))
            assert leases.holder(connection, "c") is None
        assert leases.acquire(engine, "c", "next")
