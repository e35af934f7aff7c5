"""A GenAI span that is current is the step of an SDK's call: no second one beside it, nothing written onto it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.status import Status
from otel_chatdebug.tables import queries
from tests.support.recording import Recording, recording

ANTHROPIC_SCOPE = "com.anthropic.sdk.python"
OURS = "otel_chatdebug"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        yield server


@pytest.fixture
def recorded() -> Iterator[Recording]:
    with recording() as found:
        yield found


def scope(span: ReadableSpan) -> str:
    assert span.instrumentation_scope is not None
    return span.instrumentation_scope.name


def named(recorded: Recording, name: str) -> tuple[str, ReadableSpan]:
    """The id of the only span with this name, and the span."""
    ((id, span),) = ((id, span) for id, span in recorded.spans.items() if span.name == name)
    return id, span


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def genai_span(recorded: Recording, operation: str = "chat") -> Any:
    """A span such as an instrumentation of somebody else makes; a context manager."""
    assert recorded.provider is not None
    tracer = recorded.provider.get_tracer("somebody else")
    return tracer.start_as_current_span(f"{operation} theirs", attributes={"gen_ai.operation.name": operation})


class OpenAI:
    """The openai SDK, its client closed with the block."""

    def __init__(self, provider: Provider) -> None:
        self.client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key", max_retries=1)

    def __enter__(self) -> OpenAI:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def ask(self) -> None:
        messages: Any = [{"role": "user", "content": "Hello?"}]
        self.client.chat.completions.create(model="gpt-5-mini", messages=messages)


ASK: Any = {"model": "claude-sonnet-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello?"}]}


def ask_anthropic(recorded: Recording, provider: Provider, how: str) -> None:
    """One call, with one retry where the provider wants it, with spans of the SDK's own."""
    options: Any = {
        "base_url": provider.url,
        "api_key": "key",
        "max_retries": 1,
        "open_telemetry": {"tracer_provider": recorded.provider},
    }

    async def ask_async() -> None:
        async with anthropic.AsyncAnthropic(**options) as client:
            if how == "async":
                await client.messages.create(**ASK)
                return
            async with client.messages.stream(**ASK) as stream:
                async for _ in stream:
                    pass

    if how.startswith("async"):
        asyncio.run(ask_async())
        return
    with anthropic.Anthropic(**options) as client:
        if how == "create":
            client.messages.create(**ASK)
        elif how == "create, stream":
            for _ in client.messages.create(**ASK, stream=True):
                pass
        else:
            with client.messages.stream(**ASK) as stream:
                for _ in stream:
                    pass


ways = pytest.mark.parametrize("how", ["create", "create, stream", "stream", "async", "async, stream"])


@ways
def test_the_span_of_the_anthropic_sdk_is_the_step(how: str, recorded: Recording, provider: Provider) -> None:
    """One step per call, retries and all; the attempts are below the SDK's span, and there is no other span."""
    provider.script(Behaviour(status=429, retry_after=0.01), Behaviour())
    with chatdebug.run("chat_turn", chat_id="c") as run:
        ask_anthropic(recorded, provider, how)

    theirs = [id for id, span in recorded.spans.items() if scope(span) == ANTHROPIC_SCOPE]
    ours = [span for span in recorded.spans.values() if scope(span) == OURS]
    step, attempts = recorded.step, recorded.attempts

    assert [step.id] == [step.span_id] == theirs
    assert (step.run_id, step.chat_id, step.status) == (run.id, "c", Status.COMPLETED)
    assert step.model == "claude-sonnet-5"
    assert step.provider == "anthropic"
    assert step.operation == ("stream" if "stream" in how else "generate")
    assert step.usage["output_tokens"] == 84
    assert step.trace_id == run.id
    assert [(attempt.number, attempt.step_id) for attempt in attempts] == [(1, step.id), (2, step.id)]
    assert [attempt.status for attempt in attempts] == [Status.ERROR, Status.COMPLETED]
    assert sorted(span.name for span in ours) == ["POST", "POST", "chat_turn"]
    assert {parent(recorded.spans[attempt.id]) for attempt in attempts} == {step.id}
    assert parent(recorded.spans[step.id]) == recorded.run.span_id
    # The trace goes on below the attempt, not below the SDK's span.
    sent = [request.headers["traceparent"].split("-")[1:3] for request in provider.requests]
    assert sent == [[run.id, attempt.id] for attempt in attempts]


@ways
def test_nothing_is_written_onto_the_span_of_somebody_else(how: str, recorded: Recording, provider: Provider) -> None:
    ask_anthropic(recorded, provider, how)

    span = recorded.spans[recorded.step.id]
    assert scope(span) == ANTHROPIC_SCOPE
    assert not [name for name in span.attributes or {} if name.startswith("chatdebug.")]
    assert span.name == "anthropic.messages.create" or "stream" in span.name
    assert not span.links


