"""google-genai: function calling in rounds, interactions, both libraries, aiohttp, and what is no model call."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import Any

import pytest
from google.genai import _api_client, types

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.records import StepContent
from otel_chatdebug.status import Status
from tests.sdks.answers import GEMINI, INTERACTIONS, embeddings
from tests.sdks.callers import GENAI, do, genai, run
from tests.support.recording import Recording

CALL: Any = {"model": "gemini-2.5-flash", "contents": "Hello?"}

twins = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def models(client: Any, asynchronous: bool) -> Any:
    return client.aio.models if asynchronous else client.models


@twins
def test_each_round_of_function_calling_is_a_step(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    """The SDK calls the function by itself and asks the model again: two calls of the model, each with its retries."""
    provider.script(replace(GEMINI, whole_file="gemini.tools.json").whole(), GEMINI.limited(), GEMINI.whole())
    asked = []

    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "sunny"

    get_weather.__annotations__ = {"city": str, "return": str}  # older SDKs understand no annotation that is a text

    async def main() -> None:
        client = genai(provider.url, retries=1)
        with chatdebug.run("chat_turn"):
            config = types.GenerateContentConfig(tools=[get_weather])
            answer = await do(models(client, asynchronous).generate_content(**CALL, config=config))
            assert answer.text

    run(main())
    assert len(asked) == 1
    assert [[a.response_status for a in recorded.of_step(step)] for step in recorded.steps] == [[200], [429, 200]]
    assert [step.status for step in recorded.steps] == [Status.COMPLETED] * 2
    assert {step.model for step in recorded.steps} == {"gemini-2.5-flash"}


def test_a_stream_makes_no_step_before_it_is_asked_for_its_first_chunk(provider: Provider, recorded: Recording) -> None:
    provider.script(GEMINI.streamed())
    client = genai(provider.url)
    with chatdebug.run("chat_turn") as known:
        stream = client.models.generate_content_stream(**CALL)
        assert recorded.steps == []
        assert list(stream)
    assert recorded.step.run_id == known.id
    assert recorded.step.operation == "stream"
    client.close()


@twins
def test_embeddings(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(embeddings("gemini"))

    async def main() -> None:
        client = genai(provider.url)  # which closes itself when nobody holds it any more
        ask: Any = {"model": "gemini-embedding-001", "contents": "Hello?"}
        assert (await do(models(client, asynchronous).embed_content(**ask))).embeddings[0].values == [0.25, -0.5]

    run(main())
    assert (recorded.step.model, recorded.step.status) == ("gemini-embedding-001", Status.COMPLETED)


@twins
def test_what_is_no_model_call_makes_no_step(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(
        Behaviour(body=json.dumps({"models": [{"name": "models/gemini-2.5-flash"}]}).encode()),
        Behaviour(body=b'{"totalTokens": 3}'),
    )

    async def main() -> None:
        client = genai(provider.url)
        await do(models(client, asynchronous).list())
        await do(models(client, asynchronous).count_tokens(**CALL))

    run(main())
    assert len(provider.requests) == 2
    assert recorded.runs == []


@twins
def test_what_is_said_in_an_interaction_is_read(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    """And a stream says the same as an answer in one piece."""
    name = "gemini_interactions_older.tools" if GENAI == 1 else "gemini_interactions.tools"
    api = replace(INTERACTIONS, whole_file=f"{name}.json", stream_file=f"{name}.sse")
    provider.script(api.limited(), api.whole(), api.streamed())
    asked: Any = {
        "model": "gemini-3.8-flash",
        "input": [{"type": "text", "text": "Hello?"}],
        "system_instruction": "Be brief.",
        "generation_config": {"temperature": 0.5, "tool_choice": "auto"},
        "tools": [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}}],
    }

    async def main() -> None:
        client = genai(provider.url, retries=1, told=True)
        owner = client.aio.interactions if asynchronous else client.interactions
        assert (await do(owner.create(**asked))).id.startswith("v1_Chd")
        stream = await do(owner.create(**asked, stream=True))
        assert [item async for item in stream] if asynchronous else list(stream)

    run(main())
    assert {attempt.path.rpartition("/")[2] for attempt in recorded.attempts} == {"interactions"}
    assert [[a.response_status for a in recorded.of_step(step)] for step in recorded.steps] == [[429, 200], [200]]
    assert [step.operation for step in recorded.steps] == ["generate", "stream"]
    for step in recorded.steps:
        assert (step.provider, step.model) == ("gcp.gemini", "gemini-3.8-flash")
        assert step.status is Status.COMPLETED
        assert step.usage == {
            "input_tokens": 1200 if GENAI == 1 else 1230,
            "output_tokens": 84,
            "total_tokens": 1284 if GENAI == 1 else 1314,
            "reasoning_tokens": 64,
            "cache_read_tokens": 1024,
        }
        attributes = recorded.spans[step.id].attributes
        assert attributes["gen_ai.operation.name"] == "generate_content"
        assert attributes["gen_ai.request.temperature"] == 0.5
        assert attributes["gen_ai.response.finish_reasons"] == ("requires_action",)
        content = next(row for row in recorded.contents if isinstance(row, StepContent) and row.id == step.id)
        assert content.normalized_request["tool_choice"] == {"mode": "auto"}
        assert [message["role"] for message in content.normalized_request["messages"]] == ["system", "user"]
        (said,) = content.normalized_response["messages"]
        assert said["parts"][-1]["arguments"] == {"city": "Paris"}
        assert [part["type"] for part in said["parts"]] == [
            *([] if GENAI == 1 else ["tool_call", "tool_result"]),
            "tool_call",
        ]


@twins
def test_looking_after_an_interaction_makes_no_step(
    asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    whole = INTERACTIONS.whole()
    provider.script(whole, INTERACTIONS.whole())

    async def main() -> None:
        client = genai(provider.url)
        owner = client.aio.interactions if asynchronous else client.interactions
        await do(owner.get("v1_1"))
        await do(owner.cancel("v1_1"))

    run(main())
    assert len(provider.requests) == 2
    assert recorded.runs == []


if importlib.util.find_spec("httpx") and importlib.util.find_spec("httpx2"):

    @pytest.mark.parametrize("library", ["httpx", "httpx2"])
    def test_a_client_of_either_library_that_is_handed_in(
        library: str, provider: Provider, recorded: Recording
    ) -> None:
        module = importlib.import_module(library)
        options = {"httpx_client": module.Client(), "httpx_async_client": module.AsyncClient()}
        try:
            client = genai(provider.url, retries=1, **options)
        except (TypeError, ValueError):  # an SDK that takes one of httpx only
            assert library == "httpx2"
            return
        provider.script(GEMINI.limited(), GEMINI.whole(), GEMINI.limited(), GEMINI.whole())

        async def main() -> None:
            client.models.generate_content(**CALL)
            await client.aio.models.generate_content(**CALL)
            await options["httpx_async_client"].aclose()

        run(main())
        options["httpx_client"].close()
        assert [len(recorded.of_step(step)) for step in recorded.steps] == [2, 2]


if _api_client.has_aiohttp:

    def test_what_goes_through_aiohttp_is_not_seen_and_does_no_harm(provider: Provider, recorded: Recording) -> None:
        """A limit that the README names."""
        provider.script(GEMINI.whole())

        async def main() -> None:
            client = genai(provider.url, httpx_async_client=None)
            answer = await client.aio.models.generate_content(**CALL)
            assert answer.text
            await client.aio.aclose()

        run(main())
        assert len(provider.requests) == 1
        assert recorded.runs == []
