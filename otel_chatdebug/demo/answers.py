"""What a model provider says: bodies of OpenAI chat completions, OpenAI responses and Anthropic messages.

Pure functions from what is wanted to the bytes of the wire; `otel_chatdebug.demo.provider` sends them. The shapes were
written after the types of the SDKs (openai 3.52, anthropic 2.11), which parse all of them; ids and times are constant,
so that two answers can be compared. Token counts mean the same in every format: 1200 go in, 1024 of them from the
cache; 84 come out, 64 of them reasoning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

INPUT_TOKENS = 1200
CACHED_TOKENS = 1024
OUTPUT_TOKENS = 84
REASONING_TOKENS = 64

CREATED = 1767225600
"""2026-01-01, as seconds since 1970: when all answers were made."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a body, written at once."""

    data: bytes
    delta: bool = False
    """Whether it carries text: the pieces that `Behaviour` counts."""


class Format(Protocol):
    """One provider's format."""

    default_model: ClassVar[str]
    request_id_header: ClassVar[str]

    def whole(self, model: str, text: str, *, usage: bool) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        ...

    def stream(self, model: str, deltas: Sequence[str], *, usage: bool, terminal: bool) -> list[Piece]:
        """The events of a streamed answer, one piece each."""
        ...

    def error(self, status: int) -> dict[str, Any]:
        """The body of an answer with a status code of 400 or more."""
        ...

    def error_event(self) -> bytes:
        """The event of an error inside a stream that began well."""
        ...


