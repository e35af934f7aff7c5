"""The beginning of a body, in pieces as it came: never copied as a whole, and no more of it than is looked at later."""

from __future__ import annotations

from typing import Final

KEPT_BODY: Final = 4 * 1024 * 1024
"""Bytes of a decoded body that are kept in memory, from its beginning, of one that is looked into: a stream, or JSON.
Enough for 50,000 characters of text that come in events of 300 bytes for each token; a body of 1 GB costs no more."""

KEPT_HEAD: Final = 8 * 50_000
"""Bytes that are kept of any other body: redaction may make a text shorter, and 50,000 are shown."""

KEPT_START: Final = 64 * 1024
"""Bytes that stay of JSON that turns out to be longer than `KEPT_BODY`: it cannot be looked through any more."""


class Kept:
    """The pieces of one body. One thread adds at a time; any other may take a `copy` meanwhile."""

    __slots__ = ("_pieces", "size", "total")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0
        """Bytes that are kept."""
        self.total = 0
        """Bytes that came."""

    @property
    def is_whole(self) -> bool:
        """All that came is kept."""
        return self.size == self.total

    def add(self, data: bytes, most: int) -> None:
        """Keeps as much of the next bytes as there is room for in ``most`` bytes."""
        room = most - self.size
        if room > 0:
            self._pieces.append(data if len(data) <= room else data[:room])
            self.size += min(room, len(data))
        self.total += len(data)

    def shrink(self) -> None:
        """Keeps no more than the start."""
        self._pieces[:] = [self.head(KEPT_START)]
        self.size = len(self._pieces[0])

    def head(self, size: int) -> bytes:
        """The first ``size`` bytes, or all that are kept."""
        found = []
        for piece in self._pieces:
            found.append(piece[:size])
            size -= len(piece)
            if size <= 0:
                break
        return found[0] if len(found) == 1 else b"".join(found)

    def whole(self) -> bytes:
        """All that is kept, in one piece."""
        return b"".join(self._pieces)

    def pieces(self) -> list[bytes]:
        """In their order; the list is the caller's."""
        return list(self._pieces)

    def copy(self) -> Kept:
        """As it is now, for another thread: the list is copied at once, the bytes are not."""
        found = Kept()
        found.total = self.total
        found._pieces = list(self._pieces)
        found.size = sum(map(len, found._pieces))
        return found
