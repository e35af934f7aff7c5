"""The contract of every SDK: one call is one step, its requests are the attempts, and each ending has its status."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Provider
from otel_chatdebug.records import AttemptRecord, StepRecord
from otel_chatdebug.status import Status
from tests.sdks.callers import CALLERS, GENAI, Caller, close, do, run
from tests.support.recording import Recording

TIMEOUT = 0.5
"""Seconds that a client waits for what never comes."""

EVERY_CALLER = pytest.mark.parametrize("caller", CALLERS, ids=str)
ASYNC_CALLERS = pytest.mark.parametrize("caller", [caller for caller in CALLERS if caller.asynchronous], ids=str)

PROVIDERS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "groq": "groq",
    "mistralai": "mistral_ai",
    "google-genai": "gcp.gemini",
}


def ended(recorded: Recording, caller: Caller, *statuses: Status) -> tuple[StepRecord, list[AttemptRecord]]:
    """The only step of the only run, whose attempts ended with ``statuses``, and whose end is that of the last."""
    step, attempts = recorded.step, recorded.attempts
    assert [attempt.status for attempt in attempts] == list(statuses)
    assert [attempt.number for attempt in attempts] == list(range(1, len(statuses) + 1))
    assert {attempt.step_id for attempt in attempts} == {step.id}
    assert {attempt.rank for attempt in attempts} == {3}
    assert step.status is statuses[-1]
    assert step.run_id == recorded.run.id
    assert step.provider == PROVIDERS[caller.sdk]
    assert step.model is not None
    assert step.model.split("-")[0] in ("gpt", "claude", "llama", "mistral", "gemini")
    assert all(
        attempt.id in recorded.spans and attempt.step_id in recorded.ancestors(attempt.id) for attempt in attempts
    )
    return step, attempts


def tokens(step: StepRecord) -> tuple[int, int]:
    """Input and output."""
    return step.usage["input_tokens"], step.usage["output_tokens"]


@EVERY_CALLER
def test_an_answer_in_one_piece(caller: Caller, provider: Provider, recorded: Recording) -> None:
    provider.script(caller.api.whole())

    async def main() -> None:
        client = caller.client(provider.url)
        await do(caller.whole(client))
        await close(client)

    run(main())
    step, (attempt,) = ended(recorded, caller, Status.COMPLETED)
    assert (step.operation, step.error) == ("generate", None)
    assert tokens(step) == caller.api.whole_tokens
    assert attempt.response_status == 200
    assert recorded.run.status is Status.COMPLETED


@EVERY_CALLER
def test_a_stream_that_is_read_to_its_end(caller: Caller, provider: Provider, recorded: Recording) -> None:
    provider.script(caller.api.streamed())

    async def main() -> None:
        client = caller.client(provider.url)
        assert [item async for item in caller.items(client)]
        await close(client)

    run(main())
    step, (attempt,) = ended(recorded, caller, Status.COMPLETED)
    assert step.operation == "stream"
    assert tokens(step) == caller.api.stream_tokens
    assert attempt.events == len(caller.api.events)


@EVERY_CALLER
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_429_and_then_an_answer_are_one_step(
    streamed: bool, caller: Caller, provider: Provider, recorded: Recording
) -> None:
    provider.script(caller.api.limited(), caller.api.streamed() if streamed else caller.api.whole())

    async def main() -> None:
        client = caller.client(provider.url, retries=2)
        with chatdebug.run("chat_turn", chat_id="c"):
            if streamed:
                assert [item async for item in caller.items(client)]
            else:
                await do(caller.whole(client))
        await close(client)

    run(main())
    step, (first, second) = ended(recorded, caller, Status.ERROR, Status.COMPLETED)
    assert step.chat_id == "c"
    assert (first.response_status, second.response_status) == (429, 200)
    assert first.error["status_code"] == 429
    assert first.error["retryable"] is True
    if caller.sdk != "mistralai" and not (caller.api.name == "interactions" and GENAI == 1):  # by time, or not told
        assert first.error["retries_left"] == 2
    assert tokens(step) == (caller.api.stream_tokens if streamed else caller.api.whole_tokens)


@EVERY_CALLER
def test_a_call_that_is_given_up_is_an_error_with_what_the_provider_says(
    caller: Caller, provider: Provider, recorded: Recording
) -> None:
    provider.script(caller.api.limited())

    async def main() -> None:
        client = caller.client(provider.url)
        with pytest.raises(Exception, match=r"429|[Rr]ate|quota"):
            await do(caller.whole(client))
        await close(client)

    run(main())
    step, (attempt,) = ended(recorded, caller, Status.ERROR)
    assert step.error["status_code"] == 429
    assert step.error["message"]
    assert step.error.get("code") == caller.api.code
    assert step.error["request_id"] == "req_demo"
    by_speakeasy = caller.sdk == "mistralai" or (caller.api.name == "interactions" and GENAI > 1)
    if not by_speakeasy:  # which makes an exception of the answer when its call has returned
        assert step.error["exception"]
    untold = caller.sdk in ("mistralai", "google-genai") and caller.api.name != "interactions"
    assert attempt.error["retryable"] is not untold
    if not (caller.api.name == "interactions" and GENAI == 1):
        assert attempt.error["retries_left"] == 0


@EVERY_CALLER
def test_a_stream_that_is_broken_off(caller: Caller, provider: Provider, recorded: Recording) -> None:
    provider.script(caller.api.streamed(stall_after=1))

    async def main() -> None:
        client = caller.client(provider.url)
        items = caller.items(client)
        async for _ in items:
            break
        await items.aclose()  # type: ignore[attr-defined]
        del items
        gc.collect()
        await asyncio.sleep(0)  # what the loop closes in a task of its own
        await close(client)

    run(main())
    gc.collect()
    ended(recorded, caller, Status.INTERRUPTED)


@EVERY_CALLER
def test_a_stream_that_is_dropped_without_being_read(caller: Caller, provider: Provider, recorded: Recording) -> None:
    provider.script(caller.api.streamed(stall_after=1))

    async def main() -> None:
        client = caller.client(provider.url)
        stream = await do(caller.stream(client))
        del stream
        gc.collect()
        await asyncio.sleep(0)
        await close(client)

    run(main())
    gc.collect()
    if caller.lazy and not provider.requests:
        assert recorded.runs == []
    else:
        ended(recorded, caller, Status.INTERRUPTED)


@EVERY_CALLER
def test_a_stream_that_comes_to_a_halt(caller: Caller, provider: Provider, recorded: Recording) -> None:
    provider.script(caller.api.streamed(stall_after=1))

    async def main() -> None:
        client = caller.client(provider.url, retries=1, timeout=TIMEOUT)
        with pytest.raises(Exception):  # noqa: B017, PT011  # each SDK has its own, or lets the library's through
            async for _ in caller.items(client):
                pass
        await close(client)

    run(main())
    step, (attempt,) = ended(recorded, caller, Status.ERROR)
    assert attempt.error["cause"] == "read_timeout"
    assert attempt.error["events"] == attempt.events == 1
    assert attempt.error["bytes_received"] == attempt.bytes_received == len(caller.api.events[0])
    assert attempt.error["retryable"] is False  # a stream that has begun is not asked for again
    assert step.error["cause"] == "read_timeout"


@EVERY_CALLER
def test_a_stream_whose_connection_is_cut(caller: Caller, provider: Provider, recorded: Recording) -> None:
    provider.script(caller.api.streamed(cut_after=1))

    async def main() -> None:
        client = caller.client(provider.url, retries=1)
        with pytest.raises(Exception):  # noqa: B017, PT011
            async for _ in caller.items(client):
                pass
        await close(client)

    run(main())
    step, (attempt,) = ended(recorded, caller, Status.ERROR)
    assert attempt.error["cause"] == step.error["cause"] == "disconnected"
    assert attempt.error["retryable"] is False


@ASYNC_CALLERS
def test_a_task_that_is_cancelled(caller: Caller, provider: Provider, recorded: Recording) -> None:
    behaviour = caller.api.streamed(stall_after=1)
    provider.script(behaviour)

    async def main() -> None:
        client = caller.client(provider.url)
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in caller.items(client):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()
        await close(client)

    run(main())
    gc.collect()
    ended(recorded, caller, Status.INTERRUPTED)


@ASYNC_CALLERS
def test_a_task_that_is_cancelled_before_there_is_an_answer(
    caller: Caller, provider: Provider, recorded: Recording
) -> None:
    behaviour = caller.api.whole(stall_headers=True)
    provider.script(behaviour)

    async def main() -> None:
        client = caller.client(provider.url)
        task = asyncio.create_task(do(caller.whole(client)))
        assert await asyncio.to_thread(behaviour.wait_held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await close(client)

    run(main())
    ended(recorded, caller, Status.INTERRUPTED)


@EVERY_CALLER
def test_calls_of_one_run_are_steps_of_their_own(caller: Caller, provider: Provider, recorded: Recording) -> None:
    provider.script(caller.api.whole(), caller.api.streamed())

    async def main() -> Any:
        client = caller.client(provider.url)
        with chatdebug.run("chat_turn") as known:
            await do(caller.whole(client))
            assert [item async for item in caller.items(client)]
        await close(client)
        return known

    known = run(main())
    assert [(step.step_number, step.operation, step.run_id) for step in recorded.steps] == [
        (1, "generate", known.id),
        (2, "stream", known.id),
    ]
    assert [len(recorded.of_step(step)) for step in recorded.steps] == [1, 1]
    assert recorded.run.status is Status.COMPLETED
