"""Beside the stock httpx instrumentation, and on the wire: one span per request, and the trace goes on as usual."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import httpx2
import openai
import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.propagators.textmap import CarrierT, Setter, TextMapPropagator, default_setter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from starlette.applications import Starlette
from starlette.requests import Request as ASGIRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

import otel_chatdebug as chatdebug
from otel_chatdebug.capture.instrumentor import INSTRUMENTORS
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.status import Status
from otel_chatdebug.tables import queries
from tests.support.recording import Recording, recording

OURS = "otel_chatdebug"
STOCK = (HTTPXClientInstrumentor, HTTPX2ClientInstrumentor)
MODEL_PATH = "/v1/chat/completions"
BODY: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello?"}]}

libraries = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
twins = pytest.mark.parametrize("twin", ["sync", "async"])


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        yield server


@pytest.fixture
def recorded() -> Iterator[Recording]:
    with recording() as found:
        yield found


@contextmanager
def stock(tracer_provider: TracerProvider | None) -> Iterator[None]:
    """The stock instrumentation of both libraries, on."""
    for make in STOCK:
        make().instrument(tracer_provider=tracer_provider, skip_dep_check=True)
    try:
        yield
    finally:
        for make in STOCK:
            make().uninstrument()


def send(library: ModuleType, twin: str, method: str, url: str, **more: Any) -> Any:
    """One request by a bare client, its body read."""
    if twin == "sync":
        with library.Client() as client:
            return client.request(method, url, **more)

    async def send_async() -> Any:
        async with library.AsyncClient() as client:
            return await client.request(method, url, **more)

    return asyncio.run(send_async())


def ids(context: SpanContext | None) -> tuple[str, str]:
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def on_the_wire(request: Any) -> tuple[str, str]:
    """Trace and span of a request that arrived."""
    _, trace_id, span_id, _ = request.headers["traceparent"].split("-")
    return trace_id, span_id


def theirs(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    return [span for span in spans if span.instrumentation_scope and span.instrumentation_scope.name != OURS]


# -- the stock instrumentation


@libraries
@twins
@pytest.mark.parametrize("first", ["stock", "ours"])
def test_a_model_request_has_our_span_and_any_other_the_stock_one(
    library: ModuleType, twin: str, first: str, provider: Provider
) -> None:
    """In either order of switching on, each request has exactly one span, and that is the one on the wire."""
    their_spans = InMemorySpanExporter()
    their_provider = TracerProvider(shutdown_on_exit=False)
    their_provider.add_span_processor(SimpleSpanProcessor(their_spans))
    outer, inner = (stock(their_provider), recording()) if first == "stock" else (recording(), stock(their_provider))
    with outer as one, inner as other:
        recorded = one or other
        assert recorded is not None
        send(library, twin, "POST", provider.url + MODEL_PATH, json=BODY)
        send(library, twin, "GET", f"{provider.url}/v1/models")

        attempt = recorded.attempt
        (their_span,) = their_spans.get_finished_spans()
        model_request, other_request = provider.requests

        assert attempt.status is Status.COMPLETED
        assert on_the_wire(model_request) == (attempt.trace_id, attempt.id)
        assert on_the_wire(other_request) == ids(their_span.context)
        assert other_request.path == "/v1/models"
        assert len(recorded.spans) == 3  # run, step, attempt
        # Their metrics and logs say the same of the time after us: suppressed only within an attempt.
        send(library, twin, "GET", f"{provider.url}/v1/models")
        assert len(their_spans.get_finished_spans()) == 2


@libraries
def test_a_tools_request_inside_of_a_step_is_left_to_the_stock_instrumentation(
    library: ModuleType, recorded: Recording, provider: Provider
) -> None:
    """With ``capture="all"`` it is an attempt, and then it has no second span."""
    with stock(recorded.provider):
        with chatdebug.step() as step:
            send(library, "sync", "GET", f"{provider.url}/weather")
        (span,) = theirs(list(recorded.spans.values()))
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == step.id
        assert recorded.attempts == []

        with chatdebug.step(capture="all"):
            send(library, "sync", "GET", f"{provider.url}/weather")
        assert len(theirs(list(recorded.spans.values()))) == 1
        assert recorded.attempt.method == "GET"
        assert recorded.spans[recorded.attempt.id].name == "GET"


def test_configure_switches_the_stock_instrumentation_on_and_shutdown_off_again(
    provider: Provider, tmp_path: Path
) -> None:
    exporter = InMemorySpanExporter()
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = httpx.HTTPTransport.handle_request
    for _ in range(2):
        exporter.clear()
        url = f"sqlite:///{tmp_path}/chatdebug.db"
        chatdebug.configure(tracer_provider=tracer_provider, database_url=url, http_spans=True)
        try:
            send(httpx, "sync", "POST", provider.url + MODEL_PATH, json=BODY)
            send(httpx, "sync", "GET", f"{provider.url}/v1/models")
            assert chatdebug.flush(60)
            assert sorted(span.name for span in exporter.get_finished_spans()) == [
                "GET",
                "POST",
                "auto",
                "chat gpt-5-mini",
            ]
        finally:
            chatdebug.shutdown()
        assert not any(make().is_instrumented_by_opentelemetry for make in STOCK)
        assert httpx.HTTPTransport.handle_request is before


def test_a_stock_instrumentation_that_is_on_already_is_not_switched_off_by_us(tmp_path: Path) -> None:
    theirs = TracerProvider(shutdown_on_exit=False)
    with stock(theirs):
        url = f"sqlite:///{tmp_path}/chatdebug.db"
        chatdebug.configure(tracer_provider=theirs, database_url=url, http_spans=True)
        chatdebug.shutdown()

        assert all(make().is_instrumented_by_opentelemetry for make in STOCK)


@libraries
def test_everything_instrumented_twice_is_one_attempt_for_each_request(
    library: ModuleType, recorded: Recording, provider: Provider
) -> None:
    with stock(recorded.provider):
        for make in (*INSTRUMENTORS.values(), *STOCK):
            make().instrument(skip_dep_check=True)
        send(library, "sync", "POST", provider.url + MODEL_PATH, json=BODY)

    assert len(recorded.attempts) == len(recorded.steps) == 1
    assert len(recorded.spans) == 3


ALIASED = """
import json, sys
import httpx2
httpx2.alias_httpx()
import httpx
assert httpx is httpx2
import openai
import otel_chatdebug as chatdebug
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

