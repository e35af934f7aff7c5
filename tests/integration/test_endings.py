"""The table of endings with the real SDKs and real connections, into real tables."""

from __future__ import annotations

import asyncio
import datetime
import gc
import inspect
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from time import time_ns
from typing import Any

import anthropic
import groq
import httpx
import httpx2
import openai
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_chatdebug as chatdebug
from otel_chatdebug import attributes, faults, lifecycle
from otel_chatdebug.demo.answers import sse
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.tables import queries

USAGE = {
    "input_tokens": 1200,
    "output_tokens": 84,
    "total_tokens": 1284,
    "reasoning_tokens": 64,
    "cache_read_tokens": 1024,
}
MESSAGES: list[Any] = [{"role": "user", "content": "Hello?"}]


class Seen:
    """What was recorded so far. Every look folds and writes first."""

    def __init__(self, url: str, exporter: InMemorySpanExporter) -> None:
        self._url = url
        self._exporter = exporter

    @property
    def runs(self) -> list[dict[str, Any]]:
        assert lifecycle.flush()
        try:
            engine = queries.open_for_reading(self._url)
        except queries.NoDatabase:
            return []
        try:
            return [queries.load_run(engine, run["id"]) for run in queries.list_runs(engine)]
        finally:
            engine.dispose()

    @property
    def run(self) -> dict[str, Any]:
        (run,) = self.runs
        return run

    @property
    def step(self) -> dict[str, Any]:
        """The only one, of the only run."""
        (step,) = self.run["steps"]
        return step  # type: ignore[no-any-return]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return self.step["attempts"]  # type: ignore[no-any-return]

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        assert lifecycle.flush()
        found = {}
        for span in self._exporter.get_finished_spans():
            assert span.context is not None
            found[f"{span.context.span_id:016x}"] = span
        return found

    def ended(self, status: str, reason: str, error: str | None = None) -> dict[str, Any]:
        """The only attempt ended so, finally; its row and its span tell the same. Returns its row."""
        (attempt,) = self.attempts
        self.told(attempt, status, reason, error)
        return attempt

    def told(self, attempt: dict[str, Any], status: str, reason: str, error: str | None = None) -> None:
        assert (attempt["status"], attempt["end_reason"], attempt["rank"]) == (status, reason, 3)
        assert (attempt["error"] or {}).get("type") == error
        assert (attempt["error"] is None) == (status != "error")
        span = self.spans[attempt["id"]]
        given = span.attributes
        assert given is not None
        assert given[attributes.STATUS] == status
        assert given[attributes.ATTEMPT_END_REASON] == reason
        assert given[attributes.ATTEMPT_BYTES] == attempt["bytes_received"]
        assert given.get(attributes.ERROR_TYPE) == error
        assert (span.status.status_code is trace.StatusCode.ERROR) == (status == "error")
        assert span.end_time is not None
        assert microseconds(attempt["finished_at"]) == span.end_time // 1000


def microseconds(text: str) -> int:
    moment = datetime.datetime.fromisoformat(text)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


@pytest.fixture
def seen(no_leaks: None, chatdebug_home: Path) -> Iterator[Seen]:
    url = f"sqlite:///{chatdebug_home / 'chatdebug.db'}"
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = faults.counts()
    chatdebug.configure(database_url=url, tracer_provider=provider)
    try:
        yield Seen(url, exporter)
    finally:
        chatdebug.shutdown()
    assert faults.counts() == before


@pytest.fixture
def provider(no_leaks: None) -> Iterator[Provider]:
    with Provider() as server:
        yield server


