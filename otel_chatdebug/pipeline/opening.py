"""How runs and steps start, and where the current ones are found: in the OpenTelemetry Context, and nowhere else.

Everything here runs in the thread that makes the call and may call user code (samplers, span processors), so nothing of
it runs while events are folded. What is started is told to the inbox as an event.
"""

from __future__ import annotations

import random
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, create_key
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, SpanKind
from opentelemetry.trace.propagation import _SPAN_KEY

from otel_chatdebug import attributes
from otel_chatdebug.pipeline.live import Hold, LiveRun, LocalRoot, ScopeEvent
from otel_chatdebug.pipeline.live_step import LiveStep
from otel_chatdebug.pipeline.recorder import Recorder
from otel_chatdebug.status import RunKind

RUN: Final = create_key("chatdebug-run")
"""Context key: the `Hold` of the current run."""
STEP: Final = create_key("chatdebug-step")
"""Context key: the `StepScope` of the current explicit step."""
REUSE: Final = create_key("chatdebug-reuse-step")
"""Context key: the `Reuse` that is in force."""
CALL: Final = create_key("chatdebug-call")
"""Context key: the call (of an SDK, or one ``send``) that is under way; see `otel_chatdebug.capture.calls`."""

LOCAL_ROOT: Final = "_chatdebug_local_root"
"""Attribute of an SDK span object (not a span attribute): its `LocalRoot`. Set by our span processor."""

CHILD: Final = "child"
"""A value of the setting ``run_parent``; the other one is the default."""


class StepScope:
    """An explicit step in the context, and what it captures: ``model`` calls, or ``all`` requests."""

    __slots__ = ("capture", "hold")

    def __init__(self, hold: Hold, capture: str) -> None:
        self.hold = hold
        self.capture = capture


class Reuse:
    """One ``reuse_step()``: the shared step of each run, made when it is first needed.

    By the run's id; ``""`` where there is no run but the one that was made for this step alone.
    """

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: dict[str, Hold] = {}


def with_values(context: Context, values: dict[str, object], span: Span | None = None) -> Context:
    """``context`` with ``values`` and, where given, ``span`` as the current one."""
    if span is None:
        return Context({**context, **values})
    return Context({**context, **values, _SPAN_KEY: span})


def current_run(recorder: Recorder, context: Context) -> Hold | None:
    """The hold of the run that ``context`` carries, finished or not; None where there is none of this recorder."""
    hold = context.get(RUN)
    if isinstance(hold, Hold) and hold.live.recorder is recorder:
        return hold
    return None


def start_run(
    recorder: Recorder, context: Context, kind: str, started_ns: int, given: dict[str, Any]
) -> tuple[Hold, Context]:
    """Starts an explicit run and returns its hold and the context in which it is current.

    It is the root of a new trace and linked both ways with the span that is current, or (setting ``run_parent``) a
    child of that span; its id is the trace id, or random where it is a child.
    """
    outer = trace.get_current_span(context)
    outer_context = outer.get_span_context()
    child = recorder.settings.run_parent == CHILD and outer_context.is_valid
    links = [Link(outer_context)] if outer_context.is_valid and not child else []
    parent = context if child else trace.set_span_in_context(INVALID_SPAN, context)
    run_attributes = {attributes.RECORD: "run", attributes.RUN_KIND: kind}
    chat_id = given.get("chat_id")
    if chat_id is not None:
        run_attributes[attributes.CONVERSATION_ID] = chat_id
    span, trace_id, span_id = recorder.start_span(kind, SpanKind.INTERNAL, parent, run_attributes, started_ns, links)
    if links and span is not None and outer.is_recording():
        outer.add_link(span.get_span_context())
    run = LiveRun(
        recorder,
        id=f"{random.getrandbits(128) if child else trace_id:032x}",
        kind=kind,
        trace_id=trace_id,
        span_id=span_id,
        span=span,
        started_ns=started_ns,
        **given,
    )
    hold = Hold(run)
    if not child:
        _own_root(span, hold)
    recorder.inbox.emit(run, ScopeEvent.STARTED, started_ns)
    recorder.mark(run)
    return hold, with_values(context, {RUN: hold, STEP: None, CALL: None}, span)


def lasting_run(recorder: Recorder, context: Context) -> bool:
    """Whether `run_of_call` finds a run in ``context``, or makes one that further calls there will share."""
    hold = current_run(recorder, context)
    if hold is not None:
        return not (isinstance(hold.live, LiveRun) and hold.live.over)
    root = getattr(trace.get_current_span(context), LOCAL_ROOT, None)
    if not isinstance(root, LocalRoot):
        return False
    found = root.run
    return found is None or (
        isinstance(found.live, LiveRun) and found.live.recorder is recorder and not found.live.over
    )


