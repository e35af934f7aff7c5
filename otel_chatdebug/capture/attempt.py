"""One physical request, observed: the non-awaiting half that the sync and the async body share.

Three parties touch an attempt. The thread or task that *reads* the body tells it each chunk (`Attempt.chunk`, which
counts, keeps a reference and looks for nothing). Whoever sees how the body ends *emits* an event. The thread that has
the inbox's turn *folds* events by the table in `otel_chatdebug.capture.states`. What is costly (decoding, looking into
events) happens in `digest`, for many chunks at a time: see `otel_chatdebug.capture.received`. Redaction happens in the
writer's thread.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import Enum
from functools import partial
from time import time_ns
from typing import Any, Final

from opentelemetry.trace import Span

from otel_chatdebug import attributes
from otel_chatdebug.capture import failures
from otel_chatdebug.capture.content import Content
from otel_chatdebug.capture.kept import Kept
from otel_chatdebug.capture.received import Received
from otel_chatdebug.capture.states import (
    INCOMPLETE_BODY,
    INCOMPLETE_STREAM,
    MOVES,
    Ending,
    Event,
    Moment,
    State,
    outcome,
)
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline import outgoing
from otel_chatdebug.pipeline.call_metrics import MOST_GAPS
from otel_chatdebug.pipeline.live_step import LiveStep
from otel_chatdebug.pipeline.permits import Permit
from otel_chatdebug.pipeline.recorder import LIVE_SIZE
from otel_chatdebug.pipeline.whereabouts import here
from otel_chatdebug.records import AttemptRank, AttemptRecord, Record
from otel_chatdebug.status import Status
from otel_chatdebug.wire import registry
from otel_chatdebug.wire.types import Facts

DIGEST_SIZE = 64 * 1024
"""Bytes of chunks that are kept undigested at most: what a digest works on at a time."""

_BODILESS_METHODS = frozenset({"HEAD"})
_BODILESS_STATUS = frozenset({204, 304})

_UNFRAMED = frozenset({State.READING, State.BODY_LEFT, State.BODY_CLOSING})
"""States of a body that may still turn out to be framed."""

BROKEN_CODING: Final = "content_decoding_error"
"""The type of the error of a body that cannot be decoded."""

_INCOMPLETE_MESSAGES = {
    INCOMPLETE_STREAM: "the stream ended without its terminal event",
    INCOMPLETE_BODY: "the body ended before it was whole",
}


class Attempt:
    """One physical HTTP request of a step."""

    __slots__ = (
        "__weakref__",
        "_content",
        "_content_length",
        "_digest_at",
        "_error_body",
        "_raised",
        "_updated_us",
        "begun",
        "bytes_received",
        "end_of_body_ns",
        "end_reason",
        "error",
        "facts",
        "final",
        "finished_ns",
        "first_byte_ns",
        "format",
        "gaps_ns",
        "id",
        "in_call",
        "last_byte_ns",
        "longest_gap_from_ns",
        "longest_gap_ns",
        "method",
        "moved",
        "number",
        "own_call",
        "path",
        "pending",
        "queued",
        "rank",
        "received",
        "recorder",
        "request",
        "response_headers",
        "response_status",
        "retries",
        "sent_before",
        "span",
        "started_ns",
        "state",
        "status",
        "step",
        "told",
        "trace_id",
        "url",
        "watch",
        "where",
    )  # fmt: skip

    def __init__(
        self,
        step: LiveStep,
        *,
        request: Any,
        method: str,
        url: str,
        path: str,
        format: registry.Format,
        requested_stream: bool,
        span: Span | None,
        trace_id: int,
        span_id: int,
        started_ns: int,
        told: dict[str, Any],
        retries: failures.Retries | None = None,
        sent_before: int = 0,
    ) -> None:
        self.recorder = step.recorder
        self.step = step
        self.number = next(step.attempt_numbers)
        self.id = f"{span_id:016x}"
        self.trace_id = f"{trace_id:032x}"
        self.span = span
        self.told = told
        """The attributes that its span was started with."""
        self.request = request
        self.method = method
        self.url = url
        self.path = path
        self.format = format
        self.started_ns = started_ns
        self.finished_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.last_byte_ns: int | None = None
        self.end_of_body_ns: int | None = None
        self.longest_gap_ns = 0
        self.longest_gap_from_ns = 0
        self.gaps_ns = array("q") if requested_stream and step.metrics is not None else None
        """Nanoseconds between the chunks of a stream, where a metric is made of them."""
        self.response_status: int | None = None
        self.response_headers: Any = None
        self.state = State.WAITING
        self.status = Status.IN_PROGRESS
        self.rank: int = AttemptRank.OPEN
        self.end_reason: str | None = None
        self.error: Any = None
        self.facts = Facts()
        self.final = False
        self.queued = False
        self.retries = retries
        """The rules by which the SDK sends it again; None where there is no SDK, or nobody can tell."""
        self.sent_before = sent_before
        """Attempts of the same call before it."""
        self.in_call = False
        """The call that sends it has not returned yet, and will settle the inbox when it does."""
        self.own_call: Any = None
        """The `Call` that holds nothing but this request, where it was sent outside of any."""
        self.begun = False
        """Somebody has begun to iterate the body."""
        self.moved = False
        """Chunks came since the last beat."""
        self.bytes_received = 0
        self.received = Received(format, streamed=requested_stream)
        self.pending = self.received.pending
        """Its chunks that nobody has looked into yet: at hand here, for each chunk passes by."""
        self.watch: object = None
        self.where = here()
        """Where it is sent; once its body is read, where that is done."""
        self._digest_at = DIGEST_SIZE
        self._content_length: int | None = None
        self._raised: dict[str, Any] | None = None
        self._error_body: Any = None
        self._updated_us = 0
        self._content = Content()

    # -- observing: called by whoever sends the request, reads the body or closes it

    def answered(self, response: Any) -> None:
        """The transport returned ``response`` (of either library). Called before the application gets it."""
        self.response_status = response.status_code
        headers = self.response_headers = response.headers
        length = headers.get("content-length")
        if length is not None and length.isascii() and length.isdigit():
            self._content_length = int(length)
        self.received.expect(headers.get("content-type"))
        if response.is_closed:  # ready content (MockTransport): the body is there at once
            self._take_ready(response)
            return
        coding = headers.get("content-encoding")
        if coding:
            self.received.decode(coding)
        self._emit_headers()

    def _emit_headers(self) -> None:
        self.emit(Event.BODY_HEADERS if self.reader is None else Event.STREAM_HEADERS)

    def _take_ready(self, response: Any) -> None:
        self._emit_headers()
        try:
            content = response.content
        except Exception:  # "not read yet": its transport has closed it, and nobody will ever read it
            self.emit(Event.CLOSED)
            return
        if content:
            self.pending.append(content)
            self.first_byte_ns = self.last_byte_ns = time_ns()
        self.begun = True
        self.bytes_received = response.num_bytes_downloaded or len(content)
        self.emit(Event.END_OF_BODY)
        self.emit(Event.CLOSED)

    def out_of_sight(self) -> None:
        """By a fault of ours nobody will tell how the body ends: it must not stay open for good."""
        try:
            self.emit(Event.BODY_HEADERS)
            self.tell(Event.COLLECTED)
        except Exception:
            fault("Attempt.out_of_sight")

    def chunk(self, data: bytes) -> None:
        """A chunk of the body passes by. The only thing on the path of a chunk; must cost next to nothing."""
        now = time_ns()
        last = self.last_byte_ns
        if last is None:
            self.first_byte_ns = now
        elif now - last > self.longest_gap_ns:
            self.longest_gap_ns, self.longest_gap_from_ns = now - last, last
        self.last_byte_ns = now
        self.pending.append(data)
        self.moved = True
        self.bytes_received += len(data)
        if self.bytes_received >= self._digest_at:
            self.digest(wait=False)

    def timed_chunk(self, data: bytes) -> None:
        """Like `chunk`, and keeps when it came."""
        last, gaps = self.last_byte_ns, self.gaps_ns
        self.chunk(data)
        if last is not None and gaps is not None and len(gaps) < MOST_GAPS:
            gaps.append((self.last_byte_ns or last) - last)

    def describe(self, exc: BaseException) -> dict[str, Any]:
        """What the transport raised, as the ``error`` column tells it. Called where it is raised."""
        told = self.recorder.describe(exc)
        try:
            cause = failures.cause(exc)
            if cause is not None:
                told["cause"] = cause.value
            if self.retries is not None:  # a stream that was handed out is never asked for again
                told["retryable"] = self.in_call and self.retries.of_exception(exc)
        except Exception:
            self.recorder.inbox.fault("Attempt.describe")
        return told

    def emit(self, event: Event, payload: Any = None) -> None:
        """Something about the body's end was seen. Safe in finalizers; the inbox's thread is not woken."""
        self.recorder.inbox.emit(self, event, time_ns(), payload)

    def tell(self, event: Event, payload: Any = None) -> None:
        """Like `emit`, and has the inbox's thread fold it soon. Safe in finalizers."""
        inbox = self.recorder.inbox
        inbox.emit(self, event, time_ns(), payload)
        if not self.in_call:
            inbox.wake()

    def collected(self, _: object) -> None:
        """The response's stream object is gone. A finalizer."""
        if not self.final:
            try:
                self.tell(Event.COLLECTED)
            except Exception:  # nobody could catch it
                self.recorder.inbox.fault("telling COLLECTED")

    def digest(self, *, wait: bool) -> None:
        """Looks into the chunks that have come. Without ``wait`` not at all when another thread is at it.

        Called by the reading thread, the beat or the thread that folds.
        """
        try:
            if self.received.digest(wait=wait, unwanted=self.step.permit.allowed is False):
                self._digest_at = self.bytes_received + DIGEST_SIZE
        except Exception:
            self.recorder.inbox.fault("Attempt.digest")

    # -- folding: called by the thread that has the turn

    def apply(self, event: Enum, at: int, payload: Any) -> None:
        """One move by the table."""
        state = self.state
        if state is State.FINAL:
            return
        if state is not State.WAITING:
            if self.received.undigested:
                self.digest(wait=True)
            if self.reader is not None and state in _UNFRAMED:
                state = MOVES[state, Event.FRAMED].to
        move = MOVES[state, event]  # type: ignore[index]  # the inbox carries any Enum; ours are Events
        self.state = move.to
        if event is Event.END_OF_BODY and self.end_of_body_ns is None:
            self.end_of_body_ns = at
            self.received.finish()
        if payload is not None and move.ending is not None:
            self._raised = payload
        if move.ending is not None:
            self._end(move.ending, at)
        self.recorder.mark(self)

    def _end(self, ending: Ending, at: int) -> None:
        if self.reader is not None:
            self.facts = self.reader.facts
        elif ending.rank == AttemptRank.FINAL:
            self._read_body()
        stream_error = self.facts.error
        status_error = None
        if (self.response_status or 0) >= 400:
            status_error = stream_error.type if stream_error else str(self.response_status)
        raised = self._raised
        found = outcome(
            ending,
            whole=self._is_whole(),
            stream_error=stream_error.type if stream_error else BROKEN_CODING if self._coding_is_broken else None,
            status_error=status_error,
            raised=raised["type"] if raised else None,
        )
        self.status, self.end_reason, self.rank = found.status, found.reason.value, found.rank
        self.final = found.rank == AttemptRank.FINAL
        if self.final:
            self.watch = None  # it refers back to us
        self.error = self._error(found.error) if found.error is not None else None
        if found.moment is Moment.END_OF_BODY:
            self.finished_ns = self.end_of_body_ns or at
        elif found.moment is Moment.LAST_BYTE:
            self.finished_ns = self.last_byte_ns or at
        else:
            self.finished_ns = at
        if self.final:
            self._end_span(self.finished_ns)
        self.step.attempt_changed(self, at)

    @property
    def _coding_is_broken(self) -> bool:
        """Whoever has the body decoded gets an exception, of which we see that the reading ends there. (Who wants the
        bytes as they came reads on.)"""
        left = self.end_of_body_ns is None and not self.facts.terminal
        return self.received.broken and left and (self.response_status or 0) < 400

    def _error(self, kind: str) -> dict[str, Any]:
        wire = self.facts.error
        if wire is not None and wire.type == kind:
            redacted = self.recorder.redactor.text
            error: dict[str, Any] = {"type": redacted(kind), "message": redacted(wire.message)}
            if wire.code:
                error["code"] = redacted(wire.code)
        elif kind == BROKEN_CODING or (self._raised is not None and self._raised["type"] == kind):
            told = self._raised if kind != BROKEN_CODING else self._broken_coding()
            error = {**(told or {}), "bytes_received": self.bytes_received}
            if self.reader is not None:
                error["events"] = self.events
        else:
            error = {"type": kind, "message": _INCOMPLETE_MESSAGES.get(kind, "")}
        status, headers = self.response_status, self.response_headers
        if status is not None and status >= 400:
            error["status_code"] = status
            error["message"] = error["message"] or f"HTTP status {status}"
        retry_after = failures.retry_after(headers) if status is not None and status >= 400 else None
        if retry_after is None and wire is not None:
            retry_after = wire.retry_after
        if retry_after is not None:
            error["retry_after"] = retry_after
        request_id = failures.request_id(headers, self._error_body)
        if request_id is not None:
            error["request_id"] = self.recorder.redactor.text(request_id)
        if self.retries is not None:
            self._tell_retries(error, self.retries)
        return error

    def _broken_coding(self) -> dict[str, Any]:
        coding = self.recorder.redactor.text(str(self.response_headers.get("content-encoding")))
        told: dict[str, Any] = {
            "type": BROKEN_CODING,
            "message": f"the body is not what its content-encoding says: {coding}",
            "cause": failures.Cause.DECODING.value,
        }
        if self.retries is not None:  # a stream was handed out before anybody could know
            told["retryable"] = self.reader is None and self.retries.of_exception(failures.DecodingError())
        return told

    def _tell_retries(self, error: dict[str, Any], retries: failures.Retries) -> None:
        """Whether the SDK sends a request again that failed so, and how often it still could."""
        try:
            status = self.response_status or 0
            if status >= 400:
                error["retryable"] = retries.of_status(status, self.response_headers)
            elif "retryable" not in error:  # an answer that began well
                error["retryable"] = False
            left = retries.left(self.sent_before, self.request.headers)
            if left is not None:
                error["retries_left"] = left
        except Exception:
            self.recorder.inbox.fault("Attempt._tell_retries")

    def _read_body(self) -> None:
        """Facts of a body that is not framed: usage, model, finish reason, or an error."""
        if not self.received.holds_json:
            return
        body = self.received.json()
        if body is not None:
            try:
                self.format.read_json(self.facts, body)
            except Exception:
                self.recorder.inbox.fault("Format.read_json")
        if (self.response_status or 0) >= 400:
            self._error_body = body
            if self.facts.error is None:
                self.facts.error = registry.error_from_body(body)

    def _is_whole(self) -> bool:
        status = self.response_status
        if status is None:
            return False
        if self.method in _BODILESS_METHODS or status < 200 or status in _BODILESS_STATUS:
            return True
        if self.reader is not None:
            # Where it cannot be looked into, nobody knows of a terminal event: its end is the end.
            ends_by_itself = self.reader.may_have_ended or not self.received.legible
            return self.facts.terminal or (self.end_of_body_ns is not None and ends_by_itself)
        if self._content_length is not None:
            return self.bytes_received >= self._content_length
        if self.end_of_body_ns is None:
            return False
        received = self.received
        if not received.holds_json or not received.legible or not received.kept.is_whole:
            return True  # nothing says how long it should be: its end is the end
        return received.is_json

    def _span_attributes(self) -> dict[str, Any]:
        gap = None if self.reader is None else self.longest_gap_ns / 1e9
        return attributes.attempt_attributes(self, longest_gap=gap, told=self.told)

    def _end_span(self, at: int) -> None:
        span, self.span = self.span, None
        if span is not None:
            end = partial(self.recorder.end_span, span, self._span_attributes(), self.status, self.error, at)
            self.recorder.inbox.defer(end)

    def run_left(self, at: int) -> None:
        """The run's scope was left. Called while folding."""
        self.apply(Event.RUN_LEFT, at, None)

    def settled(self, at: int) -> None:
        """The step's scope was left. Called while folding."""
        self.apply(Event.SETTLED, at, None)

    def shut_down(self, at: int) -> None:
        """The process, or this package, ends: the row says so, and the span is ended now or never."""
        self.apply(Event.SHUTDOWN, at, None)
        self._end_span(at)

    # -- looking

    @property
    def permit(self) -> Permit:
        return self.step.permit

    @property
    def step_id(self) -> str:
        return self.step.id

    @property
    def run_id(self) -> str:
        return self.step.run.id

    @property
    def chat_id(self) -> str | None:
        return self.step.chat_id

    @property
    def half_read(self) -> bool:
        """Somebody has begun to read the body, and its outcome is not known yet."""
        return self.begun and not self.final

    @property
    def endpoint_label(self) -> str:
        """``POST /v1/messages``."""
        return f"{self.method} {self.path}"

    @property
    def reader(self) -> registry.StreamReader | None:
        """Of a body that comes in events."""
        return self.received.reader

    @property
    def events(self) -> int:
        return self.received.events

    def beat(self) -> bool:
        """Looks at what has come since the last beat; True when that is worth a row. Called by the writer's thread."""
        if not self.moved:
            return False
        self.moved = False
        self.digest(wait=False)
        return True

    def record(self) -> AttemptRecord:
        """What is known now. Called while folding, or through ``inbox.reading``."""
        finished = self.finished_ns
        gap = self.longest_gap_ns if self.reader is not None else 0
        return AttemptRecord(
            id=self.id,
            rank=self.rank,
            updated_at=max((finished or self.started_ns) // 1000, self._updated_us),
            replica_id=self.recorder.replica_id,
            step_id=self.step.id,
            run_id=self.step.run.id,
            status=self.status,
            number=self.number,
            started_at=self.started_ns // 1000,
            finished_at=None if finished is None else finished // 1000,
            chat_id=self.step.chat_id,
            trace_id=self.trace_id,
            span_id=self.id,
            end_reason=self.end_reason,
            method=self.method,
            url=self.url,
            path=self.path,
            response_status=self.response_status,
            error=self.error,
            bytes_received=self.bytes_received,
            events=self.events,
            first_byte_at=None if self.first_byte_ns is None else self.first_byte_ns // 1000,
            last_byte_at=None if self.last_byte_ns is None else self.last_byte_ns // 1000,
            duration_ms=None if finished is None else (finished - self.started_ns) / 1e6,
            longest_gap_at=self.longest_gap_from_ns // 1000 if gap else None,
            longest_gap_ms=gap / 1e6 if gap else None,
        )

    @property
    def size(self) -> int:
        """Bytes of memory, near enough."""
        return LIVE_SIZE + self.received.kept.size + self._content.size(self.request)

    def strip(self) -> None:
        """Lets go of headers and bodies, for good. Any thread; called once it is final."""
        self._content.strip()
        self.received.kept = Kept()
        self.request = None

    def records(self) -> Sequence[Record]:
        """Its row, its content and, for a step's last attempt, the step's messages. Called by the writer's thread."""
        if self.permit.allowed is False:
            return []
        self.recorder.inbox.fold()  # the call may hang, and its step has not been told of it then
        record: AttemptRecord = self.recorder.inbox.reading(self.record)
        self._updated_us = record.updated_at = self.recorder.tick(self._updated_us)
        found: list[Record] = [record]
        try:
            found += self._content.records(self, final=record.rank != AttemptRank.OPEN)
        except Exception:
            fault("Attempt.records")
        return outgoing.records(self.recorder.redact, found)

    def kept(self) -> Kept:
        """The beginning of the decoded body so far. Does not wait for who digests."""
        return self.received.kept.copy()

    def messages(self) -> tuple[Any, Any]:
        """The normalised request and response, redacted, once it is final. Takes long; not while folding."""
        return self._content.messages(self)
