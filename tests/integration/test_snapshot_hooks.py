"""The snapshot when what it asks is slow, wrong or hostile: the application's hooks, its threads, a chat's owner."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import anyio.to_thread
import httpx
import pytest
from sqlalchemy import text, update
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient

import otel_chatdebug as chatdebug
from otel_chatdebug import lifecycle
from otel_chatdebug.settings import Settings
from otel_chatdebug.status import Status
from otel_chatdebug.tables import schema
from otel_chatdebug.tables.replicas import Replica, beat
from otel_chatdebug.viewer import proxy, threads
from otel_chatdebug.viewer.app import make_app
from otel_chatdebug.viewer.auth import Access
from otel_chatdebug.viewer.snapshot import Snapshots
from tests.support.pages import SECOND, now, tables, turn, write


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Tables with an ended run of the chat ``c``."""
    url = f"sqlite:///{tmp_path / 'chatdebug.db'}"
    with tables(url) as engine:
        write(engine, *turn("aa01", at=now() - SECOND, chat_id="c"))
    return url


def ask(url: str, snapshots: Snapshots, chat: str = "c", query: str = "") -> httpx.Response:
    app = make_app(Settings.load(database_url=url), Access("t"), None, snapshots)
    with TestClient(app, headers={"authorization": "Bearer t"}) as client:
        return client.get(f"/api/experimental/chats/{quote(chat, safe='')}/debug/snapshot{query}")


def breaks(*_: Any) -> bool:
    raise RuntimeError("the application's database is away")


def forbids(*_: Any) -> bool:
    raise HTTPException(403)


async def breaks_later(*_: Any) -> bool:
    raise RuntimeError


def test_an_authorize_that_raises_opens_nothing(url: str) -> None:
    for authorize in (breaks, forbids, breaks_later, lambda *_: "yes"):
        for chat in ("c", "nowhere"):
            answer = ask(url, Snapshots(authorize=authorize), chat)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()) == (404, {"error": "There is no such chat."})


def test_hooks_that_hang_are_given_up_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "HOOK_SECONDS", 0.05)
    hold = threading.Event()

    async def never(*_: Any) -> Any:
        await anyio.sleep_forever()

    for hook in (lambda *_: hold.wait(), never):
        told = ask(url, Snapshots(count_messages=hook)).json()
        assert told["messages"] is None
        assert told["notes"] == ["count_messages gave no answer within 0.05 seconds."]
        assert ask(url, Snapshots(authorize=hook)).status_code == 404
    # Nor do they pile up.
    for _ in range(2 * threads.HOOKS_AT_ONCE):
        ask(url, Snapshots(count_messages=lambda _: hold.wait()))
    hanging = [one for one in threading.enumerate() if one.name.startswith("AnyIO")]
    assert len(hanging) <= threads.HOOKS_AT_ONCE + threads.THREADS
    hold.set()


def test_a_hook_that_blocks_does_not_hold_up_the_event_loop(url: str) -> None:
    said: list[str] = []

    def authorize(request: Request, chat_id: str) -> bool:
        said.append(threading.current_thread().name)
        return True

    assert ask(url, Snapshots(authorize=authorize)).status_code == 200
    assert said[0].startswith("AnyIO worker")


def test_an_application_whose_threads_all_hang_can_still_be_asked(url: str) -> None:
    hold = threading.Event()
    app = make_app(Settings.load(database_url=url), Access("t"), None, Snapshots(count_messages=lambda _: None))

    async def main() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        async with anyio.create_task_group() as group:
            for _ in range(int(limiter.total_tokens)):
                group.start_soon(anyio.to_thread.run_sync, hold.wait)
            while limiter.available_tokens:
                await anyio.sleep(0)
            transport = httpx.ASGITransport(app=app)
            headers = {"authorization": "Bearer t"}
            try:
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://127.0.0.1", headers=headers
                ) as client:
                    with anyio.fail_after(30):
                        for path in (
                            "/api/experimental/chats/c/debug/snapshot",
                            "/progress",
                            "/runs/aa01",
                            "/static/main.js",
                            "/export?chat=c",
                        ):
                            assert (await client.get(path)).status_code == 200, path
            finally:
                hold.set()

    anyio.run(main)


