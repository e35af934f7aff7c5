"""The one shape of requests and responses, whatever the provider: what a person reads, not what the wire says.

A **request** is ::

    {"format": "openai.chat",              # which reader made it; "unknown" where none knew the body
     "model": "gpt-5-mini",                # null where the body names none
     "messages": [message, ...],
     "tools": [tool, ...],
     "tool_choice": {"mode": "auto"},      # or null; see below
     "options": {"max_tokens": 500, ...},  # one name for each, whichever provider: `reading.OPTIONS`
     "provider_options": {...},            # everything else in the body, as it came; nested ones as "outer.inner"
     "provider_option_count": 3}           # how many there were: of many, only the first `MAX_OPTIONS` are kept

and a **response** ::

    {"format": "openai.chat",
     "model": "gpt-5-mini-2025-08-07",     # that answered, or null
     "id": "chatcmpl-1",                   # or null
     "messages": [message, ...],           # one for each choice, in their order, each with "finish_reason"
     "usage": {"input_tokens": 12, ...},   # docs/usage.md; only what is known, null where nothing is
     "warnings": [{"type": "...", "message": "..."}, ...]}

with ``"embeddings": {"count": 2, "dimensions": 1536}`` besides where vectors were asked for (they are never kept).

A **message** is ``{"role", "parts": [part, ...]}``, with ``name`` where one is given, and ``finish_reason`` (the
provider's own word, null while there is none) in a response. Roles are the provider's, but Gemini's ``model`` is
``assistant``, and a message of nothing but results of tools is ``tool``.

A **part** is one of

- ``{"type": "text", "text"}``, ``{"type": "reasoning", "text"}``, ``{"type": "refusal", "text"}``; reasoning that the
  provider has encrypted is ``{"type": "reasoning", "text": "", "redacted": true}``
- ``{"type": "image" | "file", "media_type", "bytes"}``, each null where it is not known, with ``url``, ``id``, ``name``
  or ``text`` (a transcript) where given: never the data. Audio and video are files
- ``{"type": "tool_call", "id", "name", "arguments"}``: any JSON value; a text where it is no JSON (yet)
- ``{"type": "tool_result", "id", "content"}``, with ``"error": true`` and ``name`` where given: content is a text or a
  list of parts
- ``{"type": "unknown", "raw"}`` for what we do not know: nothing is dropped silently

A **tool** is ``{"type": "function", "name", "description", "schema"}`` with its JSON schema, or ``{"type": "unknown",
"name", "raw"}`` for one that the provider brings. A **tool choice** is ``{"mode": "auto" | "none" | "required",
"tools": [names]}``, ``tools`` only where the choice is between certain ones, or ``{"mode": "unknown", "raw"}``.

Messages and parts keep what the provider said of them beside that under ``other`` (``cache_control``, ``citations``).
A body of which nothing is known is one message of the role ``unknown`` with one unknown part.

**Bounds**: `MAX_PART` characters of each part, `MAX_STREAMED` of a streamed response, `MAX_STREAMED` of its reasoning.
What is cut has ``"truncated": true, "length": <characters it had>`` beside it; a value that is too long is the
beginning of its JSON text. An option or a schema that is cut is ``{"text", "truncated", "length"}``. Secrets are still
in it all: redaction is the next step's, over the whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

from otel_chatdebug.blobs import data_url, decoded_length, without_blobs
from otel_chatdebug.wire.reading import MAX_MESSAGE, MAX_NAME, loads, mapping, name, option, option_groups, strings
from otel_chatdebug.wire.types import Facts

Part: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Tool: TypeAlias = dict[str, Any]
ToolChoice: TypeAlias = dict[str, Any]
Warning: TypeAlias = dict[str, Any]

UNKNOWN: Final = "unknown"
"""The format of a body that no reader knows, the role of its message, and the type of what is kept raw."""

MAX_PART = 10_000
"""Characters of one part of a message."""

MAX_STREAMED = 50_000
"""Characters of all that one streamed response says."""

MAX_PARTS = 1_000
"""Parts that one streamed response may have; the index of a part comes from the wire."""

MAX_OPTIONS = 100
"""Options that are kept besides those that all providers have; the APIs with most have a third of that."""

MAX_OTHER = 20
"""Further things said of a message or a part that are kept."""

MAX_WARNINGS = 20
"""Warnings of a response that are kept."""


class Budget:
    """How many characters may still be kept: so many of each part, and so many in all."""

    __slots__ = ("left", "part")

    def __init__(self, part: int = MAX_PART, in_all: int | None = None) -> None:
        self.part = part
        self.left = in_all

    @classmethod
    def streamed(cls) -> Budget:
        """Of a streamed response."""
        return cls(MAX_STREAMED, MAX_STREAMED)

    def take(self, length: int) -> int:
        """How much of ``length`` characters may be kept; that much is spent."""
        kept = min(length, self.part if self.left is None else min(self.part, self.left))
        if self.left is not None:
            self.left -= kept
        return kept


# --- parts


def cut(part: Part, key: str, text: str, budget: Budget) -> Part:
    """``part`` with ``text`` under ``key``, cut to the budget and marked where it was."""
    kept = budget.take(len(text))
    part[key] = text if kept == len(text) else text[:kept]
    if kept < len(text):
        part["truncated"] = True
        part["length"] = len(text)
    return part


def text_part(text: str, budget: Budget) -> Part:
    """What somebody said."""
    return cut({"type": "text"}, "text", text, budget)


def reasoning_part(text: str, budget: Budget) -> Part:
    """What a model thought."""
    return cut({"type": "reasoning"}, "text", text, budget)


def encrypted_reasoning_part() -> Part:
    """What a model thought and its provider shows to nobody."""
    return {"type": "reasoning", "text": "", "redacted": True}


def refusal_part(text: str, budget: Budget) -> Part:
    """A text by which a model declines."""
    return cut({"type": "refusal"}, "text", text, budget)


def tool_call_part(id: Any, tool: Any, arguments: Any, budget: Budget) -> Part:
    """``arguments``: an object, or the text of one; text that is no JSON (yet) stays as it is."""
    part: Part = {"type": "tool_call", "id": name(id), "name": name(tool)}
    if isinstance(arguments, str):
        parsed = loads(arguments) if len(arguments) <= budget.part else None
        if not isinstance(parsed, dict | list):
            return cut(part, "arguments", arguments, budget)
        arguments = parsed
    return raw(part, "arguments", arguments, budget)


def tool_result_part(id: Any, content: Any, budget: Budget, *, error: bool = False, tool: Any = None) -> Part:
    """``content``: text, a list of parts that are normalised already, or any other value, which becomes JSON text."""
    part: Part = {"type": "tool_result", "id": name(id)}
    if tool_name := name(tool):
        part["name"] = tool_name
    if error:
        part["error"] = True
    if isinstance(content, list):
        part["content"] = content
        return part
    return cut(part, "content", content if isinstance(content, str) else dumps(without_blobs(content)), budget)


def data_part(type: str, *, data: Any = None, media_type: Any = None, url: Any = None, **names: Any) -> Part:
    """An image or a file: its media type and length in bytes, and where it is, but never its data.

    ``data`` is base64; ``url`` may be a data URL. ``names`` (``name``, ``id``) are kept where they are texts.
    """
    part: Part = {"type": type, "media_type": name(media_type), "bytes": None}
    for source in (data, url):
        if not isinstance(source, str):
            continue
        if inline := data_url(source):
            part["media_type"], part["bytes"] = inline
        elif source is data:
            part["bytes"] = decoded_length(source)
        else:
            part["url"] = source[:MAX_PART]
    part.update({key: text for key, value in names.items() if (text := name(value))})
    return part


def listed(value: Any) -> list[Any]:
    """``value`` where it is an array; anything else that should be one as its only item, so that it is kept raw."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def unknown_part(value: Any, budget: Budget) -> Part:
    """A shape that we do not know, as it came, bounded."""
    return raw({"type": UNKNOWN}, "raw", value, budget)


