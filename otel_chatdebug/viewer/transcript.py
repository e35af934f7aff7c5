"""Messages as a page shows them, from the one shape of `otel_chatdebug.wire.shapes`.

What stands in the tables may be of another version, imported, or cut: any JSON gives something that can be read, and
nothing raises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from otel_chatdebug import words

SHOWN = 3_000
"""Characters of a part that are shown at once; the rest comes when somebody asks for it."""

LAST = 6
"""Messages of a request that are shown at once, the last ones; the earlier ones come in pieces of `PIECE`."""

PIECE = 50

POLICY = (
    "parallel_tool_calls",
    "response_format",
    "text",
    "json_schema",
    "reasoning",
    "reasoning_effort",
    "thinking",
    "safety_settings",
    "safe_prompt",
    "service_tier",
    "store",
    "truncation",
    "max_tool_calls",
    "disable_parallel_tool_use",
)
"""Options that say what the model may do, and not how it writes: the page shows them by themselves."""

_PLACES = ("text", "content", "arguments", "raw", "refusal")
"""Where a part has its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a message."""

    kind: str
    """Its type, one of ours, else ``unknown``."""
    place: int
    label: str = ""
    """What it is, where that is not just text."""
    name: str = ""
    """Of a tool."""
    text: str = ""
    """At most `SHOWN` characters of it."""
    is_code: bool = False
    rest: int = 0
    """Characters that are kept and not shown."""
    lost: int = 0
    """Characters that were not kept."""
    parts: tuple[Part, ...] = ()
    """Within the result of a tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message, with its place among all."""

    place: int
    role: str
    name: str = ""
    finish_reason: str = ""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """Some messages of a request or a response."""

    messages: tuple[Message, ...] = ()
    earlier: int = 0
    """How many stand before these."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request."""

    transcript: Transcript = field(default_factory=Transcript)
    tools: int = 0
    tool_names: tuple[str, ...] = ()
    policy: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A response."""

    transcript: Transcript = field(default_factory=Transcript)
    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def sent(value: Any) -> Sent | None:
    """Of ``normalized_request``. None where nothing is kept."""
    if value is None:
        return None
    request = value if isinstance(value, Mapping) else {"messages": value}
    options = _pairs(request.get("options")) + _pairs(request.get("provider_options"))
    policy = [(name, text) for name, text in options if name.split(".")[0] in POLICY]
    choice = request.get("tool_choice")
    if choice is not None:
        policy.insert(0, ("tool choice", _choice(choice)))
    tools = request.get("tools")
    tools = tools if isinstance(tools, list) else []
    names = tuple(str(tool.get("name") or "?") for tool in tools if isinstance(tool, Mapping))
    known = {name for name, _ in policy}
    return Sent(
        last(request.get("messages")),
        len(tools),
        names,
        tuple(policy),
        tuple(pair for pair in options if pair[0] not in known),
    )


def answer(value: Any) -> Answer | None:
    """Of ``normalized_response``. None where nothing is kept."""
    if value is None:
        return None
    response = value if isinstance(value, Mapping) else {"messages": value}
    given = response.get("warnings")
    warnings = [_warning(one) for one in given] if isinstance(given, list) else []
    facts = [(name, _short(response[name])) for name in ("embeddings",) if response.get(name)]
    return Answer(piece(response.get("messages"), 0, PIECE), tuple(facts), tuple(warnings))


def last(messages: Any) -> Transcript:
    """The last messages: what a model was asked stands at the end."""
    found = messages if isinstance(messages, list) else [] if messages is None else [messages]
    return piece(found, max(0, len(found) - LAST), len(found))


def piece(messages: Any, start: int, end: int) -> Transcript:
    """Those from ``start`` to before ``end``."""
    found = messages if isinstance(messages, list) else [] if messages is None else [messages]
    start = max(0, start)
    return Transcript(tuple(_message(value, start + at) for at, value in enumerate(found[start:end])), start)


def tools(value: Any) -> list[tuple[str, str, str]]:
    """``(name, description, schema)`` of each tool of a request."""
    found = value.get("tools") if isinstance(value, Mapping) else None
    shown = []
    for tool in found if isinstance(found, list) else []:
        tool = tool if isinstance(tool, Mapping) else {"raw": tool}
        schema = tool.get("schema", tool.get("raw"))
        shown.append((str(tool.get("name") or "?"), _text(tool.get("description") or ""), _text(schema)))
    return shown


def whole(messages: Any, message: int, part: int) -> str | None:
    """All that is kept of a part's text. None where there is no such part."""
    try:
        if message < 0 or part < 0:
            return None
        return _text_of(_parts(messages[message])[part])
    except (LookupError, TypeError):
        return None


