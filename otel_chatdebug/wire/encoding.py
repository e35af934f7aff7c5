"""Content-Encoding, undone piece by piece for what we read and keep: incremental, bounded, and never raising.

gzip and deflate come with Python. br and zstd need a module that the application may have (``brotli`` or
``brotlicffi``; ``zstandard``, or Python 3.14 itself); it is looked for when such a body first comes. HTTP clients ask
for those codings only where they have the module, so a body that cannot be undone is rare.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

DEFAULT_LIMIT = 64 * 1024 * 1024
"""Bytes of output in all. Longer than any model's answer, and what a compressed bomb costs at most."""

MAX_CODINGS = 4
"""Codings on top of each other; HTTP sets no limit, and nobody honest uses more than one."""

_ZSTD_SLICE = 64
"""Bytes of input per call of zstd, which cannot bound its output: a run of 128 KiB takes four bytes, so that a call
gives 2 MiB at most."""

_BROTLI_SLICE = 8
"""The same for brotli before 1.2, where one command can stand for 16 MiB."""

_ZSTD_WINDOW = 8 * 1024 * 1024
"""RFC 8878 asks decoders of HTTP content to support 8 MiB, and encoders not to use more."""


class Decoder:
    """Undoes the codings of one body. Not for several threads at once."""

    __slots__ = ("_stages", "exhausted", "failed", "left")

    def __init__(self, stages: list[Stage], limit: int) -> None:
        self._stages = stages
        self.left = limit
        """Bytes of output that may still come."""
        self.exhausted = False
        """The output reached its limit: nothing more comes."""
        self.failed = False
        """The data were not what their coding says: nothing more comes. What came before is good."""

    def decode(self, data: bytes) -> bytes:
        """The plain bytes that ``data`` adds; empty once `exhausted` or `failed`. Never raises."""
        if self.exhausted or self.failed:
            return b""
        for stage in self._stages:
            # One byte more than may come tells a body that just fits from one that does not.
            data, self.failed = stage.decode(data, self.left + 1)
            if len(data) > self.left:
                self.exhausted = True
                data = data[: self.left]
            if self.failed or self.exhausted:
                break
        else:
            self.left -= len(data)
            return data
        if stage is not self._stages[-1]:
            return b""  # an inner coding broke off: what it gave is still coded
        self.left -= len(data)
        return data


class Stage(Protocol):
    """One coding."""

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bool]:
        """About ``limit`` bytes of output at most, and whether the data were bad."""


def decoder(content_encoding: str | None, limit: int = DEFAULT_LIMIT) -> Decoder | None:
    """A decoder for the value of a Content-Encoding header; None where one of its codings cannot be undone here.

    Several codings stand in the order in which they were applied, and are undone from the last to the first. Without
    a coding the decoder gives back what it takes, and ``limit`` holds all the same.
    """
    names = [name for part in (content_encoding or "").split(",") if (name := part.strip().lower())]
    names = [name for name in names if name != "identity"]
    if len(names) > MAX_CODINGS:
        return None
    stages: list[Stage] = []
    for name in reversed(names):
        stage = _STAGES.get(name, _none)()
        if stage is None:
            return None
        stages.append(stage)
    return Decoder(stages or [_Identity()], limit)


class _Identity:
    def decode(self, data: bytes, limit: int) -> tuple[bytes, bool]:
        return data, False


class _Gzip:
    """Also the body of `_Deflate`, whose window bits are others."""

    def __init__(self, window_bits: int = 16 + zlib.MAX_WBITS) -> None:
        self._window_bits = window_bits
        self._object = zlib.decompressobj(window_bits)

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bool]:
        output: list[bytes] = []
        size = 0
        while data and size < limit:
            if self._object.eof:
                if self._window_bits < 16 or not data.lstrip(b"\0"):
                    break  # padding, or rubbish behind the end: clients ignore it, too
                self._object = zlib.decompressobj(self._window_bits)  # gzip may have several members
            try:
                piece = self._object.decompress(data, limit - size)
            except zlib.error:
                return b"".join(output), True
            output.append(piece)
            size += len(piece)
            data = self._object.unused_data if self._object.eof else self._object.unconsumed_tail
        return b"".join(output), False


class _Deflate:
    """By the standard there is a zlib header; some servers leave it out, so the first two bytes decide."""

    def __init__(self) -> None:
        self._head = b""
        self._body: _Gzip | None = None

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bool]:
        if self._body is None:
            data = self._head = self._head + data
            if len(data) < 2:
                return b"", False
            has_header = data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0  # RFC 1950
            self._body = _Gzip(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        return self._body.decode(data, limit)


class _Brotli:
    """brotli 1.2 and later, which can bound its output. (64 bytes of a bomb are 40 MiB of output where it cannot.)"""

    def __init__(self, decompressor: Any) -> None:
        self._object = decompressor

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bool]:
        output: list[bytes] = []
        size = 0
        try:
            while size < limit:
                piece = self._object.process(data, output_buffer_limit=limit - size)
                output.append(piece)
                size += len(piece)
                data = b""
                if self._object.can_accept_more_data():
                    break
                if not piece:
                    break  # the end of the stream
        except Exception:  # brotli.error and brotlicffi's are different classes; both mean bad data
            return b"".join(output), True
        return b"".join(output), False


class _Sliced:
    """A decompressor that cannot bound its output, fed in small slices."""

    def __init__(self, decompress: Callable[[bytes], bytes], slice: int) -> None:
        self._decompress = decompress
        self._slice = slice

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bool]:
        output: list[bytes] = []
        size = 0
        for start in range(0, len(data), self._slice):
            try:
                piece = self._decompress(data[start : start + self._slice])
            except Exception:  # each module has an error class of its own; all of them mean bad data
                return b"".join(output), True
            output.append(piece)
            size += len(piece)
            if size >= limit:
                break
        return b"".join(output), False


def _brotli() -> Stage | None:
    module = _first_module("brotli", "brotlicffi")
    if module is None:
        return None

    decompressor = module.Decompressor()
    if hasattr(decompressor, "can_accept_more_data"):
        return _Brotli(decompressor)
    return _Sliced(getattr(decompressor, "process", None) or decompressor.decompress, _BROTLI_SLICE)


def _zstd() -> Stage | None:
    if module := _first_module("compression.zstd"):
        return _Sliced(_Frames(module.ZstdDecompressor), _ZSTD_SLICE)
    if module := _first_module("zstandard"):
        return _Sliced(_Frames(module.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj), _ZSTD_SLICE)
    return None


class _Frames:
    """zstd content may have several frames, each of which needs a new decompressor."""

    def __init__(self, new: Callable[[], Any]) -> None:
        self._new = new
        self._object = new()

    def __call__(self, data: bytes) -> bytes:
        output = []
        while data:
            if self._object.eof:
                self._object = self._new()
            output.append(self._object.decompress(data))
            data = self._object.unused_data if self._object.eof else b""
        return b"".join(output)


def _none() -> Stage | None:
    return None


_STAGES: dict[str, Callable[[], Stage | None]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _brotli,
    "zstd": _zstd,
}


def _first_module(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