def with_other(thing: dict[str, Any], given: Mapping[str, Any], known: AbstractSet[str]) -> dict[str, Any]:
    """``thing``, a part or a message, with what was ``given`` beside the ``known`` keys under ``other``."""
    if given.keys() <= known:
        return thing
    other: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known and value not in (None, "", [], {}) and len(other) < MAX_OTHER:
            other[key[:MAX_PART]] = bounded(value)
    if other:
        thing["other"] = other
    return thing


def raw(part: Part, key: str, value: Any, budget: Budget) -> Part:
    """``part`` with any JSON value under ``key``: whole where its text fits into the budget, else that text, cut."""
    value = without_blobs(value)
    if value is None or isinstance(value, bool | int | float):
        part[key] = value
        return part
    text = value if isinstance(value, str) else dumps(value)
    cut(part, key, text, budget)
    if "truncated" not in part:
        part[key] = value
    return part


def bounded(value: Any, budget: Budget | None = None) -> Any:
    """An option's value: itself where it is short, else its text and how long that was."""
    part = raw({}, "text", value, budget or Budget())
    return part if "truncated" in part else part["text"]


def dumps(value: Any) -> str:
    """``value`` as JSON, as short as it gets."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (ValueError, RecursionError):
        return f"[{type(value).__name__} that is no JSON]"


# --- messages, tools, choices


def message(
    role: Any, parts: list[Part], *, given: Mapping[str, Any] | None = None, known: Collection[str] = ()
) -> Message:
    """A message. ``given`` is the provider's, of which ``known`` keys are in ``parts`` already."""
    role = name(role) or UNKNOWN
    if parts and all(part["type"] == "tool_result" for part in parts):
        role = "tool"
    made: Message = {"role": role, "parts": parts}
    if given:
        if said_by := name(given.get("name")):
            made["name"] = said_by
        with_other(made, given, {"role", "name", *known})
    return made


