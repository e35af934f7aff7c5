"""What is open in this process: runs and steps, folded from what scopes and attempts tell.

Only the thread that has the inbox's turn changes them (see `otel_chatdebug.pipeline.inbox`), so they have no locks.
Other threads may look at a single field; whoever needs several that belong together uses ``inbox.reading``.

A run is finished when its scope (or its local root span) was left *and* the last of its steps that somebody may still
read has ended. A step is finished when its scope was left and all of its attempts are.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.trace import Span, SpanContext

from otel_chatdebug import attributes
from otel_chatdebug.pipeline import outgoing
from otel_chatdebug.pipeline.recorder import LIVE_SIZE, Recorder
from otel_chatdebug.pipeline.whereabouts import here
from otel_chatdebug.records import Record, RunRecord
from otel_chatdebug.status import RunKind, Status
from otel_chatdebug.wire.types import Facts

if TYPE_CHECKING:
    from otel_chatdebug.pipeline.live_step import LiveStep

FIRST_MESSAGE_LIMIT = 200
"""Characters of a run's first message in its summary."""


class ScopeEvent(Enum):
    """What happens to a run or a step."""

    STARTED = auto()
    ATTEMPT = auto()
    """A step gets an attempt (the payload)."""
    LEFT = auto()
    """The scope was left; the payload is an `Exit`."""
    SAID = auto()
    """``finish()`` was called; the payload is a `Said`."""
    NUMBERED = auto()
    """A step of a run got another number than it proposed, when its row was inserted; the payload has its ``id`` and
    its ``number``."""
    ABANDONED = auto()
    """Nobody holds it any more, and it was neither left nor finished."""
    SHUTDOWN = auto()


class Exit:
    """How a scope was left: with which status, and which error if any."""

    __slots__ = ("error", "status")

    def __init__(self, status: Status, error: Any = None) -> None:
        self.status = status
        self.error = error


NORMAL_EXIT = Exit(Status.COMPLETED)


class Said:
    """What ``finish()`` was told. None: nothing was said about it."""

    __slots__ = ("ends", "error", "metadata", "response", "status", "usage")

    def __init__(self, status: Status, *, error: Any, response: Any, usage: Any, metadata: Any, ends: bool) -> None:
        self.status = status
        self.error = error
        self.response = response
        self.usage = usage
        self.metadata = metadata
        self.ends = ends
        """Whether there is no scope that will be left later."""


class Hold:
    """Whoever may still use a run (a handle, a context, an open step) has its hold.

    When the last one is gone, nobody can finish the run any more, and it is abandoned. The hold knows the live run; the
    live run does not know its hold.
    """

    __slots__ = ("__weakref__", "live")

    def __init__(self, live: LiveRun | LiveStep) -> None:
        self.live = live
        live.watch = weakref.ref(self, partial(_abandoned, live.recorder, live))


def _abandoned(recorder: Recorder, live: LiveRun | LiveStep, _: object) -> None:
    # A finalizer: it may run in any thread and in the middle of any locked section.
    if not live.final:
        recorder.inbox.emit(live, ScopeEvent.ABANDONED, 0)
        recorder.inbox.wake()


class LocalRoot:
    """The local root span of this process above a span, as our span processor saw it."""

    __slots__ = ("__weakref__", "_hold", "_own", "context", "parentless")

    def __init__(self, context: SpanContext, parentless: bool) -> None:
        self.context = context
        self.parentless = parentless
        self._hold: list[Hold] = []
        self._own: weakref.ref[Hold] | None = None

    @property
    def hold(self) -> Hold | None:
        """Of the auto run that lasts as long as this span; whoever has the span has the run."""
        return self._hold[0] if self._hold else None

    def claim(self, hold: Hold) -> Hold:
        """Gives this span the auto run of ``hold``, or returns the one that another thread was quicker to give it."""
        self._hold.append(hold)  # atomic; the first one counts
        return self._hold[0]

    def belongs_to(self, hold: Hold) -> None:
        """This is the span of a run of ours. The run has its span, so the span must not have the run's hold."""
        self._own = weakref.ref(hold)

    @property
    def run(self) -> Hold | None:
        """The run of the calls below this span, if there is one yet."""
        return self.hold if self._own is None else self._own()


