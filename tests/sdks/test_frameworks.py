"""langchain and pydantic-ai: they call the SDKs, so each of their calls of a model is a step of the run around them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Provider
from otel_chatdebug.status import Status
from tests.sdks.answers import CHAT, MESSAGES, Api, embeddings
from tests.support.recording import Recording

twins = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
apis = pytest.mark.parametrize("api", [CHAT, MESSAGES], ids=["openai", "anthropic"])


def langchain(api: Api, provider: Provider) -> Any:
    if api is CHAT:
        return ChatOpenAI(model="gpt-5-mini", base_url=f"{provider.url}/v1", api_key="key", max_retries=1)  # type: ignore[arg-type]
    return ChatAnthropic(model="claude-sonnet-5", base_url=provider.url, api_key="key", max_retries=1)  # type: ignore[call-arg, arg-type]


def agent(api: Api, provider: Provider) -> Agent:
    if api is CHAT:
        served = OpenAIProvider(base_url=f"{provider.url}/v1", api_key="key")
        return Agent(OpenAIChatModel("gpt-5-mini", provider=served))
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=provider.url, api_key="key")
    return Agent(AnthropicModel("claude-sonnet-5", provider=AnthropicProvider(anthropic_client=client)))


@twins
@apis
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_chat_model_of_langchain(
    streamed: bool, api: Api, asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    provider.script(api.limited(), api.streamed() if streamed else api.whole())
    model = langchain(api, provider)

    async def call() -> None:
        if streamed:
            assert [chunk async for chunk in model.astream("Hello?")]
        else:
            await model.ainvoke("Hello?")

    with chatdebug.run("chat_turn") as known:
        if asynchronous:
            asyncio.run(call())
        elif streamed:
            assert list(model.stream("Hello?"))
        else:
            model.invoke("Hello?")
    assert [attempt.status for attempt in recorded.attempts] == [Status.ERROR, Status.COMPLETED]
    assert (recorded.step.run_id, recorded.step.status) == (known.id, Status.COMPLETED)
    assert recorded.step.usage["input_tokens"] == api.whole_tokens[0]


def test_embeddings_of_langchain(provider: Provider, recorded: Recording) -> None:
    provider.script(embeddings("openai"))
    made = OpenAIEmbeddings(
        model="small",
        base_url=f"{provider.url}/v1",
        api_key="key",
        check_embedding_ctx_length=False,  # type: ignore[arg-type]
    )
    assert made.embed_query("Hello?")
    assert recorded.step.model == "small"


@apis
@pytest.mark.parametrize("way", ["sync", "async", "streamed"])
def test_an_agent_of_pydantic_ai(way: str, api: Api, provider: Provider, recorded: Recording) -> None:
    streamed = way == "streamed" or api is MESSAGES  # of Anthropic it always asks for a stream
    provider.script(api.streamed() if streamed else api.whole())
    made = agent(api, provider)

    async def call() -> None:
        if way == "async":
            await made.run("Hello?")
        else:
            async with made.run_stream("Hello?") as result:
                assert [text async for text in result.stream_text()]

    with chatdebug.run("chat_turn"):
        if way == "sync":
            made.run_sync("Hello?")
        else:
            asyncio.run(call())
    assert (recorded.step.status, recorded.attempt.status) == (Status.COMPLETED, Status.COMPLETED)
    assert recorded.step.operation == ("stream" if streamed else "generate")


def test_each_turn_of_an_agent_with_a_tool_is_a_step(provider: Provider, recorded: Recording) -> None:
    """With its own spans on: that of each call of the model is its step, and that of the agent is above them."""
    from pydantic_ai.models.instrumented import InstrumentationSettings

    body = json.loads(replace(CHAT, whole_file="openai_chat.tools.json").whole().body or b"{}")  # type: ignore[arg-type]
    (call,) = body["choices"][0]["message"]["tool_calls"][:1]
    provider.script(replace(CHAT, whole_file="openai_chat.tools.json").whole(), CHAT.limited(), CHAT.whole())
    made = agent(CHAT, provider)
    made.instrument = InstrumentationSettings(tracer_provider=recorded.provider)  # type: ignore[arg-type]
    asked = []

    def tool(city: str) -> str:
        asked.append(city)
        return "sunny"

    made.tool_plain(name=call["function"]["name"])(tool)
    with chatdebug.run("chat_turn"):
        made.run_sync("What is the weather?")
    assert asked
    assert [len(recorded.of_step(step)) for step in recorded.steps] == [1, 2]
    theirs = {id for id, span in recorded.spans.items() if span.name == "chat gpt-5-mini"}
    assert {step.id for step in recorded.steps} == theirs
    (above,) = {id for id, span in recorded.spans.items() if span.name.startswith(("agent run", "invoke_agent"))}
    assert all(above in recorded.ancestors(attempt.id) for attempt in recorded.attempts)
    assert not [span for id, span in recorded.spans.items() if id in theirs and "chatdebug.record" in span.attributes]
