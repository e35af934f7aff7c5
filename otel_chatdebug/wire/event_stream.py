"""AWS event streams: binary frames with headers and two checksums, as Bedrock sends them.

A frame is ``total length (4) | length of headers (4) | CRC of these (4) | headers | payload | CRC of all before (4)``,
big-endian. Source: https://smithy.io/2.0/aws/amazon-eventstream.html. Behind a checksum that is wrong nothing can be
found any more, so a stream ends there for us, as it does for the SDKs.

A frame of the type ``chunk`` (InvokeModelWithResponseStream) has the model's own event as base64 in its payload, which
is what comes out here; an exception comes out as an event named ``error`` in a shape that every reader knows.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from zlib import crc32

from otel_chatdebug.wire.framing import Framing, events
from otel_chatdebug.wire.reading import loads, mapping, name
from otel_chatdebug.wire.sse import MAX_EVENT, Event

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")

_SMALLEST = _PRELUDE.size + _CRC.size
_LARGEST = 24 * 1024 * 1024 + 128 * 1024 + _SMALLEST
"""Bytes of a frame, by the specification: 24 MiB of payload, 128 KiB of headers."""

_MAX_HEADERS = 32
"""Headers of a frame that are read; Bedrock sends three."""

_FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""The types of header values that have a length by themselves, and which; the others say it in two bytes."""

_STRING = 7


class _EventStream:
    name = "aws_event_stream"
    media_types = frozenset({"application/vnd.amazon.eventstream"})

    def starts(self, data: bytes) -> bool:
        return len(data) >= _PRELUDE.size and _lengths(data) is not None

    def framer(self) -> FrameFramer:
        return FrameFramer()

    def event(self, block: bytes) -> Event | None:
        if not block:
            return None, b""  # one that was too large
        headers, payload = _parts(block)
        kind = headers.get(":message-type", "event")
        if kind == "error":
            return _error(headers.get(":error-code"), headers.get(":error-message"))
        if kind == "exception":
            said = mapping(loads(payload)).get("message") or mapping(loads(payload)).get("Message")
            return _error(headers.get(":exception-type"), said if isinstance(said, str) else None)
        event = headers.get(":event-type")
        return (None, _inner(payload)) if event == "chunk" else (event, payload)

    def last(self, rest: bytes) -> Event | None:
        return None  # a frame whose checksum has not come

    def text(self, kept: bytes) -> bytes:
        """As SSE."""
        lines = []
        for event, data in events(self, kept):
            if event is not None:
                lines.append(b"event: " + event.replace("\n", " ").encode("utf-8", "replace") + b"\n")
            lines.append(b"data: " + data.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n\n")
        return b"".join(lines)


class FrameFramer:
    """Cuts a stream into frames whose checksums are right."""

    __slots__ = ("_needed", "_partial", "_skip", "broken", "oversized")

    def __init__(self) -> None:
        self.oversized = 0
        self.broken = False
        """A checksum or a length was wrong: nothing more comes."""
        self._partial = bytearray()
        self._needed = _PRELUDE.size  # bytes without which nothing more can be told
        self._skip = 0  # bytes of an oversized frame that are still to come

    def feed(self, data: bytes) -> list[bytes]:
        """Whole frames; an empty one stands for a frame that was too large."""
        if self.broken:
            return []
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._partial += data
        if len(self._partial) < self._needed:
            return []
        received = bytes(self._partial)
        self._partial.clear()
        blocks: list[bytes] = []
        at = self._cut(received, blocks)
        if not self.broken:
            self._partial += received[at:]
        return blocks

    def _cut(self, received: bytes, blocks: list[bytes]) -> int:
        """Adds what is whole to ``blocks``, and says how far that goes."""
        at = 0
        while len(received) - at >= _PRELUDE.size:
            total = _lengths(received[at : at + _PRELUDE.size])
            if total is None:
                self.broken = True
                return at
            end = at + total
            if total > MAX_EVENT:
                self.oversized += 1
                blocks.append(b"")
                self._skip = max(0, end - len(received))
                at = min(end, len(received))
                continue
            if end > len(received):
                self._needed = total
                return at
            frame = received[at:end]
            if crc32(frame[: -_CRC.size]) != _CRC.unpack(frame[-_CRC.size :])[0]:
                self.broken = True
                return at
            blocks.append(frame)
            at = end
        self._needed = _PRELUDE.size
        return at

    @property
    def skipping(self) -> bool:
        return self._skip > 0

    def rest(self) -> bytes:
        return bytes(self._partial)


def _lengths(data: bytes) -> int | None:
    """How long the frame is that begins here; None where none does."""
    total, headers, checksum = _PRELUDE.unpack_from(data)
    if not _SMALLEST <= total <= _LARGEST or headers > total - _SMALLEST or crc32(data[:8]) != checksum:
        return None
    return int(total)


def _parts(block: bytes) -> tuple[dict[str, str], bytes]:
    """The headers of a frame that are texts, and its payload."""
    end = _PRELUDE.size + _PRELUDE.unpack_from(block)[1]
    headers: dict[str, str] = {}
    at = _PRELUDE.size
    while at < end and len(headers) < _MAX_HEADERS:
        key_end = at + 1 + block[at]
        key = block[at + 1 : key_end].decode("utf-8", "replace")
        if key_end >= end:
            break
        kind = block[key_end]
        at = key_end + 1
        if kind in _FIXED:
            at += _FIXED[kind]
            continue
        if at + 2 > end:
            break
        value_end = at + 2 + int.from_bytes(block[at : at + 2], "big")
        if kind == _STRING:
            headers[key] = block[at + 2 : min(value_end, end)].decode("utf-8", "replace")
        at = value_end
    return headers, block[end : -_CRC.size]


def _inner(payload: bytes) -> bytes:
    """The event inside of a chunk. Its ``p`` is padding."""
    chunk = mapping(loads(payload))
    data = chunk.get("bytes")
    if not isinstance(data, str):
        return payload
    try:
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        return b""


def _error(type: str | None, message: str | None) -> Event:
    error = {"type": name(type) or "error", "message": message or ""}
    return "error", json.dumps({"type": "error", "error": error}).encode()


AWS_EVENT_STREAM: Framing = _EventStream()
