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
from typing import Any, Protocol

from opentelemetry.trace import Span, SpanContext, StatusCode

from otel_chatdebug import attributes
from otel_chatdebug.pipeline.recorder import Recorder
from otel_chatdebug.records import AttemptRank, ContentRank, Record, RunRecord, StepContent, StepRecord
from otel_chatdebug.status import RunKind, Status
from otel_chatdebug.wire.types import Facts

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


def end_span(span: Span, given: dict[str, Any], status: Status, error: Any, end_time: int) -> None:
    """Ends one of our spans with its outcome. Performed when the turn was given back: it is user code."""
    if span.is_recording():
        span.set_attributes(given)
        if status is Status.ERROR:
            span.set_status(StatusCode.ERROR, attributes.encodable((error or {}).get("message")) or None)
    span.end(end_time)


class LiveRun:
    """One run of this process, until it is finished and nobody can correct it any more."""

    __slots__ = (
        "__weakref__", "_auto", "_endpoint", "_exit", "_last_outcome", "_left_ns", "_metadata", "_model", "_provider",
        "_said", "_scope_open", "_steps", "_totals", "_updated_us", "chat_id", "error", "final",
        "finished_ns", "first_message", "given", "id", "kind", "numbers", "queued", "recorder", "span",
        "span_context", "span_id", "started_ns", "status", "trace_id", "watch",
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
        self.first_message: str | None = None
        self.status = Status.IN_PROGRESS
        self.error: Any = None
        self.watch: object = None
        self.final = False
        self.queued = False
        self.numbers = itertools.count(1)
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
        self._totals[step.id] = (None, False)
        self.recorder.mark(self)

    def step_changed(self, step: LiveStep, at: int) -> None:
        """A step has an outcome, or another one than before."""
        self._totals[step.id] = (step.usage, step.status is Status.ERROR)
        self._provider = step.provider or self._provider
        self._model = step.model or self._model
        last = step.last_attempt
        if last is not None:
            self._endpoint = last.endpoint_label
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
        if not self._totals and self._left_ns is None:
            return  # an auto run whose first step is just about to start
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
            self.recorder.inbox.defer(partial(end_span, self.span, given, self.status, self.error, at))
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

    def records(self) -> Sequence[Record]:
        """Called by the writer's thread."""
        record: RunRecord = self.recorder.inbox.reading(self.record)
        self._updated_us = record.updated_at = self.recorder.tick(self._updated_us)
        if self.first_message:
            record.summary["first_message"] = self.recorder.redactor.text(self.first_message)[:FIRST_MESSAGE_LIMIT]
        return [record]

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


class LiveStep:
    """One logical model call of this process, until its outcome is final."""

    __slots__ = (
        "__weakref__", "_attempt_count", "_attempts", "_content_us", "_exit", "_left_ns", "_request", "_said",
        "_said_usage", "_scope_open", "_updated_us", "assistant_message_id", "attempt_numbers", "chat_id", "error",
        "explicit", "final", "finished_ns", "history_tip_message_id", "id", "last_attempt", "metadata", "model",
        "number", "operation", "operation_name", "options", "provider", "queued", "recorder", "response", "run",
        "run_hold", "shared", "span", "span_context", "span_id", "started_ns", "status", "told", "trace_id",
        "usage", "watch",
    )  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        *,
        run: Hold,
        span: Span | None,
        span_context: SpanContext | None,
        trace_id: int,
        span_id: int,
        started_ns: int,
        explicit: bool,
        shared: bool = False,
        told: dict[str, Any],
        operation_name: str = "chat",
        operation: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        chat_id: str | None = None,
        history_tip_message_id: str | None = None,
        assistant_message_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        live_run = run.live
        assert isinstance(live_run, LiveRun)
        self.recorder = recorder
        self.run = live_run
        self.run_hold = run
        self.span = span
        """Ours to end; None where there is no SDK, and where a foreign span was adopted."""
        self.span_context = span_context
        self.trace_id = f"{trace_id:032x}"
        self.span_id = self.id = f"{span_id:016x}"
        self.number = next(live_run.numbers)
        self.attempt_numbers = itertools.count(1)
        self.started_ns = started_ns
        self.finished_ns: int | None = None
        self.explicit = explicit
        self.shared = shared
        """Of ``reuse_step()``, which stands around runs: it ends with its run."""
        self.operation_name = operation_name
        self.operation = operation
        self.provider = provider
        self.model = model
        self.chat_id = chat_id if chat_id is not None else live_run.chat_id
        self.history_tip_message_id = history_tip_message_id
        self.assistant_message_id = assistant_message_id
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.usage: dict[str, int] | None = None
        self.status = Status.IN_PROGRESS
        self.error: Any = None
        self.response: Any = None
        """What ``finish(response=...)`` said."""
        self.watch: object = None
        self.last_attempt: AttemptView | EndedAttempt | None = None
        self.final = False
        self.queued = False
        self.told = told
        """The attributes that its span was started with."""
        self.options: dict[str, Any] = {}
        """``gen_ai.request.*`` and ``server.*`` attributes of the last request."""
        self._attempts: dict[str, AttemptView] = {}
        self._attempt_count = 0
        self._scope_open = True
        self._exit: Exit = NORMAL_EXIT
        self._left_ns: int | None = None
        self._said: Said | None = None
        self._said_usage: dict[str, int] = {}
        self._updated_us = 0
        self._content_us = 0
        self._request: Any = None  # the last normalised request; the writer's thread only

    # -- folding

    def apply(self, event: Enum, at: int, payload: Any) -> None:
        if event is ScopeEvent.STARTED:
            self.recorder.open_steps[self.id] = self
            self.run.step_started(self)
        elif event is ScopeEvent.ATTEMPT:
            self._attempts[payload.id] = payload
            self._attempt_count += 1
            self.last_attempt = payload
            self.recorder.open_attempts[payload.id] = payload
        elif event is ScopeEvent.LEFT:
            self._left(at, payload)
        elif event is ScopeEvent.SAID:
            self._say(at, payload)
        elif event is ScopeEvent.ABANDONED and self._scope_open:
            self._left(self.last_moment(), Exit(Status.INTERRUPTED) if self.last_attempt is None else NORMAL_EXIT)
        elif event is ScopeEvent.SHUTDOWN and not self.final:
            for attempt in list(self._attempts.values()):
                attempt.shut_down(at)
            if self._scope_open:
                self._scope_open = False
                self._exit = Exit(Status.INTERRUPTED)
            self._attempts.clear()
            self._fold(at)
        self.recorder.mark(self)

    def attempt_changed(self, attempt: AttemptView, at: int) -> None:
        """An attempt has an outcome, or another one than before."""
        if attempt.final:
            self._attempts.pop(attempt.id, None)
            self.recorder.open_attempts.pop(attempt.id, None)
        if self.last_attempt is not None and self.last_attempt.id == attempt.id:
            self._learn(attempt.facts)
            if attempt.final:
                self.last_attempt = EndedAttempt(attempt)
        self._fold(at)
        self.recorder.mark(self)

    def run_left(self, at: int, *, keep_unread: bool) -> None:
        """The run's scope was left. A body that nobody has begun to read may still be read, after a normal exit."""
        for attempt in list(self._attempts.values()):
            if attempt.half_read or not keep_unread:
                attempt.run_left(at)

    def _left(self, at: int, exit_: Exit) -> None:
        if not self._scope_open:
            return
        self._scope_open = False
        self._exit = exit_
        self._left_ns = at
        if self.explicit:
            for attempt in list(self._attempts.values()):
                attempt.settled(at)
        self._fold(at)

    def _say(self, at: int, said: Said) -> None:
        if said.metadata:
            self.metadata.update(said.metadata)
        if said.usage:
            self._said_usage.update(said.usage)
            self.usage = {**(self.usage or {}), **said.usage}
        if said.response is not None:
            self.response = said.response
        if said.status is Status.IN_PROGRESS:
            return
        if self._said is None or said.status.priority >= self._said.status.priority:
            self._said = said
        if said.ends:
            self._left(at, NORMAL_EXIT)
        if self.final or not said.ends:
            self._raise_to(self._said.status, self._said.error)
            self.run.step_changed(self, at)

    def _learn(self, facts: Facts) -> None:
        for name, value in (
            ("response_model", facts.model),
            ("response_id", facts.response_id),
            ("finish_reasons", facts.finish_reasons),
        ):
            if value:
                self.metadata[name] = value
        if facts.usage is not None:
            self.usage = {**(facts.usage.as_dict() or {}), **self._said_usage} or None

    def _raise_to(self, status: Status, error: Any) -> None:
        if status.priority >= self.status.priority:
            self.status = status
            self.error = error if status is Status.ERROR else None

    def _fold(self, at: int) -> None:
        if self.holds_run:
            return
        status, error = self._outcome()
        self._raise_to(status, error)
        moments = [self._left_ns or 0]
        if self.last_attempt is not None:
            moments.append(self.last_attempt.finished_ns or 0)
        self.finished_ns = max(moments) or at
        if not self._attempts and not self.final:
            self.final = True
            self.watch = None  # it refers back to us
            self.recorder.open_steps.pop(self.id, None)
            if self.span is not None:
                given = self._span_attributes()
                self.recorder.inbox.defer(
                    partial(end_span, self.span, given, self.status, self.error, self.finished_ns)
                )
                self.span = None
        self.run.step_changed(self, at)

    def _outcome(self) -> tuple[Status, Any]:
        """What ``finish`` said, else the exception, else the last attempt, else completed."""
        if self._said is not None:
            return self._said.status, self._said.error
        last = self.last_attempt
        if self._exit.status is not Status.COMPLETED:
            error = self._exit.error
            if self._exit.status is Status.ERROR and last is not None and last.error:
                # What the provider said is more than the SDK's exception about it.
                error = {**last.error, "exception": (error or {}).get("type")}
            return self._exit.status, error
        if last is not None:
            return last.status, last.error
        return Status.COMPLETED, None

    def _span_attributes(self) -> dict[str, Any]:
        more, last = self.options, self.last_attempt
        if self.operation == "stream" and last is not None and last.first_byte_ns is not None:
            more = {**more, attributes.TIME_TO_FIRST_CHUNK: (last.first_byte_ns - self.started_ns) / 1e9}
        return attributes.step_attributes(
            self,
            operation_name=self.operation_name,
            attempts=self._attempt_count,
            more=more,
            told=self.told,
        )

    # -- looking

    @property
    def run_id(self) -> str:
        return self.run.id

    @property
    def step_number(self) -> int:
        """The proposed one."""
        return self.number

    @property
    def holds_run(self) -> bool:
        """Somebody may still use it, so its run is not over."""
        return self._scope_open or self.unsettled

    @property
    def unsettled(self) -> bool:
        """The outcome of one of its attempts is not known yet."""
        return any(a.rank in (AttemptRank.OPEN, AttemptRank.PROVISIONAL) for a in self._attempts.values())

    def last_moment(self) -> int:
        last = self.last_attempt
        return max(self.started_ns, (last.finished_ns or last.started_ns) if last is not None else 0)

    def record(self) -> StepRecord:
        """What is known now. Called while folding, or through ``inbox.reading``."""
        return StepRecord(
            id=self.id,
            rank=self.status.priority,
            updated_at=max((self.finished_ns or self.started_ns) // 1000, self._updated_us),
            replica_id=self.recorder.replica_id,
            run_id=self.run.id,
            status=self.status,
            step_number=self.number,
            started_at=self.started_ns // 1000,
            finished_at=None if self.finished_ns is None else self.finished_ns // 1000,
            chat_id=self.chat_id,
            trace_id=self.trace_id,
            span_id=self.span_id,
            operation=self.operation,
            provider=self.provider,
            model=self.model,
            history_tip_message_id=self.history_tip_message_id,
            assistant_message_id=self.assistant_message_id,
            usage=self.usage,
            error=self.error if self.status is Status.ERROR else None,
            metadata=dict(self.metadata) or None,
        )

    def records(self) -> Sequence[Record]:
        """Called by the writer's thread."""
        record: StepRecord = self.recorder.inbox.reading(self.record)
        self._updated_us = record.updated_at = self.recorder.tick(self._updated_us)
        if self.response is None:
            return [record]
        return [record, self.content(ContentRank.COMPLETE, None, None)]

    def content(self, rank: ContentRank, request: Any, response: Any) -> StepContent:
        """The step's messages, from its last attempt or from ``finish``. Called by the writer's thread."""
        self._content_us = self.recorder.tick(self._content_us)
        self._request = request = request or self._request
        if self.response is not None:
            response = self.recorder.redactor.json_value(self.response)
        return StepContent(
            id=self.id,
            rank=rank,
            updated_at=self._content_us,
            replica_id=self.recorder.replica_id,
            run_id=self.run.id,
            chat_id=self.chat_id,
            normalized_request=request,
            normalized_response=response,
        )
