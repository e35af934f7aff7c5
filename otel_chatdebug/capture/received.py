"""What has come of one body: its chunks, and what a look into them finds.

Whoever reads the body appends its chunks to `Received.pending`, and looks for nothing. What is costly (decoding,
looking into events) happens in `Received.digest`, for many chunks at a time: in the thread that reads, in the one that
beats, or in the one that folds; one at a time.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from contextlib import suppress
from threading import get_ident
from typing import Any, Final

from otel_chatdebug.capture.kept import KEPT_BODY, KEPT_HEAD, Kept
from otel_chatdebug.wire import encoding, registry

DECODE_SIZE: Final = 2 * 1024
"""Bytes of a coded body that are decoded at a time: gzip gives a thousand times as much at most."""

DECODED_LIMIT: Final = 16 * 1024 * 1024
"""Bytes that a coded body is decoded to at most: a bomb costs no more than the longest real answers do."""

FIRST_BYTES: Final = 64
"""Bytes at the start of a body that may show that it is a stream, whatever its content type says."""


class Received:
    """The body of one response, as far as it has come."""

    __slots__ = (
        "_content_type", "_decoder", "_digester", "_digesting", "_format", "_is_json", "_may_be_framed", "decoded",
        "holds_json", "kept", "pending", "reader",
    )  # fmt: skip

    def __init__(self, format: registry.Format, *, streamed: bool) -> None:
        """``streamed``: the request asked for a stream, so one may come whatever the content type says."""
        self.pending: deque[bytes] = deque()
        """Chunks that nobody has looked into yet."""
        self.reader: registry.StreamReader | None = None
        """Of a body that comes in events."""
        self.kept = Kept()
        """Its beginning, decoded. Written by whoever digests; others take a copy."""
        self.decoded = True
        """Its content coding is one that can be undone; see also `legible`."""
        self.holds_json = False
        """The response says that it is JSON."""
        self._content_type: str | None = None
        self._format = format
        self._is_json: bool | None = None
        """None before anybody has parsed it."""
        self._may_be_framed = streamed
        self._decoder: encoding.Decoder | None = None
        self._digesting = threading.Lock()
        self._digester = 0
        """The thread that digests, 0 when none does."""

    def expect(self, content_type: str | None) -> None:
        """The headers are there. Called before the first chunk can come: whoever digests that one must find the
        reader."""
        self._content_type = content_type
        self.holds_json = content_type is not None and "json" in content_type.lower()
        framing = registry.framing(content_type)
        if framing is not None:
            self.reader = registry.StreamReader(self._format, framing)

    def decode(self, coding: str) -> None:
        """Its chunks are coded. Called before the first one can come."""
        self._decoder = encoding.decoder(coding, limit=DECODED_LIMIT)
        self.decoded = self._decoder is not None

    def digest(self, *, wait: bool, unwanted: bool) -> bool:
        """Looks into the chunks that have come. Without ``wait`` not at all when another thread is at it.

        ``unwanted``: the content of the body is not written. True where the look was taken. May raise what a reader
        raises, by a fault of ours.
        """
        me = get_ident()
        if self._digester == me:  # a signal handler (that shuts down, say) or a finalizer, in the middle of it
            return False
        if not self._digesting.acquire(blocking=wait):
            return False
        self._digester = me
        try:
            pending = self.pending
            if not pending:
                return True
            parts = []
            while pending:
                parts.append(pending.popleft())
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            decoder = self._decoder
            if decoder is not None:
                for start in range(0, len(data), DECODE_SIZE):
                    self._look_into(decoder.decode(data[start : start + DECODE_SIZE]), unwanted)
            elif self.decoded:
                self._look_into(data, unwanted)
        finally:
            self._digester = 0
            self._digesting.release()
        return True

    def _look_into(self, data: bytes, unwanted: bool) -> None:
        if self.reader is None and self._may_be_framed:
            self._look_for_frames(data)
        kept = self.kept
        kept.add(data, self._most_kept(unwanted))
        if self.reader is None and kept.size >= KEPT_BODY and not kept.is_whole:
            kept.shrink()  # as JSON it could only be read whole
        if self.reader is not None:
            self.reader.feed(data)

    def _most_kept(self, unwanted: bool) -> int:
        """How much of its body is looked at later."""
        if self.reader is not None and unwanted:
            return 0
        if self.reader is not None or self._may_be_framed or self.holds_json:
            return KEPT_BODY
        return KEPT_HEAD if self._content_type else KEPT_BODY  # it may be JSON

    def _look_for_frames(self, data: bytes) -> None:
        """A body may show by its first bytes that it is framed, whatever its content type says."""
        before = self.kept.whole()
        first = before + data[:FIRST_BYTES]
        framing = registry.framing_by_start(self._format, first)
        if framing is not None:
            self.reader = registry.StreamReader(self._format, framing)
            self.reader.feed(before)
        self._may_be_framed = self.reader is None and len(first) < FIRST_BYTES

    @property
    def undigested(self) -> bool:
        """Chunks wait, or somebody is looking into some."""
        return bool(self.pending) or self._digesting.locked()

    def finish(self) -> None:
        """All has come: an event that no empty line ends is one, too."""
        if self.reader is not None:
            with self._digesting:
                self.reader.finish()

    @property
    def legible(self) -> bool:
        """The body's content coding could be undone, all of it."""
        decoder = self._decoder
        return self.decoded and not (decoder is not None and (decoder.failed or decoder.exhausted))

    @property
    def broken(self) -> bool:
        """It is not what its content coding says: whoever decodes it gets an exception. (An end that is missing, or
        our limit, is something else.)"""
        return self._decoder is not None and self._decoder.failed

    @property
    def events(self) -> int:
        """Events of a stream so far."""
        return 0 if self.reader is None else self.reader.events

    def json(self) -> Any:
        """The value of a body that is JSON and kept whole, else None. Called while folding, once all has come."""
        value, self._is_json = None, False
        if self.kept.total and self.kept.is_whole:
            with suppress(ValueError, RecursionError):
                value = json.loads(self.kept.whole())
                self._is_json = True  # null, too
        return value

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON. It is parsed once for this and for `json`."""
        if self._is_json is None:
            self.json()
        return bool(self._is_json)
