"""The application's own redactor: ``configure(redact=...)``, after ours has taken out what it knows.

It is somebody else's code, so it is called in a thread of its own and waited for for a bounded time. Whatever goes
wrong (it raises, answers anything but a text, or takes too long), **all texts of that piece become** `REDACTED`: better
nothing than a secret. A piece is what would be written in one place: a body, a set of headers, the messages of a
request, an error.

A call that never returns cannot be ended: as long as it lasts, every piece is redacted whole, and nobody waits for it.
What holds the interpreter (a regular expression that goes astray) cannot be bounded by anybody in this process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from otel_chatdebug import faults
from otel_chatdebug.redaction.formats import REDACTED

logger = logging.getLogger("otel_chatdebug")

Redact: TypeAlias = Callable[[str, str], str]
"""``redact(text, place)`` returns the text that may be written.

``text`` is one of `PLACES`' texts, redacted by our rules and bounded already (50,000 characters at most); ``place``
names it. Called in a thread of its own, one call at a time. The same text should have the same answer: for short ones
it is remembered.
"""

PLACES: Final = (
    "url",
    "path",
    "error",
    "summary",
    "metadata",
    "request_headers",
    "request_body",
    "response_headers",
    "response_body",
    "normalized_request",
    "normalized_response",
    "stack",
)
"""Columns of the tables whose texts pass the redactor, and what ``place`` says. Spans and events have the same.
``stack`` is no column: names of threads and tasks, and lines of source, in the snapshot of a chat."""

SECONDS: Final = 1.0
"""What one piece may take. The callers are our own threads: no call of the application waits for it."""

LONGEST: Final = 50_000
"""Characters of an answer that are kept: what `place` may hold at most."""

SHORT: Final = 2_000
"""Characters of a text whose answer is remembered: URLs, errors and headers come again and again."""

REMEMBERED: Final = 256
"""Answers that are remembered."""

THREAD_NAME: Final = "otel-chatdebug-redact"

STRUCTURE: Final = frozenset(
    {
        "type", "role", "format", "id", "finish_reason", "finish_reasons", "media_type", "mode", "model", "code",
        "exception", "cause", "request_id", "retry_after",
    }
)  # fmt: skip
"""Keys whose values are words of the formats and ids, not content; but not below `FREE`."""

HEADERS: Final = frozenset({"request_headers", "response_headers"})
"""Places that are lists of names and values: the values pass."""

OWN: Final = frozenset({"metadata", "summary"})
"""Places all of whose keys may be the application's own."""

OURS: Final = frozenset({"response_model", "response_id", "finish_reasons"})
"""Keys beside the application's own in ``metadata``."""

FREE: Final = frozenset({"arguments", "raw", "options", "provider_options", "schema", "other"})
"""Keys below which anything may stand."""


class Refused(Exception):
    """No answer that could be used: the piece has to be redacted whole."""


class _Job:
    """One piece on its way to the thread."""

    __slots__ = ("abandoned", "answer", "place", "value")

    def __init__(self, place: str, value: Any) -> None:
        self.place = place
        self.value = value
        self.answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self.abandoned = False


class UserRedactor:
    """Passes what is to be written through the application's ``redact``. Any thread; not while folding: it waits.

    Nothing in it raises. Its thread starts with the first piece and is ended by `close`; in a forked child there is
    none, so a child needs an object of its own.
    """

    def __init__(self, redact: Redact, *, seconds: float = SECONDS) -> None:
        self.redact = redact
        self._seconds = seconds
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._current: _Job | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._told: set[str] = set()
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._ask)

    def piece(self, place: str, value: Any) -> Any:
        """``value`` (a text, or JSON with texts in it) with every text as ``redact`` answers it."""
        if value is None:
            return None
        try:
            return self._answered(_Job(place, value))
        except Refused as reason:
            self._tell(str(reason))
            return hidden(place, value)

    def close(self, timeout: float = SECONDS) -> None:
        """Ends the thread. One that is in a call that does not return is left alone: it cannot be ended."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            if not self._is_stuck:
                thread.join(timeout)

    def _answered(self, job: _Job) -> Any:
        if self._is_stuck:
            raise Refused("has not returned from a call")
        self._start()
        self._jobs.put(job)
        try:
            answer, exc = job.answer.get(timeout=self._seconds)
        except Empty:
            job.abandoned = True
            raise Refused(f"took longer than {self._seconds:g} s") from None
        if exc is not None:
            # Its message may be about the very text, so it is not told.
            raise Refused(str(exc) if isinstance(exc, Refused) else f"raised {type(exc).__name__}") from None
        return answer

    @property
    def _is_stuck(self) -> bool:
        current = self._current
        return current is not None and current.abandoned

    def _start(self) -> None:
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.abandoned:
                continue
            self._current = job
            try:
                job.answer.put((self._piece(job.place, job.value), None))
            except BaseException as exc:
                job.answer.put((None, exc))
            finally:
                self._current = None
                del job

    def _piece(self, place: str, value: Any) -> Any:
        if place in HEADERS:
            return [[name, self._text(place, text)] for name, text in value]
        if place in OWN:
            return {key: item if key in OURS else self._walk(place, item, True) for key, item in value.items()}
        return self._walk(place, value, False)

    def _walk(self, place: str, value: Any, free: bool) -> Any:
        if isinstance(value, str):
            return self._text(place, value)
        if isinstance(value, dict):
            return {
                key: item if not free and key in STRUCTURE else self._walk(place, item, free or key in FREE)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._walk(place, item, free) for item in value]
        return value

    def _text(self, place: str, text: str) -> str:
        if not text or text == REDACTED:
            return text
        return self._remembered(place, text) if len(text) <= SHORT else self._ask(place, text)

    def _ask(self, place: str, text: str) -> str:
        answer = self.redact(text, place)
        if not isinstance(answer, str):
            raise Refused(f"returned {type(answer).__name__} instead of a text")
        return answer[:LONGEST]

    def _tell(self, reason: str) -> None:
        faults.count("redact")
        if reason not in self._told:
            self._told.add(reason)
            logger.warning(
                "The redactor given to configure(redact=...) %s: what it was asked about is written as %s. "
                "This is said once for each reason.",
                reason,
                REDACTED,
            )


def hidden(place: str, value: Any) -> Any:
    """``value`` without anything in it that somebody has written: what is left is its form, and its numbers."""
    if place in HEADERS:
        return [[name, REDACTED] for name, _ in value]
    if place in OWN:
        return {key: item if key in OURS else _hidden(item, True) for key, item in value.items()}
    return _hidden(value, False)


def _hidden(value: Any, own: bool) -> Any:
    if isinstance(value, dict):
        return {
            key: item
            if not own and key in STRUCTURE
            else REDACTED
            if key in FREE and item is not None
            else _hidden(item, own)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_hidden(item, own) for item in value]
    return REDACTED if isinstance(value, str) and value else value
