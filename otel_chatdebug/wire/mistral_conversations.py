"""Mistral's conversations: the chats that it keeps itself, with its own tools and agents.

A stream is named events: ``conversation.response.started``, deltas of the outputs (``message.output.delta``,
``function.call.delta``, ``tool.execution.*``, ``agent.handoff.*``), ``conversation.response.done`` with the usage;
``conversation.response.error`` instead of the end. Nothing says why a model stopped, so there is no finish reason.

The answer as a whole has no id, only its outputs have one; the conversation's is kept beside the message. What tools of
the provider have read (``connector_tokens``) is not in ``prompt_tokens``, as the total shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from otel_chatdebug.blobs import without_blobs
from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.drafts import Budgets, Draft
from otel_chatdebug.wire.openai_chat import content_parts, function_tool, part_of, thoughts
from otel_chatdebug.wire.reading import (
    Parsed,
    add,
    count,
    error_from_body,
    items,
    mapping,
    name,
    plain_request_facts,
    taken_out,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage, WireError

_ARGS = "completion_args"
"""The object in a request that holds the options which a chat has at its top."""

_STARTED = "conversation.response.started"
_DONE = "conversation.response.done"
_ERROR = "conversation.response.error"

_ENTRY = frozenset({"object", "type", "id", "created_at", "completed_at", "model", "agent_id", "role"})
"""What every entry of a conversation may have besides what it says."""


class MistralConversations:
    """``POST .../conversations``, ``.../conversations/ID`` (append) and ``.../conversations/ID/restart``."""

    name = "mistral.conversations"
    provider = "mistral_ai"
    operation = "chat"
    has_terminal = True
    lines = False
    path = re.compile(r"/v1/conversations(?:/[^/]+(?:/restart)?)?/?$")
    # In a text that the model writes the quotes are escaped, so this finds only the structure.
    markers = re.compile(rb'"type":\s*"(?:conversation\.|error")|"object":\s*"error"|"detail":')
    repeated = None

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for. An agent that is asked has its model itself."""
        return plain_request_facts(body, _ARGS)

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one event into ``facts``. The end counts even where its data cannot be read."""
        body = mapping(value)
        kind = name(body.get("type")) or event
        facts.terminal = facts.terminal or kind == _DONE
        if kind == _ERROR:
            error = error_from_body({"error": {"message": body.get("message"), "code": body.get("code")}})
            facts.error = facts.error or error or WireError(type="error")
        elif kind == _DONE:
            facts.usage = _usage(body.get("usage")) or facts.usage
        elif kind != _STARTED:
            _read_output(facts, body)
            facts.error = facts.error or error_from_body(body)
            if kind == "error" and facts.error is None:
                facts.error = WireError(type="error")

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole response, or an error body, into ``facts``."""
        if not isinstance(body, dict):
            return
        for output in items(body.get("outputs")):
            _read_output(facts, mapping(output))
        if "outputs" not in body:
            facts.error = facts.error or error_from_body(body)
        facts.usage = _usage(body.get("usage")) or facts.usage

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        messages: list[shapes.Message] = []
        if instructions := body.get("instructions"):
            messages.append(shapes.message("system", content_parts(instructions, budget)))
        given = body.get("inputs")
        if isinstance(given, str):
            messages.append(shapes.message("user", [shapes.text_part(given, budget)]))
        else:
            messages += [_message(entry, budget) for entry in shapes.listed(given)]
        choice, body = taken_out(body, _ARGS, "tool_choice")
        return shapes.request(
            self.name,
            body,
            messages,
            ("instructions", "inputs", "tools"),
            tools=[function_tool(tool) for tool in shapes.listed(body.get("tools"))],
            tool_choice=shapes.tool_choice(choice),
            nested=(_ARGS,),
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first event."""
        facts = Facts()
        draft = Draft(Budgets())
        conversation = None
        seen = False
        for event, value in events:
            body = mapping(value)
            kind = name(body.get("type")) or event or ""
            if kind != "message.output.delta" or facts.model is None:  # the others say nothing but text
                self.read_event(facts, event, value)
            conversation = conversation or name(body.get("conversation_id"))
            seen = _add(draft, kind, body) or seen
        return self._response(facts, draft.message(), conversation) if seen else None

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        if not isinstance(body, dict) or not isinstance(body.get("outputs"), list):
            return None
        facts = Facts()
        self.read_json(facts, body)
        budget = shapes.Budget()
        parts = [part for output in body["outputs"] for part in _parts(output, budget)]
        message = shapes.answer(None, parts, None)
        made = self._response(facts, message, name(body.get("conversation_id")))
        made["warnings"] += [shapes.warning("guardrail", found) for found in items(body.get("guardrails"))]
        del made["warnings"][shapes.MAX_WARNINGS :]
        return made

    def _response(self, facts: Facts, message: shapes.Message, conversation: str | None) -> dict[str, Any]:
        if conversation:
            message["other"] = {"conversation_id": conversation}
        return shapes.response(self.name, [message], facts)


def _read_output(facts: Facts, output: Mapping[str, Any]) -> None:
    facts.model = facts.model or name(output.get("model"))
    facts.response_id = facts.response_id or name(output.get("id"))


def _add(draft: Draft, kind: str, body: Mapping[str, Any]) -> bool:
    """Puts an event into the message; whether it is one of a conversation."""
    if kind == "message.output.delta":
        _add_content(draft, body)
    elif kind in ("function.call.delta", "tool.execution.started", "tool.execution.delta", "tool.execution.done"):
        id = name(body.get("id"))
        draft.call(id, body.get("tool_call_id") or id, body.get("name"), body.get("arguments"))
        if info := body.get("info"):
            draft.part(_result(body, info, draft.budget()))
    elif kind.startswith("agent."):
        draft.part(shapes.unknown_part(body, draft.budget()))
    else:
        return kind in (_STARTED, _DONE, _ERROR)
    return True


def _add_content(draft: Draft, body: Mapping[str, Any]) -> None:
    content = body.get("content")
    place = (str(body.get("output_index")), str(body.get("content_index")))
    for chunk in content if isinstance(content, list) else [content]:
        given = mapping(chunk)
        if isinstance(chunk, str) or given.get("type") == "text":
            draft.text(chunk if isinstance(chunk, str) else given.get("text"), place)
        elif given.get("type") == "thinking":
            draft.reasoning(thoughts(given.get("thinking")), place)
        elif chunk is not None:
            draft.part(part_of(chunk, draft.budget()))


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    input_tokens = add(count(usage.get("prompt_tokens")), count(usage.get("connector_tokens")))
    output_tokens = count(usage.get("completion_tokens"))
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total(usage.get("total_tokens"), input_tokens, output_tokens),
    )


def _message(value: Any, budget: shapes.Budget) -> shapes.Message:
    """One entry of the input as a message of its own."""
    entry = mapping(value)
    if "content" in entry:
        role = entry.get("role") or ("assistant" if entry.get("type") == "message.output" else "user")
        parts = content_parts(entry["content"], budget)
        return shapes.message(role, parts, given=entry, known={"content", *_ENTRY})
    parts = _parts(value, budget)
    if [part["type"] for part in parts] == [shapes.UNKNOWN] and entry.get("type") != "agent.handoff":
        return shapes.unknown_message(value, budget)
    return shapes.message(entry.get("role") or "assistant", parts)


def _parts(value: Any, budget: shapes.Budget) -> list[shapes.Part]:
    """The parts of one entry."""
    entry = mapping(value)
    kind = entry.get("type")
    if kind == "message.output":
        return content_parts(entry.get("content"), budget)
    if kind == "function.call":
        id = entry.get("tool_call_id") or entry.get("id")
        call = shapes.tool_call_part(id, entry.get("name"), entry.get("arguments"), budget)
        return [shapes.with_other(call, entry, {"tool_call_id", "name", "arguments", *_ENTRY})]
    if kind == "function.result":
        return [shapes.tool_result_part(entry.get("tool_call_id"), _text(entry.get("result")), budget)]
    if kind == "tool.execution":
        call = shapes.tool_call_part(entry.get("id"), entry.get("name"), entry.get("arguments"), budget)
        return [call, _result(entry, info, budget)] if (info := entry.get("info")) else [call]
    return [shapes.unknown_part(value, budget)]


def _result(entry: Mapping[str, Any], info: Any, budget: shapes.Budget) -> shapes.Part:
    """What a tool of the provider has to say, such as the code that it ran and its output."""
    return shapes.tool_result_part(entry.get("id"), _text(info), budget, tool=entry.get("name"))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else shapes.dumps(without_blobs(value))
