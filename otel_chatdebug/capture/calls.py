"""Calls and attempts: what a request that is about to be sent belongs to.

A *call* is what may hold several physical requests: one call of an SDK (its retries), or one ``send`` of a bare client
(its redirects and auth retries). Both are wrapped, and both make their step lazily, at the first request that is a
model call: so a GenAI span that the SDK starts meanwhile can be adopted, and a call that is none of a model's makes no
step.

Everything here runs in the thread or task that makes the call. Nothing raises into it: whoever calls these functions
guards them with `otel_chatdebug.faults.fault`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from time import time_ns
from typing import Any, Final, NamedTuple, cast

from opentelemetry import propagate, trace
from opentelemetry.context import (
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
    _SUPPRESS_INSTRUMENTATION_KEY,
    Context,
    get_current,
)
from opentelemetry.trace import Span, SpanKind

from otel_chatdebug import attributes
from otel_chatdebug.capture.attempt import Attempt
from otel_chatdebug.capture.content import request_content
from otel_chatdebug.capture.failures import Retries
from otel_chatdebug.capture.providers import provider_of_host
from otel_chatdebug.capture.states import Event
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline.call_metrics import told_elsewhere
from otel_chatdebug.pipeline.live import NORMAL_EXIT, Exit, Hold, ScopeEvent
from otel_chatdebug.pipeline.live_step import LiveStep
from otel_chatdebug.pipeline.opening import (
    CALL,
    REUSE,
    STEP,
    Reuse,
    StepScope,
    lasting_run,
    run_of_call,
    start_step,
    with_values,
)
from otel_chatdebug.pipeline.recorder import Recorder, active
from otel_chatdebug.wire import registry
from otel_chatdebug.wire.types import RequestFacts

_SUPPRESS_PLAIN_KEY: Final = "suppress_instrumentation"
"""The older key, which ``opentelemetry.instrumentation.utils`` still sets and honours."""

ADOPTED: Final = "_chatdebug_adopted"
"""Attribute of an SDK span object (not a span attribute): it is a step already."""

ADOPTABLE: Final = frozenset({"chat", "generate_content", "text_completion", "embeddings"})
"""``gen_ai.operation.name`` of spans that may be the step of a call; agents, tools and retrieval are none."""

PARSED_REQUEST: Final = 256 * 1024
"""Bytes of a request body that are parsed at once for its model; of a larger one only the ends are searched."""

SEARCHED_REQUEST: Final = 4 * 1024
"""Bytes at each end of a large request body that are searched for its model."""

MOST_TARGETS: Final = 256
"""Targets of requests that are remembered; beyond it all are forgotten."""

_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')


class Within:
    """The value that suppresses HTTP instrumentation below an attempt: ours are told by it from everybody else's."""

    __slots__ = ("method", "url")

    def __init__(self, method: str, url: str) -> None:
        self.method = method
        self.url = url


