"""Attempts, observed through both libraries and both kinds of client, with transports in this process."""

from __future__ import annotations

import asyncio
import datetime
import gc
import gzip
import inspect
import json
import random
import subprocess
import sys
import threading
import tracemalloc
import weakref
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time_ns
from typing import Any

import brotli
import httpx
import httpx2
import pytest
import trio
import zstandard
from opentelemetry import propagate, trace
from opentelemetry.context import get_current

import otel_chatdebug as chatdebug
from otel_chatdebug import attributes, faults, lifecycle
from otel_chatdebug.capture import attempt as attempt_module
from otel_chatdebug.capture import calls
from otel_chatdebug.capture.attempt import DIGEST_SIZE, Attempt
from otel_chatdebug.capture.content import Content
from otel_chatdebug.capture.instrumentor import INSTRUMENTORS
from otel_chatdebug.capture.kept import KEPT_BODY
from otel_chatdebug.demo.answers import AnthropicMessages, OpenAIChat, sse
from otel_chatdebug.pipeline import inbox as inboxes
from otel_chatdebug.pipeline.recorder import Recorder
from otel_chatdebug.records import AttemptContent, AttemptRank
from otel_chatdebug.redaction import Redactor
from otel_chatdebug.wire.openai_chat import OpenAIChat as OpenAIChatReader
from tests.support.recording import Model, Recording, recording

pytestmark = pytest.mark.filterwarnings("error")

URL = "https://api.openai.com/v1/chat/completions"
EVENTS = [piece.data for piece in OpenAIChat().stream("gpt-5-mini", ["a", "b", "c"], usage=True, terminal=True)]
UNENDED = EVENTS[:-1]
WHOLE = json.dumps(OpenAIChat().whole("gpt-5-mini", "Hello!", usage=True)).encode()
USAGE = {
    "input_tokens": 1200,
    "output_tokens": 84,
    "total_tokens": 1284,
    "reasoning_tokens": 64,
    "cache_read_tokens": 1024,
}
SSE, JSON = "text/event-stream; charset=utf-8", "application/json"
PATIENCE = 10.0
"""Seconds until a thread of a test is given up."""


class Body:
    """A body in these chunks. Like a transport's own, it is read once; it can fail where it is told to."""

    def __init__(
        self,
        *chunks: bytes,
        fails: BaseException | None = None,
        close_fails: BaseException | None = None,
        source: Iterator[bytes] | None = None,
    ) -> None:
        self.chunks = source if source is not None else iter(chunks)
        self.fails = fails
        self.close_fails = close_fails
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        if self.fails is not None:
            raise self.fails

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk
        if self.fails is not None:
            raise self.fails

    def close(self) -> None:
        self.closed += 1
        if self.close_fails is not None:
            raise self.close_fails

    async def aclose(self) -> None:
        self.close()


class Twin:
    """One library and one kind of client, behind one shape: each method is a coroutine, whatever the client is."""

    def __init__(self, library: Any, asynchronous: bool) -> None:
        self.library = library
        self.asynchronous = asynchronous
        self.body_class = type("LibraryBody", (Body, library.SyncByteStream, library.AsyncByteStream), {})
        self.requests: list[Any] = []

    def __repr__(self) -> str:
        return f"{self.library.__name__}-{'async' if self.asynchronous else 'sync'}"

    def body(self, *chunks: bytes, **given: Any) -> Any:
        return self.body_class(*chunks, **given)

    def client(self, respond: Callable[[Any], Any], **given: Any) -> Any:
        """A client whose transport answers with ``respond(request)``; an exception that it gives is raised."""

        def handle(request: Any) -> Any:
            self.requests.append(request)
            answer = respond(request)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        make = self.library.AsyncClient if self.asynchronous else self.library.Client
        return make(transport=self.library.MockTransport(handle), **given)

    def answering(self, body: Any, content_type: str | None = SSE, status: int = 200, **headers: str) -> Any:
        """A client that gets this body."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_type is not None:
            given["content-type"] = content_type
        return self.client(lambda request: self.library.Response(status, headers=given, stream=body))

    async def open(self, client: Any, *, method: str = "POST", url: str = URL, stream: bool = True) -> Any:
        """Sends a model's request and gives back the response, unread."""
        body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello?"}], "stream": stream}
        request = client.build_request(method, url, json=None if method in ("GET", "HEAD") else body)
        return await self.do(client.send(request, stream=True))

    async def do(self, result: Any) -> Any:
        return await result if inspect.isawaitable(result) else result

    async def chunks(self, iterable: Any) -> AsyncIterator[bytes]:
        if self.asynchronous:
            async for chunk in iterable:
                yield chunk
        else:
            for chunk in iterable:
                yield chunk

    def raw(self, response: Any) -> Any:
        return response.aiter_raw() if self.asynchronous else response.iter_raw()

    async def drop(self, iterator: Any) -> None:
        """Ends a generator, as a ``break`` and the garbage collector would."""
        await self.do(iterator.aclose() if self.asynchronous else iterator.close())

    async def next(self, iterator: Any) -> bytes:
        return await iterator.__anext__() if self.asynchronous else next(iterator)

    async def close(self, response: Any) -> None:
        await self.do(response.aclose() if self.asynchronous else response.close())

    async def read(self, response: Any) -> bytes:
        return await self.do(response.aread() if self.asynchronous else response.read())

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        return asyncio.run(main())  # type: ignore[arg-type]


TWINS = [Twin(library, asynchronous) for library in (httpx, httpx2) for asynchronous in (False, True)]


@pytest.fixture(params=TWINS, ids=repr)
def twin(request: pytest.FixtureRequest) -> Iterator[Twin]:
    yield request.param
    request.param.requests.clear()


@pytest.fixture
def recorded() -> Iterator[Recording]:
    """What was recorded; and no fault of ours happened meanwhile that the test does not know of."""
    before = faults.counts()
    with recording() as found:
        yield found
        lifecycle.flush()
    assert faults.counts() == before


def attempt_span(recorded: Recording) -> Any:
    return recorded.spans[recorded.attempt.id]


def check(recorded: Recording, status: str, reason: str, error: str | None = None, rank: int = 3) -> Any:
    """The only attempt ended so, and so did its span and its step. Returns the attempt."""
    attempt = recorded.attempt
    assert (attempt.status, attempt.end_reason, attempt.rank) == (status, reason, rank)
    assert (attempt.error or {}).get("type") == error
    assert recorded.step.status == status
    if rank == AttemptRank.FINAL:
        span = attempt_span(recorded)
        given = span.attributes
        assert given[attributes.STATUS] == status
        assert given[attributes.ATTEMPT_END_REASON] == reason
        assert given[attributes.ATTEMPT_BYTES] == attempt.bytes_received
        assert given.get(attributes.ERROR_TYPE) == error
        assert (span.status.status_code is trace.StatusCode.ERROR) == (status == "error")
        assert span.end_time // 1000 == attempt.finished_at
        assert recorded.spans[recorded.step.id].attributes[attributes.STATUS] == status
    return attempt