def test_an_error_of_the_applications_database_is_told_as_the_hooks(url: str) -> None:
    from sqlalchemy.exc import OperationalError

    def count(_: str) -> Any:
        raise OperationalError("SELECT", {}, Exception("away"))

    assert ask(url, Snapshots(count_messages=count)).json()["notes"] == ["count_messages raised OperationalError."]


def test_another_spelling_of_a_number_is_another_chat(url: str) -> None:
    with tables(url) as engine, engine.begin() as connection:
        connection.execute(text("CREATE TABLE messages (chat integer, role text)"))
        connection.execute(text("INSERT INTO messages VALUES (42, 'user')"))
    settings = Settings.load(database_url=url, messages_table="messages", messages_columns="chat, role")
    with TestClient(make_app(settings, Access("t"), None), headers={"authorization": "Bearer t"}) as client:
        found = {
            chat: client.get(f"/api/experimental/chats/{quote(chat)}/debug/snapshot").status_code
            for chat in ("42", " 42", "4_2", "042", "+42")
        }
    assert found == {"42": 200, " 42": 404, "4_2": 404, "042": 404, "+42": 404}


def test_names_that_no_encoding_takes(chatdebug_home: Path) -> None:
    chatdebug.configure()
    hold, sent = threading.Event(), threading.Event()

    def hang(request: httpx.Request) -> httpx.Response:
        sent.set()
        hold.wait()
        return httpx.Response(200)

    def call() -> None:
        body = b'{"model": "gpt\\ud800", "messages": []}'
        with chatdebug.run("chat_turn", chat_id="c"), httpx.Client(transport=httpx.MockTransport(hang)) as client:
            client.post("http://api.example.com/v1/chat/completions", content=body)

    thread = threading.Thread(target=call, name="worker \ud800")
    thread.start()
    sent.wait()
    try:
        answer = ask(Settings.load().database_url, Snapshots())
        assert answer.status_code == 200
        assert answer.json()["live"]["runs"][0]["stacks"][0]["name"] == "worker \ud800"
    finally:
        hold.set()
        thread.join()
        chatdebug.shutdown()


Asked = list[tuple[str, str, dict[str, str]]]
"""Method, path and headers of each request."""

ACCEPTS = {proxy.ANSWERED_BY: "r1"}
"""What an owner adds to its answer."""


@contextmanager
def owner(
    status: int, headers: Mapping[str, str], body: bytes | Generator[bytes, None, None]
) -> Iterator[tuple[str, Asked]]:
    """A process that answers everything so; its URL, and what it was asked. A generator gives a long body in pieces."""
    asked: Asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if isinstance(body, bytes) else 10**12))
            self.end_headers()
            with suppress(OSError):
                for piece in [body] if isinstance(body, bytes) else body:
                    self.wfile.write(piece)
            if not isinstance(body, bytes):
                body.close()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/debug", asked
        finally:
            server.shutdown()
            thread.join()


def owned(url: str, by: str, chat: str) -> None:
    """Has a living process at ``by`` run ``chat``."""
    with tables(url) as engine:
        write(engine, *turn("bb01", at=now(), status=Status.IN_PROGRESS, chat_id=chat, replica_id="r1"))
        with engine.begin() as connection:
            beat(connection, Replica("r1", "host", 7, None, now()), inspection_url=by, inspection_token="secret")
            connection.execute(update(schema.replicas).values(heartbeat_at=schema.utc_now()))


