"""Beside OpenTelemetry's GenAI instrumentations of openai and anthropic, and the anthropic SDK's own spans: one step
for each call, theirs where there is one, and never a second."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.genai.anthropic import AnthropicInstrumentor
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Provider
from otel_chatdebug.status import Status
from tests.sdks.answers import CHAT, MESSAGES
from tests.sdks.callers import ASK, do, run
from tests.support.recording import Recording

OURS = "otel_chatdebug"

CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "openai": (CHAT, {"model": "gpt-5-mini", "messages": ASK}),
    "anthropic": (MESSAGES, {"model": "claude-sonnet-5", "messages": ASK, "max_tokens": 100}),
}

sdks = pytest.mark.parametrize("sdk", list(CALLS))
twins = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@pytest.fixture
def instrumented(recorded: Recording) -> Iterator[Recording]:
    """Both instrumentations on; their spans go where ours go."""
    instrumentors = (OpenAIInstrumentor(), AnthropicInstrumentor())
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=recorded.provider, skip_dep_check=True)
    try:
        yield recorded
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()


def client(sdk: str, provider: Provider, asynchronous: bool, **more: Any) -> Any:
    if sdk == "openai":
        owner: Any = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        return owner(base_url=f"{provider.url}/v1", api_key="key", max_retries=1, **more)
    owner = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
    return owner(base_url=provider.url, api_key="key", max_retries=1, **more)


def create(sdk: str, made: Any, **more: Any) -> Any:
    endpoint = made.chat.completions if sdk == "openai" else made.messages
    return endpoint.create(**CALLS[sdk][1], **more)


def scope(span: ReadableSpan) -> str:
    assert span.instrumentation_scope is not None
    return span.instrumentation_scope.name


def theirs(recorded: Recording) -> dict[str, ReadableSpan]:
    return {id: span for id, span in recorded.spans.items() if scope(span) != OURS}


async def read(stream: Any, asynchronous: bool) -> None:
    if asynchronous:
        async for _ in stream:
            pass
    else:
        for _ in stream:
            pass


@sdks
@twins
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_instrumentation_s_span_is_the_step(
    streamed: bool, asynchronous: bool, sdk: str, provider: Provider, instrumented: Recording
) -> None:
    api = CALLS[sdk][0]
    provider.script(api.limited(), api.streamed() if streamed else api.whole())

    async def main() -> None:
        made = client(sdk, provider, asynchronous)
        with chatdebug.run("chat_turn"):
            answer = await do(create(sdk, made, **({"stream": True} if streamed else {})))
            if streamed:
                await read(answer, asynchronous)
        await do(made.close())

    run(main())
    step = instrumented.step
    assert list(theirs(instrumented)) == [step.id]
    given = theirs(instrumented)[step.id].attributes or {}
    assert not [name for name in given if name.startswith("chatdebug.")]
    assert [attempt.status for attempt in instrumented.attempts] == [Status.ERROR, Status.COMPLETED]
    assert {tuple(instrumented.ancestors(attempt.id)) for attempt in instrumented.attempts} == {
        (step.id, instrumented.run.span_id)
    }
    assert sorted(span.name for span in instrumented.spans.values() if scope(span) == OURS) == [
        "POST",
        "POST",
        "chat_turn",
    ]
    assert step.status is instrumented.run.status is Status.COMPLETED
    assert step.usage["input_tokens"] == api.whole_tokens[0]


@twins
@pytest.mark.parametrize("how", ["break", "dropped", "closed"])
@sdks
def test_a_stream_that_is_broken_off_does_not_stay_the_current_span_by_us(
    sdk: str, how: str, asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    """Without anybody else's instrumentation: what was current before is current again at once."""
    api = CALLS[sdk][0]
    provider.script(api.streamed(stall_after=2))

    async def main() -> None:
        made = client(sdk, provider, asynchronous)
        before = trace.get_current_span()
        stream = await do(create(sdk, made, stream=True))
        assert trace.get_current_span() is before
        if how != "dropped":
            if asynchronous:
                async for _ in stream:
                    break
            else:
                for _ in stream:
                    break
        assert trace.get_current_span() is before
        if how == "closed":
            await do(stream.close())
        del stream
        gc.collect()
        await asyncio.sleep(0)
        assert trace.get_current_span() is before
        await do(made.close())

    run(main())
    gc.collect()
    assert (recorded.step.status, recorded.attempt.status) == (Status.INTERRUPTED, Status.INTERRUPTED)