# -- the endings of a stream


def test_a_stream_read_to_its_end_is_completed_at_the_end_of_its_body(twin: Twin, recorded: Recording) -> None:
    moments = []

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        found = [chunk async for chunk in twin.chunks(response.stream)]
        moments.append(time_ns() // 1000)
        assert found == EVENTS
        assert recorded.attempt.rank == AttemptRank.PROVISIONAL
        assert recorded.attempt.status == "completed"
        assert recorded.attempt.id not in recorded.spans, "an ended span cannot be corrected any more"
        assert recorded.step.status == "in_progress", "its last attempt is provisional"
        await twin.close(response)

    twin.run(main)
    attempt = check(recorded, "completed", "sse_eof")
    assert attempt.last_byte_at <= attempt.finished_at <= moments[0], "the end of the body and not the close"
    assert (attempt.bytes_received, attempt.events) == (sum(map(len, EVENTS)), len(EVENTS))
    assert recorded.step.usage == USAGE
    assert recorded.step.metadata["finish_reasons"] == ["stop"]


def test_a_close_that_fails_replaces_the_provisional_success(twin: Twin, recorded: Recording) -> None:
    error = twin.library.ReadError("the goodbye was not heard")

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS, close_fails=error)))
        with pytest.raises(twin.library.ReadError) as caught:
            await twin.read(response)
        assert caught.value is error

    twin.run(main)
    attempt = check(recorded, "error", "close_error", f"{twin.library.__name__}.ReadError")
    assert attempt.error["message"] == "the goodbye was not heard"


def test_a_stream_without_its_terminal_event_is_incomplete(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        await twin.read(await twin.open(twin.answering(twin.body(*UNENDED))))

    twin.run(main)
    check(recorded, "error", "sse_eof", "incomplete_stream")
    assert recorded.step.usage == USAGE, "what came before is kept"


@pytest.mark.parametrize(
    ("read", "status", "reason"),
    [(0, "interrupted", "early_close"), (3, "interrupted", "early_close"), (len(EVENTS), "completed", "body_close")],
)
def test_a_stream_that_is_closed_is_what_its_terminal_event_says(
    twin: Twin, recorded: Recording, read: int, status: str, reason: str
) -> None:
    moments = []

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        iterator = response.stream.__aiter__() if twin.asynchronous else iter(response.stream)
        for _ in range(read):
            await twin.next(iterator)
        moments.append(time_ns() // 1000)
        await twin.close(response)
        moments.append(time_ns() // 1000)
        await twin.drop(iterator)

    twin.run(main)
    attempt = check(recorded, status, reason)
    assert moments[0] <= attempt.finished_at <= moments[1], "the moment of the close"
    assert attempt.events == read


@pytest.mark.parametrize(
    ("read", "status", "reason"), [(2, "interrupted", "early_close"), (len(EVENTS), "completed", "body_close")]
)
def test_a_reader_that_leaves_is_an_early_close_even_if_no_close_follows(
    twin: Twin, recorded: Recording, read: int, status: str, reason: str
) -> None:
    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        iterator = response.stream.__aiter__() if twin.asynchronous else iter(response.stream)
        for _ in range(read):
            await twin.next(iterator)
        await twin.drop(iterator)
        check(recorded, status, reason)
        await twin.close(response)

    twin.run(main)
    check(recorded, status, reason)


def test_a_close_that_fails_after_the_reader_left_is_an_error(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        body = twin.body(*EVENTS, close_fails=OSError("no"))
        response = await twin.open(twin.answering(body))
        iterator = response.stream.__aiter__() if twin.asynchronous else iter(response.stream)
        await twin.next(iterator)
        await twin.drop(iterator)
        assert recorded.attempt.status == "interrupted"
        with pytest.raises(OSError, match="no"):
            await twin.close(response)

    twin.run(main)
    attempt = recorded.attempt
    assert (attempt.status, attempt.end_reason, attempt.error["type"]) == ("error", "close_error", "OSError")


def test_an_error_event_makes_an_error_of_any_ending(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        events = [*EVENTS[:3], OpenAIChat().error_event()]
        await twin.read(await twin.open(twin.answering(twin.body(*events))))

    twin.run(main)
    attempt = check(recorded, "error", "sse_eof", "server_error")
    assert attempt.error["message"] == "The server had an error while processing your request."


def test_a_read_that_fails_is_an_error_and_reaches_the_reader_as_it_is(twin: Twin, recorded: Recording) -> None:
    cause = OSError("reset by peer")
    error = twin.library.ReadError("cut")
    error.__cause__ = cause

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS[:3], fails=error)))
        with pytest.raises(twin.library.ReadError) as caught:
            await twin.read(response)
        assert caught.value is error
        assert caught.value.__cause__ is cause
        frames = [frame.name for frame in caught.traceback]
        assert frames[-1] in ("__iter__", "__aiter__"), "the frame that raised is still there"
        await twin.close(response)

    twin.run(main)
    check(recorded, "error", "read_error", f"{twin.library.__name__}.ReadError")


class Stop(BaseException):
    """Like trio's ``Cancelled``: no ``Exception``."""


@pytest.mark.parametrize("exception", [Stop, KeyboardInterrupt, asyncio.CancelledError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_cancelled_read_is_interrupted_unless_all_had_come(
    twin: Twin, recorded: Recording, exception: type[BaseException], terminal: bool
) -> None:
    async def main() -> None:
        body = twin.body(*(EVENTS if terminal else UNENDED), fails=exception())
        response = await twin.open(twin.answering(body))
        try:
            await twin.read(response)
        except exception:
            pass
        else:
            pytest.fail("the cancellation was swallowed")
        await twin.close(response)

    twin.run(main)
    check(recorded, *(("completed", "body_close") if terminal else ("interrupted", "cancelled")))


def test_a_close_that_is_cancelled_has_closed_what_it_could(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS, close_fails=Stop())))
        try:
            await twin.read(response)
        except Stop:
            pass
        else:
            pytest.fail("the cancellation was swallowed")

    twin.run(main)
    check(recorded, "completed", "sse_eof")


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        ("ConnectError", "error", "transport_error"),
        ("ReadTimeout", "error", "transport_error"),
        (Stop, "interrupted", "cancelled"),
        (asyncio.CancelledError, "interrupted", "cancelled"),
    ],
)
def test_a_request_without_an_answer(twin: Twin, recorded: Recording, error: Any, status: str, reason: str) -> None:
    raised = getattr(twin.library, error)("nobody there") if isinstance(error, str) else error()

    async def main() -> None:
        try:
            await twin.open(twin.client(lambda request: raised))
        except BaseException as exc:
            caught.append(exc)

    caught: list[BaseException] = []

    twin.run(main)
    assert caught == [raised]
    attempt = check(recorded, status, reason, f"{twin.library.__name__}.{error}" if status == "error" else None)
    assert attempt.response_status is None