@pytest.mark.parametrize("status", [200, 301, 302, 307, 308, 401, 404, 418, 421, 500, 503])
def test_an_owners_answer_is_passed_on_as_it_is(url: str, status: int) -> None:
    headers = {"Content-Type": "text/plain; charset=latin-1", "Location": "/elsewhere", **ACCEPTS}
    with owner(status, headers, b"gr\xfc\xdfe") as (by, asked):
        owned(url, by, "a/b ü")
        answer = ask(url, Snapshots(), "a/b ü", "?x=%20y&z")
    assert (answer.status_code, answer.content) == (status, b"gr\xfc\xdfe")
    assert answer.headers["content-type"] == "text/plain; charset=latin-1"
    assert "location" not in answer.headers
    ((method, path, sent),) = asked
    assert (method, path) == ("GET", "/debug/api/experimental/chats/a%2Fb%20%C3%BC/debug/snapshot?x=%20y&z")
    assert sent[proxy.FORWARDED] == "secret"
    assert "authorization" not in sent


@pytest.mark.parametrize("status", [200, 302, 401, 404, 421, 502])
def test_what_is_not_the_owner_leaves_it_to_the_tables(url: str, status: int) -> None:
    """Its URL leads to somebody else, or its token is another one by now."""
    with owner(status, {"Content-Type": "text/html"}, b"no") as (by, _):
        owned(url, by, "mine")
        answer = ask(url, Snapshots(), "mine")
    assert answer.status_code == 200
    told = answer.json()
    assert [run["id"] for run in told["in_progress"]["runs"]] == ["bb01"]
    assert told["owner"]["reachable"] is False
    assert f"(with status {status}) is another process" in told["notes"][0]


def test_whoever_accepts_the_token_of_what_is_handed_on_says_so(url: str) -> None:
    lifecycle.set_inspection_url("http://127.0.0.1:1/debug")
    try:
        app = make_app(Settings.load(database_url=url), Access("t"), None, Snapshots(authorize=forbids))
        with TestClient(app) as client:
            for chat, status in (("c", 200), ("nowhere", 404)):
                path = f"/api/experimental/chats/{chat}/debug/snapshot"
                answer = client.get(path, headers={proxy.FORWARDED: str(lifecycle.inspection_token())})
                assert (answer.status_code, proxy.ANSWERED_BY in answer.headers) == (status, True)
                answer = client.get(path, headers={proxy.FORWARDED: "another"})
                assert (answer.status_code, proxy.ANSWERED_BY in answer.headers) == (404, False)
    finally:
        lifecycle.set_inspection_url(None)


def test_no_token_of_ours_is_handed_on(url: str) -> None:
    with owner(200, ACCEPTS, b"{}") as (by, asked):
        owned(url, by, "mine")
        ask(url, Snapshots(authorize=lambda *_: True), "mine", "?a=1&token=t&%74oken=t&tokens=2&b=token%3Dt&&token")
    ((_, path, _),) = asked
    assert path.partition("?")[2] == "a=1&tokens=2&b=token%3Dt&"


def test_an_owner_whose_answer_never_ends_is_given_up_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes in time, so that no single read would be too long."""
    monkeypatch.setattr(proxy, "SECONDS", 0.2)
    left = threading.Event()

    def drip() -> Generator[bytes, None, None]:
        try:
            while True:
                yield b" "
        finally:
            left.set()  # the connection was closed: no thread of ours reads on

    with owner(200, ACCEPTS, drip()) as (by, _):
        owned(url, by, "mine")
        told = ask(url, Snapshots(), "mine").json()
        assert left.wait(60)
    assert told["owner"]["reachable"] is False
    assert "gave no whole answer within 0.2 seconds" in told["notes"][0]


def test_a_registered_url_that_is_none(url: str) -> None:
    for by in ("http://[::1", "ftp://127.0.0.1", "10.0.0.7:8000", "http://127.0.0.1:99999"):
        owned(url, by, "mine")
        told = ask(url, Snapshots(), "mine").json()
        assert "could not be asked" in told["notes"][0], by
