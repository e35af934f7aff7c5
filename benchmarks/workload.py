"""What is measured: two calls of the real openai SDK, answered in this process and at once.

Nothing is waited for and no socket is there, so what remains is the work of the SDK and of httpx2: a smaller base than
any real call's, against which instrumentation looks as dear as it can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx2
import openai

STREAM_CHUNKS: Final = 500
"""Chunks of the stream, the terminal ``[DONE]`` included; each is one event."""

EVENT_SIZE: Final = 250
"""Bytes of an event, about: what api.openai.com sends for a token."""

_MODEL: Final = "gpt-5-mini"
_MESSAGES: Final[Any] = [
    {"role": "system", "content": "You are a helpful assistant who answers in a few sentences."},
    {"role": "user", "content": "Why is the sea blue, and why is a glass of its water not?"},
]
_COMMON: Final = {"id": "chatcmpl-0123456789abcdefghijklmn", "created": 1750000000, "model": "gpt-5-mini-2025-08-07"}
_USAGE: Final = {"prompt_tokens": 42, "completion_tokens": 497, "total_tokens": 539}


def _json_body() -> bytes:
    message = {"role": "assistant", "content": "Water takes away red light first. " * 8, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json.dumps({**_COMMON, "object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()


def _event(delta: dict[str, Any] | None, *, finish_reason: str | None = None, usage: Any = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    event = {
        **_COMMON,
        "object": "chat.completion.chunk",
        "system_fingerprint": None,
        "choices": choices,
        "usage": usage,
    }
    return f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()


def _stream_chunks() -> list[bytes]:
    chunks = [_event({"role": "assistant", "content": "", "refusal": None})]
    chunks += [_event({"content": f" word{number}"}) for number in range(STREAM_CHUNKS - 4)]
    chunks += [_event({}, finish_reason="stop"), _event(None, usage=_USAGE), b"data: [DONE]\n\n"]
    assert len(chunks) == STREAM_CHUNKS
    assert abs(len(chunks[1]) - EVENT_SIZE) < EVENT_SIZE // 10, len(chunks[1])
    return chunks


class Chunks(httpx2.SyncByteStream):
    """A body that is handed over piece by piece, as one from a socket; ready content would be a path of its own."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks


class InProcessTransport(httpx2.BaseTransport):
    """Answers each request at once: with a stream where one was asked for."""

    def __init__(self) -> None:
        body = _json_body()
        self._json = [body]
        self._json_headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-request-id", "req_0123456789abcdef"),
        ]
        self._stream = _stream_chunks()
        self._stream_headers = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("transfer-encoding", "chunked"),
            ("x-request-id", "req_0123456789abcdef"),
        ]

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if b'"stream":true' in request.read():
            return httpx2.Response(200, headers=self._stream_headers, stream=Chunks(self._stream))
        return httpx2.Response(200, headers=self._json_headers, stream=Chunks(self._json))


class Application:
    """The user of the SDK: one client for all calls, plain and instrumented."""

    def __init__(self) -> None:
        self.http = httpx2.Client(transport=InProcessTransport(), trust_env=False)
        self._client = openai.OpenAI(api_key="none", base_url="http://model.invalid/v1", http_client=self.http)

    def json_call(self) -> None:
        answer = self._client.chat.completions.create(model=_MODEL, messages=_MESSAGES)
        assert answer.choices[0].message.content

    def stream_call(self) -> None:
        stream = self._client.chat.completions.create(
            model=_MODEL, messages=_MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        seen = 0
        for _ in stream:
            seen += 1
        assert seen == STREAM_CHUNKS - 1  # the SDK keeps [DONE] for itself

    def workloads(self) -> dict[str, Callable[[], None]]:
        return {"json": self.json_call, "stream": self.stream_call}
