"""One call of each API with each SDK that is installed, sync and async, behind one shape."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from tests.sdks.answers import (
    CHAT,
    CONVERSATIONS,
    GEMINI,
    GROQ,
    INTERACTIONS,
    MESSAGES,
    MISTRAL,
    OLDER_INTERACTIONS,
    RESPONSES,
    Api,
)
from tests.sdks.conftest import is_installed

GENAI = int(version("google-genai").split(".")[0]) if is_installed("google.genai") else 0
"""Its major version: the first has interactions of outputs, the others of steps."""

ASK: list[Any] = [{"role": "user", "content": "Hello?"}]

LONG = 60.0
"""Seconds: a time limit that nothing reaches."""


@dataclass(frozen=True)
class Caller:
    """An SDK's way to call one API. ``make`` takes the provider's URL, how often to retry, and the time limit."""

    sdk: str
    api: Api
    asynchronous: bool
    make: Callable[[str, int, float], Any]
    whole: Callable[[Any], Any]
    stream: Callable[[Any], Any]
    lazy: bool = False
    """A stream sends nothing until it is iterated."""

    def __str__(self) -> str:
        return f"{self.sdk}-{self.api.name}-{'async' if self.asynchronous else 'sync'}"

    def client(self, url: str, *, retries: int = 0, timeout: float = LONG) -> Any:
        return self.make(url, retries, timeout)

    async def items(self, client: Any) -> AsyncIterator[Any]:
        """The items of a streamed answer."""
        stream = await do(self.stream(client))
        if hasattr(stream, "__aiter__"):
            async for item in stream:
                yield item
        else:
            for item in stream:
                yield item


async def do(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def close(client: Any) -> None:
    """However this SDK's client is closed, if at all."""
    for way in ("close", "aclose"):
        if callable(getattr(client, way, None)):
            with suppress(Exception):
                await do(getattr(client, way)())


def run(main: Any) -> Any:
    return asyncio.run(main)


def _openai() -> list[Caller]:
    import openai

    def make(asynchronous: bool) -> Callable[[str, int, float], Any]:
        owner = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        return lambda url, retries, timeout: owner(
            base_url=f"{url}/v1", api_key="key", max_retries=retries, timeout=timeout
        )

    ask: Any = {"model": "gpt-5-mini", "messages": ASK}
    respond: Any = {"model": "gpt-5-mini", "input": "Hello?"}
    return [
        caller
        for asynchronous in (False, True)
        for caller in (
            Caller(
                "openai",
                CHAT,
                asynchronous,
                make(asynchronous),
                lambda client: client.chat.completions.create(**ask),
                lambda client: client.chat.completions.create(**ask, stream=True),
            ),
            Caller(
                "openai",
                RESPONSES,
                asynchronous,
                make(asynchronous),
                lambda client: client.responses.create(**respond),
                lambda client: client.responses.create(**respond, stream=True),
            ),
        )
    ]


def _anthropic() -> list[Caller]:
    import anthropic

    def make(asynchronous: bool) -> Callable[[str, int, float], Any]:
        owner = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
        return lambda url, retries, timeout: owner(base_url=url, api_key="key", max_retries=retries, timeout=timeout)

    ask: Any = {"model": "claude-sonnet-5", "messages": ASK, "max_tokens": 100}
    return [
        Caller(
            "anthropic",
            MESSAGES,
            asynchronous,
            make(asynchronous),
            lambda client: client.messages.create(**ask),
            lambda client: client.messages.create(**ask, stream=True),
        )
        for asynchronous in (False, True)
    ]


def _groq() -> list[Caller]:
    import groq

    def make(asynchronous: bool) -> Callable[[str, int, float], Any]:
        owner = groq.AsyncGroq if asynchronous else groq.Groq
        return lambda url, retries, timeout: owner(base_url=url, api_key="key", max_retries=retries, timeout=timeout)

    ask: Any = {"model": "llama-3.3-70b-versatile", "messages": ASK}
    return [
        Caller(
            "groq",
            GROQ,
            asynchronous,
            make(asynchronous),
            lambda client: client.chat.completions.create(**ask),
            lambda client: client.chat.completions.create(**ask, stream=True),
        )
        for asynchronous in (False, True)
    ]


