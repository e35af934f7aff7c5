"""`run()` in the places where web frameworks stream from: a real uvicorn, real disconnects, and never a traceback."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Behaviour, Provider
from tests.support.apps import PATIENCE, rows, until

PATH = "/v1/chat/completions"
BODY = {"model": "gpt-5-mini", "stream": True, "messages": [{"role": "user", "content": "Hello?"}]}


class Site:
    """The application under test: it asks ``model`` and streams the answer on, in one of several ways."""

    def __init__(self, model_url: str) -> None:
        self.url = ""
        self._model = model_url + PATH
        self._sync: httpx.Client
        self._async: httpx.AsyncClient
        self.left = threading.Event()
        """A generator was left, in whatever way."""

    def app(self) -> Starlette:
        ways: dict[str, Callable[[Request], Any]] = {
            "/sync-generator": lambda request: StreamingResponse(self.sync_generator()),
            "/async-generator": lambda request: StreamingResponse(self.async_generator()),
            "/decorated-sync": lambda request: StreamingResponse(self.decorated_sync()),
            "/decorated-async": lambda request: StreamingResponse(self.decorated_async()),
        }

        def endpoint(way: Callable[[Request], Any]) -> Callable[[Request], Any]:
            async def handle(request: Request) -> Response:
                return way(request)  # type: ignore[no-any-return]

            return handle

        routes = [Route(path, endpoint(way)) for path, way in ways.items()]
        routes += [
            Route("/returned-sync", self.returned_sync),
            Route("/returned-async", self.returned_async),
        ]
        return Starlette(routes=routes, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with httpx.Client(trust_env=False, timeout=None) as self._sync:
            async with httpx.AsyncClient(trust_env=False, timeout=None) as self._async:
                yield

    def sync_generator(self) -> Iterator[bytes]:
        """Starlette fetches each item in a thread of its pool, in a context of its own."""
        try:
            with (
                chatdebug.run(chat_id="c"),
                self._sync.stream("POST", self._model, json=BODY) as answer,
            ):
                yield from answer.iter_bytes()
        finally:
            self.left.set()

    async def async_generator(self) -> AsyncIterator[bytes]:
        try:
            with chatdebug.run(chat_id="c"):
                async with self._async.stream("POST", self._model, json=BODY) as answer:
                    async for chunk in answer.aiter_bytes():
                        yield chunk
        finally:
            self.left.set()

    @chatdebug.run(chat_id="c")
    def decorated_sync(self) -> Iterator[bytes]:
        try:
            with self._sync.stream("POST", self._model, json=BODY) as answer:
                yield from answer.iter_bytes()
        finally:
            self.left.set()

    @chatdebug.run(chat_id="c")
    async def decorated_async(self) -> AsyncIterator[bytes]:
        try:
            async with self._async.stream("POST", self._model, json=BODY) as answer:
                async for chunk in answer.aiter_bytes():
                    yield chunk
        finally:
            self.left.set()

    def returned_sync(self, request: Request) -> Response:
        """What people write first: the run is left before anything is read."""
        with chatdebug.run(chat_id="c"):
            sent = self._sync.build_request("POST", self._model, json=BODY)
            answer = self._sync.send(sent, stream=True)

            def chunks() -> Iterator[bytes]:
                try:
                    yield from answer.iter_bytes()
                finally:
                    answer.close()
                    self.left.set()

            return StreamingResponse(chunks())

    async def returned_async(self, request: Request) -> Response:
        with chatdebug.run(chat_id="c"):
            sent = self._async.build_request("POST", self._model, json=BODY)
            answer = await self._async.send(sent, stream=True)

            async def chunks() -> AsyncIterator[bytes]:
                try:
                    async for chunk in answer.aiter_bytes():
                        yield chunk
                finally:
                    await answer.aclose()
                    self.left.set()

            return StreamingResponse(chunks())


@contextmanager
def serving(site: Site) -> Iterator[None]:
    config = uvicorn.Config(site.app(), host="127.0.0.1", port=0, log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="uvicorn")
    thread.start()
    try:
        until(lambda: server.started)
        site.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


@pytest.fixture
def site(no_leaks: None, chatdebug_home: Path, provider: Provider) -> Iterator[Site]:
    chatdebug.configure(tracer_provider=TracerProvider(shutdown_on_exit=False))
    made = Site(provider.url)
    try:
        with serving(made):
            yield made
    finally:
        chatdebug.shutdown()


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing of OpenTelemetry or ours is logged above debug level, and nowhere a traceback or a failed detach."""
    caplog.set_level(logging.DEBUG)
    yield
    for entry in caplog.get_records("call"):
        assert "Failed to detach" not in entry.getMessage()
        if entry.name.split(".")[0] in ("opentelemetry", "otel_chatdebug", "uvicorn", "asyncio"):
            assert entry.exc_info is None, entry.getMessage()
            assert entry.levelno < logging.WARNING, entry.getMessage()


