"""OpenAI chat completions, and the many that speak it: Azure, Groq, Mistral, vLLM, OpenRouter, DeepSeek, ...

A stream is ``data: {chunk}`` events without names, and ends with ``data: [DONE]``. Usage stands in the last chunk, if
it was asked for (``stream_options.include_usage``); Groq has it under ``x_groq``. Completion counts include reasoning,
prompt counts include what was cached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.reading import (
    count,
    error_from_body,
    items,
    loads,
    mapping,
    name,
    request_options,
    set_finish_reason,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage, WireError

_DONE = b"[DONE]"


class OpenAIChat:
    """``POST .../chat/completions``."""

    name = "openai.chat"
    provider = "openai"
    operation = "chat"
    has_terminal = True
    path = re.compile(r"/chat/completions/?$")
    # One literal to start with keeps the scan at C speed (an alternation over the whole is four times slower).
    # [DONE] needs no mark here: events that short are always read.
    markers = re.compile(rb'"(?:finish_reason":\s*"|usage":\s*\{|error"(?!\s*:\s*null))')

    def request_facts(self, body: Mapping[str, Any]) -> RequestFacts:
        """What the request asks for."""
        return RequestFacts(
            model=name(body.get("model")),
            stream=body.get("stream") is True,
            options=request_options(body, "stop"),
        )

    def read_event(self, facts: Facts, event: str | None, data: bytes) -> None:
        """Folds one event into ``facts``."""
        if data.strip() == _DONE:
            facts.terminal = True
        else:
            self.read_json(facts, loads(data))

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole body, or a chunk of a stream, into ``facts``."""
        if not isinstance(body, dict):
            return
        facts.model = facts.model or name(body.get("model"))
        facts.response_id = facts.response_id or name(body.get("id"))
        for choice in items(body.get("choices")):
            set_finish_reason(facts, mapping(choice).get("index", 0), mapping(choice).get("finish_reason"))
        groq = mapping(body.get("x_groq"))
        facts.usage = _usage(body.get("usage") or groq.get("usage")) or facts.usage
        facts.error = facts.error or _error(body, groq)

    def normalize_request(self, body: Any) -> dict[str, Any] | None:
        """The request's messages, tools and options in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        return shapes.request(
            [_message(message, budget) for message in items(body.get("messages"))],
            [_tool(tool) for tool in items(body.get("tools")) + items(body.get("functions"))],
            shapes.options(body, "messages", "tools", "functions", "tool_choice"),
            body.get("tool_choice"),
        )

    def assemble(self, events: Iterable[tuple[str | None, bytes]]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first chunk."""
        budget = shapes.Budget.streamed()
        facts = Facts()
        choices: dict[int, _Choice] = {}
        seen = False
        for _, data in events:
            chunk = mapping(loads(data))
            if not seen or self.markers.search(data):  # the others say nothing but text
                self.read_json(facts, chunk)
            for raw in items(chunk.get("choices")):
                choice = mapping(raw)
                index = choice.get("index", 0)
                if isinstance(index, int) and 0 <= index < shapes.MAX_PARTS:
                    choices.setdefault(index, _Choice(budget)).add(choice)
            seen = seen or "choices" in chunk
        if not seen:
            return None
        messages = [choices[index].message() for index in sorted(choices)]
        return shapes.response(messages, facts.finish_reasons, facts.model, facts.response_id)

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            return None
        facts = Facts()
        self.read_json(facts, body)
        budget = shapes.Budget()
        messages = [self.choice_message(mapping(choice), budget) for choice in body["choices"]]
        return shapes.response(messages, facts.finish_reasons, facts.model, facts.response_id)

    def choice_message(self, choice: Mapping[str, Any], budget: shapes.Budget) -> shapes.Message:
        """The message of one choice of a whole response."""
        return _message(choice.get("message"), budget)


class _Choice:
    """The message of one choice, as its deltas come in."""

    __slots__ = ("_budget", "_calls", "_reasoning", "_refusal", "_role", "_text")

    def __init__(self, budget: shapes.Budget) -> None:
        self._budget = budget
        self._role: str | None = None
        self._text = shapes.Text(budget)
        self._reasoning = shapes.Text(budget)
        self._refusal = shapes.Text(budget)
        self._calls: dict[int, _Call] = {}

    def add(self, choice: Mapping[str, Any]) -> None:
        self._text.add(choice.get("text"))  # the older completions have no delta
        delta = mapping(choice.get("delta"))
        self._role = self._role or name(delta.get("role"))
        self._add_content(delta.get("content"))
        # Two names for the same: DeepSeek and vLLM say reasoning_content, Groq and OpenRouter reasoning.
        self._reasoning.add(delta.get("reasoning_content") or delta.get("reasoning"))
        self._refusal.add(delta.get("refusal"))
        for call in items(delta.get("tool_calls")):
            self._add_call(mapping(call))
        if legacy := mapping(delta.get("function_call")):
            self._add_call({"index": 0, "function": legacy})

    def message(self) -> shapes.Message:
        parts = []
        if self._reasoning.length:
            parts.append(self._reasoning.into({"type": "reasoning"}))
        if self._text.length:
            parts.append(self._text.into({"type": "text"}))
        if self._refusal.length:
            parts.append(self._refusal.into({"type": "text", "refusal": True}))
        parts += [call.part() for call in self._calls.values()]
        return {"role": self._role or "assistant", "parts": parts}

    def _add_content(self, content: Any) -> None:
        self._text.add(content)
        for chunk in map(mapping, items(content)):  # Mistral: a list of typed chunks
            self._text.add(chunk.get("text"))
            for thought in items(chunk.get("thinking")):
                self._reasoning.add(mapping(thought).get("text"))

    def _add_call(self, call: Mapping[str, Any]) -> None:
        index = call.get("index")
        if not isinstance(index, int):  # some gateways number nothing and send calls whole
            index = len(self._calls) if call.get("id") or not self._calls else len(self._calls) - 1
        if index not in self._calls:
            if len(self._calls) >= shapes.MAX_PARTS:
                return
            self._calls[index] = _Call(self._budget)
        self._calls[index].add(call)


