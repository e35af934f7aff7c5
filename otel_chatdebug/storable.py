"""Makes text and JSON storable in every database: never an exception, whatever an application hands in.

PostgreSQL takes no NUL in text and no lone surrogate, in JSONB as well; SQLite takes no lone surrogate and no integer
beyond 64 bits; JSON knows no NaN and no infinity. What cannot be stored is replaced, never dropped.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
"""What a database's integer holds; JSON readers in other languages hold no more either."""

MAX_DEPTH = 64
"""Levels of nested JSON that are kept. Far below Python's recursion limit, whatever stack we are called on."""


def text(value: object) -> str:
    """``value`` as text without NUL and lone surrogates, each of which becomes U+FFFD. Surrogate pairs are joined."""
    if type(value) is not str:
        value = str.__str__(value) if isinstance(value, str) else represent(value)
    if "\0" in value:
        value = value.replace("\0", REPLACEMENT)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


LONGEST_NAME = 300
"""Characters of an id, a model, a kind and the like. Two of them, in any script, fit into an entry of PostgreSQL's
indexes (2,704 bytes) with what else stands in it."""

_HASH_DIGITS = 32


def name(value: str) -> str:
    """``value`` as it is recorded and looked up where it names something: bounded, and for the same value always the
    same. What is longer than `LONGEST_NAME` becomes its beginning, ``…`` and a hash of the whole."""
    if len(value) <= LONGEST_NAME:
        return value
    value = text(value)
    if len(value) <= LONGEST_NAME:  # surrogate pairs were joined
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{value[: LONGEST_NAME - _HASH_DIGITS - 1]}…{digest}"


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

_ODD_ESCAPE = re.compile(r"\\u0000|\\ud[89a-f]")
"""What may have to be replaced, in JSON with escapes: NUL, half a surrogate pair (or a whole one)."""

_LONG = re.compile(r"\d{19}")
"""The same: an integer that may be beyond 64 bits."""

_STRIDE, _PERHAPS_LONG = 9, re.compile(r"\d\d")
"""19 digits in a row are digits at two places, at least, of every ninth. A text without those need not be searched
whole, which would take as long as its encoding."""


def json_text(value: object) -> str:
    """``value`` as JSON text that every database takes; see `json_value` for what is replaced."""
    try:
        # Nearly always it is storable as it is, and C finds that out; else it is made anew, item by item.
        encoded = _encode(value)
    except (TypeError, ValueError, RecursionError):
        encoded = None
    if encoded is None or _is_odd(encoded):
        return json.dumps(json_value(value), ensure_ascii=False, separators=(",", ":"))
    return encoded if "\\u" not in encoded else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is_odd(encoded: str) -> bool:
    if "\\u" in encoded and _ODD_ESCAPE.search(encoded):
        return True
    return bool(_PERHAPS_LONG.search(encoded[::_STRIDE]) and _LONG.search(encoded))


def json_value(value: object, depth: int = MAX_DEPTH) -> Any:
    """A copy of ``value`` that ``json.dumps`` takes as it is: dict, list, str, int, float, bool and None.

    Integers beyond 64 bits, NaN and infinities become strings; any other object its ``repr``; what is nested deeper
    than `MAX_DEPTH` (a cycle, too) the string ``"..."``.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        return int(value) if MIN_INTEGER <= value <= MAX_INTEGER else _long(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, dict):
        if not depth:
            return "..."
        return {text(key): json_value(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_value(item, depth - 1) for item in value] if depth else "..."
    return text(represent(value))


def represent(value: object) -> str:
    """``str`` of plain things, ``repr`` of all others; the type's name where that raises (it is foreign code)."""
    try:
        return str(value) if isinstance(value, (int, float)) else repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _long(value: int) -> str:
    """The digits of a long integer; hexadecimal beyond Python's limit for decimal digits (4,300 of them)."""
    try:
        return str(int(value))
    except ValueError:
        return hex(value)