@pytest.mark.parametrize("read", [0, 2])
def test_a_forgotten_stream_is_abandoned_at_its_last_byte(twin: Twin, recorded: Recording, read: int) -> None:
    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        stream = weakref.ref(response.stream)
        if read:
            # Chunks came, and whoever has them does not hold the stream: as a transport's read-ahead.
            attempt = response.stream._attempt
            for chunk in EVENTS[:read]:
                attempt.chunk(chunk)
            del attempt
        gc.collect()
        gc.disable()
        try:
            if twin.library is httpx:
                response.stream._stream._response = None  # httpx itself has a cycle here, httpx2 and we have none
            del response
            assert stream() is None, "a reference cycle keeps it"
        finally:
            gc.enable()

    twin.run(main)
    attempt = check(recorded, "interrupted", "abandoned")
    if read:
        assert attempt.finished_at == attempt.last_byte_at
    assert attempt.events == read


def test_a_suspended_reader_that_is_forgotten_is_an_early_close(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        keep.append(twin.raw(response))
        await twin.next(keep[0])

    keep: list[Any] = []
    twin.run(main)
    keep.clear()
    gc.collect()
    check(recorded, "interrupted", "early_close")


def test_what_has_ended_is_in_no_cycle_with_its_own_finalizer(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        await twin.read(await twin.open(twin.answering(twin.body(*EVENTS))))

    seen: list[Attempt] = []
    answered = Attempt.answered

    def spy(self: Attempt, response: Any) -> None:
        seen.append(self)
        answered(self, response)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Attempt, "answered", spy)
        twin.run(main)
    lifecycle.flush()
    assert seen[0].final
    assert seen[0].watch is None


def test_a_second_iteration_of_a_stream_reads_on(twin: Twin, recorded: Recording) -> None:
    """The async openai client drains a body with a second iteration, while the first one is suspended."""

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        first = response.stream.__aiter__() if twin.asynchronous else iter(response.stream)
        assert await twin.next(first) == EVENTS[0]
        rest = [chunk async for chunk in twin.chunks(response.stream)]
        assert rest == EVENTS[1:]
        await twin.drop(first)
        await twin.close(response)

    twin.run(main)
    attempt = check(recorded, "completed", "sse_eof")
    assert attempt.events == len(EVENTS)


def test_chunks_that_come_after_a_close_change_nothing(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        iterator = response.stream.__aiter__() if twin.asynchronous else iter(response.stream)
        await twin.next(iterator)
        await twin.close(response)
        lifecycle.flush()
        assert await twin.next(iterator) == EVENTS[1]
        await twin.drop(iterator)

    twin.run(main)
    check(recorded, "interrupted", "early_close")


# -- the endings of all else


@pytest.mark.parametrize("length", [True, False])
def test_a_json_body_is_completed_at_its_close(twin: Twin, recorded: Recording, length: bool) -> None:
    headers = {"content_length": str(len(WHOLE))} if length else {}

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(WHOLE), JSON, **headers), stream=False)
        found = [chunk async for chunk in twin.chunks(response.stream)]
        assert found == [WHOLE]
        assert recorded.attempt.status == "in_progress", "known at the close only"
        await twin.close(response)

    twin.run(main)
    attempt = check(recorded, "completed", "body_close")
    assert attempt.bytes_received == len(WHOLE)
    assert recorded.step.usage == USAGE


@pytest.mark.parametrize(
    ("sent", "length", "ended", "status", "reason"),
    [
        (WHOLE[:50], None, True, "error", "body_close"),
        (WHOLE[:50], len(WHOLE), True, "error", "body_close"),
        (WHOLE, len(WHOLE) + 1, True, "error", "body_close"),
        (WHOLE, len(WHOLE) - 1, True, "completed", "body_close"),
        (WHOLE[:50], len(WHOLE), False, "error", "early_close"),
        (WHOLE[:50], None, False, "error", "early_close"),
        (WHOLE, len(WHOLE), False, "completed", "early_close"),
        (WHOLE, -1, True, "completed", "body_close"),
    ],
)
def test_a_body_is_as_whole_as_its_length_says(
    twin: Twin, recorded: Recording, sent: bytes, length: int | None, ended: bool, status: str, reason: str
) -> None:
    headers = {} if length is None else {"content_length": str(length)}

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(sent), JSON, **headers), stream=False)
        if ended:
            await twin.read(response)
        else:
            iterator = response.stream.__aiter__() if twin.asynchronous else iter(response.stream)
            await twin.next(iterator)
            await twin.close(response)
            await twin.drop(iterator)

    twin.run(main)
    check(recorded, status, reason, "incomplete_body" if status == "error" else None)


@pytest.mark.parametrize(
    ("method", "status_code", "content_type"),
    [
        ("HEAD", 200, JSON),
        ("HEAD", 200, SSE),
        ("POST", 204, None),
        ("POST", 204, SSE),
        ("POST", 304, JSON),
        ("GET", 101, None),
    ],
)
@pytest.mark.parametrize("read", [False, True])
def test_an_answer_that_has_no_body_is_whole_without_one(
    twin: Twin, recorded: Recording, method: str, status_code: int, content_type: str | None, read: bool
) -> None:
    async def main() -> None:
        with chatdebug.step(capture="all"):
            client = twin.answering(twin.body(), content_type, status_code, content_length="500")
            response = await twin.open(client, method=method)
            await (twin.read(response) if read else twin.close(response))

    twin.run(main)
    attempt = recorded.attempt
    assert attempt.status == "completed"
    assert attempt.rank == AttemptRank.FINAL


@pytest.mark.parametrize("read", [False, True])
def test_a_status_of_400_or_more_is_an_error_with_its_code_and_retry_after(
    twin: Twin, recorded: Recording, read: bool
) -> None:
    body = json.dumps(OpenAIChat().error(429)).encode()

    async def main() -> None:
        client = twin.answering(twin.body(body), JSON, 429, retry_after="7", content_length=str(len(body)))
        response = await twin.open(client)
        await (twin.read(response) if read else twin.close(response))

    twin.run(main)
    attempt = check(recorded, "error", "body_close" if read else "early_close", "requests" if read else "429")
    assert (attempt.response_status, attempt.error["status_code"], attempt.error["retry_after"]) == (429, 429, "7")
    assert attempt.error["message"]
    assert attempt_span(recorded).attributes["http.response.status_code"] == 429


