"""The recorder: what every live run, step and attempt of this process shares, and the register of what is open.

There is at most one active recorder (`active`); ``configure()`` and the instrumentors make it, ``shutdown()`` and a
fork end it. Whoever finds none, or a closed one, records nothing and costs next to nothing.
"""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, StatusCode, Tracer

from otel_chatdebug.attributes import SCHEMA_URL, encodable
from otel_chatdebug.pipeline import outgoing
from otel_chatdebug.pipeline.inbox import Inbox
from otel_chatdebug.pipeline.permits import ALLOWED, DELETED, Gate, Permit
from otel_chatdebug.records import Record
from otel_chatdebug.redaction import Redactor, UserRedactor
from otel_chatdebug.settings import Settings
from otel_chatdebug.status import Status
from otel_chatdebug.version import __version__

if TYPE_CHECKING:
    from otel_chatdebug.pipeline.live import LiveRun, LocalRoot
    from otel_chatdebug.pipeline.live_step import LiveStep

TRACER_NAME = "otel_chatdebug"
"""The instrumentation scope of our spans."""

ERROR_MESSAGE_LIMIT = 2_000
"""Characters of an error's message that are kept."""


LIVE_SIZE = 4096
"""Bytes that a live run, step or attempt takes in memory without its bodies, near enough."""


class Source(Protocol):
    """Something live whose state can be written as rows (the writer's side is in `otel_chatdebug.tables.writer`)."""

    final: bool
    queued: bool

    @property
    def permit(self) -> Permit:
        """Whether its rows are written."""

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory for its records, near enough."""

    def records(self) -> Sequence[Record]:
        """The rows as they stand now. Called by the writer's thread."""

    def strip(self) -> None:
        """Lets go of its content, once it is final: too much waits. Any thread, finalizers too."""


class Sink(Protocol):
    """Where live things go to be written: the writer of the tables, or what a test or a benchmark puts there."""

    def put(self, source: Any) -> None:
        """Has ``source`` written soon. Any thread, finalizers too: must not block, raise or take a lock."""


class OpenAttempt(Source, Protocol):
    """What the register knows of an open attempt."""

    id: str

    def beat(self) -> bool:
        """Looks at what has come since the last beat; True when that is worth a row."""

    def shut_down(self, at: int) -> None:
        """The process, or this package, ends at ``at``. Called while folding."""