chatdebug.configure(http_spans="http_spans" in sys.argv)
exporter = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello?"}]}
httpx.post(f"{sys.argv[1]}/v1/chat/completions", json=body)
openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="key").chat.completions.create(**body)
assert chatdebug.flush(60)
chatdebug.shutdown()
print(json.dumps([span.name for span in exporter.get_finished_spans()]))
"""


@pytest.mark.parametrize("more", [[], ["http_spans"]])
def test_after_alias_httpx_a_request_is_one_attempt(more: list[str], provider: Provider, chatdebug_home: Path) -> None:
    """Then both names are one module."""
    done = subprocess.run(
        [sys.executable, "-c", ALIASED, provider.url, *more],
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    engine = queries.open_for_reading(f"sqlite:///{chatdebug_home / 'chatdebug.db'}")
    runs = [queries.load_run(engine, run["id"]) for run in queries.list_runs(engine)]
    engine.dispose()

    assert [[len(step["attempts"]) for step in run["steps"]] for run in runs] == [[1], [1]]
    assert sorted(json.loads(done.stdout)) == sorted(["auto", "chat gpt-5-mini", "POST"] * 2)
    assert len(provider.requests) == 2


# -- what goes over the wire


def caller() -> Context:
    """As a server finds it in the headers of a request: a sampled trace with vendor state, and baggage."""
    state = TraceState([("vendor", "value")])
    span = SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    return baggage.set_baggage("tenant", "blue", trace.set_span_in_context(NonRecordingSpan(span)))


@contextmanager
def within(context: Context) -> Iterator[None]:
    token = attach(context)
    try:
        yield
    finally:
        detach(token)


class Custom(TextMapPropagator):
    """A propagator of the application's."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        return context or Context()

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        span_id = trace.get_current_span(context).get_span_context().span_id
        setter.set(carrier, "x-custom-trace", f"{span_id:016x}")

    @property
    def fields(self) -> set[str]:
        return {"x-custom-trace"}


@libraries
@twins
@pytest.mark.parametrize("sdk", [True, False], ids=["sdk", "api only"])
def test_the_trace_context_goes_on_as_the_stock_instrumentation_sends_it(
    library: ModuleType, twin: str, sdk: bool, provider: Provider
) -> None:
    """Baggage, vendor state, and without an SDK the caller's own trace context; compared with the stock's request."""
    with recording(sdk=sdk) as recorded, stock(recorded.provider), within(caller()):
        send(library, twin, "POST", provider.url + MODEL_PATH, json=BODY)
        send(library, twin, "GET", f"{provider.url}/v1/models")
        attempt = recorded.attempt
    ours, stocks = provider.requests

    assert ours.headers["baggage"] == stocks.headers["baggage"] == "tenant=blue"
    assert ours.headers["tracestate"] == stocks.headers["tracestate"] == "vendor=value"
    assert on_the_wire(ours)[0] == on_the_wire(stocks)[0] == f"{0xA:032x}"
    if sdk:
        assert on_the_wire(ours)[1] == attempt.id
    else:
        assert on_the_wire(ours) == on_the_wire(stocks) == (f"{0xA:032x}", f"{0xB:016x}")


def test_the_propagators_of_the_application_are_used(recorded: Recording, provider: Provider) -> None:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Custom())
    try:
        send(httpx, "sync", "POST", provider.url + MODEL_PATH, json=BODY)
    finally:
        propagate.set_global_textmap(before)

    (request,) = provider.requests
    assert request.headers["x-custom-trace"] == recorded.attempt.id
    assert "traceparent" not in request.headers


