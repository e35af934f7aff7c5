"""google-genai: function calling in rounds, both libraries, aiohttp, embeddings, and what is no model call."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from typing import Any

import pytest
from google import genai as genai_sdk
from google.genai import _api_client, types

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.records import StepContent
from otel_chatdebug.status import Status
from tests.sdks.answers import GEMINI, embeddings
from tests.sdks.callers import do, genai, run
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


INTERACTION = {
    "id": "i-1",
    "object": "interaction",
    "model": "gemini-2.5-flash",
    "role": "model",
    "status": "completed",
    "created": "2026-01-01T00:00:00Z",
    "updated": "2026-01-01T00:00:00Z",
    "outputs": [{"type": "text", "text": "Hello!"}],
}


def interaction_events() -> list[bytes]:
    """A stream of the interactions API, which ends with ``[DONE]``."""
    told: list[dict[str, Any]] = [
        {"event_type": "interaction.start", "interaction": {**INTERACTION, "status": "in_progress", "outputs": []}},
        {"event_type": "content.delta", "index": 0, "delta": {"type": "text", "text": "Hello!"}},
        {"event_type": "interaction.complete", "interaction": INTERACTION},
    ]
    return [f"event: {event['event_type']}\ndata: {json.dumps(event)}\n\n".encode() for event in told] + [
        b"event: done\ndata: [DONE]\n\n"
    ]


if hasattr(genai_sdk.Client, "interactions"):

    @pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
    def test_an_interaction_is_a_step(streamed: bool, provider: Provider, recorded: Recording) -> None:
        """Its format is not known to us: what is said is kept raw."""
        whole = Behaviour(body=json.dumps(INTERACTION).encode(), content_type="application/json")
        stream = Behaviour(body=iter(interaction_events()), content_type="text/event-stream")
        provider.script(stream if streamed else whole)

        client = genai(provider.url)
        asked: Any = {"model": "gemini-2.5-flash", "input": "Hello?"}
        if streamed:
            assert len(list(client.interactions.create(**asked, stream=True))) == 3
        else:
            assert client.interactions.create(**asked).id == "i-1"

        step = recorded.step
        assert (step.provider, step.model, step.status) == ("gcp.gemini", "gemini-2.5-flash", Status.COMPLETED)
        assert recorded.attempt.path.endswith("/interactions")
        assert "Hello!" in next(
            str(row.normalized_response) for row in recorded.contents if isinstance(row, StepContent)
        )


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
