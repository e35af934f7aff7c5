"""How a body that is made of events is cut into them, at any split of its bytes, in bounded memory.

A *framing* makes `Framer`s, which cut bytes into blocks, and events of those blocks. There are four: SSE, lines of JSON
(Ollama), a JSON array that is sent bit by bit (Gemini without ``alt=sse``), and the binary frames of AWS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from otel_chatdebug.wire.reading import loads
from otel_chatdebug.wire.sse import MAX_EVENT, Event, parse_block
from otel_chatdebug.wire.sse import Framer as SSEFramer

DECODED_AT_ONCE = 64 * 1024
"""Bytes of a stream that are taken apart at a time by `events`: all at once take many times the memory of the body."""


class Framer(Protocol):
    """Cuts a stream into blocks. Not for several threads at once. Never raises."""

    oversized: int
    """Blocks that were longer than `MAX_EVENT`, and are given up: they are counted, and come without their content."""

    def feed(self, data: bytes) -> list[bytes]:
        """The blocks that ``data`` completes."""

    @property
    def skipping(self) -> bool:
        """Whether an oversized block has not ended yet."""

    def rest(self) -> bytes:
        """The last block, as far as it has come; empty where there is none."""


class Framing(Protocol):
    """One way of cutting. Stateless; any thread."""

    @property
    def name(self) -> str:
        """``sse``, ..."""

    @property
    def media_types(self) -> frozenset[str]:
        """The content types that say so."""

    def starts(self, data: bytes) -> bool:
        """Whether a body looks so by its first bytes, without white space before them."""

    def framer(self) -> Framer:
        """A new one."""

    def event(self, block: bytes) -> Event | None:
        """The event of a block; None for one that holds none."""

    def last(self, rest: bytes) -> Event | None:
        """The event of a last block that was not ended, if it is one all the same."""

    def text(self, kept: bytes) -> bytes:
        """The body as lines of text that a person can read: SSE, or JSON."""


def events(framing: Framing, *pieces: bytes) -> Iterator[Event]:
    """The events in the pieces of a body, some at a time."""
    framer = framing.framer()
    for piece in pieces:
        for start in range(0, len(piece), DECODED_AT_ONCE):
            for block in framer.feed(piece[start : start + DECODED_AT_ONCE]):
                if (event := framing.event(block)) is not None:
                    yield event
    if framing is not SSE and (event := framing.last(framer.rest())) is not None:
        yield event


class _SSE:
    """Server-sent events."""

    name = "sse"
    media_types = frozenset({"text/event-stream"})

    def starts(self, data: bytes) -> bool:
        return data.startswith((b"data:", b"event:", b":"))

    def framer(self) -> SSEFramer:
        return SSEFramer()

    def event(self, block: bytes) -> Event | None:
        return parse_block(block)

    def last(self, rest: bytes) -> Event | None:
        return parse_block(rest.removesuffix(b"\n"))

    def text(self, kept: bytes) -> bytes:
        return kept


class _Lines:
    """One JSON value on each line."""

    name = "ndjson"
    media_types = frozenset(
        {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
    )

    def starts(self, data: bytes) -> bool:
        """As any JSON does: whether it is one value or several, only the content type says, or the format."""
        return False

    def framer(self) -> LineFramer:
        return LineFramer()

    def event(self, block: bytes) -> Event | None:
        line = block.strip()
        return (None, line) if line else None

    def last(self, rest: bytes) -> Event | None:
        """A last line needs no end, but it must be whole."""
        return self.event(rest) if loads(rest) is not None else None

    def text(self, kept: bytes) -> bytes:
        return kept


class LineFramer:
    """Cuts at line feeds."""

    __slots__ = ("_partial", "oversized", "skipping")

    def __init__(self) -> None:
        self.oversized = 0
        self._partial = bytearray()
        self.skipping = False  # the rest of an oversized line

    def feed(self, data: bytes) -> list[bytes]:
        if b"\n" not in data:
            self._keep(data)
            return []
        lines = (bytes(self._partial) + data).split(b"\n")
        self._partial.clear()
        if self.skipping:
            self.skipping = False
            lines[0] = b"{}"
        rest = lines.pop()
        if len(data) > MAX_EVENT:
            lines = [self._within_limit(line) for line in lines]
        self._keep(rest)
        return lines

    def rest(self) -> bytes:
        return bytes(self._partial)

    def _keep(self, data: bytes) -> None:
        if self.skipping:
            return
        self._partial += data
        if len(self._partial) > MAX_EVENT:
            self.oversized += 1
            self.skipping = True
            self._partial.clear()

    def _within_limit(self, line: bytes) -> bytes:
        if len(line) <= MAX_EVENT:
            return line
        self.oversized += 1
        return b"{}"


class _Array:
    """The objects of one JSON array."""

    name = "json_array"
    media_types: frozenset[str] = frozenset()  # application/json, as any other JSON

    def starts(self, data: bytes) -> bool:
        return _OPENING.match(data) is not None

    def framer(self) -> ArrayFramer:
        return ArrayFramer()

    def event(self, block: bytes) -> Event | None:
        return None, block

    def last(self, rest: bytes) -> Event | None:
        return None  # a value whose end has not come

    def text(self, kept: bytes) -> bytes:
        """One object on each line."""
        return b"".join(_NEWLINES.sub(b" ", data) + b"\n" for _, data in events(self, kept))


_OPENING = re.compile(rb"\[\s*\{")

_NEWLINES = re.compile(rb"\s*[\r\n]\s*")
"""In JSON they stand between its tokens only: within a text they are escaped."""


class ArrayFramer:
    """Finds where each object of an array begins and ends, without understanding it. Linear, at any split."""

    __slots__ = ("_depth", "_escaped", "_in_text", "_partial", "oversized", "skipping")

    def __init__(self) -> None:
        self.oversized = 0
        self._depth = 0  # of open brackets; an object of the array is at 1
        self._in_text = False
        self._escaped = False  # the last byte was a backslash in a text
        self._partial = bytearray()
        self.skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        blocks: list[bytes] = []
        start = 0  # of the object that is open, in ``data``
        at = 1 if self._escaped and data else 0
        self._escaped = self._escaped and not data
        while at < len(data):
            if self._in_text:
                at = self._behind_text(data, at)
                continue
            match = (_TOKEN if self._depth else _OBJECT).search(data, at)
            if match is None:
                break
            token = match[0]
            at = match.end()
            if token == b'"':
                self._in_text = True
            elif token[0] in b"[{":
                if not self._depth:
                    start = match.start()
                self._depth += len(token)
            elif self._depth > len(token):
                self._depth -= len(token)
            else:
                at = match.start() + self._depth
                self._depth = 0
                self._keep(data[start:at])
                blocks.append(b"{}" if self.skipping else bytes(self._partial))
                self._partial.clear()
                self.skipping = False
        if self._depth:
            self._keep(data[start:])
        return blocks

    def _behind_text(self, data: bytes, at: int) -> int:
        match = _TEXT.match(data, at)
        end = at if match is None else match.end()
        if end == len(data):
            return end
        if data[end] == _QUOTE:
            self._in_text = False
        else:  # a backslash, and nothing behind it yet
            self._escaped = True
        return end + 1

    def rest(self) -> bytes:
        return b"" if self.skipping else bytes(self._partial)

    def _keep(self, data: bytes) -> None:
        if self.skipping:
            return
        if len(self._partial) + len(data) > MAX_EVENT:
            self.oversized += 1
            self.skipping = True
            self._partial.clear()
        else:
            self._partial += data


_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.S)
_TOKEN = re.compile(rb'"|[\[{]+|[\]}]+')
_OBJECT = re.compile(rb'"|\{[\[{]*')
"""What matters outside of any object."""
_QUOTE = ord('"')

SSE: Framing = _SSE()
NDJSON: Framing = _Lines()
JSON_ARRAY: Framing = _Array()
