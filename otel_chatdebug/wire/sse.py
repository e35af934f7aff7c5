"""Server-sent events, decoded as the WHATWG specification says, at any split of the bytes, in bounded memory.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream. ``id`` and ``retry``
are read over: they steer a browser's reconnection, and nobody reconnects here.

Two layers, so that a reader which looks at few events need not take the others apart: `Framer` cuts the stream into
blocks (the lines between two blank lines), `parse_block` makes an event of a block. `SSEDecoder` does both.
"""

from __future__ import annotations

from typing import TypeAlias

Event: TypeAlias = tuple[str | None, bytes]
"""The event's name (None where the stream gave none; the specification's "message") and its data."""

MAX_EVENT = 1024 * 1024
"""Bytes of one block. Providers' largest regular events (a whole response with its tools) stay far below; an endless
line must not fill the memory of the process that is watched."""

_NAME_WITHIN = 1024
"""Bytes at the start of an oversized block in which its ``event:`` line is looked for."""

CR = 0x0D
"""``CR in data`` is several times faster than the same with a bytes object."""

_BOM = b"\xef\xbb\xbf"


class Framer:
    """Cuts a stream into blocks. Not for several threads at once.

    A block comes without its blank line, and with LF as its only line end. A block that grows past `MAX_EVENT` is
    given up: it is counted, and delivered as its ``event:`` line with empty data, so that an end of stream which
    carries a large body (``response.completed`` with an image) is still seen as an end.
    """

    __slots__ = ("_after_cr", "_bom", "_oversized", "_partial", "oversized")

    def __init__(self) -> None:
        self.oversized = 0
        """How many blocks were given up."""
        self._bom: bytes | None = b""  # what came so far of a byte order mark; None once that is settled
        self._after_cr = False  # the last byte was a CR: an LF that follows belongs to it
        self._partial = bytearray()  # the block that is not whole yet; looked through only when its end is there
        self._oversized: bytes | None = None  # stands for the block whose rest is being skipped

    @property
    def idle(self) -> bool:
        """Whether the bytes so far end with a blank line, and a byte order mark or half a CRLF is no question."""
        return not (self._partial or self._after_cr) and self._bom is None

    def feed(self, data: bytes) -> list[bytes]:
        """The blocks that ``data`` completes; some may be empty or hold nothing but comments."""
        if self._bom is not None:
            data = self._without_bom(data)
        if CR in data or self._after_cr:
            data = self._without_cr(data)
        if self._partial:
            if b"\n\n" not in data and not (data.startswith(b"\n") and self._partial.endswith(b"\n")):
                self._keep(data)
                return []
            data = bytes(self._partial) + data
            self._partial.clear()
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        if self._oversized is not None and blocks:
            blocks[0] = self._oversized  # in its place stood the tail of the block that is skipped
            self._oversized = None
        if len(data) > MAX_EVENT:
            blocks = [self._within_limit(block) for block in blocks]
        if rest:
            self._keep(rest)
        return blocks

    @property
    def skipping(self) -> bool:
        """Whether a block that was given up has not ended yet."""
        return self._oversized is not None

    def rest(self) -> bytes:
        """The last block, which has no blank line yet; empty when there is none or when it is being skipped."""
        return b"" if self._oversized is not None else bytes(self._partial)

    def _keep(self, data: bytes) -> None:
        if self._oversized is not None:
            self._partial[:] = data[-1:] or self._partial[-1:]  # enough to see the blank line when it comes
            return
        self._partial += data
        if len(self._partial) > MAX_EVENT + 1:  # one more for the LF that may be the first half of the blank line
            self.oversized += 1
            self._oversized = _name_line(bytes(self._partial[:_NAME_WITHIN]))
            self._partial[:] = self._partial[-1:]

    def _within_limit(self, block: bytes) -> bytes:
        if len(block) <= MAX_EVENT:
            return block
        self.oversized += 1
        return _name_line(block)

    def _without_bom(self, data: bytes) -> bytes:
        data = (self._bom or b"") + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._bom = data
            return b""
        self._bom = None
        return data.removeprefix(_BOM)

    def _without_cr(self, data: bytes) -> bytes:
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data:
            self._after_cr = data[-1] == CR
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _name_line(block: bytes) -> bytes:
    """What is left of an oversized block: its name, and data that is empty."""
    for line in block[:_NAME_WITHIN].split(b"\n")[:-1]:
        if line.startswith(b"event:"):
            return line + b"\ndata:"
    return b"data:"


def parse_block(block: bytes) -> Event | None:
    """The event of a block; None for one without data, which the specification does not dispatch."""
    if b"\n" not in block and block.startswith(b"data:"):
        return None, block[6:] if block[5:6] == b" " else block[5:]
    name: str | None = None
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value[1:] if value[:1] == b" " else value)
        elif field == b"event":
            name = (value[1:] if value[:1] == b" " else value).decode("utf-8", "replace") or None
    return (name, b"\n".join(data)) if data else None


class SSEDecoder:
    """Bytes in, events out. Never raises, whatever the bytes are. Not for several threads at once."""

    __slots__ = ("_framer",)

    def __init__(self) -> None:
        self._framer = Framer()

    @property
    def oversized(self) -> int:
        """How many events were longer than `MAX_EVENT`; they come with their name and empty data."""
        return self._framer.oversized

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes. An event that no blank line ends is never one."""
        return [event for block in self._framer.feed(data) if (event := parse_block(block)) is not None]
