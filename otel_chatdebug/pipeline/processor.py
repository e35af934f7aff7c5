"""The span processor: it sees where local root spans start and end, and hands spans on to OTLP where that is on.

A provider has one processor of ours for life, since there is no way to take one off: `processor_of` finds it again,
``configure()`` arms it anew, and after ``shutdown()`` it does nothing.

``on_start`` and ``on_end`` take no lock, log nothing and end no span: the anthropic SDK ends its span in ``__del__``,
so they may run in a finalizer.
"""

from __future__ import annotations

import weakref
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace import TracerProvider as SDKTracerProvider
from opentelemetry.trace import StatusCode

from otel_chatdebug.pipeline.live import NORMAL_EXIT, Exit, LiveRun, LocalRoot, ScopeEvent
from otel_chatdebug.pipeline.opening import LOCAL_ROOT
from otel_chatdebug.pipeline.recorder import TRACER_NAME, Recorder
from otel_chatdebug.status import Status

DEFAULT_FLUSH_MILLIS = 30_000
"""The default of the OpenTelemetry SDK's ``force_flush``."""


class ChatDebugSpanProcessor(SpanProcessor):
    """Follows the spans of a provider for the recorder that it is armed with; inert without one.

    May be handed to ``TracerProvider.add_span_processor`` by hand; ``configure()`` does it by itself, once for each
    provider. ``delegate`` is the processor that sends our spans, and everybody else's, on by OTLP, where OTLP is ours
    to do.
    """

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._delegate: SpanProcessor | None = None
        self._live_scopes: dict[int, object] = {}

    def arm(self, recorder: Recorder, delegate: SpanProcessor | None = None) -> None:
        """Starts to follow spans for ``recorder``. A delegate that is there already stays unless another is given."""
        self._recorder = recorder
        if delegate is not None:
            self._delegate = delegate

    def disarm(self) -> None:
        """Ends what `arm` began; the delegate exports what it has and is shut down."""
        delegate, self._delegate = self._delegate, None
        self._recorder = None
        if delegate is not None:
            delegate.shutdown()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Called by whoever starts a span."""
        if self._recorder is not None:
            parent = span.parent
            if parent is None or parent.is_remote:
                root: Any = LocalRoot(span.get_span_context(), parent is None)
            else:
                root = getattr(trace.get_current_span(parent_context), LOCAL_ROOT, None)
            setattr(span, LOCAL_ROOT, root)
            scope = span.instrumentation_scope
            if scope is not None and scope.name == TRACER_NAME:
                self._live_scopes[id(scope)] = scope
        delegate = self._delegate
        if delegate is not None:
            delegate.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Called by whoever ends a span, perhaps a finalizer."""
        recorder = self._recorder
        if recorder is not None and recorder.auto_roots and span.context is not None:
            root = recorder.auto_roots.get(span.context.span_id)
            if root is not None and root.hold is not None and isinstance(root.hold.live, LiveRun):
                failed = span.status.status_code is StatusCode.ERROR
                exit_ = Exit(Status.ERROR, {"type": "_OTHER", "message": ""}) if failed else NORMAL_EXIT
                recorder.inbox.emit(root.hold.live, ScopeEvent.LEFT, span.end_time or 0, exit_)
                recorder.inbox.wake()
        delegate = self._delegate
        if delegate is not None:
            delegate.on_end(span)

    def recorded_live(self, span: ReadableSpan) -> bool:
        """Whether the span was made by this process's own recorder, whose rows say more than the span does.

        Told by the identity of its instrumentation scope: a span that came from another process has an equal one, but
        not this one.
        """
        return id(span.instrumentation_scope) in self._live_scopes

    def force_flush(self, timeout_millis: int = DEFAULT_FLUSH_MILLIS) -> bool:
        """Ends the spans whose end is known, and flushes OTLP where that is ours."""
        recorder = self._recorder
        flushed = True if recorder is None else recorder.inbox.flush(timeout_millis / 1000)
        delegate = self._delegate
        return flushed if delegate is None else delegate.force_flush(timeout_millis) and flushed

    def shutdown(self) -> None:
        """The provider is shut down: what we know is told first."""
        recorder = self._recorder
        if recorder is not None:
            recorder.inbox.flush()
        self.disarm()


_processors: weakref.WeakKeyDictionary[SDKTracerProvider, ChatDebugSpanProcessor] = weakref.WeakKeyDictionary()


def processor_of(provider: SDKTracerProvider) -> ChatDebugSpanProcessor:
    """The provider's processor of ours; added when it has none yet."""
    found = _processors.get(provider)
    if found is None:
        found = _given(provider) or ChatDebugSpanProcessor()
        if _given(provider) is None:
            provider.add_span_processor(found)
        _processors[provider] = found
    return found


def _given(provider: SDKTracerProvider) -> ChatDebugSpanProcessor | None:
    """One of ours that the user has added by hand."""
    known = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ())
    return next((item for item in known if isinstance(item, ChatDebugSpanProcessor)), None)


def recorded_live(span: ReadableSpan) -> bool:
    """Whether any provider's processor of ours knows the span as recorded live."""
    return any(processor.recorded_live(span) for processor in list(_processors.values()))
