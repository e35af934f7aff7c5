"""What was sent and what has come, as content records: headers and bodies, redacted, and the messages in them.

Made in the writer's thread, when it writes: the reading of JSON and the redaction are the costly part of recording.
"""

from __future__ import annotations

import json
import threading
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from otel_chatdebug.blobs import without_long_base64
from otel_chatdebug.capture.kept import KEPT_BODY, KEPT_HEAD, Kept
from otel_chatdebug.records import AttemptContent, ContentRank, Record
from otel_chatdebug.redaction import UserRedactor
from otel_chatdebug.wire import registry

if TYPE_CHECKING:
    from otel_chatdebug.capture.attempt import Attempt

LONGEST_PARTIAL_INTERVAL: Final = 5_000_000_000
"""Nanoseconds between two writings of a stream's text so far, at most, while it goes on. The first comes with the first
beat, and the others with each one, as long as that is cheap."""

PARTIAL_COST: Final = 0.02
"""The share of one core's time that making the text so far of all open streams takes, until `LONGEST_PARTIAL_INTERVAL`
wants more."""

HEADER_LIMIT: Final = 8 * 1024
"""Characters of a header's value that are kept: what servers usually take of all headers together."""

MOST_HEADERS: Final = 200
"""Headers of a message that are kept."""


