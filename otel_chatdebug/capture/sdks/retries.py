"""By which rules each family of SDKs retries, so that a failed attempt can say whether it would be sent again.

Read in the SDKs' sources, since none tells beforehand what it will do. What is judged is the failure of one attempt,
while the call that sent it is under way; an SDK that has handed out a stream never retries what fails in it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, Final

RETRY_COUNT: Final = "x-stainless-retry-count"
"""The request header in which the Stainless SDKs number their retries, from 0."""


class StainlessRetries:
    """408, 409, 429, 500 and more, unless ``x-should-retry`` says otherwise; and whatever the transport raises."""

    __slots__ = ("_limit", "_longest_wait")

    def __init__(self, limit: int, longest_wait: float | None) -> None:
        self._limit = limit
        self._longest_wait = longest_wait

    def left(self, sent: int, request_headers: Any) -> int | None:
        """By the header: redirects are no retries."""
        taken = request_headers.get(RETRY_COUNT)
        return None if taken is None or not taken.isdigit() else max(0, self._limit - int(taken))

    def of_status(self, status: int, headers: Any) -> bool:
        """openai 2.54 and later refuse to wait for longer than two minutes."""
        if self._longest_wait is not None and _wait(headers) > self._longest_wait:
            return False
        told = headers.get("x-should-retry")
        if told in ("true", "false"):
            return bool(told == "true")
        return status in (408, 409, 429) or status >= 500

    def of_exception(self, exc: BaseException) -> bool:
        """Timeouts, connections that fail, and those that break while the answer is read."""
        return isinstance(exc, Exception)


def _wait(headers: Any) -> float:
    """Seconds that the provider asks for; 0 where it does not, or gives a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name)) / unit
        except (TypeError, ValueError):
            continue
        return seconds if math.isfinite(seconds) else 0.0
    return 0.0


class ListedRetries:
    """Status codes that are listed (``429``, ``5XX``), and exceptions whose class, or one above it, is."""

    __slots__ = ("_codes", "_exceptions", "_limit")

    def __init__(self, codes: Iterable[object], exceptions: Collection[str], limit: int | None) -> None:
        self._codes = [str(code).upper() for code in codes]
        self._exceptions = frozenset(exceptions)
        self._limit = limit
        """None where it is time that ends the retries, or nothing that is known."""

    def left(self, sent: int, request_headers: Any) -> int | None:
        return None if self._limit is None else max(0, self._limit - sent)

    def of_status(self, status: int, headers: Any) -> bool:
        return any(code in (str(status), f"{status // 100}XX") for code in self._codes)

    def of_exception(self, exc: BaseException) -> bool:
        return not self._exceptions.isdisjoint(base.__name__ for base in type(exc).__mro__)


NEVER: Final = ListedRetries((), (), 0)
"""An SDK that was not told to retry."""
