"""Every way to call the anthropic SDK: its stream helper, batches, and what is no model call."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import anthropic
import pytest

from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.status import Status
from tests.sdks.answers import MESSAGES
from tests.sdks.callers import ASK, do, run
from tests.support.recording import Recording

CALL: Any = {"model": "claude-sonnet-5", "messages": ASK, "max_tokens": 100}

BATCH = {
    "id": "msgbatch_1",
    "type": "message_batch",
    "processing_status": "in_progress",
    "request_counts": {"processing": 1, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
    "ended_at": None,
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-02T00:00:00Z",
    "archived_at": None,
    "cancel_initiated_at": None,
    "results_url": None,
}

twins = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def client(provider: Provider, asynchronous: bool, **more: Any) -> Any:
    owner = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
    return owner(base_url=provider.url, api_key="key", max_retries=1, **more)


async def read(manager: Any) -> Any:
    """The final message of a ``stream()`` helper."""
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            return await stream.get_final_message()
    with manager as stream:
        return stream.get_final_message()


@twins
@pytest.mark.parametrize("file", ["anthropic.text.sse", "anthropic.tools.sse"])
def test_the_stream_helper_is_one_step_with_its_retry(
    file: str, asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    provider.script(MESSAGES.limited(), replace(MESSAGES, stream_file=file).streamed())

    async def main() -> Any:
        sdk = client(provider, asynchronous)
        message = await read(sdk.messages.stream(**CALL))
        await do(sdk.close())
        return message

    message = run(main())
    assert [attempt.status for attempt in recorded.attempts] == [Status.ERROR, Status.COMPLETED]
    assert recorded.step.operation == "stream"
    assert recorded.step.metadata["finish_reasons"] == [message.stop_reason]


@twins
def test_an_overload_in_the_middle_of_a_stream(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(replace(MESSAGES, stream_file="anthropic.errevent.sse").streamed())

    async def main() -> None:
        sdk = client(provider, asynchronous)
        with pytest.raises(anthropic.APIStatusError):
            await read(sdk.messages.stream(**CALL))
        await do(sdk.close())

    run(main())
    assert recorded.attempt.status is recorded.step.status is Status.ERROR
    assert recorded.attempt.error["type"] == "overloaded_error"
    assert recorded.attempt.error["retryable"] is False


@twins
def test_of_a_batch_the_handing_in_is_a_step_and_nothing_else(
    asynchronous: bool, provider: Provider, recorded: Recording
) -> None:
    """What is asked goes out with it; looking after it and fetching the results asks no model for anything."""
    body = json.dumps(BATCH).encode()
    ended = json.dumps({**BATCH, "processing_status": "ended", "results_url": f"{provider.url}/results"}).encode()
    result = {"custom_id": "a", "result": {"type": "canceled"}}
    provider.script(
        Behaviour(body=body),
        Behaviour(body=body),
        Behaviour(body=ended),
        Behaviour(body=json.dumps(result).encode() + b"\n", content_type="application/x-jsonl"),
    )

    async def main() -> None:
        sdk = client(provider, asynchronous)
        batches = sdk.messages.batches
        batch = await do(batches.create(requests=[{"custom_id": "a", "params": CALL}]))
        await do(batches.retrieve(batch.id))
        results = await do(batches.results(batch.id))
        found = [item async for item in results] if asynchronous else list(results)
        assert [item.custom_id for item in found] == ["a"]
        await do(sdk.close())

    run(main())
    assert provider.requests[0].path == "/v1/messages/batches"
    assert len(provider.requests) == 4
    assert recorded.attempt.path == "/v1/messages/batches"
    assert (recorded.step.status, recorded.step.provider) == (Status.COMPLETED, "anthropic")


@twins
def test_what_is_no_model_call_makes_no_step(asynchronous: bool, provider: Provider, recorded: Recording) -> None:
    provider.script(Behaviour(body=b'{"input_tokens": 3}'))

    async def main() -> None:
        sdk = client(provider, asynchronous)
        await do(sdk.messages.count_tokens(model="claude-sonnet-5", messages=ASK))
        with pytest.raises(anthropic.NotFoundError):
            await do(sdk.models.retrieve("claude-sonnet-5"))
        await do(sdk.close())

    run(main())
    assert recorded.runs == []