class Content:
    """The content of one attempt, from one writing to the next.

    Used by the writer's thread and, where messages go onto spans, by the thread that ends those: what one of them has
    read, the other need not read again. Nobody who takes the lock has the inbox's turn.
    """

    __slots__ = (
        "_lock", "_next_ns", "_request", "_request_body", "_request_headers", "_response", "_response_of",
        "_told_request", "_updated_us", "stripped",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.stripped = False
        """There was no room for it: nothing more is written."""
        self._told_request = False
        self._request_headers: list[list[str]] | None = None
        self._request_body: str | None = None
        self._request: Any = None
        self._response: tuple[str | None, Any] = (None, None)
        self._response_of: tuple[int, bool] | None = None
        """How many bytes `_response` was made of, and whether they were all."""
        self._updated_us = 0
        self._next_ns = 0
        """Not before is the text so far written again."""

    def records(self, attempt: Attempt, *, final: bool) -> list[Record]:
        """The records as they stand now; none when the text so far was written a moment ago."""
        if self.stripped:
            return []
        now = time_ns()
        if not final and now < self._next_ns:
            return []
        kept = attempt.kept()
        recorder, step = attempt.recorder, attempt.step
        headers = attempt.response_headers
        with self._lock:
            request = self._read_request(attempt)
            response_body, response = self._read_response(attempt, kept, final=final)
        if kept.total and not final:
            dear = (time_ns() - now) * max(1, len(recorder.open_attempts)) / PARTIAL_COST
            self._next_ns = now + min(LONGEST_PARTIAL_INTERVAL, int(dear))
        self._updated_us = recorder.tick(self._updated_us)
        rank = ContentRank.COMPLETE if final else ContentRank.PARTIAL
        found: list[Record] = [
            AttemptContent(
                id=attempt.id,
                rank=rank,
                updated_at=self._updated_us,
                replica_id=recorder.replica_id,
                step_id=step.id,
                run_id=step.run.id,
                chat_id=step.chat_id,
                request_headers=self._request_headers,
                request_body=self._request_body,
                response_headers=None if headers is None else recorder.redactor.headers(_pairs(headers)),
                response_body=response_body,
            )
        ]
        last = step.last_attempt
        if last is not None and last.id == attempt.id:
            found.append(step.content(rank, request, response))
            if step.run.learn_first_message(request):
                # With this batch: it may be the last one, and the run's own record may have been in an earlier one.
                found.append(step.run.row())
        return found

    def strip(self) -> None:
        """Lets go of what was read. Any thread, see `Attempt.strip`."""
        self.stripped = True
        self._request_headers = self._request_body = self._request = self._response_of = None
        self._response = (None, None)

    @staticmethod
    def size(request: Any) -> int:
        """Bytes of the request's body."""
        return len(request_content(request) or b"")

    def messages(self, attempt: Attempt) -> tuple[Any, Any]:
        """The normalised request and response of an attempt that is final, redacted; None where there is none."""
        with self._lock:
            request = self._read_request(attempt)
            _, response = self._read_response(attempt, attempt.kept(), final=True)
        return request, response

    def _read_request(self, attempt: Attempt) -> Any:
        request = attempt.request
        if not self._told_request and request is not None:  # else stripped
            self._told_request = True
            redactor = attempt.recorder.redactor
            self._request_headers = redactor.headers(_pairs(request.headers))
            raw = request_content(request)
            parsed = None if raw is None else _load(raw)
            if raw is not None and parsed is None:
                self._request_body = redactor.body(raw, request.headers.get("content-type"))
            elif parsed is not None:
                self._request_body, unchanged = redactor.json_body(parsed)
                self._request = registry.normalize_request(attempt.format, parsed, request.url.path)
                if not unchanged:
                    self._request = redactor.json_value(self._request)
        return self._request

    def _read_response(self, attempt: Attempt, kept: Kept, *, final: bool) -> tuple[str | None, Any]:
        """The body as it is kept in its row, and the normalised response."""
        of = (kept.total, final)
        if self._response_of != of:
            self._response = _response(attempt, kept, final=final)
            self._response_of = of
        return self._response


def _response(attempt: Attempt, kept: Kept, *, final: bool) -> tuple[str | None, Any]:
    redactor = attempt.recorder.redactor
    if not kept.total:
        if attempt.bytes_received and not attempt.received.legible:
            coding = attempt.response_headers.get("content-encoding")
            return f"[{attempt.bytes_received} bytes that cannot be decoded: {coding}]", None
        return None, None
    whole = final and kept.is_whole
    reader = attempt.reader
    if reader is not None:
        # Its texts come in fragments, so they are redacted when they are whole; and what there had to be taken out
        # of them must not be read in the fragments either.
        events: dict[str, Any] = {}
        response = registry.response_so_far(reader, kept.pieces(), events)
        redacted = redactor.json_value(response)
        harmless = redacted == response and _has_nothing_to_add(attempt.recorder.redact, redacted)
        head = kept.head(KEPT_HEAD)
        if b"\n" not in head:
            head = kept.whole()  # one event of several hundred kilobytes: an image, say
        lines = reader.framing.text(head)
        body = redactor.body(
            lines,
            "text/event-stream",
            framed=True,
            complete=whole and len(head) == kept.total,
            fragments=harmless,
            total=kept.total - len(head) + len(lines),
            parsed=events,
        )
        return body, redacted
    parsed = _load(kept.whole()) if attempt.received.holds_json and kept.is_whole else None
    if parsed is None:
        content_type = attempt.response_headers.get("content-type")
        data = kept.whole() if kept.is_whole else kept.head(KEPT_HEAD)
        return redactor.body(data, content_type, complete=whole, total=kept.total), None
    body, unchanged = redactor.json_body(parsed)
    response = registry.normalize_response(attempt.format, parsed)
    return body, response if unchanged else redactor.json_value(response)


def _has_nothing_to_add(redact: UserRedactor | None, response: Any) -> bool:
    """Whether the application's own redactor leaves it as it is."""
    return redact is None or redact.piece("normalized_response", response) == response


def _pairs(headers: Any) -> list[tuple[str, str]]:
    return [(name[:HEADER_LIMIT], value[:HEADER_LIMIT]) for name, value in headers.multi_items()[:MOST_HEADERS]]


def request_content(request: Any) -> bytes | None:
    """The body of a request, where it is there at once; None for one that is streamed (never consumed by us)."""
    content = getattr(request, "_content", None)
    if content is None:  # a redirect's next hop has only the stream of the request before
        content = getattr(getattr(request, "stream", None), "_stream", None)
    return content if isinstance(content, bytes) else None


def _load(raw: bytes) -> Any:
    """The object or list that ``raw`` is, as JSON; None for anything else, and for what is too large to be parsed."""
    if len(raw) > KEPT_BODY:
        raw = without_long_base64(raw)  # files and images, whose data is not kept anyway
    if len(raw) > KEPT_BODY:
        return None
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict | list) else None
