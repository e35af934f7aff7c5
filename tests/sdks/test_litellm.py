"""litellm: what the application calls is one step, whatever litellm does to answer it."""

from __future__ import annotations

import gc
from typing import Any

import litellm
import pytest
from litellm.router import Router

import otel_chatdebug as chatdebug
from otel_chatdebug.capture import sdks
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.status import Status
from tests.sdks.answers import CHAT, GEMINI, MESSAGES, Api, embeddings
from tests.sdks.callers import ASK, do, run
from tests.support.recording import Recording

MODELS: list[tuple[str, str, Api]] = [
    ("openai/gpt-5-mini", "/v1", CHAT),
    ("anthropic/claude-sonnet-5", "", MESSAGES),
    ("gemini/gemini-2.5-flash", "", GEMINI),
]

every_model = pytest.mark.parametrize(("model", "path", "api"), MODELS, ids=[model[2].name for model in MODELS])
twins = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def arguments(provider: Provider, model: str, path: str, **more: Any) -> dict[str, Any]:
    base = provider.url + path
    if model.startswith("gemini/"):
        base += f"/models/{model.partition('/')[2]}"  # litellm adds no more than the method
    return {"model": model, "messages": ASK, "api_base": base, "api_key": "key", "max_retries": 0, **more}


def drive(main: Any, asynchronous: bool) -> None:
    """The sync functions are called outside of any event loop, as they should be: there some of them use one."""
    if not asynchronous:
        with pytest.raises(StopIteration):
            main.send(None)
        return

    async def all_of_it() -> None:
        await main
        await litellm.close_litellm_async_clients()

    run(all_of_it())


async def complete(asynchronous: bool, **given: Any) -> Any:
    return await do((litellm.acompletion if asynchronous else litellm.completion)(**given))


async def drain(stream: Any, asynchronous: bool) -> None:
    if asynchronous:  # the stream can be iterated in both ways, whichever it is
        async for _ in stream:
            pass
    else:
        for _ in stream:
            pass


