"""JSON without secrets: by the names of its keys, at any depth, and what stands in its texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from otel_chatdebug.blobs import MAX_DEPTH, TOO_DEEP, decoded_length
from otel_chatdebug.redaction.formats import REDACTED, keys_out
from otel_chatdebug.redaction.names import Kind
from otel_chatdebug.redaction.texts import TextRedactor

_MIN_NAMED_BLOB = 64
"""Characters from which a base64 text counts as data under a name that says so."""

_NAMED_BLOB = re.compile(r"[A-Za-z0-9+/_-]+={0,2}").fullmatch
_SCHEMA_MARKS = frozenset({"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "description"})
_SCHEMA_VALUES = frozenset({"default", "const", "example", "examples", "enum"})


class ValueRedactor(TextRedactor):
    """What is done to JSON. Immutable; any thread. Nothing in it raises."""

    def json_value(self, value: Any) -> Any:
        """A JSON value of new lists and dicts, redacted at every depth; what is nested too deeply is left out."""
        try:
            return self._value(value, 0)
        except Exception:  # RecursionError where the caller's own stack is nearly full
            return REDACTED

    def _value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._string(value, depth)
        if value is None or isinstance(value, bool | int | float):
            return value
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        if isinstance(value, Mapping):
            return self._object(value, depth)
        if isinstance(value, list | tuple):
            return [self._value(item, depth + 1) for item in value]
        return self._text(str(value))

    def _object(self, value: Mapping[Any, Any], depth: int, *, properties: bool = False) -> dict[str, Any]:
        """``properties``: the object maps names to JSON schemas, as in the declaration of a tool."""
        result: dict[str, Any] = {}
        named = self._names_a_secret(value)
        look_up = self.names.key
        for key, item in value.items():
            key = key if isinstance(key, str) else str(key)
            kind, shown = look_up(key)
            if named and key == "value":
                result[shown] = _hidden(item)
            elif kind is Kind.OTHER:
                if key == "properties" and isinstance(item, Mapping) and depth < MAX_DEPTH:
                    result[shown] = self._object(item, depth + 1, properties=True)
                else:
                    result[shown] = self._value(item, depth + 1)
            elif kind is Kind.HEADERS:
                result[shown] = self._headers_value(item, depth)
            elif kind is Kind.BLOB:
                blob = isinstance(item, str) and len(item) >= _MIN_NAMED_BLOB and _NAMED_BLOB(item)
                result[shown] = f"[{decoded_length(item)} bytes]" if blob else self._value(item, depth + 1)
            elif properties and isinstance(item, Mapping) and not _SCHEMA_MARKS.isdisjoint(item):
                schema = {name: _hidden(part) if name in _SCHEMA_VALUES else part for name, part in item.items()}
                result[shown] = self._value(schema, depth + 1)
            elif kind is Kind.TOKEN and _is_about_tokens(value, item):
                result[shown] = self._value(item, depth + 1)
            elif kind is Kind.TOKEN and isinstance(item, Mapping):
                result[shown] = _texts_hidden(self._value(item, depth + 1))
            else:
                result[shown] = _hidden(item)
        return result

    def _string(self, text: str, depth: int) -> str:
        if len(text) > 2 and text[0] in "{[" and depth < MAX_DEPTH and (parsed := parse(text)) is not NO_JSON:
            redacted = self._value(parsed, depth + 1)
            # As it was where nothing had to be changed: white space may mean something to whoever reads it.
            return text if redacted == parsed else dumps(redacted)
        return self._text(text)

    def _headers_value(self, value: Any, depth: int) -> Any:
        """Headers that are handed on (to an MCP server, say), as an object or as a list of pairs."""
        if isinstance(value, Mapping):
            return {
                keys_out(str(name)): self._header(str(name), item) if isinstance(item, str) else _hidden(item)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._header_pair(pair, depth) for pair in value]
        return _hidden(value)

    def _header_pair(self, pair: Any, depth: int) -> Any:
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            return [keys_out(pair[0]), self._header(pair[0], pair[1])]
        if isinstance(pair, Mapping) and isinstance(pair.get("name"), str) and isinstance(pair.get("value"), str):
            return {**self._object(pair, depth + 1), "value": self._header(pair["name"], pair["value"])}
        return _hidden(pair)

    def _names_a_secret(self, value: Mapping[Any, Any]) -> bool:
        """``{"name": "API_KEY", "value": "..."}``: the name of the secret is a value itself."""
        if "value" not in value:
            return False
        names = (value.get("name"), value.get("key"), value.get("field"), value.get("id"))
        return any(isinstance(name, str) and self.names.key(name)[0] in (Kind.SECRET, Kind.TOKEN) for name in names)


def _hidden(value: Any) -> Any:
    """What stands for a secret: that there is none (null, false, an empty text) may be said."""
    return value if value is None or value == "" or isinstance(value, bool) else REDACTED


def _texts_hidden(value: Any) -> Any:
    """Details of a token: their counts stay, at any depth, and no text."""
    if isinstance(value, dict):
        return {name: _texts_hidden(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_texts_hidden(item) for item in value]
    return _hidden(value) if isinstance(value, str) else value


def _is_about_tokens(siblings: Mapping[Any, Any], value: Any) -> bool:
    """Whether a value under a name like ``max_tokens`` is no secret: a count, or a model's token with its probability
    beside it."""
    if isinstance(value, int | float) or "logprob" in siblings or "token_logprobs" in siblings:
        return True
    if isinstance(value, Mapping):
        return "logprob" in value
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)


NO_JSON: Final = object()
_decode_json = json.JSONDecoder(parse_constant=str).decode


def parse(text: str) -> Any:
    """The JSON value, or `NO_JSON`."""
    try:
        return _decode_json(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return NO_JSON


def dumps(value: Any) -> str:
    """The JSON text of a value, compact."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