def unknown_message(value: Any, budget: Budget) -> Message:
    """What stands where a message should, and is none that we know."""
    return {"role": name(mapping(value).get("role")) or UNKNOWN, "parts": [unknown_part(value, budget)]}


def answer(role: Any, parts: list[Part], finish_reason: Any) -> Message:
    """The message of one choice of a response."""
    return {**message(role, parts), "role": name(role) or "assistant", "finish_reason": name(finish_reason)}


def tool(value: Any, schema_key: str) -> Tool:
    """A tool that the application declares; one that the provider brings (``web_search``) is kept raw."""
    given = mapping(value)
    if isinstance(given.get("name"), str) and (schema_key in given or given.keys() <= _PLAIN):
        made: Tool = {
            "type": "function",
            "name": name(given["name"]),
            "description": bounded(given.get("description")),
            "schema": bounded(given.get(schema_key)),
        }
        return with_other(made, given, {*_PLAIN, schema_key})
    return {"name": name(given.get("name")) or name(given.get("type")), **unknown_part(value, Budget())}


_PLAIN = frozenset({"type", "name", "description"})
"""What a function without parameters has."""

_MODES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


def tool_choice(value: Any) -> ToolChoice | None:
    """Which tools a model may or must use, in the words of OpenAI (both APIs), Anthropic or Mistral.

    ``"auto"``, ``{"type": "any"}``, ``{"type": "function", "function": {"name"}}``, ``{"type": "tool", "name"}``.
    """
    if value is None:
        return None
    given = mapping(value)
    kind = value if isinstance(value, str) else given.get("type")
    if isinstance(kind, str) and kind in _MODES:
        return with_other({"mode": _MODES[kind]}, given, {"type"})
    called = name(given.get("name")) or name(mapping(given.get("function")).get("name"))
    if called:
        return with_other({"mode": "required", "tools": [called]}, given, {"type", "name", "function"})
    return raw({"mode": UNKNOWN}, "raw", value, Budget())


