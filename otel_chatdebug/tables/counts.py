"""What a deletion answers. Apart from what does it, so that it can be named without importing SQLAlchemy."""

from __future__ import annotations

from typing import NamedTuple


class Deleted(NamedTuple):
    """How many rows a deletion removed; their contents (messages, headers, bodies) went with them."""

    runs: int = 0
    steps: int = 0
    attempts: int = 0

    def plus(self, other: Deleted) -> Deleted:
        return Deleted(*(one + more for one, more in zip(self, other, strict=True)))
