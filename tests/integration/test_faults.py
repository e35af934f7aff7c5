"""Our faults stay ours: whatever fails inside of us, or in what the user plugged in, the call goes on as without us."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

import otel_chatdebug as chatdebug
from otel_chatdebug import faults, lifecycle
from otel_chatdebug.capture import calls
from otel_chatdebug.capture.attempt import Attempt
from otel_chatdebug.capture.content import Content
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.pipeline.live import LiveRun
from otel_chatdebug.pipeline.live_step import LiveStep
from otel_chatdebug.pipeline.recorder import Recorder
from otel_chatdebug.redaction import Redactor
from otel_chatdebug.status import Status
from otel_chatdebug.tables import queries
from otel_chatdebug.wire.registry import StreamReader

MESSAGES: list[Any] = [{"role": "user", "content": "Hello?"}]


class Broken(Exception):
    """A fault of ours, made on purpose."""


def fail(*args: Any, **kwargs: Any) -> Any:
    raise Broken("this is ours")


@pytest.fixture
def provider(no_leaks: None, chatdebug_home: Path) -> Iterator[Provider]:
    with Provider() as server:
        yield server
        chatdebug.shutdown()


async def application(provider: Provider, asynchronous: bool) -> list[Any]:
    """A stream, an answer in one piece, a retry, a failure and a break: all that the application sees of them."""

    async def do(result: Any) -> Any:
        return await result if inspect.isawaitable(result) else result

    seen: list[Any] = []
    limited = Behaviour(status=429, retry_after=0.01)
    provider.script(Behaviour(), Behaviour(), limited, Behaviour(), Behaviour(cut_after=2))
    given: dict[str, Any] = {"api_key": "sk-any", "max_retries": 1}
    client: Any = (openai.AsyncOpenAI if asynchronous else openai.OpenAI)(base_url=f"{provider.url}/v1", **given)
    create = client.chat.completions.create
    for _ in range(2):
        stream = await do(create(model="gpt-5-mini", messages=MESSAGES, stream=True))
        seen += [item.model_dump() async for item in stream] if asynchronous else [item.model_dump() for item in stream]
        await do(stream.close())
    seen.append((await do(create(model="gpt-5-mini", messages=MESSAGES))).model_dump())
    try:
        stream = await do(create(model="gpt-5-mini", messages=MESSAGES, stream=True))
        if asynchronous:
            async for _item in stream:
                pass
        else:
            for _item in stream:
                pass
    except Exception as exc:
        seen.append((type(exc), str(exc), type(exc.__cause__)))
    provider.script(*(Behaviour(raw=b"SSH-2.0-OpenSSH_9.6\r\n") for _ in range(2)))
    try:
        await do(create(model="gpt-5-mini", messages=MESSAGES))
    except Exception as exc:
        seen.append((type(exc), str(exc), type(exc.__cause__)))
    await do(client.close())
    other: Any = (anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic)(base_url=provider.url, **given)
    message = await do(other.messages.create(model="claude-sonnet-5", messages=MESSAGES, max_tokens=10))
    seen.append(message.model_dump())
    await do(other.close())
    return seen


FAULTS: list[tuple[Any, str]] = [
    (calls, "begin_attempt"),
    (calls, "_step_for"),
    (calls, "_adoptable"),
    (calls, "request_facts"),
    (calls, "start_step"),
    (calls, "raised"),
    (calls.Call, "left"),
    (calls.Call, "__init__"),
    (propagate, "inject"),
    (Recorder, "start_span"),
    (Recorder, "describe"),
    (Recorder, "ensure_running"),
    (Attempt, "answered"),
    (Attempt, "chunk"),
    (Attempt, "emit"),
    (Attempt, "tell"),
    (Attempt, "apply"),
    (Attempt, "_end"),
    (Content, "records"),
    (LiveStep, "apply"),
    (LiveRun, "apply"),
    (StreamReader, "feed"),
]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"), FAULTS, ids=[f"{row[0].__name__.rpartition('.')[2]}.{row[1]}" for row in FAULTS]
)
def test_a_part_of_us_that_fails_is_counted_and_the_application_sees_nothing_of_it(
    provider: Provider, owner: Any, name: str, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = asyncio.run(application(provider, asynchronous))
    chatdebug.configure(tracer_provider=TracerProvider(shutdown_on_exit=False))
    before = sum(faults.counts().values())
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        found = asyncio.run(application(provider, asynchronous))
        lifecycle.flush()
    assert found == expected
    assert sum(faults.counts().values()) > before
    chatdebug.shutdown()


@pytest.mark.parametrize("name", ["record", "records"])
@pytest.mark.parametrize("owner", [Attempt, LiveStep, LiveRun], ids=lambda owner: owner.__name__)
def test_records_that_fail_are_counted_by_the_writer_and_the_others_are_written(
    provider: Provider, owner: Any, name: str, chatdebug_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = asyncio.run(application(provider, False))
    chatdebug.configure(tracer_provider=TracerProvider(shutdown_on_exit=False))
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        assert asyncio.run(application(provider, False)) == expected
        assert lifecycle.flush()
        assert lifecycle._armed is not None
        assert lifecycle._armed.writer.stats.failed > 0
    chatdebug.shutdown()
    engine = queries.open_for_reading(f"sqlite:///{chatdebug_home / 'chatdebug.db'}")
    try:
        assert queries.list_runs(engine)
    finally:
        engine.dispose()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_redactor_that_fails_lets_nothing_through(
    provider: Provider, chatdebug_home: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = asyncio.run(application(provider, asynchronous))
    chatdebug.configure(tracer_provider=TracerProvider(shutdown_on_exit=False))
    with monkeypatch.context() as patched:
        for name in ("_text", "_body", "_value", "_header"):
            patched.setattr(Redactor, name, fail)
        assert asyncio.run(application(provider, asynchronous)) == expected
        assert lifecycle.flush()
    chatdebug.shutdown()
    stored = b"".join(path.read_bytes() for path in chatdebug_home.glob("chatdebug.db*"))
    assert b"wrd" not in stored
    assert "wörd".encode() not in stored
    assert b"Hello?" not in stored


class BrokenProcessor(SpanProcessor):
    """Somebody else's processor, which fails where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.where == "on_start":
            fail()

    def on_end(self, span: ReadableSpan) -> None:
        if self.where == "on_end":
            fail()


