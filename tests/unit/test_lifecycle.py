"""Starting and ending: `configure`, `shutdown`, the provider that is followed, what switches recording off."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_chatdebug as chatdebug
from otel_chatdebug import Status, configuration, faults, lifecycle
from otel_chatdebug.capture import hooks
from otel_chatdebug.pipeline.processor import ChatDebugSpanProcessor, processor_of
from otel_chatdebug.pipeline.recorder import active
from tests.support.recording import Model, answer, recording, stream

HOOKED = [
    (library, owner, method)
    for library in (httpx, httpx2)
    for owner in ("Client", "AsyncClient")
    for method in ("send", "_send_single_request")
]


def hooked(library: Any) -> bool:
    """Whether all of it is patched; fails where only a part is."""
    found = {hooks.is_installed(getattr(of, owner), method) for of, owner, method in HOOKED if of is library}
    assert len(found) == 1
    return found.pop()


@pytest.fixture
def home(chatdebug_home: Path) -> Iterator[Path]:
    """A database of this test's own; all is switched off at the end."""
    yield chatdebug_home
    chatdebug.shutdown()


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider(shutdown_on_exit=False)


def exported(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def rows(home: Path, table: str, columns: str = "*") -> list[Any]:
    connection = sqlite3.connect(home / "chatdebug.db")
    try:
        return connection.execute(f"SELECT {columns} FROM chat_debug_{table} ORDER BY started_at").fetchall()
    finally:
        connection.close()


# -- configure and shutdown


def test_configure_and_shutdown_can_be_repeated_in_any_order(home: Path, provider: TracerProvider) -> None:
    chatdebug.shutdown()
    for _ in range(3):
        chatdebug.configure(tracer_provider=provider)
        chatdebug.configure(tracer_provider=provider)
        with chatdebug.run():
            Model().call()
        chatdebug.shutdown()
        chatdebug.shutdown()
    assert rows(home, "runs", "status") == rows(home, "attempts", "status") == [("completed",)] * 3
    assert not any(hooked(library) for library in (httpx, httpx2))
    assert active() is None


def test_fifty_times_leave_no_thread_and_no_descriptor(
    no_leaks: None, chatdebug_home: Path, provider: TracerProvider
) -> None:
    for _ in range(50):
        chatdebug.configure(tracer_provider=provider)
        Model().call()
        chatdebug.shutdown()
    assert len(rows(chatdebug_home, "attempts")) == 50


def test_arming_alone_opens_nothing_and_starts_no_thread(home: Path, provider: TracerProvider) -> None:
    before = set(threading.enumerate())
    lifecycle.disarm()
    lifecycle.arm(tracer_provider=provider)
    assert set(threading.enumerate()) == before
    assert list(home.iterdir()) == []


def test_configuring_opens_the_tables_in_the_background(home: Path, provider: TracerProvider) -> None:
    chatdebug.configure(tracer_provider=provider)
    assert chatdebug.flush()
    assert (home / "chatdebug.db").exists()


def test_what_is_open_at_a_shutdown_was_interrupted_by_it(home: Path, provider: TracerProvider) -> None:
    exporter = exported(provider)
    chatdebug.configure(tracer_provider=provider)
    model = Model()
    with chatdebug.run() as run:
        body = model.open()
        pieces = body.iter_raw()
        next(pieces)
        chatdebug.shutdown()
        assert rows(home, "runs", "id, status") == [(run.id, "interrupted")]
        assert rows(home, "steps", "status") == [("interrupted",)]
        assert rows(home, "attempts", "status, end_reason, rank") == [("interrupted", "shutdown", 1)]
        assert len(list(pieces)) > 1  # the user's stream goes on as if nothing had been
    names = [span.name for span in exporter.get_finished_spans()]
    assert sorted(names) == ["POST", "chat gpt-5-mini", "chat_turn"]
    assert all((span.attributes or {})["chatdebug.status"] == "interrupted" for span in exporter.get_finished_spans())


def test_what_was_complete_at_a_shutdown_is_completed(home: Path, provider: TracerProvider) -> None:
    """The end of the body was seen, its close was not."""
    chatdebug.configure(tracer_provider=provider)
    model = Model(stream())
    with model.sync.stream("POST", "https://api.openai.com/v1/chat/completions", json={"stream": True}) as response:
        for _ in response.stream:  # type: ignore[union-attr]
            pass
        chatdebug.flush()
        assert rows(home, "attempts", "status, end_reason, rank") == [("completed", "sse_eof", 2)]
        chatdebug.shutdown()
    assert rows(home, "attempts", "status, end_reason, rank") == [("completed", "sse_eof", 3)]
    assert rows(home, "steps", "status") == [("completed",)]


def test_configure_takes_arguments_over_the_environment(
    home: Path, provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_CHATDEBUG_ENABLED", "never")
    monkeypatch.setenv("OTEL_CHATDEBUG_DATABASE_URL", "sqlite:////nowhere/at/all.db")
    chatdebug.configure(
        enabled="always",
        database_url=f"sqlite:///{home / 'other.db'}",
        stale_after=7,
        classify_error=lambda exc: Status.INTERRUPTED,
        tracer_provider=provider,
    )
    with pytest.raises(ValueError, match="v"), chatdebug.run() as run:
        raise ValueError("v")
    recorder = active()
    assert recorder is not None
    assert recorder.settings.stale_after == 7
    assert run.status is Status.INTERRUPTED
    chatdebug.shutdown()
    assert (home / "other.db").exists()


def test_a_url_that_is_none_is_one_sentence_and_the_application_goes_on(
    home: Path, provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    chatdebug.configure(database_url="not a url", tracer_provider=provider)
    with chatdebug.run():
        assert Model().call().status_code == 200
    chatdebug.shutdown()
    warnings = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "OTEL_CHATDEBUG_DATABASE_URL" in warnings[0].getMessage() or "not a url" in warnings[0].getMessage()


# -- what switches recording off


@pytest.mark.parametrize(("variable", "value"), [("OTEL_CHATDEBUG_ENABLED", "never"), ("OTEL_SDK_DISABLED", "true")])
def test_recording_can_be_switched_off(
    variable: str, value: str, home: Path, provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = exported(provider)
    monkeypatch.setenv(variable, value)
    chatdebug.configure(tracer_provider=provider)
    assert not any(hooked(library) for library in (httpx, httpx2))
    with chatdebug.run() as run, chatdebug.step():
        assert Model().call().status_code == 200
        assert run.id
    chatdebug.shutdown()
    assert exporter.get_finished_spans() == ()
    assert list(home.iterdir()) == []


def test_an_instrumentor_alone_honours_the_switch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_CHATDEBUG_ENABLED", "never")
    instrumentor = configuration.INSTRUMENTORS["chatdebug_httpx"]()
    instrumentor.instrument()
    try:
        assert Model().call().status_code == 200
        assert active() is None
    finally:
        instrumentor.uninstrument()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("disabled", "patched"),
    [
        ("", (True, True)),
        ("chatdebug_httpx", (False, True)),
        ("requests, chatdebug_httpx2", (True, False)),
        ("chatdebug_httpx,chatdebug_httpx2", (False, False)),
        ("*", (False, False)),
    ],
)
def test_instrumentations_can_be_disabled_by_the_standard_variable(
    disabled: str,
    patched: tuple[bool, bool],
    home: Path,
    provider: TracerProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled)
    chatdebug.configure(tracer_provider=provider)
    assert (hooked(httpx), hooked(httpx2)) == patched


@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
def test_suppressed_requests_are_not_recorded(suppress: Any) -> None:
    """An exporter's own requests, say."""
    with recording() as record:
        model = Model()
        with chatdebug.run(), suppress():
            model.call()
            with chatdebug.step(capture="all"):
                model.call()
        assert record.attempts == []
        model.call()
        assert len(record.attempts) == 1


@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
@pytest.mark.parametrize("status", [200, 401])
def test_a_suppressed_call_of_an_sdk_leaves_nothing_whether_it_succeeds_or_fails(suppress: Any, status: int) -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        response = answer(status)
        return httpx2.Response(status, headers=response.headers.multi_items(), content=response.read())

    client = openai.OpenAI(
        api_key="k", max_retries=0, http_client=httpx2.Client(transport=httpx2.MockTransport(handle))
    )
    with recording() as record:
        with suppress():
            try:
                client.chat.completions.create(model="gpt-5", messages=[])
            except openai.AuthenticationError:
                assert status == 401
        assert (record.runs, record.steps, record.attempts) == ([], [], [])


# -- providers


class Watch(SpanProcessor):
    """Somebody else's processor."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.shut_down = False

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span.name)

    def shutdown(self) -> None:
        self.shut_down = True


def ours(provider: TracerProvider) -> list[ChatDebugSpanProcessor]:
    known = provider._active_span_processor._span_processors
    return [item for item in known if isinstance(item, ChatDebugSpanProcessor)]


def test_a_provider_that_was_joined_is_never_shut_down_and_has_one_processor_of_ours_for_life(
    home: Path, provider: TracerProvider
) -> None:
    watch = Watch()
    provider.add_span_processor(watch)
    for _ in range(3):
        chatdebug.configure(tracer_provider=provider)
        with chatdebug.run():
            pass
        chatdebug.shutdown()
        assert watch.shut_down is False
    (processor,) = ours(provider)
    assert processor is processor_of(provider)
    with provider.get_tracer("the application").start_as_current_span("afterwards"):
        Model().call()
    assert watch.ended == ["chat_turn"] * 3 + ["afterwards"]
    assert len(rows(home, "runs")) == 3
    assert rows(home, "attempts") == []


def test_a_processor_that_was_added_by_hand_is_the_one(home: Path, provider: TracerProvider) -> None:
    by_hand = ChatDebugSpanProcessor()
    provider.add_span_processor(by_hand)
    chatdebug.configure(tracer_provider=provider)
    assert ours(provider) == [by_hand]
    with provider.get_tracer("the application").start_as_current_span("job"):
        Model().call()
    chatdebug.flush()
    assert rows(home, "runs", "kind, status") == [("auto", "completed")]


def test_two_providers_one_after_the_other_each_get_their_spans(home: Path) -> None:
    one, two = TracerProvider(shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    first, second = exported(one), exported(two)
    chatdebug.configure(tracer_provider=one)
    with chatdebug.run("one"):
        Model().call()
    chatdebug.configure(tracer_provider=two)
    with chatdebug.run("two"):
        Model().call()
    chatdebug.shutdown()
    assert [span.name for span in first.get_finished_spans() if span.parent is None] == ["one"]
    assert [span.name for span in second.get_finished_spans() if span.parent is None] == ["two"]
    assert [len(ours(provider)) for provider in (one, two)] == [1, 1]
    assert rows(home, "runs", "kind") == [("one",), ("two",)]


def test_a_given_provider_leaves_the_global_one_alone(home: Path) -> None:
    before = trace.get_tracer_provider()
    chatdebug.configure(tracer_provider=trace.NoOpTracerProvider())
    with chatdebug.run():
        Model().call()
    assert trace.get_tracer_provider() is before
    chatdebug.flush()
    assert rows(home, "runs", "status") == [("completed",)]


def test_the_provider_may_be_shut_down_first(home: Path, provider: TracerProvider) -> None:
    """At exit the application's own handler may do so. What was known is told; the tables go on."""
    exporter = exported(provider)
    chatdebug.configure(tracer_provider=provider)
    with chatdebug.run():
        Model().call()
    provider.shutdown()
    with chatdebug.run("afterwards"):
        Model().call()
    chatdebug.shutdown()
    assert len(exporter.get_finished_spans()) == 3
    assert rows(home, "runs", "kind, status") == [("chat_turn", "completed"), ("afterwards", "completed")]


def test_force_flush_of_the_provider_ends_the_spans_whose_end_is_known(provider: TracerProvider) -> None:
    with recording() as record:
        response = Model().open()
        response.read()
        assert lifecycle._armed is not None
        followed = lifecycle._armed.provider
        assert isinstance(followed, TracerProvider)
        assert followed.force_flush() is True
        assert len(record._exporter.get_finished_spans()) == 3


# -- OTLP


def _delegate() -> Any:
    return lifecycle._armed.processor._delegate if lifecycle._armed and lifecycle._armed.processor else None


def test_a_provider_that_was_joined_has_exporters_of_its_own(
    home: Path, provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    chatdebug.configure(tracer_provider=provider)
    assert _delegate() is None


# -- our faults


def test_no_fault_of_ours_reaches_the_call(home: Path, provider: TracerProvider) -> None:
    """A tracer that raises: there are no rows, and the application's calls and scopes work as without us."""
    before = sum(faults.counts().values())

    class Broken(trace.NoOpTracer):
        def start_span(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("a broken tracer")

    class BrokenProvider(trace.TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return Broken()

    chatdebug.configure(tracer_provider=BrokenProvider())
    with chatdebug.run() as run, chatdebug.step() as step, chatdebug.reuse_step():
        assert Model().call().status_code == 200
        run.finish("completed")
        step.finish("completed")
        with run.attach():
            pass
    assert run.id
    assert sum(faults.counts().values()) > before
