"""What a wire reader finds out. No HTTP client and no SQL is known here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Usage:
    """Token counts with one meaning for every provider: input includes cached tokens, output includes reasoning.

    A count that the provider did not send is None, never invented.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_creation_tokens: int | None = None

    def as_dict(self) -> dict[str, int] | None:
        """Only what is known; None when nothing is."""
        known = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return known or None


@dataclass(slots=True)
class WireError:
    """An error as the provider words it, from an error body or from inside a stream."""

    type: str
    message: str = ""
    code: str | None = None
    retry_after: str | None = None
    """Seconds, where the body says after how long to try again."""


@dataclass(slots=True)
class Facts:
    """What is known of a response so far."""

    terminal: bool = False
    """The format's terminal event was seen ([DONE], message_stop, response.completed, ...)."""
    model: str | None = None
    response_id: str | None = None
    finish_reasons: list[str] = field(default_factory=list)
    usage: Usage | None = None
    error: WireError | None = None


@dataclass(slots=True)
class RequestFacts:
    """What is known of a request from its body."""

    model: str | None = None
    stream: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """``max_tokens``, ``temperature``, ``top_p``, ... by the last part of their ``gen_ai.request.*`` name."""