@pytest.mark.parametrize("where", ["on_start", "on_end"])
def test_a_span_processor_of_the_users_that_fails_on_our_spans_does_not_reach_the_call(
    provider: Provider, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY", "false")  # its span would hit the same processor, which is not ours
    expected = asyncio.run(application(provider, False))
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(BrokenProcessor(where))
    chatdebug.configure(tracer_provider=tracer_provider)
    before = sum(faults.counts().values())
    assert asyncio.run(application(provider, False)) == expected
    lifecycle.flush()
    assert sum(faults.counts().values()) > before
    chatdebug.shutdown()


def test_a_classify_error_of_the_users_that_fails_is_replaced_by_ours(provider: Provider, chatdebug_home: Path) -> None:
    def classify(exc: BaseException | None) -> Status:
        raise Broken("this is the user's")

    chatdebug.configure(tracer_provider=TracerProvider(shutdown_on_exit=False), classify_error=classify)
    before = faults.counts().get("classify_error", 0)
    with pytest.raises(LookupError, match="the application"), chatdebug.run():
        raise LookupError("the application")
    assert lifecycle.flush()
    assert faults.counts()["classify_error"] > before
    chatdebug.shutdown()
    engine = queries.open_for_reading(f"sqlite:///{chatdebug_home / 'chatdebug.db'}")
    try:
        (run,) = queries.list_runs(engine)
    finally:
        engine.dispose()
    assert (run["status"], run["error"]["type"]) == ("error", "LookupError")


def test_a_fault_is_logged_once_with_its_traceback_at_debug_level(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Rare(Exception):
        """Of a type that no other test has told before."""

    def rarely(*args: Any, **kwargs: Any) -> Any:
        raise Rare

    chatdebug.configure(tracer_provider=TracerProvider(shutdown_on_exit=False))
    with caplog.at_level(logging.DEBUG, "otel_chatdebug"), monkeypatch.context() as patched:
        patched.setattr(Attempt, "chunk", rarely)
        asyncio.run(application(provider, False))
        lifecycle.flush()
    told = [record for record in caplog.records if record.exc_info and record.exc_info[0] is Rare]
    assert len(told) == 1
    assert told[0].levelno == logging.DEBUG
    assert "the application is not affected" in told[0].getMessage()
    assert faults.counts()["Attempt.chunk"] > 1
    chatdebug.shutdown()