class Caller:
    """One SDK, sync or async, behind one shape: each method is a coroutine."""

    def __init__(self, sdk: Any, api: str, asynchronous: bool) -> None:
        self.sdk = sdk
        self.api = api
        self.asynchronous = asynchronous

    def __repr__(self) -> str:
        return f"{self.sdk.__name__}-{self.api}-{'async' if self.asynchronous else 'sync'}"

    @property
    def library(self) -> Any:
        return httpx if self.sdk is groq else httpx2

    def client(self, provider: Provider, **given: Any) -> Any:
        name = {openai: "OpenAI", anthropic: "Anthropic", groq: "Groq"}[self.sdk]
        url = f"{provider.url}/v1" if self.sdk is openai else provider.url
        make = getattr(self.sdk, f"Async{name}" if self.asynchronous else name)
        return make(**{"base_url": url, "api_key": "sk-any", "max_retries": 0, **given})

    def endpoint(self, client: Any) -> Any:
        return {"chat": lambda: client.chat.completions, "responses": lambda: client.responses}.get(
            self.api, lambda: client.messages
        )()

    @property
    def usage(self) -> dict[str, int]:
        """Of a good answer. OpenAI's chat completions do not count what is written to the cache."""
        return USAGE if self.api == "chat" else {**USAGE, "cache_creation_tokens": 0}

    @property
    def arguments(self) -> dict[str, Any]:
        if self.api == "responses":
            return {"model": "gpt-5-mini", "input": "Hello?"}
        if self.api == "messages":
            return {"model": "claude-sonnet-5", "messages": MESSAGES, "max_tokens": 100}
        return {"model": "gpt-5-mini", "messages": MESSAGES}

    async def call(self, client: Any, **more: Any) -> Any:
        return await do(self.endpoint(client).create(**self.arguments, **more))

    async def items(self, stream: Any) -> AsyncIterator[Any]:
        if self.asynchronous:
            async for item in stream:
                yield item
        else:
            for item in stream:
                yield item

    async def close(self, client: Any) -> None:
        await do(client.close())

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        return asyncio.run(main())  # type: ignore[arg-type]


