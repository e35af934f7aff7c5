"""What `otel_chatdebug.wire.shapes` promises, checked: so every request and response looks, from whichever bytes."""

from __future__ import annotations

import json
from typing import Any

from otel_chatdebug.wire import shapes

REQUEST = {
    "format",
    "model",
    "messages",
    "tools",
    "tool_choice",
    "options",
    "provider_options",
    "provider_option_count",
}
RESPONSE = {"format", "model", "id", "messages", "usage", "warnings"}
OPTIONS = {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "choice_count",
    "stop_sequences",
}
TEXTS = {"text", "reasoning", "refusal"}
CUT = {"truncated", "length", "other"}
FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "text": ({"type", "text"}, CUT),
    "reasoning": ({"type", "text"}, CUT | {"redacted"}),
    "refusal": ({"type", "text"}, CUT),
    "image": ({"type", "media_type", "bytes"}, CUT | {"url", "id", "name", "text"}),
    "file": ({"type", "media_type", "bytes"}, CUT | {"url", "id", "name", "text"}),
    "tool_call": ({"type", "id", "name", "arguments"}, CUT),
    "tool_result": ({"type", "id", "content"}, CUT | {"error", "name"}),
    "unknown": ({"type", "raw"}, CUT),
}
"""The type of a part -> the keys that it has, and those that it may have."""


def check_request(value: Any) -> None:
    """Fails unless ``value`` is a normalised request."""
    json.dumps(value)
    assert set(value) == REQUEST
    assert isinstance(value["format"], str)
    check_name(value["model"])
    for message in value["messages"]:
        check_message(message)
    for tool in value["tools"]:
        if tool["type"] == "function":
            assert (
                {"type", "name", "description", "schema"}
                <= set(tool)
                <= {"type", "name", "description", "schema", "other"}
            )
        else:
            assert {"type", "name", "raw"} <= set(tool) <= {"type", "name", "raw", *CUT}
            assert tool["type"] == "unknown"
        check_name(tool["name"])
    if (choice := value["tool_choice"]) is not None:
        assert choice["mode"] in ("auto", "none", "required", "unknown")
        assert set(choice) <= {"mode", "tools", "raw", *CUT}
    assert set(value["options"]) <= OPTIONS
    assert len(value["provider_options"]) <= shapes.MAX_OPTIONS
    assert isinstance(value["provider_option_count"], int)


def check_response(value: Any) -> None:
    """Fails unless ``value`` is a normalised response."""
    json.dumps(value)
    assert RESPONSE <= set(value) <= RESPONSE | {"embeddings"}
    check_name(value["model"])
    check_name(value["id"])
    for message in value["messages"]:
        check_message(message)
        check_name(message["finish_reason"])
    if value["usage"] is not None:
        assert value["usage"]
        assert all(isinstance(count, int) and count >= 0 for count in value["usage"].values())
    assert len(value["warnings"]) <= shapes.MAX_WARNINGS
    for warning in value["warnings"]:
        assert set(warning) == {"type", "message"}
        assert all(isinstance(text, str) for text in warning.values())


def check_message(message: Any) -> None:
    assert {"role", "parts"} <= set(message) <= {"role", "parts", "name", "finish_reason", "other"}
    assert message["role"]
    assert isinstance(message["role"], str)
    for part in message["parts"]:
        check_part(part)


def check_part(part: Any) -> None:
    required, optional = FIELDS[part["type"]]
    assert required <= set(part) <= required | optional
    if part["type"] in TEXTS:
        assert isinstance(part["text"], str)
    if part["type"] in ("tool_call", "tool_result"):
        check_name(part["id"])
        check_name(part.get("name"))
    if part["type"] == "tool_result" and isinstance(part["content"], list):
        for inner in part["content"]:
            check_part(inner)
    for key in ("text", "arguments", "content", "raw"):
        if isinstance(text := part.get(key), str):
            assert len(text) <= shapes.MAX_STREAMED
            assert part.get("truncated") is None or part["length"] > len(text)


def check_name(value: Any) -> None:
    assert value is None or (isinstance(value, str) and 0 < len(value) <= 256)