class AttemptView(Protocol):
    """What a step knows of its attempts."""

    id: str
    number: int
    status: Status
    rank: int
    error: Any
    facts: Facts
    final: bool
    started_ns: int
    finished_ns: int | None
    first_byte_ns: int | None

    @property
    def half_read(self) -> bool:
        """Somebody has begun to read the body, and its outcome is not known yet."""

    @property
    def endpoint_label(self) -> str: ...

    @property
    def gaps_ns(self) -> Sequence[int] | None:
        """Nanoseconds between the chunks of a stream, where a metric is made of them."""

    def messages(self) -> tuple[Any, Any]:
        """Its normalised request and response, once it is final. Takes long; not while folding."""

    def run_left(self, at: int) -> None: ...

    def settled(self, at: int) -> None: ...

    def shut_down(self, at: int) -> None: ...


class EndedAttempt:
    """What a step keeps of its last attempt once that is final.

    The attempt knows its step, so the step must not know the attempt: a cycle would keep its body in memory until the
    garbage collector comes by.
    """

    __slots__ = ("endpoint_label", "error", "finished_ns", "first_byte_ns", "id", "started_ns", "status")

    def __init__(self, attempt: AttemptView) -> None:
        self.id = attempt.id
        self.status = attempt.status
        self.error = attempt.error
        self.started_ns = attempt.started_ns
        self.first_byte_ns = attempt.first_byte_ns
        self.finished_ns = attempt.finished_ns
        self.endpoint_label = attempt.endpoint_label


