"""What a deletion and the writer answer. Apart from what does it: it can be named without importing SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Deleted(NamedTuple):
    """How many rows a deletion removed; their contents (messages, headers, bodies) went with them."""

    runs: int = 0
    steps: int = 0
    attempts: int = 0

    def plus(self, other: Deleted) -> Deleted:
        return Deleted(*(one + more for one, more in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStats:
    """Counts since the writer was made."""

    written: int
    """Records."""
    spooled: int
    """Records that were kept in the spool at the end."""
    dropped: int
    """Sources that were refused, contents that were let go for want of room, and records that could not be written."""
    failed: int
    """Errors of our own: sources, beats and cleanups that raised."""
    queue_length: int
    """Sources and records that wait now."""
    queue_size: int
    """Bytes of what waits, an estimate."""
    last_write_seconds: float | None
    """How long the last transaction took."""
