"""mistralai: its own retry loop, its own spans, what else it can ask a model, and what is no model call."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
from opentelemetry import trace

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.records import StepContent, StepRecord
from otel_chatdebug.status import Status
from tests.sdks.answers import CONVERSATIONS, MISTRAL, embeddings
from tests.sdks.callers import ASK, do, mistral, run
from tests.support.recording import Recording

CALL: Any = {"model": "mistral-small-latest", "messages": ASK}
MAJOR = int(version("mistralai").split(".")[0])

twins = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def twin(owner: Any, name: str, asynchronous: bool) -> Any:
    return getattr(owner, f"{name}_async" if asynchronous else name)


@twins
def test_its_retry_loop_is_one_step_however_long(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    """The same request object is sent again and again, and nothing on the wire tells the attempts apart."""
    provider.script(
        MISTRAL.limited(), Behaviour(status=503), Behaviour(stall_headers=True), MISTRAL.limited(), MISTRAL.whole()
    )

    async def main() -> None:
        client = mistral(provider.url, retries=1, timeout=0.5)
        await do(twin(client.chat, "complete", asynchronous)(**CALL))

    run(main())
    assert [attempt.number for attempt in recorded.attempts] == [1, 2, 3, 4, 5]
    assert [attempt.response_status for attempt in recorded.attempts] == [429, 503, None, 429, 200]
    assert [(attempt.error or {}).get("retryable") for attempt in recorded.attempts] == [True] * 4 + [None]
    assert (recorded.step.status, recorded.run.status) == (Status.COMPLETED, Status.COMPLETED)


@twins
def test_a_connection_that_is_cut_is_not_retried(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(Behaviour(raw=b""))

    async def main() -> None:
        client = mistral(provider.url, retries=1)
        with pytest.raises(Exception, match="disconnected"):
            await do(twin(client.chat, "complete", asynchronous)(**CALL))

    run(main())
    assert recorded.attempt.error["cause"] == "disconnected"
    assert recorded.attempt.error["retryable"] is False


@twins
def test_a_connection_that_is_reset_is_retried_by_newer_versions(
    asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    """And what the failed attempt tells of it beforehand is what then happens."""
    provider.script(MISTRAL.whole(cut_after=0, reset=True), MISTRAL.whole())

    async def main() -> None:
        client = mistral(provider.url, retries=1)
        with nullcontext() if MAJOR > 1 else pytest.raises(Exception):  # noqa: PT011
            await do(twin(client.chat, "complete", asynchronous)(**CALL))

    run(main())
    first, *more = recorded.attempts
    assert first.error["cause"] == "connection_reset"
    assert first.error["retryable"] is bool(more) is (MAJOR > 1)


@twins
def test_tool_calls_of_a_stream(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(replace(MISTRAL, stream_file="mistral.tools.sse").streamed())

    async def main() -> None:
        stream = await do(twin(mistral(provider.url).chat, "stream", asynchronous)(**CALL))
        if asynchronous:
            async with stream:
                assert [item async for item in stream]
        else:
            with stream:
                assert list(stream)

    run(main())
    assert recorded.step.metadata["finish_reasons"] == ["tool_calls"]


@twins
def test_embeddings_and_what_fills_in_the_middle(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(embeddings("mistral"), MISTRAL.whole())

    async def main() -> None:
        client = mistral(provider.url)
        await do(twin(client.embeddings, "create", asynchronous)(model="mistral-embed", inputs=["Hello?"]))
        await do(twin(client.fim, "complete", asynchronous)(model="codestral-latest", prompt="def f("))

    run(main())
    assert [(step.provider, step.model, step.status) for step in recorded.steps] == [
        ("mistral_ai", "mistral-embed", Status.COMPLETED),
        ("mistral_ai", "codestral-latest", Status.COMPLETED),
    ]


@twins
def test_what_is_no_model_call_makes_no_step(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(Behaviour(body=json.dumps({"object": "list", "data": []}).encode()))

    async def main() -> None:
        await do(twin(mistral(provider.url).models, "list", asynchronous)())

    run(main())
    assert len(provider.requests) == 1
    assert recorded.runs == []


@twins
@pytest.mark.parametrize("call", ["start", "append", "restart"])
def test_what_is_said_in_a_conversation_is_read(
    call: str, asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    """And a stream says the same as an answer in one piece, its own tools included."""
    api = replace(CONVERSATIONS, whole_file="mistral_conversations.tools.json", stream_file=TOOLS)
    provider.script(CONVERSATIONS.limited(), api.whole(), api.streamed())
    options = {"temperature": 0.5, "max_tokens": 9}
    asked: dict[str, Any] = {"inputs": [{"role": "user", "content": "Hello?"}], "completion_args": options}
    asked |= {
        "start": {"model": "mistral-medium-latest", "instructions": "Be brief."},
        "append": {"conversation_id": "conv_1"},
        "restart": {"conversation_id": "conv_1", "from_entry_id": "msg_0"},
    }[call]

    async def main() -> None:
        owner = mistral(provider.url, retries=1).beta.conversations
        assert (await do(twin(owner, call, asynchronous)(**asked))).conversation_id == "conv_1"
        stream = await do(twin(owner, f"{call}_stream", asynchronous)(**asked))
        assert [item async for item in stream] if asynchronous else list(stream)

    run(main())
    whole, streamed = recorded.steps
    path = {"start": "", "append": "/conv_1", "restart": "/conv_1/restart"}[call]
    assert {attempt.path for attempt in recorded.attempts} == {f"/v1/conversations{path}"}
    assert [[a.response_status for a in recorded.of_step(step)] for step in (whole, streamed)] == [[429, 200], [200]]
    assert [step.operation for step in (whole, streamed)] == ["generate", "stream"]
    for step in (whole, streamed):
        assert (step.provider, step.status) == ("mistral_ai", Status.COMPLETED)
        assert step.usage == {"input_tokens": 190, "output_tokens": 209, "total_tokens": 399}
        assert recorded.spans[step.id].attributes["gen_ai.operation.name"] == "chat"
        assert recorded.spans[step.id].attributes["gen_ai.request.temperature"] == 0.5
        assert recorded.spans[step.id].attributes["gen_ai.usage.input_tokens"] == 190
        content = content_of(recorded, step)
        assert content.normalized_request["format"] == "mistral.conversations"
        assert content.normalized_request["options"] == options
        asked_of = content.normalized_request["messages"][-1]
        assert (asked_of["role"], asked_of["parts"]) == ("user", [{"type": "text", "text": "Hello?"}])
        (said,) = content.normalized_response["messages"]
        assert [(part["type"], part["id"], part.get("name")) for part in said["parts"]] == [
            ("tool_call", "tool_1", "code_interpreter"),
            ("tool_result", "tool_1", "code_interpreter"),
            ("tool_call", "D681PevKs", "get_weather"),
        ]
        assert said["parts"][-1]["arguments"] == {"city": "Paris"}
        assert said["other"] == {"conversation_id": "conv_1"}


TOOLS = "mistral_conversations.tools.sse"


def content_of(recorded: Recording, step: StepRecord) -> StepContent:
    return next(row for row in recorded.contents if isinstance(row, StepContent) and row.id == step.id)


def test_an_error_in_the_stream_of_a_conversation(provider: Provider, recorded: Recording) -> None:
    provider.script(replace(CONVERSATIONS, stream_file="mistral_conversations.errevent.sse").streamed())
    list(mistral(provider.url).beta.conversations.start_stream(model="mistral-medium-latest", inputs="Hello?"))
    assert recorded.step.status is Status.ERROR
    assert (recorded.step.error["message"], recorded.step.error["code"]) == ("Internal server error", "3000")


@twins
def test_looking_after_conversations_makes_no_step(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    entries = {"object": "conversation.history", "conversation_id": "conv_1", "entries": []}
    provider.script(Behaviour(body=json.dumps(entries).encode()), Behaviour(status=204, body=b""))

    async def main() -> None:
        owner = mistral(provider.url).beta.conversations
        await do(twin(owner, "get_history", asynchronous)(conversation_id="conv_1"))
        await do(twin(owner, "delete", asynchronous)(conversation_id="conv_1"))

    run(main())
    assert len(provider.requests) == 2
    assert recorded.runs == []


def scope(span: Any) -> str:
    return str(span.instrumentation_scope.name)


@pytest.fixture
def traced(recorded: Recording, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Its own spans are on, and go where ours go."""
    monkeypatch.setenv("MISTRAL_SDK_TELEMETRY", "global")
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: recorded.provider)
    return recorded