@ways
def test_without_a_run_the_span_of_the_sdk_is_the_root_of_an_auto_run(
    how: str, recorded: Recording, provider: Provider
) -> None:
    """Its local root: it adds no span, and its id is the trace id."""
    ask_anthropic(recorded, provider, how)

    run, step = recorded.run, recorded.step
    assert (run.kind, run.status) == ("auto", Status.COMPLETED)
    assert run.id == run.trace_id == step.trace_id
    assert run.span_id == step.id
    assert step.run_id == run.id
    assert len(recorded.spans) == 2


APP = """
import json, sys
import anthropic
import otel_chatdebug as chatdebug
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="key")
chatdebug.configure()
exporter = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
ask = {"model": "claude-sonnet-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello?"}]}
client.messages.create(**ask)
with client.messages.stream(**ask) as stream:
    stream.until_done()
assert chatdebug.flush(60)
chatdebug.shutdown()
print(json.dumps({
    f"{span.context.span_id:016x}": [span.instrumentation_scope.name, span.name]
    for span in exporter.get_finished_spans()
}))
"""


@pytest.mark.parametrize("switched", ["on", "off"])
def test_the_anthropic_sdk_as_it_comes_and_with_its_own_spans_switched_off(
    switched: str, provider: Provider, chatdebug_home: Path
) -> None:
    """With the global provider that ``configure()`` makes, its spans are on by default."""
    environment = {**os.environ, **({"ANTHROPIC_OPEN_TELEMETRY": "false"} if switched == "off" else {})}
    done = subprocess.run(
        [sys.executable, "-c", APP, provider.url],
        env=environment,
        cwd=chatdebug_home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    spans = json.loads(done.stdout)
    engine = queries.open_for_reading(f"sqlite:///{chatdebug_home / 'chatdebug.db'}")
    runs = [queries.load_run(engine, run["id"]) for run in queries.list_runs(engine)]
    engine.dispose()

    assert [[len(step["attempts"]) for step in run["steps"]] for run in runs] == [[1], [1]]
    steps = [run["steps"][0] for run in runs]
    assert {spans[step["id"]][0] for step in steps} == {ANTHROPIC_SCOPE if switched == "on" else OURS}
    assert len(spans) == (4 if switched == "on" else 6)
    if switched == "off":
        assert {spans[step["id"]][1] for step in steps} == {"chat claude-sonnet-5"}


@pytest.mark.parametrize("operation", ["chat", "text_completion", "generate_content", "embeddings"])
def test_a_span_of_a_call_that_somebody_else_made_around_an_sdk_call_is_adopted(
    operation: str, recorded: Recording, provider: Provider
) -> None:
    with OpenAI(provider) as sdk, genai_span(recorded, operation) as theirs:
        sdk.ask()

    id = f"{theirs.get_span_context().span_id:016x}"
    assert recorded.step.id == id
    assert parent(recorded.spans[recorded.attempt.id]) == id
    assert set(recorded.spans) == {id, recorded.attempt.id}
    assert dict(recorded.spans[id].attributes or {}) == {"gen_ai.operation.name": operation}


@pytest.mark.parametrize("operation", ["invoke_agent", "execute_tool", "create_agent", "retrieval"])
def test_a_span_of_an_agent_or_a_tool_is_never_adopted(operation: str, recorded: Recording, provider: Provider) -> None:
    """It stands above the step."""
    with OpenAI(provider) as sdk, genai_span(recorded, operation) as theirs:
        sdk.ask()

    id = f"{theirs.get_span_context().span_id:016x}"
    assert recorded.step.id != id
    assert parent(recorded.spans[recorded.step.id]) == id
    assert parent(recorded.spans[recorded.attempt.id]) == recorded.step.id


def test_a_span_that_has_ended_is_not_adopted(recorded: Recording, provider: Provider) -> None:
    """It may still be the current one: its step's end would be told by nobody."""
    with OpenAI(provider) as sdk, genai_span(recorded) as theirs:
        theirs.end()
        sdk.ask()

    assert recorded.step.id != f"{theirs.get_span_context().span_id:016x}"
    assert parent(recorded.spans[recorded.step.id]) == f"{theirs.get_span_context().span_id:016x}"


def test_a_span_is_adopted_once(recorded: Recording, provider: Provider) -> None:
    """The second call below it has a step, and a span, of its own."""
    with OpenAI(provider) as sdk, genai_span(recorded) as theirs:
        sdk.ask()
        sdk.ask()

    first, second = recorded.steps
    id = f"{theirs.get_span_context().span_id:016x}"
    assert first.id == id
    assert parent(recorded.spans[second.id]) == id
    assert scope(recorded.spans[second.id]) == OURS
    assert [len(recorded.of_step(step)) for step in (first, second)] == [1, 1]
    assert first.run_id == second.run_id == recorded.run.id


def test_a_call_of_a_bare_client_adopts_nothing(recorded: Recording, provider: Provider) -> None:
    """Only an SDK's call is known to be what such a span is about."""
    import httpx

    with genai_span(recorded) as theirs:
        httpx.post(f"{provider.url}/v1/chat/completions", json={"model": "m", "messages": []})

    assert recorded.step.id != f"{theirs.get_span_context().span_id:016x}"
    assert parent(recorded.spans[recorded.step.id]) == f"{theirs.get_span_context().span_id:016x}"


def test_inside_of_an_explicit_step_the_span_stays_a_span_in_between(recorded: Recording, provider: Provider) -> None:
    """Rows follow the scopes, spans follow the current context."""
    with chatdebug.run("chat_turn"), chatdebug.step() as step:
        ask_anthropic(recorded, provider, "create")
        ask_anthropic(recorded, provider, "stream")

    theirs = [id for id, span in recorded.spans.items() if scope(span) == ANTHROPIC_SCOPE]
    assert recorded.step.id == step.id
    assert step.id not in theirs
    assert [parent(recorded.spans[id]) for id in theirs] == [step.id] * 2
    assert [attempt.step_id for attempt in recorded.attempts] == [step.id] * 2
    assert [parent(recorded.spans[attempt.id]) for attempt in recorded.attempts] == theirs


def test_inside_of_reuse_step_the_spans_are_no_steps(recorded: Recording, provider: Provider) -> None:
    with chatdebug.run("chat_turn"), chatdebug.reuse_step():
        ask_anthropic(recorded, provider, "create")
        ask_anthropic(recorded, provider, "create, stream")

    theirs = [id for id, span in recorded.spans.items() if scope(span) == ANTHROPIC_SCOPE]
    assert len(theirs) == 2
    assert recorded.step.id not in theirs
    assert [attempt.step_id for attempt in recorded.attempts] == [recorded.step.id] * 2
    assert [attempt.number for attempt in recorded.attempts] == [1, 2]
    for attempt in recorded.attempts:
        assert recorded.step.id in recorded.ancestors(attempt.id)


def test_a_stream_that_is_broken_off_leaves_the_adopted_step_interrupted(
    recorded: Recording, provider: Provider
) -> None:
    with chatdebug.run("chat_turn"):
        options: Any = {"tracer_provider": recorded.provider}
        with anthropic.Anthropic(base_url=provider.url, api_key="key", open_telemetry=options) as client:
            stream = client.messages.create(**ASK, stream=True)
            next(iter(stream))
            stream.close()

    assert (recorded.step.status, recorded.attempt.status) == (Status.INTERRUPTED, Status.INTERRUPTED)
    assert scope(recorded.spans[recorded.step.id]) == ANTHROPIC_SCOPE
    assert recorded.run.status is Status.COMPLETED


def test_a_span_of_another_provider_that_we_do_not_follow_is_adopted_as_well(
    recorded: Recording, provider: Provider
) -> None:
    """The current context says what is current, whoever made it."""
    from opentelemetry.sdk.trace import TracerProvider

    other = TracerProvider(shutdown_on_exit=False).get_tracer("other")
    attributes = {"gen_ai.operation.name": "chat"}
    with OpenAI(provider) as sdk, other.start_as_current_span("chat", attributes=attributes) as theirs:
        sdk.ask()

    assert recorded.step.id == f"{theirs.get_span_context().span_id:016x}"
    assert recorded.run.status is Status.COMPLETED


def test_the_genai_instrumentation_of_opentelemetry_makes_the_step_of_the_openai_sdk(
    recorded: Recording, provider: Provider
) -> None:
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=recorded.provider, skip_dep_check=True)
    try:
        provider.script(Behaviour(status=429, retry_after=0.01), Behaviour())
        with OpenAI(provider) as sdk:
            sdk.ask()
            messages: Any = [{"role": "user", "content": "Hello?"}]
            for _ in sdk.client.chat.completions.create(model="gpt-5-mini", messages=messages, stream=True):
                pass
    finally:
        instrumentor.uninstrument()

    theirs = [id for id, span in recorded.spans.items() if scope(span) != OURS]
    assert [step.id for step in recorded.steps] == theirs
    assert [len(recorded.of_step(step)) for step in recorded.steps] == [2, 1]
    assert [step.status for step in recorded.steps] == [Status.COMPLETED] * 2
    assert {parent(recorded.spans[attempt.id]) for attempt in recorded.attempts} == set(theirs)
    assert not [span for span in recorded.spans.values() if scope(span) == OURS and span.name != "POST"]
    assert trace.get_current_span() is trace.INVALID_SPAN