def _message(value: Any, place: int) -> Message:
    if not isinstance(value, Mapping):
        return Message(place=place, role="message", parts=_shown(_parts(value)))
    return Message(
        place=place,
        role=words.one_line(value.get("role") or "message"),
        name=words.one_line(value.get("name") or ""),
        finish_reason=words.one_line(value.get("finish_reason") or ""),
        parts=_shown(_parts(value)),
    )


def _parts(message: Any) -> list[Any]:
    parts = message.get("parts", message.get("content")) if isinstance(message, Mapping) else message
    return list(parts) if isinstance(parts, list) else [] if parts is None else [parts]


def _shown(parts: Sequence[Any]) -> tuple[Part, ...]:
    return tuple(_part(value, place) for place, value in enumerate(parts))


def _part(value: Any, place: int) -> Part:
    if not isinstance(value, Mapping):
        value = {"type": "text" if isinstance(value, str) else "unknown", "text": value}
    kind = str(value.get("type") or "unknown")
    text = _text_of(value)
    length = value.get("length")
    lost = length - len(text) if value.get("truncated") and isinstance(length, int) else 0
    nested = value.get("content") if kind == "tool_result" and isinstance(value.get("content"), list) else None
    label, name, is_code = _label(kind, value)
    return Part(
        kind=kind if kind in _KINDS else "unknown",
        place=place,
        label=label,
        name=name,
        text="" if nested is not None else text[:SHOWN],
        is_code=is_code,
        rest=0 if nested is not None else max(0, len(text) - SHOWN),
        lost=max(0, lost),
        parts=() if nested is None else tuple(_part(one, at) for at, one in enumerate(nested)),
    )


_KINDS = ("text", "reasoning", "refusal", "image", "file", "tool_call", "tool_result")


def _label(kind: str, value: Mapping[str, Any]) -> tuple[str, str, bool]:
    """``(what it is, the tool's name, whether its text is code)``."""
    if kind == "text":
        return ("declines" if value.get("refusal") is True else ""), "", False
    if kind == "reasoning":
        return ("reasoning, encrypted by the provider" if value.get("redacted") else "reasoning"), "", False
    if kind == "refusal":
        return "declines", "", False
    if kind in ("image", "file"):
        size = value.get("bytes")
        facts = [
            value.get("media_type"),
            words.size(size) if isinstance(size, int) else None,
            *(value.get(name) for name in ("name", "id", "url")),
        ]
        return ", ".join([kind, *(words.one_line(fact) for fact in facts if fact)]), "", False
    if kind == "tool_call":
        return "calls", _named(value), True
    if kind == "tool_result":
        return ("failed result of" if value.get("error") else "result of"), _named(value), True
    return "not known to this version" if kind == "unknown" else words.one_line(kind), "", True


def _named(value: Mapping[str, Any]) -> str:
    name, id = value.get("name"), value.get("id")
    return " ".join(words.one_line(one) for one in (name, f"({id})" if name and id else id) if one)


def _text_of(part: Any) -> str:
    if not isinstance(part, Mapping):
        return _text(part)
    if part.get("type") in ("image", "file"):
        return _text(part.get("text") or "")
    for place in _PLACES:
        if isinstance(part.get(place), str):
            return str(part[place])
        if part.get(place) is not None and not isinstance(part[place], bool):
            return _text(part[place])
    rest = {name: value for name, value in part.items() if name not in ("type", "id", "name", "truncated", "length")}
    return _text(rest) if rest and part.get("type") not in _KINDS else ""


def _text(value: Any) -> str:
    """Text as it is; what was cut, with that said; else JSON for people."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and value.get("truncated") and isinstance(value.get("text"), str):
        return f"{value['text']}… (cut: {value.get('length')} characters)"
    return "" if value is None else json.dumps(value, ensure_ascii=False, indent=2)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 500 else f"{text[:500]}… ({len(text):,} characters)"


def _pairs(value: Any) -> list[tuple[str, str]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        return [("options", _short(value))]
    return [(str(name), _short(one)) for name, one in value.items()]


def _choice(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("mode"), str):
        names = value.get("tools")
        among = f": {', '.join(map(str, names))}" if isinstance(names, list) and names else ""
        return value["mode"] + among if value["mode"] != "unknown" else _short(value.get("raw"))
    return _short(value)


def _warning(value: Any) -> str:
    return words.error_text(value) if isinstance(value, Mapping) else words.one_line(value)