def test_ready_content_is_there_at_once(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        client = twin.client(lambda request: twin.library.Response(200, json=json.loads(WHOLE)))
        response = await twin.open(client, stream=False)
        check(recorded, "completed", "body_close")
        assert json.loads(await twin.read(response)) == json.loads(WHOLE)

    twin.run(main)
    assert recorded.attempt.bytes_received > 0
    assert recorded.step.usage == USAGE


def test_a_ready_stream_is_there_at_once(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        headers = {"content-type": SSE}
        client = twin.client(lambda request: twin.library.Response(200, headers=headers, content=b"".join(EVENTS)))
        await twin.open(client)

    twin.run(main)
    attempt = check(recorded, "completed", "sse_eof")
    assert attempt.events == len(EVENTS)


def test_a_response_that_its_transport_has_closed_unread_has_an_end(twin: Twin, recorded: Recording) -> None:
    def respond(request: Any) -> Any:
        response = twin.library.Response(200, headers={"content-type": SSE}, stream=twin.body(*EVENTS))
        response.is_closed = True
        return response

    async def main() -> None:
        await twin.open(twin.client(respond))

    twin.run(main)
    check(recorded, "interrupted", "early_close")


# -- the same as without us


@contextmanager
def plain() -> Iterator[None]:
    """Nothing is instrumented in here."""
    for instrumentor in INSTRUMENTORS.values():
        instrumentor().uninstrument()
    try:
        yield
    finally:
        for instrumentor in INSTRUMENTORS.values():
            instrumentor().instrument(skip_dep_check=True)


async def _behaviour(twin: Twin) -> list[Any]:
    """What a user of a response can see: chunks, exceptions, flags and the moment at which `elapsed` is there."""
    seen: list[Any] = []

    async def attempt(action: Any) -> None:
        try:
            seen.append(await twin.do(action() if callable(action) else action))
        except Exception as exc:
            seen.append((type(exc).__name__, str(exc), type(exc.__cause__).__name__, type(exc.__context__).__name__))

    def elapsed(response: Any) -> str:
        return type(response.elapsed).__name__

    async def all_raw(response: Any) -> list[bytes]:
        return [chunk async for chunk in twin.chunks(twin.raw(response))]

    response = await twin.open(twin.answering(twin.body(*EVENTS)))
    await attempt(lambda: elapsed(response))
    await attempt(all_raw(response))
    await attempt(lambda: elapsed(response))
    seen.append((response.is_closed, response.is_stream_consumed, response.num_bytes_downloaded))
    await attempt(all_raw(response))
    await attempt(twin.read(response))

    response = await twin.open(twin.answering(twin.body(*EVENTS)))
    await twin.close(response)
    await attempt(lambda: elapsed(response))
    await attempt(all_raw(response))
    await twin.close(response)

    response = await twin.open(twin.answering(twin.body(*EVENTS, fails=twin.library.ReadError("cut"))))
    await attempt(all_raw(response))
    await attempt(lambda: elapsed(response))
    seen.append((response.is_closed, response.is_stream_consumed))
    await twin.close(response)

    body = twin.body(*EVENTS)
    response = await twin.open(twin.answering(body))
    iterator = twin.raw(response)
    seen.append(await twin.next(iterator))
    await twin.drop(iterator)
    seen.append((response.is_closed, body.closed))
    await twin.close(response)
    seen.append((response.is_closed, body.closed))

    with suppress(AttributeError):
        seen.append(response.stream.nothing_of_the_kind)
    seen.append(isinstance(response.stream, twin.library.SyncByteStream))
    return seen


def test_a_user_of_a_response_sees_what_is_seen_without_us(twin: Twin, recorded: Recording) -> None:
    with plain():
        expected = twin.run(lambda: _behaviour(twin))
    found = twin.run(lambda: _behaviour(twin))
    # The streams of a MockTransport are of both kinds, ours is of the client's.
    assert found[:-1] == expected[:-1]
    assert len(recorded.attempts) == 4


def test_elapsed_is_there_after_the_close_and_not_before(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        with pytest.raises(RuntimeError):
            _ = response.elapsed
        await twin.read(response)
        assert response.elapsed > datetime.timedelta(0)

    twin.run(main)


def test_no_context_stays_attached_when_a_stream_is_broken_off(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        before = get_current()
        response = await twin.open(twin.answering(twin.body(*EVENTS)))
        assert get_current() is before
        iterator = twin.raw(response)
        await twin.next(iterator)
        assert get_current() is before
        assert not trace.get_current_span().get_span_context().is_valid
        await twin.drop(iterator)
        await twin.close(response)
        assert get_current() is before

    twin.run(main)


def test_no_context_stays_attached_when_a_request_fails(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        before = get_current()
        with pytest.raises(twin.library.ConnectError):
            await twin.open(twin.client(lambda request: twin.library.ConnectError("no")))
        assert get_current() is before

    twin.run(main)


def test_the_trace_context_goes_with_the_request(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        await twin.close(await twin.open(twin.answering(twin.body())))

    twin.run(main)
    _, trace_id, span_id, _ = twin.requests[0].headers["traceparent"].split("-")
    assert (trace_id, span_id) == (recorded.attempt.trace_id, recorded.attempt.id)


# -- what the body is made of

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("coding", ENCODERS)
@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_a_coded_body_is_read_and_counted_as_it_came(
    twin: Twin, recorded: Recording, coding: str, content_type: str
) -> None:
    body = b"".join(EVENTS) if content_type == SSE else WHOLE
    coded = ENCODERS[coding](body)
    pieces = [coded[at : at + 7] for at in range(0, len(coded), 7)]

    async def main() -> None:
        client = twin.answering(twin.body(*pieces), content_type, content_encoding=coding)
        response = await twin.open(client, stream=content_type == SSE)
        assert b"".join([chunk async for chunk in twin.chunks(twin.raw(response))]) == coded

    twin.run(main)
    attempt = check(recorded, "completed", "sse_eof" if content_type == SSE else "body_close")
    assert attempt.bytes_received == len(coded)
    assert recorded.step.usage == USAGE
    content = recorded.recorder.sink.rows[AttemptContent][attempt.id]  # type: ignore[attr-defined]
    assert "prompt_tokens" in content.response_body


@pytest.mark.parametrize("coding", ["rot13", "gzip"])
@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_a_coding_that_cannot_be_undone_is_no_reason_to_call_a_body_broken(
    twin: Twin, recorded: Recording, content_type: str, coding: str
) -> None:
    async def main() -> None:
        client = twin.answering(twin.body(b"\x01\x02\x03"), content_type, content_encoding=coding)
        response = await twin.open(client)
        _ = [chunk async for chunk in twin.chunks(twin.raw(response))]

    twin.run(main)
    attempt = check(recorded, "completed", "sse_eof" if content_type == SSE else "body_close")
    content = recorded.recorder.sink.rows[AttemptContent][attempt.id]  # type: ignore[attr-defined]
    assert content.response_body == f"[3 bytes that cannot be decoded: {coding}]"


@pytest.mark.parametrize("first", [b"da", b"\xef\xbb\xbfdata: ", b"event: x\ndata: 1\n\n", b""])
def test_a_stream_under_a_wrong_content_type_is_known_by_its_first_bytes(
    twin: Twin, recorded: Recording, first: bytes
) -> None:
    text = b"".join(EVENTS) if first != b"event: x\ndata: 1\n\n" else first + b"".join(EVENTS)
    if first.startswith(b"\xef"):
        text = b"\xef\xbb\xbf" + text
    pieces = [text[: len(first)], text[len(first) :]]

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*pieces), "text/plain"))
        await twin.read(response)

    twin.run(main)
    attempt = check(recorded, "completed", "sse_eof")
    assert attempt.events >= len(EVENTS)


def test_a_long_stream_under_a_wrong_content_type_is_read_beyond_what_is_kept(recorded: Recording) -> None:
    twin = TWINS[0]
    filler = [EVENTS[1]] * (KEPT_BODY // len(EVENTS[1]) + 10)

    async def main() -> None:
        await twin.read(await twin.open(twin.answering(twin.body(*filler, *EVENTS), "text/plain")))

    twin.run(main)
    attempt = check(recorded, "completed", "sse_eof")
    assert attempt.events == len(filler) + len(EVENTS)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "error"),
    [
        (b"\x00\xff{not json\xfe", JSON, "error", "incomplete_body"),
        (b"\x00\xff{not json\xfe", "application/octet-stream", "completed", None),
        (b"\x00\xff nothing like it \xfe", SSE, "error", "incomplete_stream"),
        (b"<html>It works!</html>", "text/html", "completed", None),
        (b"data: " + b"x" * (3 << 20), SSE, "error", "incomplete_stream"),
        (b"data: \xff\xfe\xfd\n\ndata: [DONE]\n\n", SSE, "completed", None),
        (b'{"choices": "\xff\xfe"}', JSON, "error", "incomplete_body"),
        (b"[" * 100_000, JSON, "error", "incomplete_body"),
        (b"", JSON, "error", "incomplete_body"),
        (b"null", JSON, "completed", None),
        (b"", None, "completed", None),
    ],
    ids=[
        "garbage",
        "binary",
        "no-sse",
        "html",
        "endless-line",
        "no-utf8",
        "no-utf8-json",
        "deep",
        "empty",
        "null",
        "nothing",
    ],
)
def test_garbage_is_recorded_as_what_it_is(
    twin: Twin, recorded: Recording, body: bytes, content_type: str | None, status: str, error: str | None
) -> None:
    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(*([body] if body else [])), content_type))
        assert await twin.read(response) == body

    twin.run(main)
    attempt = recorded.attempt
    assert (attempt.status, (attempt.error or {}).get("type")) == (status, error)
    content = recorded.recorder.sink.rows[AttemptContent][attempt.id]  # type: ignore[attr-defined]
    assert len(content.response_body or "") < 60_000