class _Call:
    """One tool call: its id and name come first, its arguments in fragments."""

    __slots__ = ("_arguments", "_id", "_name")

    def __init__(self, budget: shapes.Budget) -> None:
        self._id: str | None = None
        self._name: str | None = None
        self._arguments = shapes.Text(budget)

    def add(self, call: Mapping[str, Any]) -> None:
        function = mapping(call.get("function"))
        self._id = self._id or name(call.get("id"))
        self._name = self._name or name(function.get("name"))
        self._arguments.add(function.get("arguments"))

    def part(self) -> shapes.Part:
        return self._arguments.into_tool_call(self._id, self._name)


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt = mapping(usage.get("prompt_tokens_details"))
    completion = mapping(usage.get("completion_tokens_details"))
    input_tokens = count(usage.get("prompt_tokens"))
    output_tokens = count(usage.get("completion_tokens"))
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total(usage.get("total_tokens"), input_tokens, output_tokens),
        reasoning_tokens=count(completion.get("reasoning_tokens")),
        cache_read_tokens=count(prompt.get("cached_tokens")),
        cache_creation_tokens=count(prompt.get("cache_write_tokens")),
    )


def _error(body: Mapping[str, Any], groq: Mapping[str, Any]) -> WireError | None:
    if error := groq.get("error"):  # Groq: why a stream was stopped early
        return error_from_body({"error": error})
    return error_from_body(body) if not body.get("choices") or body.get("error") else None


def _message(value: Any, budget: shapes.Budget) -> shapes.Message:
    if not isinstance(value, dict):
        return {"role": "unknown", "parts": [shapes.unknown_part(value, budget)]}
    role = name(value.get("role")) or "assistant"
    if role in ("tool", "function"):
        id = value.get("tool_call_id") or value.get("name")
        return {"role": "tool", "parts": [shapes.tool_result_part(id, _result(value.get("content"), budget), budget)]}
    parts = []
    if isinstance(reasoning := value.get("reasoning_content") or value.get("reasoning"), str) and reasoning:
        parts.append(shapes.reasoning_part(reasoning, budget))
    parts += _content(value.get("content"), budget)
    if isinstance(refusal := value.get("refusal"), str) and refusal:
        parts.append(shapes.refusal_part(refusal, budget))
    for call in items(value.get("tool_calls")):
        parts.append(_tool_call(call, budget))
    if legacy := mapping(value.get("function_call")):
        parts.append(shapes.tool_call_part(None, legacy.get("name"), legacy.get("arguments"), budget))
    if not parts and "content" not in value:
        parts.append(shapes.unknown_part(value, budget))
    return {"role": role, "parts": parts}


def _content(content: Any, budget: shapes.Budget) -> list[shapes.Part]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [shapes.text_part(content, budget)]
    if isinstance(content, list):
        return [_part(part, budget) for part in content]
    return [shapes.unknown_part(content, budget)]


def _result(content: Any, budget: shapes.Budget) -> str | list[shapes.Part]:
    return content if isinstance(content, str) else _content(content, budget)


def _part(value: Any, budget: shapes.Budget) -> shapes.Part:
    part = mapping(value)
    kind = part.get("type")
    if kind == "text" and isinstance(text := part.get("text"), str):
        return shapes.text_part(text, budget)
    if kind == "refusal" and isinstance(text := part.get("refusal"), str):
        return shapes.refusal_part(text, budget)
    if kind == "thinking":  # Mistral
        thoughts = "".join(str(mapping(thought).get("text", "")) for thought in items(part.get("thinking")))
        return shapes.reasoning_part(thoughts, budget)
    if kind == "image_url":
        image = part.get("image_url")
        return shapes.data_part("image", url=mapping(image).get("url") if isinstance(image, dict) else image)
    if kind == "input_audio":
        audio = mapping(part.get("input_audio"))
        return shapes.data_part("file", media_type=f"audio/{audio.get('format')}", data=audio.get("data"))
    if kind == "file":
        file = mapping(part.get("file"))
        return shapes.data_part("file", data=file.get("file_data"), name=file.get("filename"), id=file.get("file_id"))
    return shapes.unknown_part(value, budget)


def _tool_call(value: Any, budget: shapes.Budget) -> shapes.Part:
    call = mapping(value)
    if isinstance(call.get("function"), dict):
        function = call["function"]
        return shapes.tool_call_part(call.get("id"), function.get("name"), function.get("arguments"), budget)
    if isinstance(call.get("custom"), dict):
        custom = call["custom"]
        return shapes.tool_call_part(call.get("id"), custom.get("name"), custom.get("input"), budget)
    return shapes.unknown_part(value, budget)


def _tool(value: Any) -> dict[str, Any]:
    function = mapping(value).get("function", value)
    return shapes.tool(function if isinstance(function, dict) else value, "parameters")
