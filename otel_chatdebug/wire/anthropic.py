"""Anthropic messages.

A stream is named events: ``message_start`` (model, id, input tokens), content blocks by index (start, deltas, stop),
``message_delta`` (stop reason, cumulative usage), ``message_stop``; ``ping`` in between, ``error`` instead of the end.
``input_tokens`` leaves out what was cached, so that the input as we mean it is the sum of three counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.drafts import Budgets, Text
from otel_chatdebug.wire.reading import (
    Parsed,
    add,
    count,
    error_from_body,
    mapping,
    model_in,
    name,
    request_options,
    set_finish_reason,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage, WireError

MODEL_IN_PATH = re.compile(r"/models/([^/:]+):")
"""The model in ``.../publishers/anthropic/models/MODEL:rawPredict``."""


class AnthropicMessages:
    """``POST .../messages``; at Vertex AI the path names the model."""

    name = "anthropic.messages"
    provider = "anthropic"
    operation = "chat"
    has_terminal = True
    lines = False
    path = re.compile(r"/messages/?$|/publishers/anthropic/models/(?!count-tokens)[^/:]+:(?:streamR|r)awPredict$")
    # In a text that the model writes the quotes are escaped, so this finds only the structure.
    markers = re.compile(rb'"type":\s*"(?:message_(?:start|delta|stop)|error)"')
    repeated = None

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for."""
        return RequestFacts(
            model=name(body.get("model")) or model_in(path, MODEL_IN_PATH),
            stream=body.get("stream") is True,
            options=request_options(body),
        )

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one event into ``facts``."""
        body = mapping(value)
        kind = name(body.get("type")) or event
        if kind == "message_start":
            self.read_json(facts, body.get("message"))
        elif kind == "message_delta":
            set_finish_reason(facts, 0, mapping(body.get("delta")).get("stop_reason"))
            facts.usage = _usage(body.get("usage"), facts.usage)
        elif kind == "message_stop":
            facts.terminal = True
        elif kind == "error":
            facts.error = facts.error or error_from_body(body) or WireError(type="error")

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole message, or an error body, into ``facts``."""
        if not isinstance(body, dict):
            return
        if body.get("type") != "message" and (error := error_from_body(body)):
            facts.error = error
            return
        facts.model = facts.model or name(body.get("model"))
        facts.response_id = facts.response_id or name(body.get("id"))
        set_finish_reason(facts, 0, body.get("stop_reason"))
        facts.usage = _usage(body.get("usage"), facts.usage)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        messages = []
        if system := body.get("system"):
            messages.append(shapes.message("system", _content(system, budget)))
        messages += [_message(message, budget) for message in shapes.listed(body.get("messages"))]
        return shapes.request(
            self.name,
            body,
            messages,
            ("system", "messages", "tools", "tool_choice"),
            model=name(body.get("model")) or model_in(path, MODEL_IN_PATH),
            tools=[shapes.tool(tool, "input_schema") for tool in shapes.listed(body.get("tools"))],
            tool_choice=shapes.tool_choice(body.get("tool_choice")),
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first block or message."""
        budgets = Budgets()
        facts = Facts()
        blocks: dict[int, _Block] = {}
        started = False
        for event, value in events:
            self.read_event(facts, event, value)
            body = mapping(value)
            kind = name(body.get("type")) or event
            started = started or kind == "message_start"
            index = body.get("index")
            if not isinstance(index, int):
                continue
            if index not in blocks and len(blocks) < shapes.MAX_PARTS:
                blocks[index] = _Block(budgets)
            if block := blocks.get(index):
                if kind == "content_block_start":
                    block.start(mapping(body.get("content_block")))
                elif kind == "content_block_delta":
                    block.add(mapping(body.get("delta")))
        if not started and not blocks:
            return None
        return self._response(facts, [part for index in sorted(blocks) for part in blocks[index].parts()], {})

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        if not isinstance(body, dict) or not isinstance(body.get("content"), list):
            return None
        facts = Facts()
        self.read_json(facts, body)
        return self._response(facts, _content(body["content"], shapes.Budget()), body)

    def _response(self, facts: Facts, parts: list[shapes.Part], body: Mapping[str, Any]) -> dict[str, Any]:
        reason = facts.finish_reasons[0] if facts.finish_reasons else None
        return shapes.response(self.name, [shapes.answer(None, parts, reason)], facts, shapes.warnings_of(body))


class _Block:
    """One content block, as its deltas come in."""

    __slots__ = ("_budgets", "_citations", "_input", "_text", "_value")

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._value: Mapping[str, Any] = {}
        self._text: Text | None = None
        self._input = Text(budgets.said)
        self._citations: list[Any] = []

    def start(self, value: Mapping[str, Any]) -> None:
        self._value = value
        self._add_text(value.get("text") or value.get("thinking"))

    def add(self, delta: Mapping[str, Any]) -> None:
        if not self._value:  # a stream that was joined in its middle
            kinds = {"thinking_delta": "thinking", "input_json_delta": "tool_use"}
            self._value = {"type": kinds.get(str(delta.get("type")), "text")}
        self._add_text(delta.get("text") or delta.get("thinking"))
        self._input.add(delta.get("partial_json"))
        if "citation" in delta and len(self._citations) < shapes.MAX_OTHER:
            self._citations.append(shapes.bounded(delta["citation"]))

    def parts(self) -> list[shapes.Part]:
        """None for a block in which nothing has come yet."""
        kind = name(self._value.get("type"))
        if kind in _PIECEMEAL:
            if self._text is None:
                return []
            part = self._text.into({"type": _PIECEMEAL[kind]})
            if self._citations:
                part["other"] = {"citations": self._citations}
            return [part]
        if self._input.length:
            part = self._input.into_tool_call(self._value.get("id"), self._value.get("name"))
            return [shapes.with_other(part, self._value, _KNOWN_CALL)]
        return [_part(self._value, self._budgets.said)]

    def _add_text(self, piece: Any) -> None:
        if isinstance(piece, str) and piece:
            if self._text is None:
                thought = self._value.get("type") == "thinking"
                self._text = Text(self._budgets.reasoning if thought else self._budgets.said)
            self._text.add(piece)


_PIECEMEAL = {"text": "text", "thinking": "reasoning"}
"""Blocks whose text comes in deltas, and the types of their parts."""

_KNOWN_CALL = frozenset({"type", "id", "name", "input", "caller"})


def _usage(usage: Any, before: Usage | None) -> Usage | None:
    """``usage`` over what an earlier event said. The counts are cumulative: they never go down."""
    if not isinstance(usage, dict):
        return before
    before = before or Usage()
    read = _most(usage.get("cache_read_input_tokens"), before.cache_read_tokens)
    creation = _most(usage.get("cache_creation_input_tokens"), before.cache_creation_tokens)
    cached_before = (before.cache_read_tokens or 0) + (before.cache_creation_tokens or 0)
    uncached_before = None if before.input_tokens is None else before.input_tokens - cached_before
    input_tokens = add(_most(usage.get("input_tokens"), uncached_before), read, creation)
    output_tokens = _most(usage.get("output_tokens"), before.output_tokens)
    thinking = mapping(usage.get("output_tokens_details")).get("thinking_tokens")
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total(None, input_tokens, output_tokens),
        reasoning_tokens=_most(thinking, before.reasoning_tokens),
        cache_read_tokens=read,
        cache_creation_tokens=creation,
    )


def _most(value: Any, before: int | None) -> int | None:
    now = count(value)
    if now is None or before is None:
        return before if now is None else now
    return max(now, before)


def _message(value: Any, budget: shapes.Budget) -> shapes.Message:
    message = mapping(value)
    if "content" not in message:
        return shapes.unknown_message(value, budget)
    return shapes.message(message.get("role"), _content(message["content"], budget), given=message, known={"content"})


def _content(content: Any, budget: shapes.Budget) -> list[shapes.Part]:
    if isinstance(content, str):
        return [shapes.text_part(content, budget)] if content else []
    if isinstance(content, list):
        return [_part(part, budget) for part in content]
    return [shapes.unknown_part(content, budget)]


def _part(value: Any, budget: shapes.Budget) -> shapes.Part:
    part = mapping(value)
    kind = str(part.get("type"))
    if kind == "text" and isinstance(text := part.get("text"), str):
        return shapes.with_other(shapes.text_part(text, budget), part, {"type", "text"})
    if kind == "thinking" and isinstance(thought := part.get("thinking"), str):
        return shapes.reasoning_part(thought, budget)
    if kind == "redacted_thinking":  # encrypted by the provider: nothing to read
        return shapes.encrypted_reasoning_part()
    if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        call = shapes.tool_call_part(part.get("id"), part.get("name"), part.get("input"), budget)
        return shapes.with_other(call, part, _KNOWN_CALL)
    if kind == "tool_result" or kind.endswith("_tool_result"):
        content = part.get("content")
        result = content if isinstance(content, str) else _content([] if content is None else content, budget)
        made = shapes.tool_result_part(part.get("tool_use_id"), result, budget, error=part.get("is_error") is True)
        return shapes.with_other(made, part, {"type", "tool_use_id", "content", "is_error"})
    if kind in ("image", "document"):
        made = _data_part(kind, part, budget)
        return shapes.with_other(made, part, {"type", "source", "title"})
    return shapes.unknown_part(value, budget)


def _data_part(kind: str, part: Mapping[str, Any], budget: shapes.Budget) -> shapes.Part:
    source = mapping(part.get("source"))
    if source.get("type") == "text" and isinstance(text := source.get("data"), str):
        return shapes.text_part(text, budget)
    if source.get("type") == "content":
        return shapes.unknown_part(part, budget)
    return shapes.data_part(
        "image" if kind == "image" else "file",
        media_type=source.get("media_type"),
        data=source.get("data"),
        url=source.get("url"),
        id=source.get("file_id"),
        name=part.get("title"),
    )
