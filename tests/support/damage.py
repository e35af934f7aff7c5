"""Transcripts, damaged in every way that a network, a gateway or a broken server has: for the fuzz of the readers."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from otel_chatdebug.wire.event_stream import AWS_EVENT_STREAM
from otel_chatdebug.wire.framing import JSON_ARRAY, NDJSON, SSE, Framing, events
from otel_chatdebug.wire.sse import Event
from tests.support import frames
from tests.support.transcripts import STREAMS, Transcript

BYTES = [b"\n", b"\n\n", b"\r", b"\r\n", b"{", b"}", b"[", b"]", b"null", b'"', b"\\", b"data:", b"event: error\n"]
BYTES += [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b"\x00\x00\x00\x10", b"-1", b"1e999", b"\\ud800"]

WRONG: list[Any] = [None, True, 0, -1, 7, 1.5, 2**70, 10**400, 1e308, float("nan"), "", "x", "\0", "\ud800", [], {}]
WRONG += [[[]], [None], ["x"], {"x": None}, {"type": "x"}, {"text": 7}, "é" * 300, "x" * 11_000, [0] * 200]


def deep(levels: int, inner: Any = None) -> Any:
    """A value nested so deeply, in objects and arrays by turns."""
    value = inner
    for level in range(levels):
        value = {"content": value, "text": value} if level % 7 == 0 and level < 20 else [value]
    return value


def damaged(stream: Transcript, chance: random.Random) -> bytes:
    """Its bytes after some accidents: to values within its events, to the events, then to the bytes."""
    said = list(events(stream.framing, stream.data))
    if chance.random() < 0.7:
        said = [_wrong_values(event, chance) if chance.random() < 0.4 else event for event in said]
    if chance.random() < 0.5:
        said = _mixed_up(said, chance)
    data = encoded(stream.framing, said)
    return _wrong_bytes(data, chance) if chance.random() < 0.5 else data


def encoded(framing: Framing, said: list[Event]) -> bytes:
    """Events as bytes again."""
    if framing is SSE:
        return b"".join((f"event: {n}\n".encode() if n else b"") + b"data: " + data + b"\n\n" for n, data in said)
    if framing is NDJSON:
        return b"".join(data.replace(b"\n", b" ") + b"\n" for _, data in said)
    if framing is JSON_ARRAY:
        return b"[" + b",\r\n".join(data for _, data in said) + b"]"
    assert framing is AWS_EVENT_STREAM
    return b"".join(
        frames.chunk(data) if name is None else frames.frame(data, event_type=name, message_type="event")
        for name, data in said
    )


def value_damaged(value: Any, chance: random.Random) -> Any:
    """``value``, a JSON value that may be changed, with a few of its values replaced, renamed, doubled or dropped."""
    for _ in range(chance.randint(1, 4)):
        place = _somewhere(value, chance)
        if place is None:
            return chance.choice(WRONG)
        holder, key = place
        match chance.randrange(6):
            case 0 | 1:
                holder[key] = copy.copy(chance.choice(WRONG))
            case 2:
                holder[key] = deep(chance.choice([3, 30, 90, 300]), holder[key])
            case 3:
                holder[key] = [holder[key]] * chance.choice([1, 2, 30])
            case 4 if isinstance(holder, dict):
                holder[chance.choice(["type", "index", "content", "delta", "error", "usage", "id"])] = holder.pop(key)
            case _:
                del holder[key]
    return value


def _wrong_values(event: Event, chance: random.Random) -> Event:
    name, data = event
    try:
        value = json.loads(data)
    except ValueError:
        return event
    changed = json.dumps(value_damaged(value, chance), ensure_ascii=chance.random() < 0.5)
    return name, changed.encode("utf-8", "surrogatepass")


def _somewhere(value: Any, chance: random.Random) -> tuple[Any, Any] | None:
    """A place in a value, the deeper the likelier."""
    place = None
    while isinstance(value, dict | list) and value and (place is None or chance.random() < 0.8):
        key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        place = (value, key)
        value = value[key]
    return place


def _mixed_up(said: list[Event], chance: random.Random) -> list[Event]:
    said = list(said)
    for _ in range(chance.randint(1, 4)):
        if not said:
            break
        at = chance.randrange(len(said))
        match chance.randrange(5):
            case 0:
                del said[at]
            case 1:
                said[at:at] = [said[at]] * chance.choice([1, 3, 12])
            case 2:
                chance.shuffle(said)
            case 3:  # of somebody else
                other = chance.choice(STREAMS)
                said[at:at] = list(events(other.framing, other.data))[:3]
            case _:
                data = said[at][1]
                said[at] = (chance.choice([None, "error", "message_stop", "metadata", "x" * 300]), data)
    return said


def _wrong_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0:
                del changed[at : at + chance.randrange(60)]
            case 1:
                changed[at:at] = chance.choice(BYTES) * chance.choice([1, 1, 1, 100])
            case 2 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 3:
                changed[at:at] = changed[at // 2 : at]
            case _:
                del changed[at:]
    return bytes(changed)
