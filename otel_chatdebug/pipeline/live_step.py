"""One logical model call that is open in this process: its attempts, its outcome, its span. See `pipeline.live`.

A step is finished when its scope was left and all of its attempts are. Only the thread that has the inbox's turn
changes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Any

from opentelemetry.trace import Span, SpanContext

from otel_chatdebug import attributes
from otel_chatdebug.pipeline import call_content, outgoing
from otel_chatdebug.pipeline.call_metrics import CallMetrics, call_metrics
from otel_chatdebug.pipeline.live import (
    NORMAL_EXIT,
    AttemptView,
    EndedAttempt,
    Exit,
    Hold,
    LiveRun,
    Said,
    ScopeEvent,
)
from otel_chatdebug.pipeline.recorder import LIVE_SIZE, Recorder
from otel_chatdebug.pipeline.whereabouts import here
from otel_chatdebug.records import AttemptRank, ContentRank, Record, StepContent, StepRecord, size_of_json
from otel_chatdebug.status import Status
from otel_chatdebug.wire.types import Facts


class LiveStep:
    """One logical model call of this process, until its outcome is final."""

    __slots__ = (
        "__weakref__", "_attempt_count", "_attempts", "_content_us", "_exit", "_left_ns", "_messages", "_request",
        "_said", "_said_usage", "_scope_open", "_updated_us", "assistant_message_id", "attempt_numbers", "chat_id",
        "error", "explicit", "final", "finished_ns", "history_tip_message_id", "id", "in_events", "last_attempt",
        "metadata", "metrics", "model", "number", "operation", "operation_name", "options", "permit", "provider",
        "queued", "recorder", "response", "run", "run_hold", "shared", "span", "span_context", "span_id",
        "started_ns", "status", "told", "trace_id", "usage", "watch", "where",
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
        self.permit = live_run.permit
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
        self.where = here()
        self.last_attempt: AttemptView | EndedAttempt | None = None
        self.final = False
        self.queued = False
        self.told = told
        """The attributes that its span was started with."""
        self.metrics = call_metrics(recorder.meter_provider)
        """Where its duration and its tokens are counted; None where nobody does, or somebody else."""
        self.in_events = recorder.settings.content_in_events
        """Whether an event tells it with its messages; not where somebody else does."""
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
        self._messages: tuple[Any, Any] = (None, None)  # of the last attempt; whoever performs what is deferred
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
            self.run.step_asks(self)
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
                if self._tells_content:
                    self.recorder.inbox.defer(partial(self._read_messages, attempt))
        if attempt.final and attempt.gaps_ns and self.metrics is not None:
            given = self._metric_attributes()
            self.recorder.inbox.defer(partial(self.metrics.chunks_came, given, attempt.gaps_ns, self.span_context))
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
            self._tell(self.finished_ns)
            if self.metrics is not None:
                self._count(self.metrics, self.finished_ns)
        self.run.step_changed(self, at)

    def _tell(self, finished_ns: int) -> None:
        """Has the span ended, and the event emitted."""
        inbox, span = self.recorder.inbox, self.span
        if self.in_events:
            everything = self._span_attributes(told={})
            inbox.defer(partial(self._emit, everything, finished_ns))
        if span is not None:
            given = self._span_attributes(told=self.told)
            if self.recorder.settings.content_on_spans:
                inbox.defer(partial(self._add_content, given))
            inbox.defer(partial(self.recorder.end_span, span, given, self.status, self.error, finished_ns))
            self.span = None

    @property
    def _tells_content(self) -> bool:
        return self.in_events or (self.span is not None and self.recorder.settings.content_on_spans)

    def _count(self, metrics: CallMetrics, finished_ns: int) -> None:
        ended = partial(
            metrics.call_ended,
            self._metric_attributes(),
            error_type=attributes.error_type(self),
            seconds=max(0, finished_ns - self.started_ns) / 1e9,
            to_first_chunk=self._to_first_chunk,
            usage=self.usage,
            span_context=self.span_context,
        )
        self.recorder.inbox.defer(ended)

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

    def _span_attributes(self, *, told: dict[str, Any]) -> dict[str, Any]:
        more, waited = self.options, self._to_first_chunk
        if waited is not None:
            more = {**more, attributes.TIME_TO_FIRST_CHUNK: waited}
        return attributes.step_attributes(
            self,
            operation_name=self.operation_name,
            attempts=self._attempt_count,
            more=more,
            told=told,
        )

    def _metric_attributes(self) -> dict[str, Any]:
        return attributes.metric_attributes(self, operation_name=self.operation_name, server=self.options)

    # -- performed when the turn was given back

    def _read_messages(self, attempt: AttemptView) -> None:
        self._messages = attempt.messages()

    def _content(self) -> tuple[Any, Any]:
        """What is told of the messages; nothing of a run that is not recorded."""
        if self.permit.allowed is not True:
            return None, None
        request, response = self._messages
        if self.response is not None:
            response = self.recorder.redactor.json_value(self.response)
        redact = self.recorder.redact
        if redact is not None:
            request, response = (
                redact.piece("normalized_request", request),
                redact.piece("normalized_response", response),
            )
        return request, response

    def _add_content(self, given: dict[str, Any]) -> None:
        given.update(call_content.attributes(*self._content(), structured=False))

    def _emit(self, given: dict[str, Any], finished_ns: int) -> None:
        if self.permit.allowed is not True:
            return
        content = call_content.attributes(*self._content(), structured=True)
        call_content.emit(self.recorder.logger_provider, given, content, self.span_context, finished_ns)

    # -- looking

    @property
    def open_attempts(self) -> list[AttemptView]:
        """Called through ``inbox.reading``."""
        return list(self._attempts.values())

    @property
    def _to_first_chunk(self) -> float | None:
        """Seconds, of a stream."""
        last = self.last_attempt
        if self.operation != "stream" or last is None or last.first_byte_ns is None:
            return None
        return (last.first_byte_ns - self.started_ns) / 1e9

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
        return self._scope_open or any(
            attempt.rank in (AttemptRank.OPEN, AttemptRank.PROVISIONAL) for attempt in self._attempts.values()
        )

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

    @property
    def size(self) -> int:
        """Bytes of memory, near enough."""
        return LIVE_SIZE if self.response is None else LIVE_SIZE + size_of_json(self.response)

    def strip(self) -> None:
        """Lets go of what ``finish(response=...)`` said. Any thread."""
        self.response = None

    def records(self) -> Sequence[Record]:
        """Called by the writer's thread."""
        if self.permit.allowed is False:  # since it was put into the queue: its rows have been deleted
            return []
        record: StepRecord = self.recorder.inbox.reading(self.record)
        self._updated_us = record.updated_at = self.recorder.tick(self._updated_us)
        found: list[Record] = [record]
        if self.response is not None:
            found.append(self.content(ContentRank.COMPLETE, None, None))
        return outgoing.records(self.recorder.redact, found)

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