async def do(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


APIS = [(openai, "chat"), (openai, "responses"), (anthropic, "messages"), (groq, "chat")]
CALLERS = [Caller(sdk, api, asynchronous) for (sdk, api) in APIS for asynchronous in (False, True)]
OPENAI_ASYNC = CALLERS[1]
EVERY_CALLER = pytest.mark.parametrize("caller", CALLERS, ids=repr)
ASYNC_CALLERS = pytest.mark.parametrize("caller", CALLERS[1::2], ids=repr)


def is_openai_chat(caller: Caller) -> bool:
    """Its streams stop at ``[DONE]`` and never see the end of the body, unless the async client drains it."""
    return caller.sdk is openai and caller.api == "chat"


# -- what is read


@EVERY_CALLER
def test_an_answer_in_one_piece(caller: Caller, provider: Provider, seen: Seen) -> None:
    async def main() -> None:
        client = caller.client(provider)
        await caller.call(client)
        await caller.close(client)

    caller.run(main)
    attempt = seen.ended("completed", "body_close")
    assert attempt["response_status"] == 200
    assert attempt["bytes_received"] > 0
    step = seen.step
    assert (step["status"], step["usage"], step["error"]) == ("completed", caller.usage, None)
    assert step["metadata"]["finish_reasons"]
    assert step["normalized_response"] is not None
    assert seen.run["status"] == "completed"


@EVERY_CALLER
def test_a_stream_that_is_read_to_its_end(caller: Caller, provider: Provider, seen: Seen) -> None:
    async def main() -> None:
        client = caller.client(provider)
        async for _ in caller.items(await caller.call(client, stream=True)):
            pass
        await caller.close(client)

    caller.run(main)
    reason = "body_close" if is_openai_chat(caller) and not caller.asynchronous else "sse_eof"
    attempt = seen.ended("completed", reason)
    step = seen.step
    assert (step["status"], step["operation"], step["usage"]) == ("completed", "stream", caller.usage)
    assert step["metadata"]["finish_reasons"]
    assert microseconds(attempt["finished_at"]) >= microseconds(attempt["last_byte_at"])
    assert attempt["events"] > 5
    assert seen.run["status"] == "completed"


def test_a_drain_that_openai_cancels_belongs_to_a_stream_that_completed(provider: Provider, seen: Seen) -> None:
    """The async client waits 0.1 s for the end of the body after ``[DONE]``, and cancels itself."""
    behaviour = Behaviour(hold_end=True)
    provider.script(behaviour)

    async def main() -> None:
        client = OPENAI_ASYNC.client(provider)
        found = [item async for item in await OPENAI_ASYNC.call(client, stream=True)]
        assert len(found) > 5
        assert behaviour.wait_held()
        seen.ended("completed", "body_close")
        await client.close()

    OPENAI_ASYNC.run(main)
    seen.ended("completed", "body_close")
    assert seen.step["usage"] == USAGE


# -- what breaks


@EVERY_CALLER
def test_a_stream_that_ends_cleanly_without_its_terminal_event(caller: Caller, provider: Provider, seen: Seen) -> None:
    provider.script(Behaviour(terminal=False))

    async def main() -> None:
        client = caller.client(provider)
        async for _ in caller.items(await caller.call(client, stream=True)):
            pass
        await caller.close(client)

    caller.run(main)
    seen.ended("error", "sse_eof", "incomplete_stream")
    assert seen.step["status"] == "error"
    assert seen.step["error"]["type"] == "incomplete_stream"
    if caller.api != "responses":  # there the usage is in the terminal event
        assert seen.step["usage"] == caller.usage


@EVERY_CALLER
def test_an_error_event_in_the_middle(caller: Caller, provider: Provider, seen: Seen) -> None:
    provider.script(Behaviour(error_after=2))

    async def main() -> None:
        client = caller.client(provider)
        # The responses API hands the event to the application; all others raise.
        raises = nullcontext() if caller.api == "responses" else pytest.raises(caller.sdk.APIError)
        with raises:
            async for _ in caller.items(await caller.call(client, stream=True)):
                pass
        await caller.close(client)

    caller.run(main)
    gc.collect()
    (attempt,) = seen.attempts
    kind = {"messages": "overloaded_error"}.get(caller.api, "server_error")
    seen.told(attempt, "error", attempt["end_reason"], kind)
    # What follows differs: read on, close, or (groq) leave it to the garbage collector.
    assert attempt["end_reason"] in ("sse_eof", "early_close", "body_close", "abandoned")
    assert attempt["error"]["message"]
    assert seen.step["status"] == "error"
    assert seen.step["error"]["type"] == kind


@EVERY_CALLER
def test_a_connection_that_is_cut(caller: Caller, provider: Provider, seen: Seen) -> None:
    provider.script(Behaviour(cut_after=2))

    async def main() -> None:
        client = caller.client(provider)
        with pytest.raises((caller.sdk.APIConnectionError, caller.library.RemoteProtocolError)) as caught:
            async for _ in caller.items(await caller.call(client, stream=True)):
                pass
        chain = {type(exc) for exc in (caught.value, caught.value.__cause__)}
        assert caller.library.RemoteProtocolError in chain
        await caller.close(client)

    caller.run(main)
    attempt = seen.ended("error", "read_error", f"{caller.library.__name__}.RemoteProtocolError")
    assert attempt["events"] >= 2


@EVERY_CALLER
def test_a_read_that_times_out(caller: Caller, provider: Provider, seen: Seen) -> None:
    behaviour = Behaviour(stall_after=2)
    provider.script(behaviour)

    async def main() -> None:
        client = caller.client(provider, timeout=0.3)
        with pytest.raises((caller.sdk.APITimeoutError, caller.library.ReadTimeout)):
            async for _ in caller.items(await caller.call(client, stream=True)):
                pass
        behaviour.release()
        await caller.close(client)

    caller.run(main)
    seen.ended("error", "read_error", f"{caller.library.__name__}.ReadTimeout")
    assert seen.step["status"] == "error"


@EVERY_CALLER
def test_headers_that_never_come(caller: Caller, provider: Provider, seen: Seen) -> None:
    behaviour = Behaviour(stall_headers=True)
    provider.script(behaviour)

    async def main() -> None:
        client = caller.client(provider, timeout=0.3)
        with pytest.raises(caller.sdk.APITimeoutError):
            await caller.call(client)
        behaviour.release()
        await caller.close(client)

    caller.run(main)
    attempt = seen.ended("error", "transport_error", f"{caller.library.__name__}.ReadTimeout")
    assert attempt["response_status"] is None
    error = seen.step["error"]
    assert (error["type"], error["exception"]) == (attempt["error"]["type"], f"{caller.sdk.__name__}.APITimeoutError")


@ASYNC_CALLERS
@pytest.mark.parametrize("where", ["headers", "stream"])
def test_a_task_that_is_cancelled(caller: Caller, provider: Provider, seen: Seen, where: str) -> None:
    behaviour = Behaviour(stall_headers=True) if where == "headers" else Behaviour(stall_after=2)
    provider.script(behaviour)

    async def main() -> None:
        client = caller.client(provider)

        async def reader() -> None:
            async for _ in await caller.call(client, stream=True):
                arrived.append(None)

        arrived: list[None] = []
        task = asyncio.create_task(reader())
        assert await asyncio.to_thread(behaviour.wait_held)
        while where == "stream" and len(arrived) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        behaviour.release()
        await caller.close(client)

    caller.run(main)
    attempt = seen.ended("interrupted", "cancelled")
    assert (attempt["response_status"] is None) == (where == "headers")
    assert (seen.step["status"], seen.step["error"]) == ("interrupted", None)
    assert seen.run["status"] == "interrupted"


# -- what is retried


@EVERY_CALLER
@pytest.mark.parametrize("stream", [False, True])
def test_a_429_that_is_retried_is_two_attempts_of_one_step(
    caller: Caller, provider: Provider, seen: Seen, stream: bool
) -> None:
    provider.script(Behaviour(status=429, retry_after=0.01), Behaviour())

    async def main() -> None:
        client = caller.client(provider, max_retries=2)
        answer = await caller.call(client, stream=stream)
        if stream:
            async for _ in caller.items(answer):
                pass
        await caller.close(client)

    caller.run(main)
    first, second = seen.attempts
    assert (first["number"], second["number"]) == (1, 2)
    assert (first["response_status"], first["status"]) == (429, "error")
    assert (first["error"]["status_code"], first["error"]["retry_after"]) == (429, "1")
    if stream:  # closed unread: the status is what is known
        seen.told(first, "error", "early_close", "429")
    else:
        seen.told(first, "error", "body_close", first["error"]["type"])
        assert first["error"]["type"] in ("requests", "rate_limit_error")
    assert (second["response_status"], second["status"], second["error"]) == (200, "completed", None)
    step = seen.step
    assert (step["status"], step["error"], step["usage"]) == ("completed", None, caller.usage)
    spans = seen.spans
    assert attributes.RESEND_COUNT not in (spans[first["id"]].attributes or {})
    assert (spans[second["id"]].attributes or {})[attributes.RESEND_COUNT] == 1
    assert seen.run["summary"]["step_count"] == 1


@EVERY_CALLER
def test_three_times_500_is_three_attempts_and_an_error_with_the_sdks_exception(
    caller: Caller, provider: Provider, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script(*(Behaviour(status=500, retry_after=0.01) for _ in range(3)))

    async def main() -> None:
        client = caller.client(provider, max_retries=2)
        with pytest.raises(caller.sdk.InternalServerError):
            await caller.call(client)
        await caller.close(client)

    caller.run(main)
    assert [(a["number"], a["response_status"], a["status"]) for a in seen.attempts] == [
        (1, 500, "error"),
        (2, 500, "error"),
        (3, 500, "error"),
    ]
    step = seen.step
    assert step["status"] == "error"
    assert step["error"]["exception"] == f"{caller.sdk.__name__}.InternalServerError"
    assert step["error"]["status_code"] == 500
    assert seen.run["status"] == "error"
    assert seen.run["summary"]["has_error"] is True


# -- what the application leaves


@EVERY_CALLER
def test_a_break_within_a_with_block_is_an_early_close(caller: Caller, provider: Provider, seen: Seen) -> None:
    behaviour = Behaviour(stall_after=3)
    provider.script(behaviour)
    moments: list[int] = []

    async def main() -> None:
        client = caller.client(provider)
        stream = await caller.call(client, stream=True)
        iterator = caller.items(stream)
        if caller.asynchronous:
            async with stream:
                await anext(iterator)
                moments.append(time_ns() // 1000)
        else:
            with stream:
                await anext(iterator)
                moments.append(time_ns() // 1000)
        moments.append(time_ns() // 1000)
        seen.ended("interrupted", "early_close")
        behaviour.release()
        await iterator.aclose()  # type: ignore[attr-defined]
        await caller.close(client)

    caller.run(main)
    attempt = seen.ended("interrupted", "early_close")
    assert moments[0] <= microseconds(attempt["finished_at"]) <= moments[1]
    assert seen.step["status"] == "interrupted"
    assert seen.step["normalized_response"] is not None, "the text so far"


@EVERY_CALLER
def test_a_break_with_the_stream_kept_stays_open_until_it_is_forgotten(
    caller: Caller, provider: Provider, seen: Seen
) -> None:
    behaviour = Behaviour(stall_after=3)
    provider.script(behaviour)

    async def main() -> None:
        client = caller.client(provider)
        stream = await caller.call(client, stream=True)
        if caller.asynchronous:
            async for _ in stream:
                break
        else:
            for _ in stream:
                break
        (attempt,) = seen.attempts
        assert (attempt["status"], attempt["end_reason"], attempt["rank"]) == ("in_progress", None, 0)
        assert attempt["id"] not in seen.spans
        assert seen.step["status"] == "in_progress"
        del stream
        gc.collect()
        behaviour.release()
        for _ in range(3):
            await asyncio.sleep(0)  # asyncio closes forgotten generators in tasks of its own
        await caller.close(client)

    caller.run(main)
    gc.collect()
    (attempt,) = seen.attempts
    seen.told(attempt, "interrupted", attempt["end_reason"])
    assert attempt["end_reason"] in ("early_close", "abandoned")
    assert seen.step["status"] == seen.run["status"] == "interrupted"


@EVERY_CALLER
def test_a_stream_that_is_never_iterated_and_forgotten_is_abandoned(
    caller: Caller, provider: Provider, seen: Seen
) -> None:
    async def main() -> None:
        client = caller.client(provider)
        stream = await caller.call(client, stream=True)
        del stream
        gc.collect()
        await asyncio.sleep(0)
        await caller.close(client)

    caller.run(main)
    gc.collect()
    (attempt,) = seen.attempts
    assert attempt["status"] == "interrupted"
    # Closing the client closes its connections, and some of them their responses.
    assert attempt["end_reason"] in ("abandoned", "early_close")
    assert attempt["bytes_received"] == 0


def test_a_stream_that_is_iterated_a_second_time_has_nothing_more_and_changes_nothing(
    provider: Provider, seen: Seen
) -> None:
    for caller in CALLERS:

        async def main(caller: Caller = caller) -> None:
            client = caller.client(provider)
            stream = await caller.call(client, stream=True)
            first = [item async for item in caller.items(stream)]
            assert first
            assert [item async for item in caller.items(stream)] == []
            await caller.close(client)

        caller.run(main)
    found = [attempt for run in seen.runs for step in run["steps"] for attempt in step["attempts"]]
    assert len(found) == len(CALLERS)
    assert {attempt["status"] for attempt in found} == {"completed"}


@pytest.mark.parametrize("caller", [c for c in CALLERS if c.api != "messages"], ids=repr)
@pytest.mark.parametrize("read", [False, True])
def test_a_raw_response(caller: Caller, provider: Provider, seen: Seen, read: bool) -> None:
    async def main() -> None:
        client = caller.client(provider)
        raw = await do(caller.endpoint(client).with_raw_response.create(**caller.arguments))
        if read:
            assert await do(raw.parse())
        await caller.close(client)

    caller.run(main)
    seen.ended("completed", "body_close")


@EVERY_CALLER
@pytest.mark.parametrize("read", [False, True])
def test_a_streaming_response(caller: Caller, provider: Provider, seen: Seen, read: bool) -> None:
    async def main() -> None:
        client = caller.client(provider)
        manager = caller.endpoint(client).with_streaming_response.create(**caller.arguments)
        if caller.asynchronous:
            async with manager as response:
                if read:
                    await response.read()
        else:
            with manager as response:
                if read:
                    response.read()
        await caller.close(client)

    caller.run(main)
    if read:
        seen.ended("completed", "body_close")
    else:
        attempt = seen.ended("error", "early_close", "incomplete_body")
        assert attempt["bytes_received"] == 0


# -- what is said inside of a good answer


def _response(status: str, **more: Any) -> dict[str, Any]:
    base = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5-mini", "output": [], "tools": []}
    return {**base, "tool_choice": "auto", "parallel_tool_calls": True, "status": status, **more}


FAILED = _response("failed", error={"code": "server_error", "message": "The model gave up."})
INCOMPLETE = _response("incomplete", incomplete_details={"reason": "max_output_tokens"})


@pytest.mark.parametrize("caller", CALLERS[2:4], ids=repr)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("response", "status", "error"), [(FAILED, "error", "server_error"), (INCOMPLETE, "completed", None)]
)
def test_a_response_that_failed_is_an_error_and_an_incomplete_one_is_not(
    caller: Caller, provider: Provider, seen: Seen, stream: bool, response: Any, status: str, error: str | None
) -> None:
    event = {"type": f"response.{response['status']}", "sequence_number": 0, "response": response}
    provider.script(Behaviour(body=sse(event) if stream else json.dumps(response).encode()))

    async def main() -> None:
        client = caller.client(provider)
        answer = await caller.call(client, stream=stream)
        if stream:
            async for _ in caller.items(answer):
                pass
        await caller.close(client)

    caller.run(main)
    attempt = seen.ended(status, "sse_eof" if stream else "body_close", error)
    if error:
        assert attempt["error"]["message"] == "The model gave up."
    else:
        assert seen.step["metadata"]["finish_reasons"] == ["max_output_tokens"]
    assert seen.step["status"] == status


# -- calls without requests, requests that are no calls


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_token_provider_that_fails_is_a_step_with_its_error_and_no_attempt(
    provider: Provider, seen: Seen, asynchronous: bool
) -> None:
    caller = Caller(openai, "chat", asynchronous)

    def token() -> str:
        raise LookupError("no token today")

    async def atoken() -> str:
        return token()

    async def main() -> None:
        client = caller.client(provider, api_key=atoken if asynchronous else token)
        with pytest.raises(LookupError, match="no token today"):
            await caller.call(client)
        await caller.close(client)

    caller.run(main)
    step = seen.step
    assert (step["status"], step["attempts"], step["model"]) == ("error", [], "gpt-5-mini")
    assert step["error"] == {"type": "LookupError", "message": "no token today"}
    assert seen.run["status"] == "error"
    assert provider.requests == []
    span = seen.spans[step["id"]]
    assert (span.attributes or {})[attributes.STATUS] == "error"


def test_calls_that_generate_nothing_make_no_step(provider: Provider, seen: Seen) -> None:
    for sdk in (openai, anthropic, groq):
        caller = next(c for c in CALLERS if c.sdk is sdk and not c.asynchronous)
        client = caller.client(provider)
        list(client.models.list())
        if sdk is openai:
            client.files.list()
            client.files.create(file=b"notes", purpose="user_data")
        client.close()
    assert len(provider.requests) >= 5
    assert seen.runs == []
    ours = [span for span in seen.spans.values() if attributes.RECORD in (span.attributes or {})]
    assert ours == []


# -- the same as without us


async def _experience(caller: Caller, provider: Provider, behaviour: Behaviour, stream: bool) -> list[Any]:
    """All that the application sees of one call: items, or the exception with its causes."""
    provider.script(behaviour)
    client = caller.client(provider)
    found: list[Any] = []
    try:
        answer = await caller.call(client, stream=stream)
        if stream:
            async for item in caller.items(answer):
                found.append(item.model_dump())
        else:
            found.append(answer.model_dump())
    except Exception as exc:
        known: BaseException | None = exc
        while known is not None:
            found.append((type(known), str(known), known.__suppress_context__))
            known = known.__cause__ or known.__context__
    finally:
        await caller.close(client)
    return found


WORLDS: dict[str, Callable[[], Behaviour]] = {
    "good": Behaviour,
    "gzip": lambda: Behaviour(encoding="gzip"),
    "deflate": lambda: Behaviour(encoding="deflate"),
    "br": lambda: Behaviour(encoding="br"),
    "cut": lambda: Behaviour(cut_after=2),
    "cut-at-once": lambda: Behaviour(cut_after=0),
    "truncated": lambda: Behaviour(truncate_after=2),
    "error-event": lambda: Behaviour(error_after=2),
    "400": lambda: Behaviour(status=400),
    "401": lambda: Behaviour(status=401),
    "429": lambda: Behaviour(status=429),
    "529": lambda: Behaviour(status=529),
    "not-http": lambda: Behaviour(raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
    "html": lambda: Behaviour(content_type="text/html", body=b"<html>It works!</html>"),
    "garbage": lambda: Behaviour(body=b"\x00\xff{not json\xfe"),
    "length-too-long": lambda: Behaviour(content_length=100_000),
    "length-too-short": lambda: Behaviour(content_length=10),
    "no-usage": lambda: Behaviour(usage=False),
    "no-content": lambda: Behaviour(status=204),
}


@EVERY_CALLER
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stream", [False, True])
def test_the_application_sees_what_it_sees_without_us(
    caller: Caller, provider: Provider, chatdebug_home: Path, world: str, stream: bool
) -> None:
    def experience() -> list[Any]:
        found: list[Any] = caller.run(lambda: _experience(caller, provider, WORLDS[world](), stream))
        return found

    expected = experience()
    before = faults.counts()
    chatdebug.configure(tracer_provider=TracerProvider(shutdown_on_exit=False))
    try:
        found = experience()
        seen = Seen(f"sqlite:///{chatdebug_home / 'chatdebug.db'}", InMemorySpanExporter())
        (attempt,) = seen.attempts
    finally:
        chatdebug.shutdown()
    assert found == expected
    assert faults.counts() == before
    assert attempt["status"] != "in_progress"
    failed = bool(expected) and isinstance(expected[0], tuple)
    # There it is the parser of the SDK that complains.
    if failed and world not in ("garbage", "html", "no-content", "length-too-short"):
        assert attempt["status"] == "error"
    if world in ("good", "gzip", "deflate", "br", "no-usage"):
        assert attempt["status"] == "completed"
        assert attempt["response_body"]


def test_shutting_down_gives_the_sdks_their_own_functions_back(chatdebug_home: Path) -> None:
    bases = [openai._base_client, anthropic._base_client, groq._base_client]
    owners = [getattr(base, name) for base in bases for name in ("SyncAPIClient", "AsyncAPIClient")]
    before = [owner.__dict__["request"] for owner in owners]
    chatdebug.configure(tracer_provider=TracerProvider(shutdown_on_exit=False))
    during = [owner.__dict__["request"] for owner in owners]
    chatdebug.shutdown()
    after = [owner.__dict__["request"] for owner in owners]
    for original, patched, restored in zip(before, during, after, strict=True):
        assert patched is not original
        assert restored is original


# -- bare clients


BARE = list(itertools.product((httpx, httpx2), (False, True)))


@pytest.mark.parametrize(("library", "asynchronous"), BARE)
@pytest.mark.parametrize("encoding", [None, "gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_bare_clients_call_is_a_step_of_one_attempt(
    provider: Provider, seen: Seen, library: Any, asynchronous: bool, encoding: Any, stream: bool
) -> None:
    provider.script(Behaviour(encoding=encoding))

    async def main() -> None:
        client = library.AsyncClient() if asynchronous else library.Client()
        url = f"{provider.url}/v1/chat/completions"
        body = {"model": "gpt-5-mini", "messages": MESSAGES, "stream": stream}
        response = await do(client.post(url, json=body))
        assert response.status_code == 200
        await do(client.aclose() if asynchronous else client.close())

    asyncio.run(main())
    attempt = seen.ended("completed", "sse_eof" if stream else "body_close")
    assert attempt["bytes_received"] > 0
    assert seen.step["usage"] == USAGE
    assert seen.step["model"] == "gpt-5-mini"
    assert "gpt-5-mini" in attempt["response_body"]


@pytest.mark.parametrize(("library", "asynchronous"), BARE)
def test_hops_and_tries_of_one_send_are_attempts_of_one_step(
    provider: Provider, seen: Seen, library: Any, asynchronous: bool
) -> None:
    class Auth(library.Auth):  # type: ignore[misc]
        def auth_flow(self, request: Any) -> Any:
            response = yield request
            if response.status_code == 401:
                yield request

    provider.script(Behaviour(redirect="/v2/chat/completions"), Behaviour(status=401), Behaviour())

    async def main() -> None:
        given = {"auth": Auth(), "follow_redirects": True}
        client = library.AsyncClient(**given) if asynchronous else library.Client(**given)
        response = await do(client.post(f"{provider.url}/v1/chat/completions", json={"model": "gpt-5-mini"}))
        assert response.status_code == 200
        await do(client.aclose() if asynchronous else client.close())

    asyncio.run(main())
    assert [attempt["response_status"] for attempt in seen.attempts] == [307, 401, 200]
    assert [attempt["status"] for attempt in seen.attempts] == ["completed", "error", "completed"]
    assert [attempt["number"] for attempt in seen.attempts] == [1, 2, 3]
    assert seen.step["status"] == "completed"


@pytest.mark.parametrize(("library", "asynchronous"), BARE)
def test_a_break_out_of_a_bare_stream(provider: Provider, seen: Seen, library: Any, asynchronous: bool) -> None:
    """httpx 0.28 does not close a response when its reader leaves; httpx2 does. Both are an early close."""
    behaviour = Behaviour(stall_after=2)
    provider.script(behaviour)

    async def main() -> None:
        client = library.AsyncClient() if asynchronous else library.Client()
        url = f"{provider.url}/v1/chat/completions"
        request = client.build_request("POST", url, json={"model": "gpt-5-mini", "stream": True})
        response = await do(client.send(request, stream=True))
        lines = response.aiter_lines() if asynchronous else response.iter_lines()
        await do(anext(lines)) if asynchronous else next(lines)
        await do(lines.aclose() if asynchronous else lines.close())
        if asynchronous:
            # Only the outermost generator is closed; asyncio closes those below when they are forgotten.
            del lines
            gc.collect()
            for _ in range(50):
                await asyncio.sleep(0)
        seen.ended("interrupted", "early_close")
        behaviour.release()
        with suppress(Exception):
            await do(response.aclose() if asynchronous else response.close())
        await do(client.aclose() if asynchronous else client.close())

    asyncio.run(main())
    attempt = seen.ended("interrupted", "early_close")
    assert attempt["events"] >= 1