def sse(data: dict[str, Any] | str, *, event: bool = True) -> bytes:
    """One SSE event. With ``event``, an ``event:`` line repeats the ``type`` of the data, where it has one."""
    if isinstance(data, str):
        return f"data: {data}\n\n".encode()
    name = f"event: {data['type']}\n" if event and "type" in data else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class OpenAIChat(Format):
    """``POST /v1/chat/completions``. A stream ends with ``[DONE]``."""

    default_model = "gpt-4.1-mini-2025-04-14"
    request_id_header = "x-request-id"

    def whole(self, model: str, text: str, *, usage: bool) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        body = self._envelope(model, "chat.completion")
        body["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
        return body | ({"usage": self._usage()} if usage else {})

    def stream(self, model: str, deltas: Sequence[str], *, usage: bool, terminal: bool) -> list[Piece]:
        def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
            body = self._envelope(model, "chat.completion.chunk")
            body["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
            return sse(body | {"usage": None})

        pieces = [Piece(chunk({"role": "assistant", "content": "", "refusal": None}))]
        pieces += [Piece(chunk({"content": text}), delta=True) for text in deltas]
        pieces.append(Piece(chunk({}, "stop")))
        if usage:
            last = self._envelope(model, "chat.completion.chunk") | {"choices": [], "usage": self._usage()}
            pieces.append(Piece(sse(last)))
        if terminal:
            pieces.append(Piece(sse("[DONE]")))
        return pieces

    def error(self, status: int) -> dict[str, Any]:
        return {"error": openai_error(status)}

    def error_event(self) -> bytes:
        return sse({"error": openai_error(500)})

    def _envelope(self, model: str, kind: str) -> dict[str, Any]:
        return {
            "id": "chatcmpl-demo",
            "object": kind,
            "created": CREATED,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": "fp_demo",
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
            "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": REASONING_TOKENS,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


class OpenAIResponses(Format):
    """``POST /v1/responses``. A stream ends with ``response.completed``; there is no ``[DONE]``."""

    default_model = "gpt-5-mini-2025-08-07"
    request_id_header = "x-request-id"

    def whole(self, model: str, text: str, *, usage: bool) -> dict[str, Any]:
        output = [{"id": "rs_demo", "type": "reasoning", "summary": []}, self._message([self._part(text)])]
        return self._response(model, "completed", output, usage=usage)

    def stream(self, model: str, deltas: Sequence[str], *, usage: bool, terminal: bool) -> list[Piece]:
        numbers = iter(range(len(deltas) + 10))
        place = {"item_id": "msg_demo", "output_index": 0, "content_index": 0}
        text = "".join(deltas)

        def event(kind: str, **fields: Any) -> bytes:
            return sse({"type": kind, **fields, "sequence_number": next(numbers)})

        started = self._response(model, "in_progress", [], usage=False)
        begun = self._message([], status="in_progress")
        message = self._message([self._part(text)])
        pieces = [
            Piece(event("response.created", response=started)),
            Piece(event("response.in_progress", response=started)),
            Piece(event("response.output_item.added", output_index=0, item=begun)),
            Piece(event("response.content_part.added", **place, part=self._part(""))),
        ]
        for delta in deltas:
            pieces.append(Piece(event("response.output_text.delta", **place, delta=delta, logprobs=[]), delta=True))
        pieces += [
            Piece(event("response.output_text.done", **place, text=text, logprobs=[])),
            Piece(event("response.content_part.done", **place, part=self._part(text))),
            Piece(event("response.output_item.done", output_index=0, item=message)),
        ]
        if terminal:
            completed = self._response(model, "completed", [message], usage=usage)
            pieces.append(Piece(event("response.completed", response=completed)))
        return pieces

    def error(self, status: int) -> dict[str, Any]:
        return {"error": openai_error(status)}

    def error_event(self) -> bytes:
        error = openai_error(500)
        return sse(
            {
                "type": "error",
                "code": error["type"],
                "message": error["message"],
                "param": None,
                "sequence_number": 0,
            }
        )

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _message(self, content: list[dict[str, Any]], *, status: str = "completed") -> dict[str, Any]:
        return {"id": "msg_demo", "type": "message", "status": status, "role": "assistant", "content": content}

    def _response(self, model: str, status: str, output: list[dict[str, Any]], *, usage: bool) -> dict[str, Any]:
        counts = {
            "input_tokens": INPUT_TOKENS,
            "input_tokens_details": {"cached_tokens": CACHED_TOKENS, "cache_write_tokens": 0},
            "output_tokens": OUTPUT_TOKENS,
            "output_tokens_details": {"reasoning_tokens": REASONING_TOKENS},
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        }
        return {
            "id": "resp_demo",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "model": model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": "medium", "summary": None},
            "service_tier": "default",
            "store": True,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": counts if usage else None,
            "user": None,
            "metadata": {},
        }


class AnthropicMessages(Format):
    """``POST /v1/messages``. A stream ends with ``message_stop``; input tokens do not include cached ones here."""

    default_model = "claude-sonnet-5"
    request_id_header = "request-id"

    def whole(self, model: str, text: str, *, usage: bool) -> dict[str, Any]:
        # The SDK's type demands a usage; without one, the counts are what a proxy that does not count sends.
        counts = self._usage(OUTPUT_TOKENS if usage else 0, counted=usage)
        return self._message(model, [{"type": "text", "text": text}], "end_turn", counts)

    def stream(self, model: str, deltas: Sequence[str], *, usage: bool, terminal: bool) -> list[Piece]:
        start = self._message(model, [], None, self._usage(1 if usage else 0, counted=usage))
        end = self._usage(OUTPUT_TOKENS if usage else 0, counted=usage)
        pieces = [
            Piece(sse({"type": "message_start", "message": start})),
            Piece(sse({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})),
            Piece(sse({"type": "ping"})),
        ]
        for text in deltas:
            delta = {"type": "text_delta", "text": text}
            pieces.append(Piece(sse({"type": "content_block_delta", "index": 0, "delta": delta}), delta=True))
        stop = {"stop_reason": "end_turn", "stop_sequence": None}
        pieces.append(Piece(sse({"type": "content_block_stop", "index": 0})))
        pieces.append(Piece(sse({"type": "message_delta", "delta": stop, "usage": end})))
        if terminal:
            pieces.append(Piece(sse({"type": "message_stop"})))
        return pieces

    def error(self, status: int) -> dict[str, Any]:
        kind, message = _ANTHROPIC_ERRORS.get(status, _ANTHROPIC_ERRORS[500 if status >= 500 else 400])
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_demo"}

    def error_event(self) -> bytes:
        return sse(self.error(529))

    def _message(
        self, model: str, content: list[dict[str, Any]], stop_reason: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": "msg_demo",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": usage,
        }

    def _usage(self, output_tokens: int, *, counted: bool) -> dict[str, Any]:
        return {
            "input_tokens": INPUT_TOKENS - CACHED_TOKENS if counted else 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": CACHED_TOKENS if counted else 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"thinking_tokens": REASONING_TOKENS if output_tokens == OUTPUT_TOKENS else 0},
            "service_tier": "standard",
            "server_tool_use": None,
        }


def openai_error(status: int) -> dict[str, Any]:
    """The inner part of OpenAI's error body for a status code."""
    kind, code, message = _OPENAI_ERRORS.get(status, _OPENAI_ERRORS[500 if status >= 500 else 400])
    return {"message": message, "type": kind, "param": None, "code": code}


_OPENAI_ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request was not understood."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests per min (RPM): Limit 3, Used 3."),
    500: ("server_error", None, "The server had an error while processing your request."),
    503: ("server_error", None, "The server is overloaded."),
}

_ANTHROPIC_ERRORS: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "max_tokens: Field required"),
    401: ("authentication_error", "invalid x-api-key"),
    404: ("not_found_error", "model: not found"),
    429: ("rate_limit_error", "This request would exceed your rate limit."),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}

FORMATS: dict[str, Format] = {
    "/chat/completions": OpenAIChat(),
    "/responses": OpenAIResponses(),
    "/messages": AnthropicMessages(),
}
"""By the end of the path, so that any prefix works (``/v1``, ``/openai/v1``)."""
