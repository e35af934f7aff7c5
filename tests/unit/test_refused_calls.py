"""A call that an SDK refuses before it sends anything is a step with its error and no attempt."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import groq
import httpx
import httpx2
import openai
import pytest

from otel_chatdebug.status import Status
from tests.support.recording import ANSWER, Recording, recording


def answer(library: Any) -> Callable[[Any], Any]:
    return lambda request: library.Response(200, json=ANSWER)


def sync_client(sdk: Any, owner: str, library: Any) -> Any:
    return getattr(sdk, owner)(
        api_key="k", http_client=library.Client(transport=library.MockTransport(answer(library)))
    )


def async_client(sdk: Any, owner: str, library: Any) -> Any:
    return getattr(sdk, owner)(
        api_key="k", http_client=library.AsyncClient(transport=library.MockTransport(answer(library)))
    )


REFUSED: list[tuple[str, Callable[[bool], Any], dict[str, Any], type[Exception], str | None]] = [
    ("openai chat", lambda s: _make(openai, s).chat.completions, {"model": "gpt-5"}, TypeError, "gpt-5"),
    ("openai embeddings", lambda s: _make(openai, s).embeddings, {"model": "small"}, TypeError, "small"),
    ("anthropic", lambda s: _make(anthropic, s).messages, {"model": "claude"}, TypeError, "claude"),
    (
        "anthropic, too long",
        lambda s: _make(anthropic, s).messages,
        {"model": "claude", "messages": [], "max_tokens": 10**7},
        ValueError,
        "claude",
    ),
    ("groq", lambda s: _make(groq, s).chat.completions, {"model": "llama"}, TypeError, "llama"),
]


def _make(sdk: Any, sync: bool) -> Any:
    owner = {openai: "OpenAI", anthropic: "Anthropic", groq: "Groq"}[sdk]
    library = httpx if sdk is groq else httpx2
    return sync_client(sdk, owner, library) if sync else async_client(sdk, f"Async{owner}", library)


@pytest.fixture
def recorded() -> Iterator[Recording]:
    with recording() as known:
        yield known


def call(method: Any, arguments: dict[str, Any], *, sync: bool) -> Any:
    if sync:
        return method(**arguments)

    async def main() -> Any:
        return await method(**arguments)

    return asyncio.run(main())


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("resource", "arguments", "error", "model"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_refused_call_is_a_step_with_its_error_and_no_attempt(
    recorded: Recording,
    resource: Callable[[bool], Any],
    arguments: dict[str, Any],
    error: type[Exception],
    model: str | None,
    sync: bool,
) -> None:
    with pytest.raises(error) as raised:
        call(resource(sync).create, arguments, sync=sync)
    step = recorded.step
    assert (step.status, step.error["type"], step.model) == (Status.ERROR, error.__name__, model)
    assert step.error["message"][:40] == str(raised.value)[:40]  # the fragment of a URL is redacted
    assert recorded.attempts == []
    assert recorded.run.status is Status.ERROR


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("sdk", [openai, groq], ids=["openai", "groq"])
def test_a_call_that_is_sent_is_one_step_and_one_attempt(recorded: Recording, sdk: Any, sync: bool) -> None:
    messages = [{"role": "user", "content": "Hello?"}]
    found = call(_make(sdk, sync).chat.completions.create, {"model": "gpt-5", "messages": messages}, sync=sync)
    assert found.choices[0].message.content == "Hello!"
    assert (recorded.step.status, recorded.step.model) == (Status.COMPLETED, "gpt-5")
    assert recorded.attempt.step_id == recorded.step.id


def test_the_methods_are_what_they_were_but_for_the_wrapper() -> None:
    resources = (openai.resources.chat.Completions, anthropic.resources.Messages, anthropic.resources.AsyncMessages)
    before = [
        (owner.create, inspect.signature(owner.create), inspect.iscoroutinefunction(owner.create))
        for owner in resources
    ]
    with recording():
        for owner, (original, signature, is_async) in zip(resources, before, strict=True):
            assert owner.create is not original
            assert inspect.signature(owner.create) == signature
            assert inspect.iscoroutinefunction(owner.create) == is_async
    assert [owner.create for owner in resources] == [row[0] for row in before]