class Call:
    """One call of an SDK, or one ``send`` of a bare client."""

    __slots__ = (
        "attempts",
        "body",
        "client",
        "context",
        "inner",
        "is_model_call",
        "model",
        "over",
        "path",
        "provider",
        "recorder",
        "retries",
        "sdk",
        "span_is_current",
        "started_ns",
        "step",
        "stream",
    )

    def __init__(
        self,
        recorder: Recorder,
        context: Context,
        *,
        sdk: bool,
        client: Any = None,
        path: str | None = None,
        provider: str | None = None,
        body: Mapping[str, Any] | None = None,
        model: str | None = None,
        stream: bool = False,
    ) -> None:
        self.recorder = recorder
        self.context = context
        self.inner = context
        """What was current where the SDK was last seen before it sent anything: below ``context``, if not the same."""
        self.sdk = sdk
        self.client = client
        """The httpx client that sends its requests. What another one sends meanwhile (for a token, say) is not its."""
        self.path = path
        """Where it is known beforehand: a request to it is one of this call's, whoever sends it."""
        self.provider = provider
        self.body = body
        """The request as the SDK has it, before it becomes JSON."""
        self.model = model
        self.stream = stream
        """With ``model``, what the application asked for: all that is known of a call that fails before its request, or
        whose requests do not say it."""
        self.is_model_call = sdk
        self.retries: Retries | None = None
        """The rules by which the SDK will send failed attempts again; None where nobody can tell."""
        self.over = False
        """It has returned or raised. A task that was started meanwhile may still have it in its context."""
        self.started_ns = time_ns()
        self.step: LiveStep | None = None
        """Of this call alone; None where its attempts belong to an explicit step."""
        self.span_is_current = False
        """The step's span, for all of the call: whatever is current at an attempt is it, or below it."""
        self.attempts: list[Attempt] = []

    def begin_step(self) -> None:
        """Makes the step at once, with its span current for all of the call: spans that others make for each attempt
        are below it then, and are not taken for the step. Inside of an explicit step there is nothing to make."""
        if _scoped(self.recorder, self.context):
            return
        format = (registry.find(self.path) if self.path else None) or registry.generic
        facts = RequestFacts(model=self.model, stream=self.stream)
        self.step = _implicit_step(self.recorder, self, format, facts, adopt=self.sdk)
        if self.step.span is not None:
            self.context = trace.set_span_in_context(self.step.span, self.context)
            self.span_is_current = True

    def left(self, exc: BaseException | None) -> None:
        """The call returned or raised; its body may still be read."""
        recorder = self.recorder
        exit_ = NORMAL_EXIT
        if exc is not None:
            status = recorder.classify(exc)
            exit_ = Exit(status, recorder.describe(exc))
            if self.step is None and not self.attempts and self.sdk and not _scoped(recorder, self.context):
                facts = RequestFacts(model=self.model, stream=self.stream)
                self.step = _implicit_step(recorder, self, registry.generic, facts, adopt=False)
        self.over = True
        for attempt in self.attempts:
            attempt.in_call = False
            attempt.own_call = None  # which has its attempts
        # A task that was started meanwhile may keep the context, and so this call, for long. And ``inner`` is a context
        # that has this call: the cycle would keep request and body in memory until the garbage collector comes by.
        self.client, self.inner, self.body, self.attempts = None, self.context, None, []
        if self.step is not None:
            recorder.inbox.emit(self.step, ScopeEvent.LEFT, time_ns(), exit_)
        if isinstance(exc, GeneratorExit):  # a dropped coroutine: perhaps the garbage collector is at work
            recorder.inbox.wake()
        else:
            recorder.inbox.settle()


def current_call(context: Context) -> Call | None:
    """The call that is under way in ``context``."""
    call = context.get(CALL)
    return call if isinstance(call, Call) and not call.over else None


def suppressed(context: Context) -> bool:
    """Whether the user, or an exporter, has asked for no instrumentation."""
    return bool(context.get(_SUPPRESS_INSTRUMENTATION_KEY) or context.get(_SUPPRESS_PLAIN_KEY))


def _scoped(recorder: Recorder, context: Context) -> bool:
    scope = context.get(STEP)
    return (isinstance(scope, StepScope) and scope.hold.live.recorder is recorder) or context.get(REUSE) is not None


