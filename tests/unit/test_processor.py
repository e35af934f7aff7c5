"""The span processor and a provider of the user's: joined once, armed anew, inert after shutdown, never shut down."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

import otel_chatdebug as chatdebug
from otel_chatdebug import attributes, lifecycle
from otel_chatdebug.pipeline.live import LocalRoot
from otel_chatdebug.pipeline.opening import LOCAL_ROOT
from otel_chatdebug.pipeline.processor import ChatDebugSpanProcessor, processor_of
from otel_chatdebug.pipeline.recorder import Recorder
from otel_chatdebug.settings import Settings
from otel_chatdebug.status import Status
from tests.support.recording import Model, Recording, Sink, recording


class Exporter(InMemorySpanExporter):
    """Knows whether it was shut down."""

    def __init__(self) -> None:
        super().__init__()
        self.shutdowns = 0

    def shutdown(self) -> None:
        self.shutdowns += 1
        super().shutdown()

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.get_finished_spans()]


@pytest.fixture
def exporter() -> Exporter:
    return Exporter()


@pytest.fixture
def provider(exporter: Exporter) -> TracerProvider:
    """The user's, with an exporter of their own."""
    made = TracerProvider(shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


@contextmanager
def armed(provider: TracerProvider, **more: Any) -> Iterator[Recorder]:
    lifecycle.disarm()
    recorder = lifecycle.arm(Settings(), tracer_provider=provider, writer=Sink(), **more)
    assert recorder is not None
    try:
        yield recorder
    finally:
        lifecycle.disarm()


def ours(provider: TracerProvider) -> list[ChatDebugSpanProcessor]:
    found = provider._active_span_processor._span_processors
    return [processor for processor in found if isinstance(processor, ChatDebugSpanProcessor)]


def root_of(span: trace.Span) -> LocalRoot | None:
    root = getattr(span, LOCAL_ROOT, None)
    assert root is None or isinstance(root, LocalRoot)
    return root


# -- joined once, for life


def test_a_provider_has_one_processor_of_ours_however_often_it_is_configured(
    provider: TracerProvider, exporter: Exporter, tmp_path: Path
) -> None:
    for number in range(3):
        chatdebug.configure(tracer_provider=provider, database_url=f"sqlite:///{tmp_path}/{number}.db")
        chatdebug.configure(tracer_provider=provider, database_url=f"sqlite:///{tmp_path}/{number}.db")
        with chatdebug.run(f"run {number}"):
            pass
        chatdebug.shutdown()

    assert len(ours(provider)) == 1
    assert exporter.names == ["run 0", "run 1", "run 2"]
    assert exporter.shutdowns == 0


def test_a_processor_that_the_user_has_added_by_hand_is_the_one(provider: TracerProvider) -> None:
    mine = ChatDebugSpanProcessor()
    provider.add_span_processor(mine)

    with armed(provider):
        assert processor_of(provider) is mine
        assert ours(provider) == [mine]


def test_a_provider_that_comes_after_an_exporter_of_ours_is_joined_when_the_instrumentors_come(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the application's first root span, that is; at the first model call it would be too late."""
    providers: list[trace.TracerProvider] = [trace.ProxyTracerProvider()]
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: providers[-1])
    lifecycle.disarm()
    try:
        lifecycle.arm(Settings(), writer=Sink())
        assert ours(provider) == []
        providers.append(provider)
        lifecycle.arm()
        assert len(ours(provider)) == 1
    finally:
        lifecycle.disarm()


def test_a_provider_that_nobody_has_any_more_is_freed() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    with armed(provider):
        gone = weakref.ref(provider)
    del provider
    gc.collect()

    assert gone() is None


def test_after_shutdown_the_processor_is_inert_and_the_provider_works_on(
    provider: TracerProvider, exporter: Exporter
) -> None:
    with armed(provider):
        pass
    (processor,) = ours(provider)

    with provider.get_tracer("user").start_as_current_span("after") as span:
        Model().call()

    assert exporter.names == ["after"]
    assert exporter.shutdowns == 0
    assert root_of(span) is None
    assert processor._recorder is None
    assert processor.force_flush()
    processor.shutdown()


def test_it_is_armed_anew(provider: TracerProvider) -> None:
    with armed(provider):
        pass
    with armed(provider) as recorder:
        (processor,) = ours(provider)
        assert processor._recorder is recorder
        with provider.get_tracer("user").start_as_current_span("root") as span:
            assert root_of(span) is not None


def test_the_users_shutdown_of_the_provider_comes_before_ours_and_loses_no_row(exporter: Exporter) -> None:
    with recording() as recorded:
        assert recorded.provider is not None
        with chatdebug.run("before"):
            Model().call()
        recorded.provider.shutdown()
        with chatdebug.run("after"):
            Model().call()

        assert [(run.kind, run.status) for run in recorded.runs] == [
            ("before", Status.COMPLETED),
            ("after", Status.COMPLETED),
        ]
        assert len(recorded.attempts) == 2


def test_the_users_shutdown_of_the_provider_is_that_of_our_otlp_too(exporter: Exporter) -> None:
    with recording() as recorded:
        processor = ChatDebugSpanProcessor()
        processor.arm(recorded.recorder, SimpleSpanProcessor(exporter))
        processor.shutdown()
        assert exporter.shutdowns == 1
        processor.shutdown()
        assert exporter.shutdowns == 1


def test_the_users_flush_has_the_spans_whose_end_is_known(provider: TracerProvider, exporter: Exporter) -> None:
    """A stream's end is folded by another thread, a moment after it."""
    with recording() as recorded:
        assert recorded.provider is not None
        recorded.provider.add_span_processor(SimpleSpanProcessor(exporter))
        for _ in range(20):
            exporter.clear()
            response = Model().open()
            response.read()
            assert recorded.provider.force_flush()
            assert sorted(exporter.names) == ["POST", "auto", "chat gpt-5-mini"]


# -- OTLP, where it is ours to do


class Delegate(SpanProcessor):
    """What sends spans on."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.calls.append(f"start {span.name}")

    def on_end(self, span: ReadableSpan) -> None:
        self.calls.append(f"end {span.name}")

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.calls.append("flush")
        return False


def test_the_delegate_gets_all_spans_and_is_shut_down_with_us(provider: TracerProvider, exporter: Exporter) -> None:
    delegate = Delegate()
    with armed(provider, delegate=delegate):
        with provider.get_tracer("user").start_as_current_span("theirs"), chatdebug.run("ours"):
            pass
        assert not provider.force_flush()  # what the delegate says counts
    provider.get_tracer("user").start_span("later").end()

    assert delegate.calls == ["start theirs", "start ours", "end ours", "end theirs", "flush", "shutdown"]
    assert exporter.shutdowns == 0


# -- local roots


def remote(sampled: bool = True) -> Context:
    """As a server finds it in the headers of a request."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return trace.set_span_in_context(NonRecordingSpan(SpanContext(0xA, 0xB, is_remote=True, trace_flags=flags)))


def test_spans_know_their_local_root(provider: TracerProvider) -> None:
    tracer = provider.get_tracer("user")
    with armed(provider):
        root = tracer.start_span("root")
        child = tracer.start_span("child", trace.set_span_in_context(root))
        grandchild = tracer.start_span("grandchild", trace.set_span_in_context(child))
        entry = tracer.start_span("entry", remote())
        below = tracer.start_span("below", trace.set_span_in_context(entry))

    top, other = root_of(root), root_of(entry)
    assert top is not None
    assert other is not None
    assert root_of(child) is root_of(grandchild) is top
    assert root_of(below) is other
    assert (top.context, top.parentless) == (root.get_span_context(), True)
    assert (other.context, other.parentless) == (entry.get_span_context(), False)


def in_a_root(recorded: Recording, context: Context | None = None, *, fails: bool = False) -> trace.Span:
    """Two model calls below a local root span; the run as it stands before its end must be open."""
    assert recorded.provider is not None
    model = Model()
    tracer = recorded.provider.get_tracer("user")
    with tracer.start_as_current_span("request", context) as root:
        with tracer.start_as_current_span("handler"):
            model.call()
        model.call()
        assert recorded.run.status is Status.IN_PROGRESS
        if fails:
            root.set_status(StatusCode.ERROR)
    return root


def test_calls_below_a_root_share_a_run_that_ends_with_it() -> None:
    with recording() as recorded:
        root = in_a_root(recorded)

        run, trace_id = recorded.run, f"{root.get_span_context().trace_id:032x}"
        assert (run.id, run.trace_id, run.kind, run.status) == (trace_id, trace_id, "auto", Status.COMPLETED)
        assert run.span_id == f"{root.get_span_context().span_id:016x}"
        assert {step.run_id for step in recorded.steps} == {run.id}
        assert len(recorded.steps) == 2
        span = recorded.spans[run.span_id]
        assert span.end_time is not None
        assert run.finished_at == span.end_time // 1000
        assert [
            one.name for one in recorded.spans.values() if one.attributes and "chatdebug.run.kind" in one.attributes
        ] == []


def test_a_root_with_a_remote_parent_has_a_run_of_its_own_id() -> None:
    """An application and its gateway, both instrumented, share a trace and must not share a run."""
    with recording() as recorded:
        root = in_a_root(recorded, remote())

        context = root.get_span_context()
        assert context.trace_id == 0xA
        assert recorded.run.id == attributes.local_run_id(0xA, context.span_id)
        assert recorded.run.trace_id == f"{0xA:032x}"


def test_a_root_that_failed_makes_its_run_an_error() -> None:
    with recording() as recorded:
        in_a_root(recorded, fails=True)

        assert recorded.run.status is Status.ERROR


def test_a_trace_that_the_sampler_drops_has_its_rows() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    with recording(sampler=ALWAYS_OFF) as recorded:
        with chatdebug.run("chat_turn") as run:
            Model().call()
        Model().call()

        assert recorded.spans == {}
        assert [one.status for one in recorded.runs] == [Status.COMPLETED] * 2
        assert recorded.get(run.id).trace_id == run.id
        assert len(recorded.attempts) == 2


# -- finalizers


def test_spans_start_and_end_while_the_inbox_is_held_by_the_same_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The anthropic SDK ends its span in ``__del__``, which the garbage collector runs wherever it likes."""
    with recording() as recorded:
        assert recorded.provider is not None
        inbox = recorded.recorder.inbox
        tracer = recorded.provider.get_tracer("user")
        root = tracer.start_span("root")
        with trace.use_span(root):
            Model().call()
        waited: list[str] = []
        with inbox._turn, monkeypatch.context() as patch:
            # Whatever takes a turn here would wait for itself.
            patch.setattr(inbox, "settle", lambda **_: waited.append("settle"))
            patch.setattr(inbox, "flush", lambda *_: waited.append("flush"))
            tracer.start_span("child", trace.set_span_in_context(root)).end()
            root.end()

        assert waited == []
        assert recorded.run.status is Status.COMPLETED