def ended(home: Path) -> bool:
    """Whether no run is open any more. A sync generator is not closed by Starlette, but dropped: it is collected."""
    gc.collect()
    chatdebug.flush()
    statuses = rows(home, "runs", "status")
    return bool(statuses) and ("in_progress",) not in statuses


WAYS = ["sync-generator", "async-generator", "decorated-sync", "decorated-async", "returned-sync", "returned-async"]


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_is_streamed_to_its_end_is_a_completed_run(
    way: str, chatdebug_home: Path, site: Site, quiet: None
) -> None:
    """Twice over the same connection: nothing of the first run is current in the second."""
    with httpx.Client(trust_env=False, timeout=PATIENCE) as browser:
        for _ in range(2):
            assert b"[DONE]" in browser.get(f"{site.url}/{way}").content
    assert site.left.wait(PATIENCE)
    assert chatdebug.flush(PATIENCE)
    assert rows(chatdebug_home, "runs", "status, chat_id, kind") == [("completed", "c", "chat_turn")] * 2
    assert rows(chatdebug_home, "steps", "status") == [("completed",)] * 2
    assert rows(chatdebug_home, "attempts", "status, end_reason") == [("completed", "sse_eof")] * 2
    assert len(set(rows(chatdebug_home, "steps", "run_id"))) == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_goes_away_in_the_middle_interrupts_the_step_and_the_run_around_it(
    way: str, chatdebug_home: Path, provider: Provider, site: Site, quiet: None
) -> None:
    """A run that has returned the stream was left normally by then, so it is completed."""
    endless = Behaviour(chunks=4000, delay=0.002)
    provider.script(endless)
    with httpx.Client(trust_env=False, timeout=PATIENCE) as browser, browser.stream("GET", f"{site.url}/{way}") as seen:
        for _ in seen.iter_raw():
            break
    until(lambda: ended(chatdebug_home))
    assert site.left.is_set()
    assert rows(chatdebug_home, "runs", "status") == [("completed" if way.startswith("returned") else "interrupted",)]
    assert rows(chatdebug_home, "steps", "status") == [("interrupted",)]
    ((status, reason),) = rows(chatdebug_home, "attempts", "status, end_reason")
    assert status == "interrupted"
    assert reason in ("cancelled", "early_close", "run_end", "abandoned")


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_fails_in_the_middle_is_an_error_of_the_step_and_of_the_run_around_it(
    way: str, chatdebug_home: Path, provider: Provider, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The application's own exception is its own to log, and uvicorn does; nothing of ours is."""
    provider.script(Behaviour(cut_after=2))
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.Client(trust_env=False, timeout=PATIENCE) as browser,
    ):
        browser.get(f"{site.url}/{way}")
    until(lambda: ended(chatdebug_home))
    assert rows(chatdebug_home, "runs", "status") == [("completed" if way.startswith("returned") else "error",)]
    assert '"has_error":true' in rows(chatdebug_home, "runs", "summary")[0][0]
    assert rows(chatdebug_home, "attempts", "status, end_reason") == [("error", "read_error")]
    assert "Failed to detach" not in caplog.text
