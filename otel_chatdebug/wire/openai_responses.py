"""OpenAI responses.

A stream is named events with the same name as ``type`` in their data. ``response.created`` has model and id;
``response.completed``, ``.incomplete`` and ``.failed`` carry the whole response and end it; there is no ``[DONE]``.
``error`` stands for a failure of the stream itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.drafts import Budgets, Draft
from otel_chatdebug.wire.reading import (
    Parsed,
    count,
    error_from_body,
    items,
    mapping,
    name,
    plain_request_facts,
    set_finish_reason,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage, WireError

_TERMINAL = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
}
"""The events that end a stream, and the status that such a response has."""

_ENDED = frozenset(_TERMINAL.values())


class OpenAIResponses:
    """``POST .../responses``."""

    name = "openai.responses"
    provider = "openai"
    operation = "chat"
    has_terminal = True
    lines = False
    path = re.compile(r"/responses/?$")
    # In a text that the model writes the quotes are escaped, so this finds only the structure.
    markers = re.compile(rb'"type":\s*"(?:response\.(?:created|completed|incomplete|failed|cancelled)|error)"')
    repeated = None

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for."""
        return plain_request_facts(body)

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one event into ``facts``. A terminal event counts even where its data cannot be read."""
        body = mapping(value)
        kind = name(body.get("type")) or event
        if kind == "error":
            facts.error = facts.error or error_from_body(body) or WireError(type="error")
            return
        self.read_json(facts, body.get("response"))
        if kind in _TERMINAL:
            facts.terminal = True
            if not facts.finish_reasons and kind != "response.failed":
                set_finish_reason(facts, 0, _TERMINAL[kind])
            if kind == "response.failed" and facts.error is None:
                facts.error = WireError(type=kind)

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole response, or an error body, into ``facts``."""
        if not isinstance(body, dict):
            return
        if body.get("object") == "response" or "output" in body:
            facts.error = facts.error or _error(body)
        else:
            facts.error = facts.error or error_from_body(body)
        facts.model = facts.model or name(body.get("model"))
        facts.response_id = facts.response_id or name(body.get("id"))
        facts.usage = _usage(body.get("usage")) or facts.usage
        status = name(body.get("status"))
        if status in _ENDED and status != "failed":
            set_finish_reason(facts, 0, mapping(body.get("incomplete_details")).get("reason") or status)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        messages: list[shapes.Message] = []
        if instructions := body.get("instructions"):
            messages.append(shapes.message("system", _content(instructions, budget)))
        given = body.get("input")
        if isinstance(given, str):
            messages.append(shapes.message("user", [shapes.text_part(given, budget)]))
        else:
            messages += [_message(item, budget) for item in shapes.listed(given)]
        return shapes.request(
            self.name,
            body,
            messages,
            ("instructions", "input", "tools", "tool_choice"),
            tools=[shapes.tool(tool, "parameters") for tool in shapes.listed(body.get("tools"))],
            tool_choice=shapes.tool_choice(body.get("tool_choice")),
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first event.

        The response in the terminal event is taken where there is one; before that, the items that are done, and the
        deltas of those that are not.
        """
        facts = Facts()
        open_items: dict[int, _Item] = {}
        last: Mapping[str, Any] = {}
        seen = False
        for event, value in events:
            self.read_event(facts, event, value)
            body = mapping(value)
            kind = name(body.get("type")) or event or ""
            seen = seen or kind.startswith("response.")
            if kind in _TERMINAL:
                last = mapping(body.get("response"))
            index = body.get("output_index")
            if not isinstance(index, int) or (index not in open_items and len(open_items) >= shapes.MAX_PARTS):
                continue
            open_items.setdefault(index, _Item()).add(kind, body)
        if not seen:
            return None
        budget = shapes.Budget.streamed()
        parts: list[shapes.Part] = []
        if output := items(last.get("output")):
            for item in output:
                parts += _parts(item, budget)
        else:
            for index in sorted(open_items):
                parts += open_items[index].parts(budget)
        return self._response(facts, parts, last)

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        if not isinstance(body, dict) or not isinstance(body.get("output"), list):
            return None
        facts = Facts()
        self.read_json(facts, body)
        budget = shapes.Budget()
        parts = [part for item in body["output"] for part in _parts(item, budget)]
        return self._response(facts, parts, body)

    def _response(self, facts: Facts, parts: list[shapes.Part], body: Mapping[str, Any]) -> dict[str, Any]:
        reason = facts.finish_reasons[0] if facts.finish_reasons else None
        return shapes.response(self.name, [shapes.answer(None, parts, reason)], facts, shapes.warnings_of(body))


class _Item:
    """One item of the output, as its deltas come in. Bounded by itself: which items are shown is known at the end."""

    __slots__ = ("_done", "_draft", "_value")

    def __init__(self) -> None:
        self._draft = Draft(Budgets())
        self._value: Mapping[str, Any] = {}
        self._done = False

    def add(self, kind: str, body: Mapping[str, Any]) -> None:
        delta = body.get("delta")
        place = body.get("content_index", body.get("summary_index"))
        at = place if isinstance(place, int) else None
        if kind in ("response.output_item.added", "response.output_item.done"):
            self._value = mapping(body.get("item"))
            self._done = kind == "response.output_item.done"
        elif kind == "response.output_text.delta":
            self._draft.text(delta, at)
        elif kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
            self._draft.reasoning(delta, at)
        elif kind == "response.refusal.delta":
            self._draft.refusal(delta, at)
        elif kind in _ARGUMENTS:
            self._draft.call(None, arguments=delta)

    def parts(self, budget: shapes.Budget) -> list[shapes.Part]:
        if self._done:
            return _parts(self._value, budget)
        item = self._value
        if str(item.get("type")).endswith("_call"):
            self._draft.call(None, item.get("call_id") or item.get("id"), item.get("name") or item.get("type"))
        return self._draft.parts()


_ARGUMENTS = frozenset(
    {
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta",
    }
)
"""The events that carry a fragment of a tool call's arguments."""


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    given = mapping(usage.get("input_tokens_details"))
    input_tokens = count(usage.get("input_tokens"))
    output_tokens = count(usage.get("output_tokens"))
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total(usage.get("total_tokens"), input_tokens, output_tokens),
        reasoning_tokens=count(mapping(usage.get("output_tokens_details")).get("reasoning_tokens")),
        cache_read_tokens=count(given.get("cached_tokens")),
        cache_creation_tokens=count(given.get("cache_write_tokens")),
    )