def test_each_retry_has_a_trace_context_of_its_own(recorded: Recording, provider: Provider) -> None:
    provider.script(Behaviour(status=500, retry_after=0.01), Behaviour(status=429, retry_after=0.01), Behaviour())
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key") as client:
        client.chat.completions.create(**BODY)

    assert [on_the_wire(request)[1] for request in provider.requests] == [one.id for one in recorded.attempts]
    assert len({one.id for one in recorded.attempts}) == 3


# -- what is not to be seen


@libraries
@twins
@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
def test_a_request_in_a_suppressed_context_is_not_recorded_and_goes_out_untouched(
    library: ModuleType, twin: str, suppress: Any, recorded: Recording, provider: Provider
) -> None:
    with suppress():
        send(library, twin, "POST", provider.url + MODEL_PATH, json=BODY)

    assert (recorded.runs, recorded.attempts, recorded.spans) == ([], [], {})
    assert "traceparent" not in provider.requests[0].headers


def test_a_call_of_an_sdk_in_a_suppressed_context_is_not_recorded(recorded: Recording, provider: Provider) -> None:
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key") as client, suppress_instrumentation():
        client.chat.completions.create(**BODY)

    assert (recorded.runs, recorded.steps, recorded.attempts) == ([], [], [])


class HTTPXExporter(SpanExporter):
    """An exporter that sends by httpx, to a path that looks like a model's."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client()
        self._url = url

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._client.post(self._url, json={"model": "exporter", "spans": [span.name for span in spans]})
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._client.close()


@pytest.mark.parametrize("processor", [BatchSpanProcessor, SimpleSpanProcessor])
def test_the_requests_of_an_exporter_are_never_recorded(
    processor: Any, recorded: Recording, provider: Provider
) -> None:
    """Else every export would be a span that is exported."""
    assert recorded.provider is not None
    recorded.provider.add_span_processor(processor(HTTPXExporter(provider.url + MODEL_PATH)))

    send(httpx, "sync", "POST", provider.url + MODEL_PATH, json=BODY)
    recorded.provider.force_flush()

    assert len(provider.requests) >= 2
    assert len(recorded.attempts) == 1
    assert len(recorded.spans) == 3
    recorded.provider.shutdown()


# -- requests inside of requests


@libraries
def test_an_application_in_this_process_that_calls_a_model_itself_is_recorded_as_its_own(
    library: ModuleType, recorded: Recording, provider: Provider
) -> None:
    """A gateway under test: the request to it is a model call, and the one that it makes is another."""

    async def gateway(request: ASGIRequest) -> JSONResponse:
        async with openai.AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="key") as client:
            answer = await client.chat.completions.create(**await request.json())
        return JSONResponse(answer.model_dump())

    app = Starlette(routes=[Route(MODEL_PATH, gateway, methods=["POST"])])

    async def call() -> int:
        async with library.AsyncClient(transport=library.ASGITransport(app=app), base_url="http://gateway") as client:
            return int((await client.post(MODEL_PATH, json=BODY)).status_code)

    with chatdebug.run("chat_turn") as run:
        assert asyncio.run(call()) == 200

    outer, inner = recorded.attempts
    assert [step.id for step in recorded.steps] == [outer.step_id, inner.step_id]
    assert outer.step_id != inner.step_id
    assert {step.run_id for step in recorded.steps} == {run.id}
    assert [outer.status, inner.status] == [Status.COMPLETED] * 2
    assert outer.url == f"http://gateway{MODEL_PATH}"
    assert inner.step_id in recorded.ancestors(inner.id)
    assert outer.id in recorded.ancestors(inner.id)
    assert on_the_wire(provider.requests[0]) == (run.id, inner.id)


@libraries
@twins
@pytest.mark.parametrize("switched_on", [True, False], ids=["with the stock one", "alone"])
def test_a_transport_that_sends_the_same_request_with_another_client_is_one_attempt(
    library: Any, twin: str, switched_on: bool, recorded: Recording, provider: Provider
) -> None:
    class Sync(library.BaseTransport):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            with library.Client() as client:
                return client.send(request)

    class Async(library.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            async with library.AsyncClient() as client:
                return await client.send(request)

    async def call_async() -> None:
        async with library.AsyncClient(transport=Async()) as client:
            await client.post(provider.url + MODEL_PATH, json=BODY)

    with stock(recorded.provider) if switched_on else nullcontext():
        if twin == "async":
            asyncio.run(call_async())
        else:
            with library.Client(transport=Sync()) as client:
                client.post(provider.url + MODEL_PATH, json=BODY)

    assert recorded.attempt.status is Status.COMPLETED
    assert len(recorded.steps) == 1
    assert len(recorded.spans) == 3
    assert [on_the_wire(request)[1] for request in provider.requests] == [recorded.attempt.id]