def test_a_huge_header_is_cut(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        client = twin.answering(twin.body(*EVENTS), SSE, x_request_id="r" * 1_000_000, retry_after="9" * 1_000_000)
        await twin.read(await twin.open(client))

    twin.run(main)
    check(recorded, "completed", "sse_eof")
    content = recorded.recorder.sink.rows[AttemptContent][recorded.attempt.id]  # type: ignore[attr-defined]
    assert len(json.dumps(content.response_headers)) < 100_000


def _peak(action: Callable[[], Any]) -> int:
    """Bytes that Python allocated at most meanwhile, beyond those before."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        action()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


MEBIBYTE = 1 << 20


@pytest.mark.parametrize("content_type", [SSE, JSON])
@pytest.mark.parametrize("line", [b"data: " + b"x" * 16_000 + b"\n\n", b"x" * 16_000], ids=["events", "endless-line"])
def test_a_body_of_a_gigabyte_costs_a_few_mebibytes(recorded: Recording, content_type: str, line: bytes) -> None:
    twin = TWINS[0]
    chunk = line * (MEBIBYTE // len(line))
    count = (1 << 30) // len(chunk) + 1
    received = []

    def body() -> Iterator[bytes]:
        # Each chunk is a new object, as it comes from a socket: what is kept is really kept.
        return (bytes(bytearray(chunk)) for _ in range(count))

    async def main() -> None:
        response = await twin.open(twin.answering(twin.body(source=body()), content_type))
        received.append(sum(len(chunk) for chunk in response.iter_raw()))
        lifecycle.flush()

    peak = _peak(lambda: twin.run(main))
    assert received == [count * len(chunk)]
    assert recorded.attempt.bytes_received == received[0] > 1 << 30
    assert peak < 24 * MEBIBYTE


@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_a_compressed_bomb_costs_a_few_mebibytes_and_stops_being_read(recorded: Recording, content_type: str) -> None:
    twin = TWINS[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    pieces = [packer.compress(b"\0" * MEBIBYTE) for _ in range(300)] + [packer.flush()]
    pieces = [piece for piece in pieces if piece]

    async def main() -> None:
        client = twin.answering(twin.body(*pieces), content_type, content_encoding="gzip")
        response = await twin.open(client)
        for _ in response.iter_raw():
            pass
        lifecycle.flush()

    assert _peak(lambda: twin.run(main)) < 24 * MEBIBYTE
    assert recorded.attempt.rank == AttemptRank.FINAL
    assert recorded.attempt.bytes_received == sum(map(len, pieces))


def test_a_close_that_makes_another_reader_fail_is_a_close(twin: Twin, recorded: Recording) -> None:
    """The reader's error comes before the close has returned, and is its doing: nobody else has broken anything off."""
    begun, torn, failed = threading.Event(), threading.Event(), threading.Event()

    class Torn(twin.library.SyncByteStream, twin.library.AsyncByteStream):  # type: ignore[misc,name-defined]
        def __iter__(self) -> Iterator[bytes]:
            yield EVENTS[0]
            begun.set()
            torn.wait(PATIENCE)
            raise twin.library.ReadError("the socket was closed")

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for chunk in self:
                yield chunk

        def close(self) -> None:
            torn.set()
            assert failed.wait(PATIENCE)

        async def aclose(self) -> None:
            self.close()

    async def read(response: Any) -> None:
        with suppress(twin.library.ReadError):
            async for _ in twin.chunks(response.stream):
                pass
        failed.set()

    async def main() -> None:
        response = await twin.open(twin.answering(Torn()))
        reader = threading.Thread(target=lambda: asyncio.run(read(response)))
        reader.start()
        assert begun.wait(PATIENCE)
        await twin.close(response)
        reader.join(PATIENCE)

    twin.run(main)
    check(recorded, "interrupted", "early_close")


def test_a_reader_that_leaves_an_async_body_has_left_the_transports_generator_too(recorded: Recording) -> None:
    """As without us: a connection is given back by then, and not whenever the event loop finds the time. (With httpx2;
    httpx itself leaves it to the loop.)"""
    twin, ended = Twin(httpx2, asynchronous=True), []

    class Inner(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                for event in EVENTS:
                    yield event
            finally:
                ended.append("here")

    async def main() -> None:
        response = await twin.open(twin.answering(Inner()))
        reader = response.stream.__aiter__()
        assert await reader.__anext__() == EVENTS[0]
        await reader.aclose()
        assert ended == ["here"]

    twin.run(main)


# -- where requests come from


def test_each_hop_of_a_redirect_is_an_attempt_of_one_step(twin: Twin, recorded: Recording) -> None:
    class NotReading(twin.library.BaseTransport, twin.library.AsyncBaseTransport):  # type: ignore[misc,name-defined]
        def __init__(self, answer: Callable[[Any], Any]) -> None:
            self.handle_request = answer

        async def handle_async_request(self, request: Any) -> Any:
            return self.handle_request(request)

    def respond(request: Any) -> Any:
        if request.url.path == "/v1/chat/completions":
            return twin.library.Response(307, headers={"location": "/elsewhere"}, stream=twin.body())
        return twin.library.Response(200, headers={"content-type": SSE}, stream=twin.body(*EVENTS))

    async def main() -> None:
        client = twin.client(respond, follow_redirects=True)
        client._transport = NotReading(respond)  # a mock transport reads the request, and so gives it its content
        await twin.read(await twin.open(client))

    twin.run(main)
    first, second = sorted(recorded.attempts, key=lambda attempt: attempt.number)
    assert (first.number, first.response_status, first.status) == (1, 307, "completed")
    assert (second.number, second.response_status, second.end_reason) == (2, 200, "sse_eof")
    assert first.step_id == second.step_id == recorded.step.id
    assert recorded.spans[second.id].attributes["http.request.resend_count"] == 1
    assert recorded.step.status == "completed"
    # What was sent is known of each hop, though the next one has no content but its stream.
    assert recorded.run.summary["first_message"] == "Hello?"
    assert recorded.content.normalized_request is not None
    bodies = [row.request_body for row in recorded.contents if isinstance(row, AttemptContent)]
    assert len(bodies) == 2
    assert all(body is not None and "Hello?" in body for body in bodies)


def test_each_try_of_an_authentication_is_an_attempt_of_one_step(twin: Twin, recorded: Recording) -> None:
    class Auth(twin.library.Auth):  # type: ignore[misc,name-defined]
        def auth_flow(self, request: Any) -> Any:
            response = yield request
            if response.status_code == 401:
                request.headers["authorization"] = "Bearer again"
                yield request

    def respond(request: Any) -> Any:
        status = 200 if "authorization" in request.headers else 401
        return twin.library.Response(status, headers={"content-type": JSON}, stream=twin.body(WHOLE))

    async def main() -> None:
        await twin.read(await twin.open(twin.client(respond, auth=Auth()), stream=False))

    twin.run(main)
    assert [attempt.response_status for attempt in recorded.attempts] == [401, 200]
    assert [attempt.status for attempt in recorded.attempts] == ["error", "completed"]
    assert recorded.step.status == "completed"
    assert recorded.step.error is None


def test_a_request_sent_without_a_send_is_a_step_of_its_own(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        client = twin.answering(twin.body(*EVENTS))
        request = client.build_request("POST", URL, json={"stream": True})
        response = await twin.do(client._send_single_request(request))
        await twin.read(response)

    twin.run(main)
    check(recorded, "completed", "sse_eof")
    assert recorded.run.status == "completed"


def test_a_failing_request_sent_without_a_send_is_a_step_of_its_own(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        client = twin.client(lambda request: twin.library.ConnectError("no"))
        with pytest.raises(twin.library.ConnectError):
            await twin.do(client._send_single_request(client.build_request("POST", URL, json={})))

    twin.run(main)
    check(recorded, "error", "transport_error", f"{twin.library.__name__}.ConnectError")
    assert recorded.run.status == "error"


def test_what_is_no_model_call_makes_no_step(twin: Twin, recorded: Recording) -> None:
    async def main() -> None:
        client = twin.client(lambda request: twin.library.Response(200, json={}))
        for method, url in [("GET", "https://a.example/v1/models"), ("POST", "https://a.example/v1/files")]:
            await twin.open(client, method=method, url=url)

    twin.run(main)
    assert (recorded.runs, recorded.steps, recorded.attempts, recorded.spans) == ([], [], [], {})


def test_a_client_that_was_made_before_instrumenting_is_seen(twin: Twin) -> None:
    client = twin.answering(twin.body(*EVENTS))
    with recording() as recorded:

        async def main() -> None:
            await twin.read(await twin.open(client))

        twin.run(main)
        assert recorded.attempt.status == "completed"


def test_uninstrumenting_gives_back_the_very_same_functions() -> None:
    names = ("send", "_send_single_request")
    owners = [kind for library in (httpx, httpx2) for kind in (library.Client, library.AsyncClient)]
    before = [owner.__dict__[name] for owner in owners for name in names]
    with recording():
        during = [owner.__dict__[name] for owner in owners for name in names]
        assert not any(now is then for now, then in zip(during, before, strict=True))
    after = [owner.__dict__[name] for owner in owners for name in names]
    assert all(now is then for now, then in zip(after, before, strict=True))


def test_instrumenting_twice_gives_one_attempt_for_each_request(twin: Twin, recorded: Recording) -> None:
    for _ in range(2):
        for instrumentor in INSTRUMENTORS.values():
            instrumentor()._instrument()

    async def main() -> None:
        await twin.read(await twin.open(twin.answering(twin.body(*EVENTS))))

    twin.run(main)
    check(recorded, "completed", "sse_eof")


ALIASED = """
import httpx2
httpx2.alias_httpx()
import httpx
assert httpx is httpx2
from tests.support.recording import URL, Model, recording
with recording() as recorded:
    Model().call()
    assert len(recorded.attempts) == len(recorded.steps) == 1
    assert recorded.attempt.status == "completed"
print("one")
"""


def test_after_the_alias_both_instrumentors_give_one_attempt_for_each_request() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALIASED], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("one\n", "")


def test_a_trio_task_that_is_cancelled_while_it_reads_is_interrupted(recorded: Recording) -> None:
    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield EVENTS[0]
            waiting.set()
            await trio.sleep_forever()

    def respond(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": SSE}, stream=Endless())

    async def reader() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(respond)) as client:
            await client.post(URL, json={"stream": True})

    async def main() -> None:
        nonlocal waiting
        waiting = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await waiting.wait()
            nursery.cancel_scope.cancel()

    waiting = trio.Event()
    trio.run(main)
    attempt = check(recorded, "interrupted", "cancelled")
    assert attempt.events == 1


# -- runs that are left, and the end of the process


def test_a_half_read_body_is_left_behind_by_its_run_and_corrected_when_it_goes_on(
    twin: Twin, recorded: Recording
) -> None:
    async def main() -> None:
        with chatdebug.run():
            response = await twin.open(twin.answering(twin.body(*EVENTS)))
            iterator = response.stream.__aiter__() if twin.asynchronous else iter(response.stream)
            await twin.next(iterator)
        attempt = recorded.attempt
        assert (attempt.status, attempt.end_reason, attempt.rank) == ("interrupted", "run_end", AttemptRank.LEFT)
        assert attempt.id not in recorded.spans
        _ = [chunk async for chunk in twin.chunks(iterator)]
        await twin.close(response)

    twin.run(main)
    check(recorded, "completed", "sse_eof")


@pytest.mark.parametrize("where", ["headers", "stream", "ended"])
def test_the_end_of_the_process_leaves_nothing_open(twin: Twin, where: str) -> None:
    with recording() as recorded:
        sink = recorded.recorder.sink

        async def main() -> None:
            if where == "headers":

                def respond(request: Any) -> Any:
                    lifecycle.disarm()
                    return twin.library.Response(200, stream=twin.body(*EVENTS))

                await twin.read(await twin.open(twin.client(respond)))
                return
            response = await twin.open(twin.answering(twin.body(*EVENTS)))
            iterator = response.stream.__aiter__() if twin.asynchronous else iter(response.stream)
            for _ in range(2) if where == "stream" else EVENTS:
                await twin.next(iterator)
            if where == "ended":
                assert [chunk async for chunk in twin.chunks(iterator)] == []
            lifecycle.disarm()
            await twin.close(response)
            await twin.drop(iterator)

        twin.run(main)
        (attempt,) = next(rows for kind, rows in sink.rows.items() if kind.__name__ == "AttemptRecord").values()  # type: ignore[attr-defined]
        expected = {
            "headers": ("interrupted", "shutdown", AttemptRank.LEFT),
            "stream": ("interrupted", "shutdown", AttemptRank.LEFT),
            "ended": ("completed", "sse_eof", AttemptRank.FINAL),
        }
        assert (attempt.status, attempt.end_reason, attempt.rank) == expected[where]


# -- threads, finalizers and locks


def test_a_stream_that_is_read_before_its_headers_are_folded_loses_nothing(recorded: Recording) -> None:
    """Another thread has the turn all the while that a reader takes more than a digest."""
    twin = TWINS[0]
    filler = [EVENTS[1]] * (2 * DIGEST_SIZE // len(EVENTS[1]))
    inbox = recorded.recorder.inbox
    has_it, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with inbox._turn:
            has_it.set()
            assert may_go.wait(PATIENCE)

    other = threading.Thread(target=hold)

    async def main() -> None:
        def respond(request: Any) -> Any:
            other.start()
            assert has_it.wait(PATIENCE)
            body = twin.body(*filler, *EVENTS)
            return twin.library.Response(200, headers={"content-type": SSE}, stream=body)

        try:
            # Not asked for as a stream: its type alone says that it is one.
            await twin.read(await twin.open(twin.client(respond), stream=False))
        finally:
            may_go.set()
            other.join()

    twin.run(main)
    attempt = check(recorded, "completed", "sse_eof")
    assert attempt.events == len(filler) + len(EVENTS)
    assert recorded.step.usage == USAGE


@pytest.fixture
def short_switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("short_switch_interval")
@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda library: library.__name__)
def test_reading_in_one_thread_while_another_closes_neither_deadlocks_nor_loses_the_close_error(library: Any) -> None:
    twin = Twin(library, False)
    rounds = 250
    randomness = random.Random(7)
    with recording() as recorded:
        for _ in range(rounds):
            body = twin.body(*EVENTS * 3, close_fails=library.CloseError("the close"))
            response = asyncio.run(twin.open(twin.answering(body)))
            wait_for, begun = randomness.randrange(len(EVENTS) * 3), threading.Event()

            def read(response: Any = response, wait_for: int = wait_for, begun: threading.Event = begun) -> None:
                with suppress(Exception):
                    for number, _ in enumerate(response.stream):
                        if number == wait_for:
                            begun.set()

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            assert begun.wait(PATIENCE)
            with pytest.raises(library.CloseError):
                response.close()
            reader.join(PATIENCE)
            assert not reader.is_alive(), "deadlock"
        attempts = recorded.attempts
        assert len(attempts) == rounds
        assert {(attempt.status, attempt.end_reason) for attempt in attempts} == {("error", "close_error")}
        assert {attempt.error["type"] for attempt in attempts} == {f"{library.__name__}.CloseError"}
        assert len(recorded.spans) == 3 * rounds


class CollectingLock:
    """A lock whose holder is hit by the garbage collector at once, as an allocation in there could."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.collected = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        held = self._lock.acquire(blocking, timeout)
        if held:
            litter()
            self.collected += gc.collect()
        return held

    def release(self) -> None:
        litter()
        self.collected += gc.collect()
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


_litter: list[Callable[[], None]] = []


def litter() -> None:
    """Makes garbage whose finalizers are ours: a response in a cycle, as the openai SDK's streams are."""
    if _litter:
        _litter.pop()()


class Cycle:
    def __init__(self, *things: Any) -> None:
        self.things = (self, *things)


def test_a_collection_in_the_middle_of_any_locked_section_deadlocks_nobody() -> None:
    twin = TWINS[0]
    with recording() as recorded, pytest.MonkeyPatch.context() as monkeypatch:
        locks: list[CollectingLock] = []

        def lock() -> Any:
            locks.append(CollectingLock())
            return locks[-1]

        inbox = recorded.recorder.inbox
        monkeypatch.setattr(inboxes, "ANSWER_TIMEOUT", -1)  # whoever waits for a turn in vain waits for good
        monkeypatch.setattr(inbox, "_turn", lock())
        monkeypatch.setattr(inbox, "_starting", lock())
        monkeypatch.setattr(faults, "_lock", lock())

        init = Attempt.__init__

        def with_lock(self: Attempt, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            self.received._digesting = lock()

        monkeypatch.setattr(Attempt, "__init__", with_lock)
        count = 12
        gc.collect()
        gc.freeze()  # what is there already need not be looked through each time

        def work() -> None:
            for _ in range(count):
                _litter.append(drop_prepared.pop())
                response = sync_open(twin, EVENTS)
                response.read()
            lifecycle.flush()

        # Opened beforehand: a request from within a locked section is nobody's, a finalizer anybody's.
        drop_prepared: list[Callable[[], None]] = []
        for number in range(count):
            response = sync_open(twin, EVENTS[:2])
            iterator = iter(response.stream)
            if number % 2:
                next(iterator)
            things = [Cycle(response, iterator)]
            del response, iterator
            drop_prepared.append(things.clear)
        gc.disable()
        try:
            thread = threading.Thread(target=work, daemon=True)  # a deadlock fails the test, not the session
            thread.start()
            thread.join(3 * PATIENCE)
            assert not thread.is_alive(), "deadlock"
        finally:
            gc.enable()
            gc.unfreeze()
            _litter.clear()
        gc.collect()
        reasons = [attempt.end_reason for attempt in recorded.attempts]
        assert set(reasons) == {"abandoned", "sse_eof"}
        assert reasons.count("sse_eof") == count
        assert sum(lock.collected for lock in locks) > 0, "no finalizer ran in a locked section"


def sync_open(twin: Twin, events: list[bytes]) -> Any:
    client = twin.answering(twin.body(*events))
    return client.send(client.build_request("POST", URL, json={"stream": True}), stream=True)


def test_a_collection_at_every_allocation_changes_nothing() -> None:
    twin = TWINS[0]
    before = gc.get_threshold()
    with recording() as recorded:
        gc.set_threshold(1)
        try:
            for number in range(20):
                response = sync_open(twin, EVENTS)
                if number % 2:
                    Cycle(response)
                else:
                    response.read()
                del response
            lifecycle.flush()
        finally:
            gc.set_threshold(*before)
        gc.collect()
        reasons = sorted(attempt.end_reason or "" for attempt in recorded.attempts)
        assert reasons == ["abandoned"] * 10 + ["sse_eof"] * 10


# -- our faults stay ours


class Broken(Exception):
    """A fault of ours."""


def _break(*args: Any, **kwargs: Any) -> Any:
    raise Broken("this is ours")


FAULTS: list[tuple[Any, str, str]] = [
    (calls, "begin_attempt", "beginning an attempt"),
    (calls, "_begin", "beginning an attempt"),
    (calls, "request_facts", "beginning an attempt"),
    (Recorder, "start_span", "beginning an attempt"),
    (propagate, "inject", "propagating the trace context"),
    (Attempt, "answered", "an attempt that was answered"),
    (Attempt, "chunk", "Attempt.chunk"),
    (Attempt, "emit", "an attempt that was answered"),
    (Attempt, "tell", "telling END_OF_BODY"),
    (Attempt, "apply", "Attempt.apply(STREAM_HEADERS)"),
    (Attempt, "_end", "Attempt.apply(END_OF_BODY)"),
    (Attempt, "_span_attributes", "Attempt.apply(CLOSED)"),
    (Content, "records", "Attempt.records"),
    (calls.Call, "left", "leaving a call"),
    (OpenAIChatReader, "assemble", "Attempt.records"),
]


@pytest.mark.parametrize(("owner", "name", "where"), FAULTS, ids=[f"{row[1]}" for row in FAULTS])
def test_a_fault_of_ours_is_counted_and_reaches_nobody(
    twin: Twin, owner: Any, name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording():
        before = faults.counts().get(where, 0)
        monkeypatch.setattr(owner, name, _break)

        async def main() -> None:
            response = await twin.open(twin.answering(twin.body(*EVENTS)))
            found = [chunk async for chunk in twin.chunks(twin.raw(response))]
            assert found == EVENTS
            assert response.is_closed

        twin.run(main)
        lifecycle.flush()
        assert faults.counts().get(where, 0) > before, faults.counts()
        monkeypatch.undo()


@pytest.mark.parametrize(("owner", "name"), [row[:2] for row in FAULTS], ids=[row[1] for row in FAULTS])
def test_a_fault_of_ours_does_not_replace_the_users_own_exception(
    twin: Twin, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording():
        monkeypatch.setattr(owner, name, _break)
        before_headers, while_reading = twin.library.ConnectError("first"), twin.library.ReadError("second")
        at_close = twin.library.CloseError("third")

        async def main() -> None:
            with pytest.raises(twin.library.ConnectError) as first:
                await twin.open(twin.client(lambda request: before_headers))
            assert first.value is before_headers
            response = await twin.open(twin.answering(twin.body(*EVENTS, fails=while_reading, close_fails=at_close)))
            with pytest.raises(twin.library.TransportError) as second:
                await twin.read(response)
            assert while_reading in (second.value, second.value.__context__)
            if twin.library is httpx:
                with pytest.raises(twin.library.CloseError) as third:
                    await twin.close(response)
                assert third.value is at_close

        twin.run(main)
        lifecycle.flush()
        monkeypatch.undo()


def test_a_redactor_that_fails_reaches_nobody_and_hides_all(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    with recording() as recorded:
        for name in ("_text", "_body", "_value", "_header"):
            monkeypatch.setattr(Redactor, name, _break)
        error = twin.library.ReadError("a message with sk-secret-1234567890abcdef1234")

        async def main() -> None:
            response = await twin.open(twin.answering(twin.body(*EVENTS, fails=error)))
            with pytest.raises(twin.library.ReadError) as caught:
                await twin.read(response)
            assert caught.value is error
            await twin.close(response)

        twin.run(main)
        attempt = recorded.attempt
        assert (attempt.status, attempt.end_reason) == ("error", "read_error")
        assert "sk-secret" not in repr(recorded.recorder.sink.rows)  # type: ignore[attr-defined]
        monkeypatch.undo()


def test_an_attempt_whose_body_could_not_be_wrapped_does_not_stay_open(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording() as recorded:
        monkeypatch.setattr(Attempt, "answered", _break)

        async def main() -> None:
            await twin.read(await twin.open(twin.answering(twin.body(*EVENTS))))

        twin.run(main)
        assert recorded.attempt.end_reason == "abandoned"
        assert recorded.run.status == "interrupted"
        monkeypatch.undo()


def test_an_exception_that_cannot_tell_its_message_is_recorded_all_the_same(twin: Twin, recorded: Recording) -> None:
    class Mute(OSError):
        def __str__(self) -> str:
            raise Broken

    async def main() -> None:
        with pytest.raises(Mute):
            await twin.open(twin.client(lambda request: Mute()))

    twin.run(main)
    assert recorded.attempt.error["message"] == "(its message cannot be told: Broken)"


def test_an_error_of_anthropics_keeps_its_type_from_inside_the_stream(twin: Twin, recorded: Recording) -> None:
    events = [sse({"type": "ping"}), AnthropicMessages().error_event()]

    async def main() -> None:
        client = twin.answering(twin.body(*events))
        await twin.read(await twin.open(client, url="https://api.anthropic.com/v1/messages"))

    twin.run(main)
    check(recorded, "error", "sse_eof", "overloaded_error")


def test_the_longest_silence_of_a_stream_is_told_with_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [time_ns()]
    monkeypatch.setattr(attempt_module, "time_ns", lambda: clock[0])
    with recording() as seen:
        began = None
        for number, _chunk in enumerate(Model().open().iter_raw()):
            if number == 1:
                began = clock[0]
            clock[0] += 5_000_000_000 if number == 1 else 1_000_000_000
        assert began is not None
        assert (seen.attempt.longest_gap_at, seen.attempt.longest_gap_ms) == (began // 1000, 5000.0)
        Model().call()
        assert seen.attempts[-1].longest_gap_at is None, "a body in one piece has none"
