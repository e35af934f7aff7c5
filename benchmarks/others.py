"""Other calls than those of `benchmarks.workload`, measured for otel-chatdebug alone: a long stream, and other SDKs.

As there, everything is answered in this process and at once. What an SDK needs is imported when it is used; one that is
not installed is left out.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx2
import openai

from benchmarks.workload import STREAM_CHUNKS, Chunks

LONG_STREAM_EVENTS: Final = 5_000
LONG_STREAM_EVENT_SIZE: Final = 300
"""Bytes of each."""

SDKS: Final = ("anthropic", "google-genai")
"""Distributions; the workloads' names begin with theirs."""

_WORDS: Final = "Water takes away red light first. " * 8
_QUESTION: Final = "Why is the sea blue, and why is a glass of its water not?"

Body = tuple[str, list[bytes]]
"""A content type, and the chunks."""


def _sse(events: list[tuple[str | None, dict[str, Any]]]) -> list[bytes]:
    return [
        (f"event: {name}\n" if name else "").encode()
        + b"data: "
        + json.dumps(data, separators=(",", ":")).encode()
        + b"\n\n"
        for name, data in events
    ]


def _long_stream() -> list[bytes]:
    def event(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return {
            "id": "chatcmpl-0123456789abcdefghijklmn",
            "object": "chat.completion.chunk",
            "created": 1750000000,
            "model": "gpt-5-mini-2025-08-07",
            "choices": [choice],
        }

    bare = len(_sse([(None, event({"content": ""}))])[0])
    text = "x" * (LONG_STREAM_EVENT_SIZE - bare)
    events = [(None, event({"content": text}))] * (LONG_STREAM_EVENTS - 2)
    return [*_sse([*events, (None, event({}, finish_reason="stop"))]), b"data: [DONE]\n\n"]


def _anthropic(stream: bool) -> Body:
    usage = {"input_tokens": 42, "output_tokens": 497}
    message = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5",
        "stop_sequence": None,
    }
    if not stream:
        content = [{"type": "text", "text": _WORDS}]
        whole = {**message, "content": content, "stop_reason": "end_turn", "usage": usage}
        return "application/json", [json.dumps(whole).encode()]
    begun = {**message, "content": [], "stop_reason": None, "usage": usage}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f" word{number}"}}
        for number in range(STREAM_CHUNKS - 5)
    ]
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage}
    events = [{"type": "message_start", "message": begun}, block, *deltas, {"type": "content_block_stop", "index": 0}]
    events += [ended, {"type": "message_stop"}]
    return "text/event-stream", _sse([(str(event["type"]), event) for event in events])


def _gemini(stream: bool) -> Body:
    def answer(text: str, **more: Any) -> dict[str, Any]:
        candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **more}
        usage = {"promptTokenCount": 42, "candidatesTokenCount": 497, "totalTokenCount": 539}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3-flash", "responseId": "r"}

    if not stream:
        return "application/json", [json.dumps(answer(_WORDS, finishReason="STOP")).encode()]
    events = [(None, answer(f" word{number}")) for number in range(STREAM_CHUNKS - 1)]
    return "text/event-stream", _sse([*events, (None, answer("", finishReason="STOP"))])


class _Transport(httpx2.BaseTransport):
    """Answers by the path and by what was asked for."""

    def __init__(self) -> None:
        self._long = ("text/event-stream", _long_stream())
        self._anthropic = {stream: _anthropic(stream) for stream in (False, True)}
        self._gemini = {stream: _gemini(stream) for stream in (False, True)}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path.endswith("/chat/completions"):
            content_type, chunks = self._long
        elif path.endswith("/messages"):
            body = request.read()
            content_type, chunks = self._anthropic[b'"stream":true' in body or b'"stream": true' in body]
        else:
            content_type, chunks = self._gemini[path.endswith(":streamGenerateContent")]
        return httpx2.Response(200, headers={"content-type": content_type}, stream=Chunks(chunks))


class OtherApplication:
    """The user of several SDKs, each with its client."""

    def __init__(self) -> None:
        self.http = httpx2.Client(transport=_Transport(), trust_env=False)

    def workloads(self) -> dict[str, Callable[[], None]]:
        found: dict[str, Callable[[], None]] = {f"a stream of {LONG_STREAM_EVENTS:,} events": self._long_stream()}
        if is_installed("anthropic"):
            found |= {f"anthropic, {name}": call for name, call in self._anthropic()}
        if is_installed("google-genai"):
            found |= {f"google-genai, {name}": call for name, call in self._genai()}
        return found

    def _long_stream(self) -> Callable[[], None]:
        client = openai.OpenAI(api_key="none", base_url="http://model.invalid/v1", http_client=self.http)

        def call() -> None:
            messages: Any = [{"role": "user", "content": _QUESTION}]
            stream = client.chat.completions.create(model="gpt-5-mini", messages=messages, stream=True)
            assert sum(1 for _ in stream) == LONG_STREAM_EVENTS - 1  # the SDK keeps [DONE] for itself

        return call

    def _anthropic(self) -> Iterator[tuple[str, Callable[[], None]]]:
        import anthropic

        # Without the span that the SDK makes of its own: it would be in the plain calls, too.
        client = anthropic.Anthropic(
            api_key="none", base_url="http://model.invalid", http_client=self.http, open_telemetry=False
        )
        given: Any = {
            "model": "claude-sonnet-5",
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": _QUESTION}],
        }

        def json_call() -> None:
            assert client.messages.create(**given).content

        def stream_call() -> None:
            assert sum(1 for _ in client.messages.create(**given, stream=True)) == STREAM_CHUNKS

        yield "JSON", json_call
        yield "stream", stream_call

    def _genai(self) -> Iterator[tuple[str, Callable[[], None]]]:
        from google import genai
        from google.genai import types

        options = types.HttpOptions(base_url="http://model.invalid", httpx_client=self.http)  # type: ignore[arg-type]
        models = genai.Client(api_key="none", http_options=options).models
        given: Any = {"model": "gemini-3-flash", "contents": _QUESTION}

        def json_call() -> None:
            assert models.generate_content(**given).text

        def stream_call() -> None:
            assert sum(1 for _ in models.generate_content_stream(**given)) == STREAM_CHUNKS

        yield "JSON", json_call
        yield "stream", stream_call


def is_installed(distribution: str) -> bool:
    """Whether the SDK is there."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