def run_of_call(recorder: Recorder, context: Context, started_ns: int) -> tuple[Hold, Context]:
    """The run to which a step that starts in ``context`` belongs, and the context below which the step's span goes.

    The current run, where there is one that is not over; else the auto run of the local root span. A call that
    inherits a run that is over (a background task, a delayed retry) gets an auto run of its own, linked to it.
    """
    hold = current_run(recorder, context)
    if hold is not None and isinstance(hold.live, LiveRun):
        if not hold.live.over:
            return hold, context
        return _auto_run_with_span(
            recorder,
            trace.set_span_in_context(INVALID_SPAN, context),
            started_ns,
            [Link(hold.live.span_context)] if hold.live.span_context is not None else [],
        )
    current = trace.get_current_span(context)
    current_context = current.get_span_context()
    if not current_context.is_valid or current_context.is_remote:
        return _auto_run_with_span(recorder, context, started_ns, [])
    root = getattr(current, LOCAL_ROOT, None)
    if not isinstance(root, LocalRoot):
        # A local root that we cannot see (dropped by the sampler, or of a provider without our processor): nobody will
        # tell us its end, so the run lasts as long as its step.
        return _auto_run(recorder, current_context.trace_id, random.getrandbits(64), started_ns, scoped=False), context
    found = root.run
    if found is not None:
        live = found.live
        if isinstance(live, LiveRun) and live.recorder is recorder and not live.over:
            return found, context
    if found is not None:  # its first auto run is over (the root span has ended): the id is taken
        return _auto_run(recorder, root.context.trace_id, random.getrandbits(64), started_ns, scoped=False), context
    return _auto_run_of_root(recorder, root, started_ns), context


def _auto_run_of_root(recorder: Recorder, root: LocalRoot, started_ns: int) -> Hold:
    trace_id, span_id = root.context.trace_id, root.context.span_id
    run_id = f"{trace_id:032x}" if root.parentless else None
    mine = _new_auto_run(recorder, trace_id, span_id, started_ns, scoped=True, run_id=run_id)
    hold = root.claim(mine)
    if hold is mine:
        _told(recorder, mine)
        recorder.auto_roots[span_id] = root
    else:  # another call below the same span began at the same time; nobody has heard of our run
        mine.live.final = True
    return hold


def _auto_run(
    recorder: Recorder, trace_id: int, span_id: int, started_ns: int, *, scoped: bool, run_id: str | None = None
) -> Hold:
    hold = _new_auto_run(recorder, trace_id, span_id, started_ns, scoped=scoped, run_id=run_id)
    _told(recorder, hold)
    return hold


def _new_auto_run(
    recorder: Recorder, trace_id: int, span_id: int, started_ns: int, *, scoped: bool, run_id: str | None = None
) -> Hold:
    """An auto run that adds no span: its local root span is its span. Nobody is told yet."""
    run = LiveRun(
        recorder,
        id=run_id or attributes.local_run_id(trace_id, span_id),
        kind=RunKind.AUTO.value,
        trace_id=trace_id,
        span_id=span_id,
        span=None,
        started_ns=started_ns,
        scoped=scoped,
    )
    return Hold(run)


def _told(recorder: Recorder, hold: Hold) -> None:
    recorder.inbox.emit(hold.live, ScopeEvent.STARTED, hold.live.started_ns)
    recorder.mark(hold.live)


def _auto_run_with_span(
    recorder: Recorder, context: Context, started_ns: int, links: list[Link]
) -> tuple[Hold, Context]:
    """An auto run where no span of this process is current: it makes one, and lasts as long as its step."""
    kind = RunKind.AUTO.value
    span, trace_id, span_id = recorder.start_span(
        kind,
        SpanKind.INTERNAL,
        context,
        {attributes.RECORD: "run", attributes.RUN_KIND: kind},
        started_ns,
        links,
    )
    remote = trace.get_current_span(context).get_span_context().is_valid
    run = LiveRun(
        recorder,
        id=attributes.local_run_id(trace_id, span_id) if remote else f"{trace_id:032x}",
        kind=kind,
        trace_id=trace_id,
        span_id=span_id,
        span=span,
        started_ns=started_ns,
        scoped=False,
    )
    hold = Hold(run)
    _own_root(span, hold)
    recorder.inbox.emit(run, ScopeEvent.STARTED, started_ns)
    recorder.mark(run)
    return hold, context if span is None else trace.set_span_in_context(span, context)


def _own_root(span: Span | None, hold: Hold) -> None:
    root = getattr(span, LOCAL_ROOT, None)
    if isinstance(root, LocalRoot):
        root.belongs_to(hold)


def start_step(
    recorder: Recorder,
    run: Hold,
    context: Context,
    started_ns: int,
    *,
    explicit: bool,
    operation_name: str,
    adopted: Span | None = None,
    **given: Any,
) -> LiveStep:
    """Starts a step of ``run``: with a span below ``context``, or as the owner's view of the ``adopted`` span."""
    model, provider = given.get("model"), given.get("provider")
    span: Span | None
    span_context: SpanContext | None
    told: dict[str, Any] = {}
    if adopted is not None:
        span, span_context = None, adopted.get_span_context()
        trace_id, span_id = span_context.trace_id, span_context.span_id
    else:
        told.update({attributes.RECORD: "step", attributes.OPERATION_NAME: operation_name})
        if provider:
            told[attributes.PROVIDER_NAME] = provider
        if model:
            told[attributes.REQUEST_MODEL] = model
        span, trace_id, span_id = recorder.start_span(
            f"{operation_name} {model}" if model else operation_name,
            SpanKind.CLIENT,
            context,
            told,
            started_ns,
        )
        span_context = span.get_span_context() if span is not None else None
        if span is None and isinstance(run.live, LiveRun):  # no SDK: there is no trace but the run's
            trace_id = int(run.live.trace_id, 16)
    step = LiveStep(
        recorder,
        run=run,
        span=span,
        span_context=span_context,
        trace_id=trace_id,
        span_id=span_id,
        started_ns=started_ns,
        explicit=explicit,
        told=told,
        operation_name=operation_name,
        **given,
    )
    recorder.inbox.emit(step, ScopeEvent.STARTED, started_ns)
    recorder.mark(step)
    return step