@twins
@sdks
def test_a_foreign_span_that_stays_current_after_a_break_does_not_break_our_rows(
    sdk: str, asynchronous: bool, provider: Provider, instrumented: Recording
) -> None:
    """genai-anthropic leaves its span current, and open, when a stream is broken off; calls that follow find it there.

    Each call is a step of its own all the same, with the attempt that it made, in the run that was declared.
    """
    api = CALLS[sdk][0]
    provider.script(api.streamed(stall_after=2), api.whole(), api.limited(), api.streamed())

    async def main() -> Any:
        made = client(sdk, provider, asynchronous)
        with chatdebug.run("chat_turn") as known:
            stream = await do(create(sdk, made, stream=True))
            if asynchronous:
                async for _ in stream:
                    break
            else:
                for _ in stream:
                    break
            await do(create(sdk, made))
            await read(await do(create(sdk, made, stream=True)), asynchronous)
            await do(stream.close())
        await do(made.close())
        return known

    known = run(main())
    gc.collect()
    first, second, third = instrumented.steps
    assert {step.run_id for step in instrumented.steps} == {known.id}
    assert [step.status for step in instrumented.steps] == [Status.INTERRUPTED, Status.COMPLETED, Status.COMPLETED]
    assert [len(instrumented.of_step(step)) for step in (first, second, third)] == [1, 1, 2]
    assert len({step.id for step in instrumented.steps}) == 3
    assert instrumented.run.status is Status.COMPLETED
    # No call has two: theirs makes none below the one that it has left behind, so there it is ours.
    called = [id for id, span in instrumented.spans.items() if span.name.startswith("chat ")]
    assert {second.id, third.id} <= set(called) <= {step.id for step in instrumented.steps}
    assert len(called) == len(set(called))


@twins
def test_with_the_sdk_s_own_spans_as_well_there_is_one_step(
    asynchronous: bool, provider: Provider, instrumented: Recording
) -> None:
    """Two foreign spans around one call: the inner one, which is current when the request goes out, is the step."""
    provider.script(MESSAGES.limited(), MESSAGES.whole())

    async def main() -> None:
        made = client("anthropic", provider, asynchronous, open_telemetry={"tracer_provider": instrumented.provider})
        with chatdebug.run("chat_turn"):
            await do(create("anthropic", made))
        await do(made.close())

    run(main())
    assert instrumented.step.id in theirs(instrumented)
    assert scope(theirs(instrumented)[instrumented.step.id]) == "com.anthropic.sdk.python"
    assert {instrumented.ancestors(attempt.id)[0] for attempt in instrumented.attempts} == {instrumented.step.id}
    assert [attempt.status for attempt in instrumented.attempts] == [Status.ERROR, Status.COMPLETED]
    assert sum(scope(span) == OURS for span in instrumented.spans.values()) == 3


@sdks
@pytest.mark.parametrize("operation", ["invoke_agent", "execute_tool", "create_agent", "retrieval", "chat"])
def test_neither_an_agent_s_span_nor_an_ended_one_is_adopted(
    operation: str, sdk: str, provider: Provider, recorded: Recording
) -> None:
    assert recorded.provider is not None
    provider.script(CALLS[sdk][0].whole())
    tracer = recorded.provider.get_tracer("somebody else")
    with (
        client(sdk, provider, False) as made,
        tracer.start_as_current_span("theirs", attributes={"gen_ai.operation.name": operation}) as span,
    ):
        if operation == "chat":
            span.end()
        create(sdk, made)
    above = f"{span.get_span_context().span_id:016x}"
    assert recorded.step.id != above
    assert recorded.ancestors(recorded.attempt.id)[:2] == [recorded.step.id, above]
