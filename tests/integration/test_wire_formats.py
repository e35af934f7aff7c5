"""Every format and framing from a real server through a real client to what is recorded: ending, usage, messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from otel_chatdebug.capture.states import EndReason
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.settings import MODEL_PATHS
from otel_chatdebug.status import Status
from tests.support import frames
from tests.support.recording import Recording, recording
from tests.support.shape import check_request, check_response
from tests.support.transcripts import BODIES, CONTENT_TYPES, STREAMS, Transcript

ASKED: dict[str, Any] = {
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "Hello?"}]}]},
    "bedrock.converse": {"messages": [{"role": "user", "content": [{"text": "Hello?"}]}]},
    "gemini.interactions": {"model": "m", "input": "Hello?", "stream": True},
    "mistral.conversations": {"model": "m", "inputs": "Hello?", "stream": True},
    "ollama.generate": {"model": "qwen3:8b", "prompt": "Hello?"},
    "openai.responses": {"model": "m", "input": "Hello?", "stream": True},
    "bedrock.invoke": {
        "anthropic_version": "bedrock-2023-05-31",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}],
    },
}
"""A request in each format."""

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}], "stream": True}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def seen() -> Iterator[Recording]:
    # Without its SDK nothing tells that a conversation is Mistral's.
    with recording(model_paths=f"{MODEL_PATHS}|/v1/conversations") as seen:
        yield seen


def ask(provider: Provider, stream: Transcript, behaviour: Behaviour, chunks: int | None = None) -> bytes:
    """Sends a request and reads its answer, or only so many chunks of it."""
    provider.script(behaviour)
    body = ASKED.get(stream.format.name, CHAT)
    read = b""
    with httpx.Client() as client, client.stream("POST", provider.url + stream.path, json=body) as response:
        for number, chunk in enumerate(response.iter_raw(), 1):
            read += chunk
            if number == chunks:
                break
    return read


def sent(stream: Transcript, pieces: list[bytes] | None = None) -> Behaviour:
    content_type = CONTENT_TYPES[stream.framing.name]
    return Behaviour(body=stream.pieces() if pieces is None else pieces, content_type=content_type)


def begun(stream: Transcript) -> list[bytes]:
    """The beginning of a stream in which nothing has finished yet."""
    if stream.name.startswith("openrouter"):  # it begins with comments
        return stream.pieces()[:4]
    return stream.pieces()[: 1 if ".tools" in stream.name or "incomplete" in stream.name else 2]


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_a_stream_is_recorded(provider: Provider, seen: Recording, stream: Transcript) -> None:
    assert ask(provider, stream, sent(stream)) == stream.data
    attempt, step = seen.attempt, seen.step
    failed = "errevent" in stream.name or "failed" in stream.name
    assert attempt.status is (Status.ERROR if failed else Status.COMPLETED)
    assert attempt.end_reason == EndReason.SSE_EOF
    assert attempt.events > 1
    assert step.operation == "stream"
    assert step.model
    request, response = seen.content.normalized_request, seen.content.normalized_response
    check_request(request)
    assert request["messages"][0] == {"role": "user", "parts": [{"type": "text", "text": "Hello?"}]}
    assert request["model"] == step.model
    if "failed" in stream.name:
        return
    check_response(response)
    assert response["messages"][0]["parts"] or stream.name == "openai_chat.errevent.sse"
    assert response["usage"] == step.usage
    if "nousage" not in stream.name and not failed:
        assert step.usage
        assert step.usage["input_tokens"]
        assert step.usage["output_tokens"]
    shown = seen.attempt_content.response_body
    assert shown is not None
    assert "REDACTED" not in shown
    if ".text" in stream.name and stream.framing.name != "aws_event_stream":
        assert "wörld" in shown
    if stream.framing.name == "aws_event_stream":
        assert "\\u0000" not in json.dumps(shown)


@pytest.mark.parametrize("stream", [s for s in STREAMS if "errevent" not in s.name and "failed" not in s.name], ids=str)
def test_a_stream_that_is_cut_cleanly_is_incomplete_and_keeps_what_had_come(
    provider: Provider, seen: Recording, stream: Transcript
) -> None:
    ask(provider, stream, sent(stream, begun(stream)))
    attempt = seen.attempt
    assert (attempt.status, attempt.error["type"]) == (Status.ERROR, "incomplete_stream")
    response = seen.content.normalized_response
    check_response(response)
    assert response["messages"] == [] or response["messages"][0]["finish_reason"] is None
    if stream.format.name == "gemini":
        assert response["usage"] == seen.step.usage
        assert response["usage"]["input_tokens"] == 1200


@pytest.mark.parametrize("stream", [s for s in STREAMS if ".text." in s.name], ids=str)
def test_a_stream_that_its_reader_leaves_is_interrupted(
    provider: Provider, seen: Recording, stream: Transcript
) -> None:
    pieces = stream.pieces()
    stall = len(begun(stream))
    behaviour = Behaviour(body=[b"".join(pieces[:stall]), *pieces[stall:]], stall_after=1)
    behaviour.content_type = CONTENT_TYPES[stream.framing.name]
    ask(provider, stream, behaviour, chunks=1)
    behaviour.release()
    assert (seen.attempt.status, seen.attempt.end_reason) == (Status.INTERRUPTED, EndReason.EARLY_CLOSE)
    assert seen.attempt.events


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_a_whole_body_is_recorded(provider: Provider, seen: Recording, body: Transcript) -> None:
    status = int(body.name.split(".")[1]) if body.name.split(".")[1].isdigit() else 200
    provider.script(Behaviour(status=status, body=body.data, content_type="application/json"))
    path = body.path.replace("-stream", "").replace("streamGenerate", "generate")
    with httpx.Client() as client:
        client.post(provider.url + path, json={**ASKED.get(body.format.name, CHAT), "stream": False})
    if status >= 400:
        assert seen.attempt.error["status_code"] == status
        assert seen.attempt.error["message"] not in ("", f"HTTP status {status}")
        return
    assert seen.attempt.status is Status.COMPLETED
    response = seen.content.normalized_response
    check_response(response)
    assert response["usage"] == seen.step.usage
    assert response["messages"] or response["embeddings"]
    assert seen.step.operation == "generate"


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
@pytest.mark.parametrize("name", ["gemini.text.array", "bedrock_converse.text.frames", "ollama_chat.text.ndjson"])
def test_a_stream_under_a_wrong_type_is_known_by_its_first_bytes(
    provider: Provider, seen: Recording, name: str, content_type: str
) -> None:
    stream = next(stream for stream in STREAMS if stream.name == name)
    ask(provider, stream, Behaviour(body=stream.pieces(), content_type=content_type))
    assert (seen.attempt.status, seen.attempt.end_reason) == (Status.COMPLETED, EndReason.SSE_EOF)
    assert seen.step.usage


def test_a_frame_whose_checksum_is_wrong_ends_what_can_be_known(provider: Provider, seen: Recording) -> None:
    stream = next(stream for stream in STREAMS if stream.name == "bedrock_converse.text.frames")
    pieces = stream.pieces()
    broken = bytearray(pieces[2])
    broken[20] ^= 1
    ask(provider, stream, sent(stream, [*pieces[:2], bytes(broken), *pieces[3:]]))
    assert (seen.attempt.status, seen.attempt.events) == (Status.ERROR, 2)
    assert seen.attempt.error["type"] == "incomplete_stream"


def test_an_unknown_host_that_speaks_as_a_known_one_is_read(
    provider: Provider, seen: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    import otel_chatdebug as chatdebug

    stream = next(stream for stream in STREAMS if stream.name == "deepseek.text.sse")
    provider.script(sent(stream), sent(stream, stream.pieces()[:2]))
    for status in (Status.COMPLETED, Status.ERROR):
        with chatdebug.step(capture="all") as step, httpx.Client() as client:
            client.post(provider.url + "/llm/proxy", json=CHAT)
        record = seen.get(step.id)
        assert record.status is status
        assert record.model == "m"
    first = seen.of_step(seen.steps[0])[0]
    assert (first.end_reason, first.error) == (EndReason.SSE_EOF, None)
    assert seen.steps[0].usage == {
        "input_tokens": 1200,
        "output_tokens": 84,
        "total_tokens": 1284,
        "reasoning_tokens": 64,
        "cache_read_tokens": 1024,
    }


def test_an_image_in_the_last_event_makes_no_stream_incomplete(provider: Provider, seen: Recording) -> None:
    """It is too large to be looked into; whether it ended the stream is not known, and nothing is made up."""
    stream = next(stream for stream in STREAMS if stream.name == "gemini.text.sse")
    blob = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0K" * 200_000}}
    last = {"candidates": [{"index": 0, "content": {"parts": [blob]}, "finishReason": "STOP"}]}
    pieces = [*stream.pieces()[:2], b"data: " + json.dumps(last).encode() + b"\r\n\r\n"]
    ask(provider, stream, sent(stream, pieces))
    assert seen.attempt.status is Status.COMPLETED
    response = seen.content.normalized_response
    check_response(response)
    assert response["warnings"][-1]["type"] == "oversized_event"
    assert "iVBORw0K" not in json.dumps(response)


def test_frames_that_throttle_say_so(provider: Provider, seen: Recording) -> None:
    stream = next(stream for stream in STREAMS if stream.name == "bedrock_converse.errevent.frames")
    assert frames.event("throttlingException", {"message": "x"}).count(b":exception-type") == 1
    ask(provider, stream, sent(stream))
    assert seen.attempt.error["type"] == "throttlingException"
    assert seen.attempt.error["message"].startswith("Too many tokens")


@pytest.mark.parametrize("as_url", [True, False], ids=["data URL", "plain base64"])
def test_a_request_with_an_image_of_megabytes_is_normalised(provider: Provider, seen: Recording, as_url: bool) -> None:
    """Its data is never kept; all around it is."""
    data = "iVBORw0K" * 1_000_000
    image = (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        if as_url
        else {"type": "file", "file": {"filename": "cat.png", "file_data": data}}
    )
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]}
    provider.script(Behaviour())
    with httpx.Client() as client:
        client.post(f"{provider.url}/v1/chat/completions", json=body)
    request = seen.content.normalized_request
    check_request(request)
    text, part = request["messages"][0]["parts"]
    assert text["text"] == "What is it?"
    assert part["bytes"] == 6_000_000
    shown = seen.attempt_content.request_body
    assert shown is not None
    assert "What is it?" in shown
    assert len(shown) < 1000