if MAJOR >= 3:

    @twins
    @pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
    def test_its_own_span_is_the_step(
        streamed: bool, asynchronous: bool, provider: Provider, traced: Recording
    ) -> None:
        provider.script(MISTRAL.streamed() if streamed else MISTRAL.whole())

        async def main() -> None:
            client = mistral(provider.url)
            if not streamed:
                await do(twin(client.chat, "complete", asynchronous)(**CALL))
                return
            stream = await do(twin(client.chat, "stream", asynchronous)(**CALL))
            _ = [item async for item in stream] if asynchronous else list(stream)

        with chatdebug.run("chat_turn"):
            run(main())
        theirs = {id: span for id, span in traced.spans.items() if scope(span) == "mistralai_sdk_tracer"}
        assert list(theirs) == [traced.step.id]
        assert not [name for name in theirs[traced.step.id].attributes or {} if name.startswith("chatdebug.")]
        assert traced.ancestors(traced.attempt.id) == [traced.step.id, traced.run.span_id]
        assert len(traced.spans) == 3
        assert traced.step.status is Status.COMPLETED

    @twins
    def test_where_it_may_retry_the_step_is_above_its_spans(
        asynchronous: bool, provider: Provider, traced: Recording
    ) -> None:
        """It makes one for each attempt, and never ends that of one that it retries."""
        provider.script(MISTRAL.limited(), MISTRAL.whole())

        async def main() -> None:
            await do(twin(mistral(provider.url, retries=1).chat, "complete", asynchronous)(**CALL))

        run(main())
        first, second = traced.attempts
        (theirs,) = (id for id, span in traced.spans.items() if scope(span) == "mistralai_sdk_tracer")
        assert traced.ancestors(second.id)[:2] == [theirs, traced.step.id]
        assert scope(traced.spans[traced.step.id]) == "otel_chatdebug"
        assert {attempt.trace_id for attempt in (first, second)} == {traced.step.trace_id}
        assert (traced.step.status, traced.run.status) == (Status.COMPLETED, Status.COMPLETED)