@twins
@every_model
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_one_call_is_one_step(
    streamed: bool, model: str, path: str, api: Api, asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    """The async ones go through aiohttp, where a transport of litellm's own bridges the two."""
    provider.script(api.streamed() if streamed else api.whole())

    async def main() -> None:
        with chatdebug.run("chat_turn"):
            answer = await complete(asynchronous, **arguments(provider, model, path, stream=streamed))
            if streamed:
                await drain(answer, asynchronous)

    drive(main(), asynchronous)
    # It leaves Anthropic's streams before the terminal event, and counts as who breaks off, but where that event came
    # with the one before it, as it mostly does for the async reader.
    leaves = api is MESSAGES and streamed
    gc.collect()
    allowed = {Status.INTERRUPTED if leaves else Status.COMPLETED} | ({Status.COMPLETED} if asynchronous else set())
    assert recorded.attempt.status in allowed
    assert recorded.step.status is recorded.attempt.status
    assert recorded.step.model == model.partition("/")[2]
    assert recorded.step.operation == ("stream" if streamed else "generate")
    providers = {"chat": "openai", "messages": "anthropic", "gemini": "gcp.gemini"}
    assert recorded.step.provider == providers[api.name]


@twins
@every_model
def test_its_own_retries_are_attempts_of_the_step(
    model: str, path: str, api: Api, asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    provider.script(api.limited(), Behaviour(status=503), api.whole())

    async def main() -> None:
        await complete(asynchronous, **arguments(provider, model, path, num_retries=3))

    drive(main(), asynchronous)
    assert [attempt.response_status for attempt in recorded.attempts] == [429, 503, 200]
    assert recorded.step.status is Status.COMPLETED
    assert recorded.step.error is None


@twins
def test_a_fallback_to_another_model_is_an_attempt_of_the_step(
    asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    provider.script(CHAT.limited(), CHAT.whole())

    async def main() -> None:
        given = arguments(provider, "openai/gpt-5-mini", "/v1", fallbacks=["openai/gpt-5"])
        await complete(asynchronous, **given)

    drive(main(), asynchronous)
    assert [attempt.response_status for attempt in recorded.attempts] == [429, 200]
    assert [request.field("model") for request in provider.requests] == ["gpt-5-mini", "gpt-5"]
    assert (recorded.step.model, recorded.step.status) == ("gpt-5-mini", Status.COMPLETED)


@twins
def test_a_router_is_above_all_that_it_tries(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(CHAT.limited(), CHAT.whole())
    given = {"model": "openai/gpt-5-mini", "api_base": f"{provider.url}/v1", "api_key": "key"}
    router = litellm.Router(
        model_list=[{"model_name": "mine", "litellm_params": given}],
        num_retries=2,
        retry_after=0,
        disable_cooldowns=True,
    )

    async def main() -> None:
        await do((router.acompletion if asynchronous else router.completion)(model="mine", messages=ASK))

    drive(main(), asynchronous)
    assert [attempt.response_status for attempt in recorded.attempts] == [429, 200]
    assert recorded.step.status is Status.COMPLETED


@twins
def test_a_call_that_it_refuses_is_a_step_without_attempts(asynchronous: bool, recorded: Recording) -> None:
    async def main() -> None:
        with pytest.raises(litellm.BadRequestError):
            await complete(asynchronous, model="no-such-provider-at-all", messages=ASK)

    drive(main(), asynchronous)
    assert recorded.attempts == []
    assert (recorded.step.model, recorded.step.status) == ("no-such-provider-at-all", Status.ERROR)


def test_a_stream_of_the_aiohttp_transport_that_is_broken_off(provider: Provider, recorded: Recording) -> None:
    provider.script(CHAT.streamed(stall_after=2))

    async def main() -> None:
        stream = await complete(True, **arguments(provider, "openai/gpt-5-mini", "/v1", stream=True))
        async for _ in stream:
            break
        del stream
        gc.collect()

    drive(main(), True)
    gc.collect()
    assert (recorded.step.status, recorded.attempt.status) == (Status.INTERRUPTED, Status.INTERRUPTED)


@twins
def test_embeddings(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(embeddings("openai"))
    given = {"model": "openai/small", "input": ["Hello?"], "api_base": f"{provider.url}/v1", "api_key": "key"}

    async def main() -> None:
        await do((litellm.aembedding if asynchronous else litellm.embedding)(**given))

    drive(main(), asynchronous)
    assert (recorded.step.model, recorded.step.status) == ("small", Status.COMPLETED)


def test_its_functions_are_what_they_were_when_the_instrumentation_is_off() -> None:
    import inspect

    from tests.support.recording import recording

    before = litellm.completion, litellm.acompletion, litellm.Router.__dict__["acompletion"]
    with recording():
        assert litellm.completion is not before[0]
        assert inspect.iscoroutinefunction(litellm.acompletion)
        assert litellm.completion.__doc__ == before[0].__doc__
    assert (litellm.completion, litellm.acompletion, litellm.Router.__dict__["acompletion"]) == before


def test_its_functions_are_given_back(recorded: Recording) -> None:
    patched = {
        (owner, name): owner.__dict__[name] for owner, name in sdks._patched if "litellm" in owner.__name__.lower()
    }
    assert {name for _, name in patched} >= {"completion", "acompletion"}
    sdks.uninstrument()
    try:
        for (owner, name), wrapper in patched.items():
            assert owner.__dict__[name] is wrapper.__wrapped__
    finally:
        sdks.instrument()
    assert litellm.completion is not patched[litellm, "completion"].__wrapped__  # on again


@pytest.mark.parametrize("name", ["completion", "acompletion", "Router.completion", "Router.acompletion"])
def test_a_version_that_does_not_fit_is_told_and_each_of_its_requests_is_a_step(
    name: str,
    provider: Provider,
    recorded: Recording,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As if a later version had given it another name."""
    provider.script(MESSAGES.limited(), MESSAGES.whole())
    model, path, _ = MODELS[1]
    asked = arguments(provider, model, path)
    owner: Any = Router if "Router" in name else litellm
    method = name.rpartition(".")[2]
    sdks.uninstrument()
    try:
        monkeypatch.setattr(owner, "renamed", getattr(owner, method), raising=False)
        monkeypatch.delattr(owner, method)
        sdks.instrument()
        told = [record for record in caplog.records if record.name == "otel_chatdebug"]
        assert [(record.levelname, name in record.message) for record in told] == [("WARNING", True)]
        assert told[0].message.startswith("litellm.router: " if owner is Router else "litellm: ")

        async def main() -> None:
            if owner is Router:
                params = {key: value for key, value in asked.items() if key != "messages"}
                known = {"model_name": "claude", "litellm_params": params}
                router = Router([known], num_retries=1, retry_after=0)
                await do(router.renamed(model="claude", messages=ASK))  # type: ignore[attr-defined]
            else:
                await do(litellm.renamed(**asked, num_retries=1))

        drive(main(), method == "acompletion")
    finally:
        sdks.uninstrument()
        monkeypatch.undo()
        sdks.instrument()
    assert [attempt.response_status for attempt in recorded.attempts] == [429, 200]
    assert [len(recorded.of_step(step)) for step in recorded.steps] == [1, 1]
    assert [step.status for step in recorded.steps] == [Status.ERROR, Status.COMPLETED]
