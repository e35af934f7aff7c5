"""Who is asked: by the host where that is known, else by what the client is made for, else by the SDK."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from otel_chatdebug.status import Status
from tests.sdks.answers import CHAT, MESSAGES, Api
from tests.sdks.callers import ASK, do, run
from tests.support.recording import Recording

GATEWAY = "https://gateway.example"

ANTHROPIC_ASK: Any = {"model": "claude-sonnet-5", "messages": ASK, "max_tokens": 100}

AZURE = {"api_key": "key", "api_version": "2025-04-01-preview"}


def azure(http_client: Any) -> Any:
    return openai.AzureOpenAI(azure_endpoint=GATEWAY, http_client=http_client, **AZURE)


def azure_async(http_client: Any) -> Any:
    return openai.AsyncAzureOpenAI(azure_endpoint=GATEWAY, http_client=http_client, **AZURE)


def deepseek(http_client: Any) -> Any:
    return openai.OpenAI(base_url="https://api.deepseek.com", api_key="key", http_client=http_client)


def openai_at_a_gateway(http_client: Any) -> Any:
    return openai.OpenAI(base_url=GATEWAY, api_key="key", http_client=http_client)


def bedrock(http_client: Any) -> Any:
    return anthropic.AnthropicBedrock(base_url=GATEWAY, api_key="key", aws_region="eu-west-1", http_client=http_client)


def mantle(http_client: Any) -> Any:
    return anthropic.AnthropicBedrockMantle(
        base_url=GATEWAY, api_key="key", aws_region="eu-west-1", http_client=http_client
    )


def vertex_async(http_client: Any) -> Any:
    return anthropic.AsyncAnthropicVertex(
        base_url=f"{GATEWAY}/v1", access_token="key", project_id="p", region="global", http_client=http_client
    )


def foundry(http_client: Any) -> Any:
    return anthropic.AnthropicFoundry(base_url=f"{GATEWAY}/anthropic", api_key="key", http_client=http_client)


def transport_of(sdk: Any, asynchronous: bool, body: bytes) -> Any:
    """A client that answers ``body``, of the library that this version of the SDK is built on."""
    name = next(base.__module__ for base in sdk.DefaultHttpxClient.__mro__ if base.__name__ == "Client")
    library = importlib.import_module(name.partition(".")[0])
    headers = {"content-type": "application/json"}
    answer = library.MockTransport(lambda _: library.Response(200, content=body, headers=headers))
    return (library.AsyncClient if asynchronous else library.Client)(transport=answer)


@pytest.mark.parametrize(
    ("make", "api", "provider"),
    [
        (azure, CHAT, "azure.ai.openai"),
        (azure_async, CHAT, "azure.ai.openai"),
        (deepseek, CHAT, "deepseek"),
        (openai_at_a_gateway, CHAT, "openai"),
        (bedrock, MESSAGES, "aws.bedrock"),
        (mantle, MESSAGES, "aws.bedrock"),
        (vertex_async, MESSAGES, "gcp.vertex_ai"),
        (foundry, MESSAGES, "azure.ai.inference"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_step_names_whom_its_client_asks(
    make: Callable[[Any], Any], api: Api, provider: str, recorded: Recording
) -> None:
    sdk = openai if api is CHAT else anthropic

    async def main() -> None:
        http_client = transport_of(sdk, make.__name__.endswith("_async"), bytes(api.whole().body or b""))
        client = make(http_client)
        if api is CHAT:
            assert await do(client.chat.completions.create(model="gpt-5-mini", messages=ASK))
        else:
            assert await do(client.messages.create(**ANTHROPIC_ASK))

    run(main())
    step = recorded.step
    assert (step.provider, step.status, step.usage["input_tokens"]) == (provider, Status.COMPLETED, api.whole_tokens[0])
    assert recorded.spans[step.span_id].attributes["gen_ai.provider.name"] == provider
    assert recorded.run.provider == provider