@lru_cache(maxsize=16)
def model_path_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled setting ``model_paths``."""
    return re.compile(pattern)


def is_model_path(recorder: Recorder, method: str, path: str) -> bool:
    """Whether a request looks like a model call."""
    return method == "POST" and model_path_pattern(recorder.settings.model_paths).search(path) is not None


def begin_attempt(client: Any, request: Any) -> tuple[Attempt, Context] | None:
    """The attempt that ``request`` is, and the context in which to send it; None when it is none of ours.

    ``client`` sends it; both are of either library. The request's headers get the trace context, as the stock
    instrumentation does.
    """
    recorder = active()
    if recorder is None or recorder.closed:
        return None
    context = get_current()
    if suppressed(context):
        return None
    method = request.method
    url = request.url
    within = context.get(_SUPPRESS_HTTP_INSTRUMENTATION_KEY)
    # Within an attempt of ours the key is set by us: another request (an ASGI app in this process that calls a
    # model) is recorded, the same one (a transport that sends it with another client) is not.
    if within and (not isinstance(within, Within) or (within.method == method and within.url == str(url))):
        return None
    call = current_call(context)
    if call is not None and call.recorder is not recorder:
        call = None
    path = url.path
    scope = context.get(STEP)
    if not isinstance(scope, StepScope) or scope.hold.live.recorder is not recorder:
        scope = None
    if not (
        (call is not None and call.is_model_call and (call.client is client or call.path == path))
        or is_model_path(recorder, method, path)
        or (scope is not None and scope.capture == "all")
    ):
        return None
    return _begin(recorder, context, call, scope, request, method, url, path)


def _begin(
    recorder: Recorder,
    context: Context,
    call: Call | None,
    scope: StepScope | None,
    request: Any,
    method: str,
    url: Any,
    path: str,
) -> tuple[Attempt, Context]:
    started_ns = time_ns()
    target = _target(recorder, method, url, path)
    format = registry.find(path) or registry.generic
    facts = request_facts(format, call.body if call is not None else None, request, path)
    own = call is None
    if call is None:  # `_send_single_request` was called directly: a call of its own
        call = Call(recorder, context, sdk=False)
    facts.model = facts.model or call.model
    facts.stream = facts.stream or call.stream
    call.is_model_call = True
    _give_up_last(call)
    call.provider = target.provider or call.provider or format.provider
    step, parent = _step_for(recorder, context, call, scope, format, facts)
    if (step.metrics is not None or step.in_events) and told_elsewhere(trace.get_current_span(context)):
        step.metrics, step.in_events = None, False
    _learn(step, call, facts)
    step.options.update(target.server)
    span, _, span_id = recorder.start_span(target.span_name, SpanKind.CLIENT, parent, target.told, started_ns)
    attempt = Attempt(
        step,
        request=request,
        method=method,
        url=target.url,
        path=target.path,
        format=format,
        requested_stream=facts.stream,
        span=span,
        trace_id=int(step.trace_id, 16) if span is None else span.get_span_context().trace_id,
        span_id=span_id,
        started_ns=started_ns,
        told=target.told,
        retries=call.retries,
        sent_before=len(call.attempts),
    )
    attempt.in_call = True
    attempt.own_call = call if own else None
    inner = with_values(
        context,
        {_SUPPRESS_HTTP_INSTRUMENTATION_KEY: Within(method, target.full_url), CALL: None, STEP: None},
        span,
    )
    # What may raise comes before the step is told: an attempt that it waits for has to have an end.
    _inject(request, inner)
    recorder.ensure_running()
    call.attempts.append(attempt)
    inbox = recorder.inbox
    inbox.emit(step, ScopeEvent.ATTEMPT, started_ns, attempt)
    recorder.mark(attempt)
    # Not settled here: that is done when the call is left, or by the writer's thread, whichever comes first.
    return attempt, inner


class Target(NamedTuple):
    """Where a request goes. Applications send thousands of requests to few different ones."""

    full_url: str
    """As it is sent: may hold secrets."""
    url: str
    """Redacted."""
    path: str
    """Redacted: a gateway's path may hold a key."""
    provider: str | None
    """Told by the host."""
    server: dict[str, Any]
    """Attributes of the step and of the attempt."""
    span_name: str
    told: dict[str, Any]
    """The attributes that an attempt's span starts with."""


def _target(recorder: Recorder, method: str, url: Any, path: str) -> Target:
    full_url = str(url)
    known = recorder.targets
    found: Target | None = known.get((method, full_url))
    if found is None:
        shown = recorder.redactor.url(full_url)
        server = attributes.server_of(url.scheme, url.host, url.port)
        # What the application's own redactor has not seen yet is told when the span ends, in the background.
        told = attributes.request_attributes(method, shown if recorder.redact is None else None, server)
        found = Target(
            full_url,
            shown,
            recorder.redactor.url(path),
            provider_of_host(url.host),
            server,
            attributes.attempt_name(method),
            told,
        )
        if len(known) >= MOST_TARGETS:
            known.clear()
        known[method, full_url] = found
    return found


def _give_up_last(call: Call) -> None:
    """An SDK that sends a failed request again has done with the answer; mistralai 1 neither reads nor closes it."""
    last = call.attempts[-1] if call.attempts else None
    if last is not None and not last.final and not last.begun and (last.response_status or 0) >= 400:
        last.emit(Event.COLLECTED)


def _inject(request: Any, context: Context) -> None:
    """Without an SDK, too: then the trace context of whoever called this process is passed on, and the baggage."""
    try:
        propagate.inject(request.headers, context)
    except Exception:  # a propagator of the user's
        fault("propagating the trace context")


def _step_for(
    recorder: Recorder,
    context: Context,
    call: Call,
    scope: StepScope | None,
    format: registry.Format,
    facts: RequestFacts,
) -> tuple[LiveStep, Context]:
    """The step of an attempt, and the context below which the attempt's span goes."""
    if scope is not None:
        live = scope.hold.live
        if isinstance(live, LiveStep) and not live.final:
            return live, context
    reuse = context.get(REUSE)
    if isinstance(reuse, Reuse) and call.step is None:
        hold, parent = shared_step(
            recorder, reuse, context, operation_name=format.operation, provider=call.provider, model=facts.model
        )
        return cast("LiveStep", hold.live), parent
    if call.step is None:
        call.step = _implicit_step(recorder, call, format, facts, adopt=call.sdk)
    step = call.step
    # Without a span of ours it is adopted, or there is no SDK; a span between the two is its owner's descendant, too.
    if step.span is None or call.span_is_current:
        return step, context
    return step, trace.set_span_in_context(step.span, context)


