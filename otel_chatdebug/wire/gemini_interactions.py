"""Google's interactions: Gemini, and agents, with what was said kept at the provider.

An answer is a list of *steps* (``model_output``, ``thought``, ``function_call``, ...); before May 2026 it was a list of
*outputs*, which are the contents of such steps. A stream is named events: ``interaction.created``, then for each step
by its index ``step.start``, ``step.delta`` and ``step.stop`` (``content.*`` before), ``interaction.completed`` with the
usage, and ``[DONE]``; ``error`` instead of the end.

``total_input_tokens`` includes what was cached, but not what tools of the provider read (``total_tool_use_tokens``);
``total_output_tokens`` leaves out what was thought. The total is the sum of the four, as with `gemini`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from otel_chatdebug.blobs import decoded_length, without_blobs
from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.drafts import Budgets, Draft
from otel_chatdebug.wire.gemini import usage_of
from otel_chatdebug.wire.reading import (
    DONE,
    Parsed,
    error_from_body,
    items,
    mapping,
    name,
    plain_request_facts,
    set_finish_reason,
    taken_out,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, WireError

_CONFIG = "generation_config"

_GOES_ON = frozenset({"in_progress", "queued", "unspecified"})
"""The status of an interaction that has not ended; with any other it has, or waits for the application."""

_FAILED = "failed"

_COUNTS = (
    "total_input_tokens",
    "total_tool_use_tokens",
    "total_output_tokens",
    "total_thought_tokens",
    "total_tokens",
    "total_cached_tokens",
)

_MEDIA = frozenset({"image", "document", "audio", "video"})
_CONTENTS = frozenset({"text", *_MEDIA})
"""Types of what a step, or a user, says."""


class GeminiInteractions:
    """``POST .../interactions``; at Vertex AI below ``/projects/P/locations/L``."""

    name = "gemini.interactions"
    provider = "gcp.gemini"
    operation = "generate_content"
    has_terminal = True
    lines = False
    path = re.compile(r"/v\d\w*/(?:projects/[^/]+/locations/[^/]+/)?interactions/?$")
    # In a text that the model writes the quotes are escaped, so this finds only the structure.
    markers = re.compile(rb'"(?:event_type":\s*"(?:interaction\.|error")|usage":\s*\{|error"(?!\s*:\s*null))')
    repeated = None

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for. An agent that is asked has its model itself."""
        return plain_request_facts(body, _CONFIG)

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one event into ``facts``. A terminal event counts even where its data cannot be read."""
        if value is DONE:
            facts.terminal = True
            return
        body = mapping(value)
        kind = name(body.get("event_type")) or event or ""
        facts.usage = usage_of(body.get("usage"), _COUNTS) or facts.usage  # of all so far, where a step ends
        if kind.startswith("interaction."):
            interaction = body.get("interaction", body)
            self.read_json(facts, interaction)
            ended = kind.startswith("interaction.complete")
            facts.terminal = facts.terminal or ended
            if ended and mapping(interaction).get("status") == _FAILED and facts.error is None:
                facts.error = WireError(type=kind)
        elif kind == "error" or "error" in body:
            facts.error = facts.error or error_from_body(body)
            if kind == "error" and facts.error is None:
                facts.error = WireError(type="error")

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole interaction, or an error body, into ``facts``."""
        if isinstance(body, list) and body:  # Google's errors may come as a list of one
            body = body[0]
        if not isinstance(body, dict):
            return
        status = name(body.get("status"))
        if "status" in body and "error" not in body:
            facts.error = facts.error or _error(body, status)
        else:
            facts.error = facts.error or error_from_body(body)
        facts.model = facts.model or name(body.get("model"))
        facts.response_id = facts.response_id or name(body.get("id"))
        facts.usage = usage_of(body.get("usage"), _COUNTS) or facts.usage
        if status not in _GOES_ON and status != _FAILED:
            set_finish_reason(facts, 0, status)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        messages: list[shapes.Message] = []
        if system := body.get("system_instruction"):
            messages.append(shapes.message("system", _content(system, budget)))
        messages += _messages(body.get("input"), budget)
        choice, body = taken_out(body, _CONFIG, "tool_choice")
        return shapes.request(
            self.name,
            body,
            messages,
            ("system_instruction", "input", "tools"),
            tools=[shapes.tool(tool, "parameters") for tool in shapes.listed(body.get("tools"))],
            tool_choice=_tool_choice(choice),
            nested=(_CONFIG,),
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first event.

        The steps in the last event are taken where it has any; mostly it has none, to be small.
        """
        facts = Facts()
        budgets = Budgets()
        steps: dict[int, _Step] = {}
        last: Mapping[str, Any] = {}
        seen = False
        for event, value in events:
            body = mapping(value)
            kind = name(body.get("event_type")) or event or ""
            if not kind.endswith(".delta"):  # they say nothing but text
                self.read_event(facts, event, value)
            seen = seen or kind.startswith(("interaction.", "step.", "content."))
            if kind.startswith("interaction.complete"):
                last = mapping(body.get("interaction"))
            index = body.get("index")
            if not isinstance(index, int) or (index not in steps and len(steps) >= shapes.MAX_PARTS):
                continue
            step = steps.setdefault(index, _Step(budgets))
            if kind in ("step.start", "content.start"):
                step.start(mapping(body.get("step", body.get("content"))))
            elif kind in ("step.delta", "content.delta"):
                step.add(mapping(body.get("delta")))
        if not seen:
            return None
        whole = _outputs(last)
        budget = shapes.Budget.streamed()
        parts = [part for value in whole for part in _parts(value, budget)]
        if not whole:
            parts = [part for index in sorted(steps) for part in steps[index].parts()]
        return self._response(facts, parts, last)

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        if not isinstance(body, dict) or not ("status" in body or _outputs(body)):
            return None
        facts = Facts()
        self.read_json(facts, body)
        budget = shapes.Budget()
        return self._response(facts, [part for value in _outputs(body) for part in _parts(value, budget)], body)

    def _response(self, facts: Facts, parts: list[shapes.Part], body: Mapping[str, Any]) -> dict[str, Any]:
        reason = facts.finish_reasons[0] if facts.finish_reasons else None
        warnings = shapes.warnings_of(body)
        if not facts.error:
            warnings += [shapes.warning("error", error) for error in items(body.get("errors"))[: shapes.MAX_WARNINGS]]
        return shapes.response(self.name, [shapes.answer(None, parts, reason)], facts, warnings)


class _Step:
    """One step (or content) of a stream, as its deltas come in."""

    __slots__ = ("_budgets", "_draft", "_media", "_value")

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._draft = Draft(budgets)
        self._media: dict[str, shapes.Part] = {}
        self._value: dict[str, Any] = {}

    def start(self, value: Mapping[str, Any]) -> None:
        """A step may begin with some of what it says."""
        self._value = dict(value)
        for content in [*items(value.get("content")), *([value] if _type(value) in _CONTENTS else [])]:
            self.add(mapping(content))
        for content in items(value.get("summary")):
            self.add({"type": "thought_summary", "content": content})

    def add(self, delta: Mapping[str, Any]) -> None:
        kind = _type(delta)
        if kind == "text":
            self._draft.text(delta.get("text"))
            for annotation in items(delta.get("annotations")):
                self._draft.also("annotations", annotation)
        elif kind == "thought_summary":
            self._draft.reasoning(mapping(delta.get("content")).get("text"))
        elif kind == "thought_signature":
            self._value.setdefault("type", "thought")
            self._value["signature"] = True
        elif kind in ("arguments_delta", "arguments"):
            self._draft.call(None, arguments=delta.get("arguments"))
        elif kind.startswith("text_annotation"):
            for annotation in items(delta.get("annotations")):
                self._draft.also("annotations", annotation)
        elif kind in _MEDIA:
            self._add_media(kind, delta)
        else:  # a whole call or result, whose id and name came before
            self._value.update(delta)

    def parts(self) -> list[shapes.Part]:
        """What has come so far."""
        value = self._value
        kind = _type(value)
        if kind.endswith("_call") and self._draft:
            self._draft.call(None, value.get("id"), value.get("name") or _tool_of(value))
        found = self._draft.parts()
        annotations = self._draft.message().get("other")
        if found and annotations:
            found[-1]["other"] = annotations
        found += self._media.values()
        if found or kind in ("model_output", "text", ""):
            return found
        return _parts(value, self._budgets.said)

    def _add_media(self, kind: str, delta: Mapping[str, Any]) -> None:
        """Sound and pictures may come in pieces, whose bytes are counted."""
        part = self._media.get(kind)
        if part is None:
            self._media[kind] = _media_part(delta)
        elif isinstance(data := delta.get("data"), str):
            part["bytes"] = (part["bytes"] or 0) + decoded_length(data)


def _outputs(body: Mapping[str, Any]) -> list[Any]:
    """The steps of an answer, or the outputs that they were before; not what the user has said."""
    given = items(body.get("steps")) or items(body.get("outputs"))
    return [value for value in given if _type(mapping(value)) != "user_input"]


def _type(value: Mapping[str, Any]) -> str:
    return name(value.get("type")) or ""


def _error(interaction: Mapping[str, Any], status: str | None) -> WireError | None:
    """Of an interaction that has failed: its own word, or that of a step."""
    if status != _FAILED:
        return None
    steps = [mapping(step).get("error") for step in items(interaction.get("steps"))]
    for error in (*items(interaction.get("errors")), *steps):
        if found := error_from_body({"error": error}):
            return found
    return WireError(type=f"interaction.{_FAILED}")


def _messages(given: Any, budget: shapes.Budget) -> list[shapes.Message]:
    """The input: a text, contents (which are one message together), steps, or turns."""
    if isinstance(given, str):
        return [shapes.message("user", [shapes.text_part(given, budget)])]
    messages: list[shapes.Message] = []
    loose: list[shapes.Part] | None = None
    for value in shapes.listed(given):
        if _type(mapping(value)) in _CONTENTS:
            if loose is None:
                loose = []
                messages.append(shapes.message("user", loose))
            loose += _parts(value, budget)
        else:
            loose = None
            messages.append(_message(value, budget))
    return messages


def _message(value: Any, budget: shapes.Budget) -> shapes.Message:
    """One step, or one turn."""
    entry = mapping(value)
    kind = _type(entry)
    if "content" in entry and kind in ("", "user_input", "model_output"):
        role = entry.get("role") or ("assistant" if kind == "model_output" else "user")
        parts = _content(entry["content"], budget)
        return shapes.message(
            "assistant" if role == "model" else role, parts, given=entry, known={"type", "content", "error"}
        )
    parts = _parts(value, budget)
    if [part["type"] for part in parts] == [shapes.UNKNOWN] or not parts:
        return shapes.unknown_message(value, budget)
    return shapes.message("assistant", parts)


def _content(content: Any, budget: shapes.Budget) -> list[shapes.Part]:
    if isinstance(content, str):
        return [shapes.text_part(content, budget)] if content else []
    return [part for value in shapes.listed(content) for part in _content_parts(value, budget)]


def _parts(value: Any, budget: shapes.Budget) -> list[shapes.Part]:
    """The parts of one step, or of one of the older outputs."""
    given = mapping(value)
    if _type(given) in ("model_output", "user_input"):
        return _content(given.get("content"), budget)
    return _content_parts(value, budget)


def _content_parts(value: Any, budget: shapes.Budget) -> list[shapes.Part]:
    given = mapping(value)
    kind = _type(given)
    if kind == "text" and isinstance(text := given.get("text"), str):
        return [shapes.with_other(shapes.text_part(text, budget), given, {"type", "text"})]
    if kind in _MEDIA:
        return [_media_part(given)]
    if kind == "thought":
        texts = [mapping(content).get("text") for content in items(given.get("summary"))]
        parts = [shapes.reasoning_part(text, budget) for text in texts if isinstance(text, str) and text]
        return parts or ([shapes.encrypted_reasoning_part()] if given.get("signature") else [])
    if kind.endswith("_call"):
        call = shapes.tool_call_part(
            given.get("id"), given.get("name") or _tool_of(given), given.get("arguments", {}), budget
        )
        return [shapes.with_other(call, given, {"type", "id", "name", "arguments", "signature"})]
    if kind.endswith("_result"):
        return [_result(given, kind, budget)]
    return [shapes.unknown_part(value, budget)]


def _tool_of(given: Mapping[str, Any]) -> str:
    """The provider's own tools have no name but the type of what they do: ``google_search_call``."""
    return _type(given).removesuffix("_call").removesuffix("_result")


def _result(given: Mapping[str, Any], kind: str, budget: shapes.Budget) -> shapes.Part:
    result = given.get("result")
    content: Any = result
    if isinstance(result, list):
        told = bool(result) and all(_type(mapping(entry)) in _CONTENTS for entry in result)
        content = _content(result, budget) if told else shapes.dumps(without_blobs(result))
    elif result is None:
        content = ""
    tool = given.get("name") or (None if kind == "function_result" else _tool_of(given))
    made = shapes.tool_result_part(
        given.get("call_id"), content, budget, error=given.get("is_error") is True, tool=tool
    )
    return shapes.with_other(made, given, {"type", "call_id", "result", "is_error", "name", "signature"})


def _media_part(given: Mapping[str, Any]) -> shapes.Part:
    kind = "image" if _type(given) == "image" else "file"
    made = shapes.data_part(kind, media_type=given.get("mime_type"), data=given.get("data"), url=given.get("uri"))
    return shapes.with_other(made, given, {"type", "mime_type", "data", "uri"})


def _tool_choice(value: Any) -> shapes.ToolChoice | None:
    if value is None:
        return None
    allowed = mapping(mapping(value).get("allowed_tools"))
    if allowed:
        return shapes.chosen(allowed.get("mode", "auto"), allowed.get("tools"))
    return shapes.tool_choice(value)
