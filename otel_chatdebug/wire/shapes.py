"""The one shape of messages, whatever the provider: what a person reads, not what the wire says.

A request is ``{"messages": [message], "tools": [tool], "options": {...}, "tool_choice": ...}``, a response
``{"messages": [message, one per choice], "finish_reasons": [...], "model": ..., "id": ...}``. A message is
``{"role": ..., "parts": [part]}`` and a part one of

- ``{"type": "text", "text"}``, ``{"type": "reasoning", "text"}``
- ``{"type": "image" | "file", "media_type", "bytes"}``, with ``url``, ``id`` or ``name`` where given: never the data
- ``{"type": "tool_call", "id", "name", "arguments"}``, arguments as an object where they are one
- ``{"type": "tool_result", "id", "content"}``
- ``{"type": "unknown", "raw"}`` for what we do not know, so that nothing is lost silently

What is too long is cut, and its part says ``"truncated": true, "length": <characters it had>``. Secrets are still in
it: redaction is the next step's, over the whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from otel_chatdebug.blobs import data_url, decoded_length, without_blobs
from otel_chatdebug.wire.reading import loads, name

Part: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]

MAX_PART = 10_000
"""Characters of one part of a message."""

MAX_STREAMED = 50_000
"""Characters of all that one streamed response says."""

MAX_PARTS = 1_000
"""Parts that one streamed response may have; the index of a part comes from the wire."""


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


def refusal_part(text: str, budget: Budget) -> Part:
    """A text by which a model declines."""
    return cut({"type": "text", "refusal": True}, "text", text, budget)


def tool_call_part(id: Any, tool: Any, arguments: Any, budget: Budget) -> Part:
    """``arguments``: an object, or the text of one; text that is no JSON (yet) stays as it is."""
    part: Part = {"type": "tool_call", "id": name(id), "name": name(tool)}
    if isinstance(arguments, str):
        parsed = loads(arguments) if len(arguments) <= budget.part else None
        if not isinstance(parsed, dict | list):
            return cut(part, "arguments", arguments, budget)
        arguments = parsed
    return raw(part, "arguments", arguments, budget)


def tool_result_part(id: Any, content: Any, budget: Budget, *, error: bool = False) -> Part:
    """``content``: text, or a list of parts that are normalised already."""
    part: Part = {"type": "tool_result", "id": name(id)}
    if error:
        part["error"] = True
    if isinstance(content, str):
        return cut(part, "content", content, budget)
    part["content"] = content
    return part


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


def unknown_part(value: Any, budget: Budget) -> Part:
    """A shape that we do not know, as it came, bounded."""
    return raw({"type": "unknown"}, "raw", value, budget)


def raw(part: Part, key: str, value: Any, budget: Budget) -> Part:
    """``part`` with any JSON value under ``key``: whole where its text fits into the budget, else that text, cut."""
    value = without_blobs(value)
    if value is None or isinstance(value, bool | int | float):
        part[key] = value
        return part
    text = value if isinstance(value, str) else _dumps(value)
    cut(part, key, text, budget)
    if "truncated" not in part:
        part[key] = value
    return part


def bounded(value: Any) -> Any:
    """An option's value: itself where it is short, else its text and how long that was."""
    part = raw({}, "text", value, Budget())
    return part if "truncated" in part else part["text"]


def options(body: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """All that a request says beside its messages and tools."""
    return {str(key)[:MAX_PART]: bounded(value) for key, value in body.items() if key not in but}


def tool(value: Any, schema_key: str) -> dict[str, Any]:
    """A tool that the application declares; one that the provider brings (``web_search``) is kept raw."""
    if isinstance(value, dict) and isinstance(value.get("name"), str) and schema_key in value:
        return {
            "name": name(value["name"]),
            "description": bounded(value.get("description")),
            "schema": bounded(value[schema_key]),
        }
    given = value if isinstance(value, dict) else {}
    return {"name": name(given.get("name")) or name(given.get("type")), **unknown_part(value, Budget())}


def request(messages: list[Message], tools: list[Any], options: dict[str, Any], tool_choice: Any) -> dict[str, Any]:
    """A normalised request."""
    return {"messages": messages, "tools": tools, "options": options, "tool_choice": bounded(tool_choice)}


def response(messages: list[Message], finish_reasons: list[str], model: Any, id: Any) -> dict[str, Any]:
    """A normalised response."""
    return {"messages": messages, "finish_reasons": finish_reasons, "model": name(model), "id": name(id)}


class Text:
    """A text that comes in pieces: as much as the budget allows is kept, the rest only counted."""

    __slots__ = ("_budget", "_kept", "_pieces", "length")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept = 0
        self._pieces: list[str] = []
        self.length = 0
        """Of all that came, kept or not."""

    def add(self, piece: Any) -> None:
        """Anything but a text is read over."""
        if not isinstance(piece, str) or not piece:
            return
        self.length += len(piece)
        kept = self._budget.take(len(piece))
        if kept:
            self._pieces.append(piece[:kept])
            self._kept += kept

    def __str__(self) -> str:
        return "".join(self._pieces)

    def into(self, part: Part, key: str = "text") -> Part:
        """``part`` with the text under ``key``, marked where it was cut."""
        part[key] = str(self)
        if self._kept < self.length:
            part["truncated"] = True
            part["length"] = self.length
        return part

    def into_tool_call(self, id: Any, tool: Any) -> Part:
        """The text as the arguments of a tool call; whole arguments become an object."""
        part = self.into({"type": "tool_call", "id": name(id), "name": name(tool)}, "arguments")
        if "truncated" not in part and isinstance(parsed := loads(part["arguments"]), dict | list):
            part["arguments"] = parsed
        return part


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (ValueError, RecursionError):
        return f"[{type(value).__name__} that is no JSON]"