class LiveRun:
    """One run of this process, until it is finished and nobody can correct it any more."""

    __slots__ = (
        "__weakref__", "_auto", "_endpoint", "_exit", "_highest_number", "_last_outcome", "_left_ns", "_metadata",
        "_model", "_provider", "_said", "_scope_open", "_steps", "_totals", "_updated_us", "chat_id", "completed_on",
        "error", "final", "finished_ns", "first_message", "given", "id", "kind", "numbers", "permit", "queued",
        "recorder", "span", "span_context", "span_id", "started_ns", "status", "trace_id", "watch", "where",
    )  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        *,
        id: str,
        kind: str,
        trace_id: int,
        span_id: int,
        span: Span | None,
        started_ns: int,
        scoped: bool = True,
        **given: Any,
    ) -> None:
        self.recorder = recorder
        self.id = id
        self.kind = kind
        self.trace_id = f"{trace_id:032x}"
        self.span_id = f"{span_id:016x}"
        self.span_context = span.get_span_context() if span is not None else None
        self.span = span
        self.started_ns = started_ns
        self.finished_ns: int | None = None
        self.given = given
        """The columns that the application gave: ``chat_id``, ``trigger_message_id``, ..."""
        self.chat_id: str | None = given.get("chat_id")
        self.permit = recorder.permit(self.chat_id, given.get("owner_id"))
        self.first_message: str | None = None
        self.completed_on: tuple[type[BaseException], ...] = ()
        """Exceptions that are the application's control flow: whatever they leave is left normally."""
        self.status = Status.IN_PROGRESS
        self.error: Any = None
        self.watch: object = None
        self.where = here()
        """Where its scope was entered."""
        self.final = False
        self.queued = False
        self.numbers = itertools.count(1)
        """What the next steps propose."""
        self._highest_number = 0
        self._auto = kind == RunKind.AUTO
        self._scope_open = scoped
        self._exit: Exit = NORMAL_EXIT
        self._said: Said | None = None
        self._left_ns: int | None = None
        self._steps: dict[str, LiveStep] = {}
        self._totals: dict[str, tuple[dict[str, int] | None, bool]] = {}
        self._metadata: dict[str, Any] = {}
        self._provider: str | None = None
        self._model: str | None = None
        self._endpoint: str | None = None
        self._last_outcome: Exit = NORMAL_EXIT
        self._updated_us = 0

    # -- folding: called by the thread that has the turn

    def apply(self, event: Enum, at: int, payload: Any) -> None:
        if event is ScopeEvent.STARTED:
            self.recorder.open_runs[self.id] = self
        elif event is ScopeEvent.LEFT:
            self._left(at, payload)
        elif event is ScopeEvent.SAID:
            self._say(at, payload)
        elif event is ScopeEvent.NUMBERED:
            self._follow(payload.id, payload.number)
            return  # nothing of it is for the row
        elif event is ScopeEvent.ABANDONED:
            if self._scope_open:
                self._left(self._last_moment(), Exit(Status.INTERRUPTED))
            elif not self.final and not self._steps:  # an auto run whose step could not be started
                self._exit = Exit(Status.INTERRUPTED)
                self._finish(self._last_moment())
        elif event is ScopeEvent.SHUTDOWN and not self.final:
            self._scope_open = False
            self._exit = Exit(Status.INTERRUPTED)
            self._finish(at)
        self.recorder.mark(self)

    def step_started(self, step: LiveStep) -> None:
        self._steps[step.id] = step
        self._highest_number = max(self._highest_number, step.number)
        self._totals[step.id] = (None, False)
        self.recorder.mark(self)

    def _follow(self, step_id: str, number: int) -> None:
        """Somebody else numbers steps of this run, too: the next proposal is above what is known to be taken."""
        step = self._steps.get(step_id)
        if step is not None:
            step.number = number
        if number > self._highest_number:
            # A step that starts in another thread at this moment may propose a number that is taken. It gets another.
            self._highest_number = number
            self.numbers = itertools.count(number + 1)

    def step_asks(self, step: LiveStep) -> None:
        """A step sends a request: whose run hangs in it wants to know whom it asks."""
        self._tell_who_is_asked(step)
        self.recorder.mark(self)

    def _tell_who_is_asked(self, step: LiveStep) -> None:
        self._provider = step.provider or self._provider
        self._model = step.model or self._model
        last = step.last_attempt
        if last is not None:
            self._endpoint = last.endpoint_label

    def step_changed(self, step: LiveStep, at: int) -> None:
        """A step has an outcome, or another one than before."""
        self._totals[step.id] = (step.usage, step.status is Status.ERROR)
        self._tell_who_is_asked(step)
        if step.final:
            self._steps.pop(step.id, None)
        if step.status is not Status.IN_PROGRESS and self._auto:
            self._last_outcome = Exit(step.status, step.error)
        self._maybe_finish(at)
        self.recorder.mark(self)

    def _left(self, at: int, exit_: Exit) -> None:
        if not self._scope_open:
            return
        self._scope_open = False
        self._exit = exit_
        self._left_ns = at
        left_normally = exit_.status is Status.COMPLETED
        for step in list(self._steps.values()):
            step.run_left(at, keep_unread=left_normally)
            if step.shared:
                step.apply(ScopeEvent.LEFT, at, NORMAL_EXIT)
        if left_normally:
            self._maybe_finish(at)
        else:
            self._finish(at)

    def _say(self, at: int, said: Said) -> None:
        if said.metadata:
            self._metadata.update(said.metadata)
        if said.status is Status.IN_PROGRESS:
            return
        if self._said is None or said.status.priority >= self._said.status.priority:
            self._said = said
        if said.ends:
            if self._scope_open:
                self._left(at, NORMAL_EXIT if said.status is Status.COMPLETED else Exit(said.status, said.error))
            if self.final:
                self._raise_to(self._said.status, self._said.error)
        else:  # the row may know at once; the span waits for the end of the scope
            self._raise_to(self._said.status, self._said.error)

    def _raise_to(self, status: Status, error: Any) -> None:
        if status.priority >= self.status.priority:
            self.status = status
            self.error = error if status is Status.ERROR else None

    def _maybe_finish(self, at: int) -> None:
        if self.final or self._scope_open or any(step.holds_run for step in self._steps.values()):
            return
        self._finish(max(at, self._left_ns or 0))

    def _finish(self, at: int) -> None:
        status, error = self._outcome()
        self._raise_to(status, error)
        self.finished_ns = at
        self.final = True
        self.watch = None  # it refers back to us
        self.recorder.open_runs.pop(self.id, None)
        if self.span is not None:
            given = attributes.run_attributes(self.record())
            self.recorder.inbox.defer(partial(self.recorder.end_span, self.span, given, self.status, self.error, at))
            self.span = None
        self.recorder.mark(self)

    def _outcome(self) -> tuple[Status, Any]:
        if self._said is not None:
            return self._said.status, self._said.error
        if self._exit.status is not Status.COMPLETED:
            return self._exit.status, self._exit.error
        # Left normally: completed, whatever became of its steps (`summary.has_error` says so). An auto run has no scope
        # that could tell how it was left, so its last step does.
        return self._last_outcome.status, self._last_outcome.error

    def _last_moment(self) -> int:
        return max((step.last_moment() for step in self._steps.values()), default=self.started_ns)

    # -- looking

    @property
    def open_steps(self) -> list[LiveStep]:
        """Called through ``inbox.reading``."""
        return list(self._steps.values())

    @property
    def over(self) -> bool:
        """Finished, as far as this process knows: a call that inherits it gets a run of its own."""
        return self.final

    def record(self) -> RunRecord:
        """What is known now. Called while folding, or through ``inbox.reading``."""
        now = (self.finished_ns or self.started_ns) // 1000
        return RunRecord(
            id=self.id,
            rank=self.status.priority,
            updated_at=max(now, self._updated_us),
            replica_id=self.recorder.replica_id,
            status=self.status,
            kind=self.kind,
            started_at=self.started_ns // 1000,
            finished_at=None if self.finished_ns is None else self.finished_ns // 1000,
            trace_id=self.trace_id,
            span_id=self.span_id,
            provider=self._provider,
            model=self._model,
            summary=self._summary(),
            error=self.error if self.status is Status.ERROR else None,
            service_name=self.recorder.service_name,
            **self.given,
        )

    @property
    def size(self) -> int:
        """Bytes of memory, near enough."""
        return LIVE_SIZE

    def strip(self) -> None:
        """A run has no content."""

    def records(self) -> Sequence[Record]:
        """Called by the writer's thread."""
        if self.permit.allowed is False:
            return []
        return outgoing.records(self.recorder.redact, [self.row()])

    def row(self) -> RunRecord:
        """The record for the tables. Called by the writer's thread."""
        record: RunRecord = self.recorder.inbox.reading(self.record)
        self._updated_us = record.updated_at = self.recorder.tick(self._updated_us)
        if self.first_message:
            record.summary["first_message"] = self.recorder.redactor.text(self.first_message)[:FIRST_MESSAGE_LIMIT]
        return record

    def learn_first_message(self, request: Any) -> bool:
        """The summary shows what the user said last in the first request, where the application did not say it.

        ``request`` is a normalised request, or None. True when that is news. Called by the writer's thread.
        """
        if self.first_message is not None or not isinstance(request, dict):
            return False
        for message in reversed(request.get("messages") or []):
            if isinstance(message, dict) and message.get("role") == "user":
                texts = [part.get("text") for part in message.get("parts") or [] if isinstance(part, dict)]
                self.first_message = " ".join(text for text in texts if isinstance(text, str)) or None
                return self.first_message is not None
        return False

    def _summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = dict(self._metadata)
        summary["step_count"] = len(self._totals)
        names = ("input", "output", "reasoning", "cache_read", "cache_creation")
        for name in names:
            total = sum((usage or {}).get(f"{name}_tokens") or 0 for usage, _ in self._totals.values())
            if total or name in ("input", "output"):
                summary[f"total_{name}_tokens"] = total
        summary["has_error"] = self.status is Status.ERROR or any(failed for _, failed in self._totals.values())
        if self._endpoint:
            summary["endpoint_label"] = self._endpoint
        return summary
