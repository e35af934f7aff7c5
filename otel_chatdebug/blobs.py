"""Binary data inside of text: data URLs and base64. It is recognised, measured, and left out of what is recorded."""

from __future__ import annotations

import re
from typing import Any

MIN_BLOB = 256
"""Characters from which a run of base64 counts as data. Keys, ids and signatures of ordinary size are shorter."""

MAX_DEPTH = 64
"""Levels of nesting that are walked; no provider's JSON comes near, and a deeper one could exhaust the stack."""

TOO_DEEP = "[nested too deeply]"

_ALPHABET = r"[A-Za-z0-9+/_-]"
# A look-behind and a possessive run: each character is looked at once, so hostile text costs linear time.
_BASE64 = re.compile(rf"(?<!{_ALPHABET}){_ALPHABET}{{{MIN_BLOB},}}+={{0,2}}")
_DATA_URL = re.compile(
    rf"data:([\w.+-]{{1,80}}/[\w.+-]{{1,80}})?((?:;[\w.=+-]{{1,80}}){{0,4}}),({_ALPHABET}*+={{0,2}})", re.A
)
_SAMPLE = 256
"""Characters in which data shows capitals, small letters and digits; a text of one repeated letter does not."""


_LONG_BASE64 = re.compile(rb"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{4096,}+={0,2}")
_STAND_IN = re.compile(r"\[(\d{1,19}) bytes\]\s*")


def without_long_base64(json_text: bytes) -> bytes:
    """JSON with each very long run of base64 in its texts replaced by how many bytes it stood for: what makes requests
    with files large, and is not looked at. Linear; far faster than parsing it."""
    return _LONG_BASE64.sub(lambda match: b"[%d bytes]" % (len(match[0].rstrip(b"=")) * 3 // 4), json_text)


def decoded_length(base64: str) -> int:
    """Bytes that a base64 text stands for, without decoding it; also of what `without_long_base64` put in its place."""
    if len(base64) < 32 and (stands_for := _STAND_IN.fullmatch(base64)):
        return int(stands_for[1])
    return len(base64.rstrip("=\n")) * 3 // 4


def data_url(text: str) -> tuple[str, int] | None:
    """``(media type, bytes)`` of a data URL; None for any other text."""
    if text[:5].lower() != "data:":
        return None
    head, comma, data = text[5:].partition(",")
    if not comma or len(head) > 400:
        return None
    media_type, *parameters = head.split(";")
    length = decoded_length(data) if "base64" in parameters else len(data)
    return media_type or "text/plain", length


def without_blobs_text(text: str) -> str:
    """``text`` with each data URL and each long run of base64 replaced by its length."""
    if "data:" in text:
        text = _DATA_URL.sub(_replace_data_url, text)
    if _has_long_word(text):
        text = _BASE64.sub(_replace_base64, text)
    return text


def _has_long_word(text: str) -> bool:
    """Whether a run of `MIN_BLOB` characters may be base64: such a run covers a whole window of half that length, and
    in prose every window has a space near its start, in JSON a quotation mark, so that the pattern need not look at all
    of it."""
    window = MIN_BLOB // 2
    return any(
        text.find(" ", at, at + window) < 0 and text.find('"', at, at + window) < 0
        for at in range(0, len(text) - window + 1, window)
    )


def without_blobs(value: Any, depth: int = 0) -> Any:
    """A JSON value with the blobs in its texts replaced; what needs no change may be returned itself."""
    if isinstance(value, str):
        return without_blobs_text(value) if len(value) >= MIN_BLOB or "data:" in value else value
    if isinstance(value, dict | list) and depth >= MAX_DEPTH:
        return TOO_DEEP
    if isinstance(value, dict):
        return {key: without_blobs(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [without_blobs(item, depth + 1) for item in value]
    return value


def _replace_data_url(match: re.Match[str]) -> str:
    media_type, parameters, data = match.groups(default="")
    if not parameters.endswith(";base64"):
        return match[0]  # text in the clear: the rest of the redaction looks at it
    return f"data:{media_type}{parameters},[{decoded_length(data)} bytes]"


def _replace_base64(match: re.Match[str]) -> str:
    sample = match[0][:_SAMPLE]
    mixed = any("A" <= c <= "Z" for c in sample) and any("a" <= c <= "z" for c in sample)
    if not (mixed and any("0" <= c <= "9" for c in sample)):
        return match[0]
    return f"[base64: {len(match[0])} characters]"