def _error(response: Mapping[str, Any]) -> WireError | None:
    if error := response.get("error"):
        return error_from_body({"error": error})
    return WireError(type="response.failed") if response.get("status") == "failed" else None


def _message(value: Any, budget: shapes.Budget) -> shapes.Message:
    """One item of the input as a message of its own: the wire has messages, calls and results side by side."""
    item = mapping(value)
    kind = item.get("type")
    if kind in (None, "message") and "content" in item:
        known = {"type", "content", "id", "status"}
        return shapes.message(item.get("role"), _content(item["content"], budget), given=item, known=known)
    if str(kind).endswith("_call_output"):
        output = item.get("output")
        result = output if isinstance(output, str) else _content(output, budget)
        return shapes.message("tool", [shapes.tool_result_part(item.get("call_id"), result, budget)])
    parts = _parts(value, budget)
    if [part["type"] for part in parts] == [shapes.UNKNOWN] and "role" not in item and not str(kind).endswith("_call"):
        return shapes.unknown_message(value, budget)
    return {**shapes.message(item.get("role"), parts), "role": name(item.get("role")) or "assistant"}


def _parts(value: Any, budget: shapes.Budget) -> list[shapes.Part]:
    """The parts of one item of the output."""
    item = mapping(value)
    kind = item.get("type")
    if kind == "message":
        return _content(item.get("content"), budget)
    if kind == "reasoning":
        texts = [mapping(entry).get("text") for entry in items(item.get("summary")) + items(item.get("content"))]
        parts = [shapes.reasoning_part(text, budget) for text in texts if isinstance(text, str) and text]
        return parts or ([shapes.encrypted_reasoning_part()] if item.get("encrypted_content") else [])
    if kind in ("function_call", "custom_tool_call", "mcp_call"):
        id = item.get("call_id") or item.get("id")
        given = item.get("arguments", item.get("input"))
        parts = [shapes.tool_call_part(id, item.get("name"), given, budget)]
        if isinstance(output := item.get("output"), str):  # the provider called the MCP server itself
            parts.append(shapes.tool_result_part(id, output, budget))
        if failed := item.get("error"):
            parts.append(shapes.tool_result_part(id, failed, budget, error=True))
        return parts
    if kind == "image_generation_call":
        return [shapes.data_part("image", data=item.get("result"), id=item.get("id"))]
    return [shapes.unknown_part(value, budget)]


def _content(content: Any, budget: shapes.Budget) -> list[shapes.Part]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [shapes.text_part(content, budget)]
    if isinstance(content, list):
        return [_part(part, budget) for part in content]
    return [shapes.unknown_part(content, budget)]


def _part(value: Any, budget: shapes.Budget) -> shapes.Part:
    part = mapping(value)
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text") and isinstance(text := part.get("text"), str):
        return shapes.with_other(shapes.text_part(text, budget), part, {"type", "text", "logprobs"})
    if kind == "refusal" and isinstance(text := part.get("refusal"), str):
        return shapes.refusal_part(text, budget)
    if kind in ("reasoning_text", "summary_text") and isinstance(text := part.get("text"), str):
        return shapes.reasoning_part(text, budget)
    if kind == "input_image":
        made = shapes.data_part("image", url=part.get("image_url"), id=part.get("file_id"))
        return shapes.with_other(made, part, {"type", "image_url", "file_id"})
    if kind == "input_file":
        made = shapes.data_part(
            "file",
            data=part.get("file_data"),
            url=part.get("file_url"),
            name=part.get("filename"),
            id=part.get("file_id"),
        )
        return shapes.with_other(made, part, {"type", "file_data", "file_url", "filename", "file_id"})
    return shapes.unknown_part(value, budget)