class Recorder:
    """What live runs, steps and attempts share. Made by `otel_chatdebug.lifecycle`."""

    def __init__(
        self,
        settings: Settings,
        sink: Sink,
        *,
        replica_id: str,
        redactor: Redactor,
        redact: UserRedactor | None = None,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        classify: Callable[[BaseException | None], Status],
        service_name: str | None = None,
    ) -> None:
        self.settings = settings
        self.sink = sink
        self.replica_id = replica_id
        self.redactor = redactor
        self.redact = redact
        """The application's own redactor."""
        self.classify = classify
        self.meter_provider = meter_provider
        """Of the metrics of calls; None: the global one."""
        self.logger_provider = logger_provider
        """Of the events with their messages, where they are asked for; None: the global one."""
        self.service_name = service_name
        # Reading messages takes long, and a redactor of the application's may.
        slow = redact is not None or settings.content_on_spans or settings.content_in_events
        self.inbox = Inbox(background=slow)
        self.closed = False
        self.gate: Gate | None = None
        """Says which runs are recorded; None where all are."""
        self._permits_matter = False
        """Something may be refused. Else nobody is asked, for each change of everything."""
        self.on_start: Callable[[], None] | None = None
        """Called once, at the first attempt: starts threads, puts the exit handler before the provider's."""
        self.targets: dict[tuple[str, str], Any] = {}
        """What is known of the URLs that were called; of `otel_chatdebug.capture.calls`."""
        self.tracer: Tracer = trace.get_tracer(TRACER_NAME, __version__, tracer_provider, SCHEMA_URL)
        # The register of what is open. Changed while folding only; it keeps live things alive that nobody else may
        # hold (an attempt whose stream the application has, a run whose handle was dropped a moment ago).
        self.open_runs: dict[str, LiveRun] = {}
        self.open_steps: dict[str, LiveStep] = {}
        self.open_attempts: dict[str, OpenAttempt] = {}
        # Local root spans that carry an auto run, by span id; `on_end` of our span processor looks here.
        self.auto_roots: weakref.WeakValueDictionary[int, LocalRoot] = weakref.WeakValueDictionary()

    def ensure_running(self) -> None:
        """Starts what runs in the background, at the first attempt. Must not be called by a finalizer."""
        on_start = self.on_start
        if on_start is not None:
            self.on_start = None
            on_start()

    def mark(self, source: Source) -> None:
        """Has ``source`` written soon, once for all that changes until then. Any thread; no lock.

        One that is final is put once more although it waits already: its size counts from now on.
        """
        if self.closed or (source.queued and not source.final):
            return
        if not self._permits_matter or source.permit.admits(source):
            source.queued = True
            self.sink.put(source)

    def ask_first(self, gate: Gate) -> None:
        """From now on ``gate`` says which runs are recorded."""
        self.gate = gate
        self._permits_matter = True

    def permit(self, chat_id: str | None, owner_id: str | None) -> Permit:
        """For a run that starts."""
        return ALLOWED if self.gate is None else self.gate.permit(chat_id, owner_id)

    def disown(self, runs: Container[str], steps: Container[str]) -> bool:
        """Has these open runs and steps not recorded any further, for their rows are being deleted. Their spans go on.

        True where any of them is open here. Called while nobody folds.
        """
        found = False
        for run in self.open_runs.values():
            if run.id in runs:
                self._permits_matter = found = True
                run.permit = DELETED
        for step in self.open_steps.values():
            if step.id in steps or step.run_id in runs:
                self._permits_matter = found = True
                step.permit = DELETED
        return found

    def start_span(
        self,
        name: str,
        kind: SpanKind,
        context: Context | None,
        attributes: dict[str, Any],
        start_time: int,
        links: Sequence[Link] = (),
    ) -> tuple[Span | None, int, int]:
        """Starts a span and returns it with its trace id and span id.

        Without an SDK the span is None, and a sampler's "drop" gives a span that records nothing; there are ids in
        either case (ours, where the API gives zeros or those of the parent). User code (samplers, processors) runs
        here: not to be called while folding.
        """
        span = self.tracer.start_span(
            encodable(name), context=context, kind=kind, attributes=attributes, start_time=start_time, links=links
        )
        made = span.get_span_context()
        if isinstance(span, NonRecordingSpan):
            parent = trace.get_current_span(context).get_span_context()
            if not made.is_valid or made.span_id == parent.span_id:
                return None, parent.trace_id or random.getrandbits(128), random.getrandbits(64)
        return span, made.trace_id, made.span_id

    def end_span(self, span: Span, given: dict[str, Any], status: Status, error: Any, end_time: int) -> None:
        """Ends one of our spans with its outcome. Performed when the turn was given back: it is user code."""
        if span.is_recording():
            if self.redact is not None:
                given, error = outgoing.attributes(self.redact, given), self.redact.piece("error", error)
            span.set_attributes(given)
            if status is Status.ERROR:
                span.set_status(StatusCode.ERROR, encodable((error or {}).get("message")) or None)
        span.end(end_time)

    @staticmethod
    def tick(last: int) -> int:
        """The next ``updated_at`` of an id whose last one was ``last``: microseconds, strictly increasing."""
        return max(time.time_ns() // 1000, last + 1)

    def describe(self, exc: BaseException) -> dict[str, Any]:
        """An exception as the ``error`` column tells it: ``{"type": ..., "message": ...}``, redacted and bounded."""
        kind = type(exc)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        try:
            message = str(exc)
        except Exception as failure:
            message = f"(its message cannot be told: {type(failure).__name__})"
        return {"type": name, "message": self.redactor.text(message[:ERROR_MESSAGE_LIMIT])}


_active: Recorder | None = None


def active() -> Recorder | None:
    """The recorder in force; None when nothing is to be recorded."""
    return _active


def activate(recorder: Recorder | None) -> None:
    """Puts ``recorder`` in force, or none. Called by `otel_chatdebug.lifecycle` only."""
    global _active
    _active = recorder