def shared_step(
    recorder: Recorder, reuse: Reuse, context: Context, *, operation_name: str, **given: Any
) -> tuple[Hold, Context]:
    """The step that all calls of the current run share inside of ``reuse_step()``, made when it is first needed."""
    started_ns = time_ns()
    run = None
    parent = context
    key = ""
    if lasting_run(recorder, context):
        run, parent = run_of_call(recorder, context, started_ns)
        key = run.live.id
    hold = reuse.steps.get(key)
    if hold is None or hold.live.recorder is not recorder or hold.live.final:
        if run is None:
            run, parent = run_of_call(recorder, context, started_ns)
        step = start_step(
            recorder, run, parent, started_ns, explicit=True, shared=True, operation_name=operation_name, **given
        )
        hold = reuse.steps[key] = Hold(step)
    span = hold.live.span
    return hold, parent if span is None else trace.set_span_in_context(span, context)


def _implicit_step(
    recorder: Recorder, call: Call, format: registry.Format, facts: RequestFacts, *, adopt: bool
) -> LiveStep:
    """The step of a call that is inside of no explicit one: an adopted GenAI span, or a span of its own."""
    adopted = _adoptable(get_current(), call.inner) if adopt else None
    context = call.context if adopted is None else trace.set_span_in_context(adopted, get_current())
    run, parent = run_of_call(recorder, context, call.started_ns)
    if facts.model is None and call.body is not None:
        model = call.body.get("model")
        facts.model = model if isinstance(model, str) else None
    return start_step(
        recorder,
        run,
        parent,
        call.started_ns,
        explicit=False,
        operation_name=format.operation,
        adopted=adopted,
        provider=call.provider,
        model=facts.model,
        operation="stream" if facts.stream else "generate",
    )


def _adoptable(context: Context, outer: Context) -> Span | None:
    """The current span, where it is a GenAI call span that nobody has taken as a step yet.

    ``outer`` is the context around it: the anthropic SDK, where it finds no provider, makes a span current that records
    nothing and has the ids of the one that was current, which is meant then.
    """
    span = trace.get_current_span(context)
    if not span.is_recording():
        around = trace.get_current_span(outer)
        if around.get_span_context() == span.get_span_context():
            span = around
    given = getattr(span, "attributes", None)
    if (
        given is None
        or not span.is_recording()
        or given.get(attributes.OPERATION_NAME) not in ADOPTABLE
        or given.get(attributes.RECORD) is not None
        or getattr(span, ADOPTED, False)
    ):
        return None
    setattr(span, ADOPTED, True)
    return span


def _learn(step: LiveStep, call: Call, facts: RequestFacts) -> None:
    """What an explicit step was not told, its first request tells."""
    if step.provider is None:
        step.provider = call.provider
    if step.operation is None:
        step.operation = "stream" if facts.stream else "generate"
    if step.model is None and facts.model is not None:
        step.model = facts.model
        if step.span is not None and step.span.is_recording():
            step.span.update_name(attributes.encodable(f"{step.operation_name} {facts.model}"))
    for name, value in facts.options.items():
        step.options[f"gen_ai.request.{name}"] = value


def request_facts(format: registry.Format, body: Mapping[str, Any] | None, request: Any, path: str) -> RequestFacts:
    """Model, stream and options of a request, from what the SDK has or from the bytes that are to be sent."""
    if body is not None:
        return format.request_facts(body, path)
    raw = request_content(request)
    if not raw:
        return format.request_facts({}, path)
    if len(raw) > PARSED_REQUEST:
        ends = raw[:SEARCHED_REQUEST] + b" " + raw[-SEARCHED_REQUEST:]
        model = _MODEL.search(ends)
        facts = format.request_facts({"stream": True} if _STREAM.search(ends) else {}, path)
        facts.model = facts.model or (model.group(1).decode("utf-8", "replace") if model else None)
        return facts
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        parsed = None
    return format.request_facts(parsed if isinstance(parsed, dict) else {}, path)


def raised(attempt: Attempt, exc: BaseException) -> None:
    """The transport raised ``exc`` before there were headers."""
    if isinstance(exc, Exception):
        attempt.tell(Event.TRANSPORT_ERROR, attempt.describe(exc))
    else:
        attempt.tell(Event.CANCELLED)