def mistral(url: str, retries: int = 0, timeout: float = LONG) -> Any:
    """A client of any version. It gives up by time and not by count, so ``retries`` only says whether there are any."""
    try:
        from mistralai.client import Mistral
        from mistralai.client.utils import BackoffStrategy, RetryConfig
    except ImportError:  # 1
        from mistralai import Mistral  # type: ignore[attr-defined, no-redef]
        from mistralai.utils import BackoffStrategy, RetryConfig  # type: ignore[no-redef]

    config = RetryConfig("backoff", BackoffStrategy(1, 5, 1.1, 60_000), retry_connection_errors=True)
    more = {"retry_config": config} if retries else {}
    return Mistral(api_key="key", server_url=url, timeout_ms=int(timeout * 1000), **more)


def _mistral() -> list[Caller]:
    ask: Any = {"model": "mistral-small-latest", "messages": ASK}
    begin: Any = {"model": "mistral-medium-latest", "inputs": "Hello?"}
    return [
        Caller(
            "mistralai",
            MISTRAL,
            False,
            mistral,
            lambda client: client.chat.complete(**ask),
            lambda client: client.chat.stream(**ask),
        ),
        Caller(
            "mistralai",
            MISTRAL,
            True,
            mistral,
            lambda client: client.chat.complete_async(**ask),
            lambda client: client.chat.stream_async(**ask),
        ),
        Caller(
            "mistralai",
            CONVERSATIONS,
            False,
            mistral,
            lambda client: client.beta.conversations.start(**begin),
            lambda client: client.beta.conversations.start_stream(**begin),
        ),
        Caller(
            "mistralai",
            CONVERSATIONS,
            True,
            mistral,
            lambda client: client.beta.conversations.start_async(**begin),
            lambda client: client.beta.conversations.start_stream_async(**begin),
        ),
    ]


def genai(url: str, retries: int = 0, timeout: float = LONG, *, told: bool = False, **more: Any) -> Any:
    """A client of any version; its async half goes through httpx or httpx2, also where aiohttp is installed.

    ``told``: it is told of ``retries`` also where there are none, since interactions are retried by themselves.
    """
    from google import genai
    from google.genai import _api_client, types

    if _api_client.has_aiohttp and "httpx_async_client" not in more:
        import httpx2

        more["httpx_async_client"] = httpx2.AsyncClient()
    options = types.HttpOptions(base_url=url, timeout=int(timeout * 1000), **more)
    delays = {"initial_delay": 0.01, "max_delay": 0.02, "jitter": 0.01}
    if told and GENAI >= 2:  # attempts are retries, here, before version 3
        options.retry_options = types.HttpRetryOptions(attempts=retries + (GENAI >= 3), **delays)
    elif retries and not told:
        options.retry_options = types.HttpRetryOptions(attempts=retries + 1, **delays)
    client = genai.Client(api_key="key", http_options=options)
    # Before version 3 there is no way to tell it to retry never.
    if told and GENAI == 2:
        client._api_client._http_options.retry_options.attempts = retries
    if told and GENAI == 1:
        client.interactions._client.max_retries = client.aio.interactions._client.max_retries = retries
    return client


def _genai() -> list[Caller]:
    ask: Any = {"model": "gemini-2.5-flash", "contents": "Hello?"}
    begin: Any = {"model": "gemini-3.8-flash", "input": "Hello?"}
    interactions = OLDER_INTERACTIONS if GENAI == 1 else INTERACTIONS
    interacting = partial(genai, told=True)
    return [
        Caller(
            "google-genai",
            GEMINI,
            False,
            genai,
            lambda client: client.models.generate_content(**ask),
            lambda client: client.models.generate_content_stream(**ask),
            lazy=True,
        ),
        Caller(
            "google-genai",
            GEMINI,
            True,
            genai,
            lambda client: client.aio.models.generate_content(**ask),
            lambda client: client.aio.models.generate_content_stream(**ask),
            lazy=True,
        ),
        Caller(
            "google-genai",
            interactions,
            False,
            interacting,
            lambda client: client.interactions.create(**begin),
            lambda client: client.interactions.create(**begin, stream=True),
        ),
        Caller(
            "google-genai",
            interactions,
            True,
            interacting,
            lambda client: client.aio.interactions.create(**begin),
            lambda client: client.aio.interactions.create(**begin, stream=True),
        ),
    ]


_MAKERS = {
    "openai": _openai,
    "anthropic": _anthropic,
    "groq": _groq,
    "mistralai": _mistral,
    "google.genai": _genai,
}

CALLERS = [caller for name, make in _MAKERS.items() if is_installed(name) for caller in make()]