def chosen(mode: Any, tools: Any = ()) -> ToolChoice:
    """A tool choice whose mode and tools are known by other words."""
    made: ToolChoice = {"mode": _MODES.get(str(mode).lower(), UNKNOWN)}
    if made["mode"] == UNKNOWN:
        raw(made, "raw", mode, Budget())
    if names := strings(tools):
        made["tools"] = names
    return made


# --- requests and responses


def request(
    format: str,
    body: Mapping[str, Any],
    messages: list[Message],
    known: Collection[str],
    *,
    model: str | None = None,
    tools: Iterable[Tool] = (),
    tool_choice: ToolChoice | None = None,
    nested: Collection[str] = (),
) -> dict[str, Any]:
    """A normalised request.

    All of ``body`` is an option but the ``known`` keys and the model; so is all in its objects named in ``nested``.
    """
    options: dict[str, Any] = {}
    others: dict[str, Any] = {}
    count = 0
    for prefix, group in option_groups(body, nested):
        for key, value in group.items():
            if not prefix and (key in known or key == "model" or (key in nested and isinstance(value, dict))):
                continue
            if common := option(key, value):
                options[common[0].replace(".", "_")] = common[1]
                continue
            count += 1
            if len(others) < MAX_OPTIONS:
                others[f"{prefix}{key}"[:MAX_PART]] = bounded(value)
    return {
        "format": format,
        "model": model or name(body.get("model")),
        "messages": messages,
        "tools": list(tools),
        "tool_choice": tool_choice,
        "options": options,
        "provider_options": others,
        "provider_option_count": count,
    }


def unknown_request(value: Any) -> dict[str, Any]:
    """A request of a shape that nobody knows."""
    return request(UNKNOWN, {}, [unknown_message(value, Budget())], ())


def response(format: str, messages: list[Message], facts: Facts, warnings: Iterable[Warning] = ()) -> dict[str, Any]:
    """A normalised response. Of ``facts`` it takes the model, the id and the usage."""
    return {
        "format": format,
        "model": facts.model,
        "id": facts.response_id,
        "messages": messages,
        "usage": None if facts.usage is None else facts.usage.as_dict(),
        "warnings": list(warnings)[:MAX_WARNINGS],
    }


def unknown_response(value: Any) -> dict[str, Any]:
    """A response of a shape that nobody knows."""
    return response(UNKNOWN, [{**unknown_message(value, Budget()), "finish_reason": None}], Facts())


def embeddings(format: str, facts: Facts, vectors: list[Any], warnings: Iterable[Warning] = ()) -> dict[str, Any]:
    """A normalised response of vectors: how many came, and of which size where they are lists of numbers."""
    sizes = [len(vector) for vector in vectors[:1] if isinstance(vector, list)]
    made = response(format, [], facts, warnings)
    made["embeddings"] = {"count": len(vectors), "dimensions": sizes[0] if sizes else None}
    return made


def warning(type: str, message: Any = "") -> Warning:
    """What a provider, or a reader, has to say of a response; ``message`` may be any JSON value."""
    text = message if isinstance(message, str) else dumps(without_blobs(message))
    return {"type": type[:MAX_NAME], "message": text[:MAX_MESSAGE]}


def warnings_of(body: Mapping[str, Any]) -> list[Warning]:
    """What a body says under ``warnings`` or ``warning``, as gateways and self-hosted servers do."""
    given = body.get("warnings") or body.get("warning")
    return [
        warning(name(mapping(value).get("type")) or "provider", mapping(value).get("message") or value)
        for value in (given if isinstance(given, list) else [given])[:MAX_WARNINGS]
        if value
    ]
