"""Every way to call the openai SDK: helpers, raw responses, embeddings, aiohttp, and what is no model call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.status import Status
from tests.sdks.answers import CHAT, RESPONSES, Api, embeddings
from tests.sdks.callers import ASK, do, run
from tests.support.recording import Recording

CHAT_ASK: Any = {"model": "gpt-5-mini", "messages": ASK}
RESPONSES_ASK: Any = {"model": "gpt-5-mini", "input": "Hello?"}


def client(provider: Provider, asynchronous: bool, **more: Any) -> Any:
    owner = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    return owner(base_url=f"{provider.url}/v1", api_key="key", **{"max_retries": 1, **more})


async def drain(stream: Any) -> None:
    if hasattr(stream, "__aiter__"):
        async for _ in stream:
            pass
    else:
        for _ in stream:
            pass


async def helper(manager: Any) -> None:
    """A ``.stream()`` helper: a context manager, of either kind."""
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            await drain(stream)
    else:
        with manager as stream:
            await drain(stream)


async def raw(sdk: Any) -> None:
    response = await do(sdk.chat.completions.with_raw_response.create(**CHAT_ASK))
    assert (await do(response.parse())).choices


async def raw_stream(sdk: Any) -> None:
    response = await do(sdk.chat.completions.with_raw_response.create(**CHAT_ASK, stream=True))
    await drain(await do(response.parse()))


async def streaming_response(sdk: Any) -> None:
    manager = sdk.chat.completions.with_streaming_response.create(**CHAT_ASK, stream=True)
    if hasattr(manager, "__aenter__"):
        async with manager as response:
            await drain(response.iter_lines())
    else:
        with manager as response:
            await drain(response.iter_lines())


async def helper_of_chat(sdk: Any) -> None:
    completions = sdk.chat.completions if hasattr(sdk.chat.completions, "stream") else sdk.beta.chat.completions
    await helper(completions.stream(**CHAT_ASK))


async def helper_of_responses(sdk: Any) -> None:
    await helper(sdk.responses.stream(**RESPONSES_ASK))


WAYS: list[tuple[Callable[[Any], Any], Api, bool]] = [
    (raw, CHAT, False),
    (raw_stream, CHAT, True),
    (streaming_response, CHAT, True),
    (helper_of_chat, CHAT, True),
    (helper_of_responses, RESPONSES, True),
]

twins = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@twins
@pytest.mark.parametrize(("way", "api", "streamed"), WAYS, ids=[way[0].__name__ for way in WAYS])
def test_every_way_is_one_step_with_its_retry(
    way: Callable[[Any], Any], api: Api, streamed: bool, asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    provider.script(api.limited(), api.streamed() if streamed else api.whole())

    async def main() -> None:
        sdk = client(provider, asynchronous)
        await way(sdk)
        await do(sdk.close())

    run(main())
    step = recorded.step
    assert [attempt.status for attempt in recorded.attempts] == [Status.ERROR, Status.COMPLETED]
    assert (step.status, step.operation) == (Status.COMPLETED, "stream" if streamed else "generate")
    assert (step.usage["input_tokens"], step.usage["output_tokens"]) == api.stream_tokens


@twins
def test_embeddings(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(CHAT.limited(), embeddings("openai"))

    async def main() -> None:
        sdk = client(provider, asynchronous)
        found = await do(sdk.embeddings.create(model="small", input="Hello?", encoding_format="float"))
        assert found.data[0].embedding == [0.25, -0.5]
        await do(sdk.close())

    run(main())
    assert [attempt.status for attempt in recorded.attempts] == [Status.ERROR, Status.COMPLETED]
    assert recorded.step.usage["input_tokens"] == 8
    assert "embeddings small" in {span.name for span in recorded.spans.values()}


@twins
def test_tool_calls_of_a_stream(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    from dataclasses import replace

    provider.script(replace(CHAT, stream_file="openai_chat.tools.sse").streamed())

    async def main() -> None:
        sdk = client(provider, asynchronous)
        await drain(await do(sdk.chat.completions.create(**CHAT_ASK, stream=True)))
        await do(sdk.close())

    run(main())
    assert recorded.step.metadata["finish_reasons"] == ["tool_calls"]
    assert recorded.attempt.status is Status.COMPLETED


@twins
def test_what_is_no_model_call_makes_no_step(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    async def main() -> None:
        sdk = client(provider, asynchronous)
        await do(sdk.files.create(file=b"hello", purpose="user_data"))
        models = sdk.models.list()
        await drain(await models if asynchronous else models)
        files = sdk.files.list()
        await drain(await files if asynchronous else files)
        with pytest.raises(openai.NotFoundError):
            await do(sdk.batches.create(input_file_id="f", endpoint="/v1/responses", completion_window="24h"))
        await do(sdk.close())

    run(main())
    assert len(provider.requests) >= 4
    assert recorded.runs == []
    assert recorded.spans == {}


def test_the_aiohttp_client(provider: Provider, recorded: Recording) -> None:
    """Its transport is none of httpx's, but its client is."""
    try:
        http = openai.DefaultAioHttpClient()
    except (AttributeError, RuntimeError):  # an extra that this environment does without, or an SDK without it
        assert openai.__version__ < "3"
        return
    provider.script(CHAT.limited(), CHAT.streamed(), CHAT.streamed(cut_after=1))

    async def main() -> None:
        async with client(provider, True, http_client=http) as sdk:
            await drain(await sdk.chat.completions.create(**CHAT_ASK, stream=True))
            with pytest.raises(Exception):  # noqa: B017, PT011
                await drain(await sdk.chat.completions.create(**CHAT_ASK, stream=True))

    run(main())
    one, other = recorded.steps
    assert [attempt.status for attempt in recorded.of_step(one)] == [Status.ERROR, Status.COMPLETED]
    assert [attempt.status for attempt in recorded.of_step(other)] == [Status.ERROR]
    assert recorded.of_step(other)[0].error["cause"] == "disconnected"


def test_a_refused_connection_of_the_aiohttp_client(recorded: Recording) -> None:
    try:
        http = openai.DefaultAioHttpClient()
    except (AttributeError, RuntimeError):
        assert openai.__version__ < "3"
        return

    async def main() -> None:
        async with openai.AsyncOpenAI(
            base_url="http://127.0.0.1:9/v1", api_key="key", http_client=http, max_retries=0
        ) as sdk:
            with pytest.raises(openai.APIConnectionError):
                await sdk.chat.completions.create(**CHAT_ASK)

    run(main())
    assert recorded.attempt.error["cause"] == "connection_refused"
    assert recorded.attempt.error["retries_left"] == 0


def test_a_client_made_before_the_instrumentation_is_seen(provider: Provider) -> None:
    from tests.support.recording import recording

    provider.script(Behaviour(status=500, retry_after=0.01), CHAT.whole())
    with client(provider, False) as sdk:
        with recording() as recorded:
            sdk.chat.completions.create(**CHAT_ASK)
            assert [attempt.number for attempt in recorded.attempts] == [1, 2]
            assert recorded.step.status is Status.COMPLETED
        request = type(sdk).__mro__[1].__dict__.get("request") or openai._base_client.SyncAPIClient.request
        assert request.__module__ == "openai._base_client"
        sdk.chat.completions.create(**CHAT_ASK)
    assert len(provider.requests) == 3
