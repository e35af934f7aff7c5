"""What is compared: each variant can be switched on and off again, any number of times in one process.

On the *peers'* terms everyone's spans go through a ``BatchSpanProcessor`` to an exporter that drops them, and our rows
to a writer that drops them. With *all* on, everyone's spans go by OTLP to a collector, and our rows into SQLite.

What a peer needs is imported when it is used: the benchmark also runs where it is not installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, ClassVar, Final

import httpx2
from openai._base_client import SyncAPIClient
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import otel_chatdebug as chatdebug
from benchmarks.others import OtherApplication
from benchmarks.workload import Application
from otel_chatdebug import lifecycle
from otel_chatdebug.capture.instrumentor import INSTRUMENTORS
from otel_chatdebug.tables import schema

PEERS, ALL = "peers", "all"
"""The two terms."""

DRAIN_SECONDS: Final = 60.0
"""For writing what has come of one block."""


class DroppingExporter(SpanExporter):
    """Counts spans and drops them."""

    def __init__(self) -> None:
        self.spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class CountingExporter(DroppingExporter):
    """Counts spans and hands them on by OTLP."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        super().__init__()
        self._otlp = OTLPSpanExporter()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._otlp.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.spans += len(spans)
        return result

    def shutdown(self) -> None:
        self._otlp.shutdown()


class DroppingWriter:
    """In the place of the tables' writer: takes what is to be written and forgets it."""

    def put(self, source: Any) -> None:
        source.queued = False

    def flush(self, timeout: float) -> bool:
        return True

    def close(self, timeout: float) -> bool:
        return True


class Variant:
    """Nothing at all: the pair of two plain blocks tells how far the noise of the machine goes."""

    name: ClassVar = "nothing"
    label: ClassVar = "nothing (the noise)"
    distribution: ClassVar[str | None] = None
    """What must be installed for it."""
    local_root: ClassVar = True
    """Whether the calls are made inside of a span, as below a web framework."""
    spans_per_call: ClassVar = 0

    def __init__(self, application: Application | OtherApplication, terms: str) -> None:
        self.application = application
        self.terms = terms
        self.start()

    def start(self) -> None:
        """Makes the tracer provider and what hangs on it; it stays for plain and instrumented blocks alike."""
        self.exporter = DroppingExporter() if self.terms == PEERS else CountingExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter))
        trace.set_tracer_provider(self.provider)

    def switch_on(self) -> None: ...

    def switch_off(self) -> None: ...

    def request(self) -> AbstractContextManager[Any]:
        """The local root span of one block, as a web framework would give it; or nothing."""
        tracer = self.provider.get_tracer("benchmark")
        return tracer.start_as_current_span("request") if self.local_root else nullcontext()

    def drain(self) -> None:
        """Everything that is still under way in the background is done when it returns."""
        self.provider.force_flush()

    def spans(self) -> int | None:
        """Spans that were exported so far, those of the blocks included; None where nobody counts."""
        return self.exporter.spans

    def check(self, calls: int) -> None:
        """Raises AssertionError where not all of ``calls`` instrumented calls are where they should be."""

    def close(self) -> None:
        self.provider.shutdown()


class _KeptBody(httpx2.SyncByteStream):
    def __init__(self, stream: Any, spans: tuple[trace.Span, ...]) -> None:
        self._stream = stream
        self._spans = spans
        self._kept: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        keep = self._kept.append
        for chunk in self._stream:
            keep(chunk)
            yield chunk

    def close(self) -> None:
        self._stream.close()
        for span in self._spans:
            span.end()


class Floor(Variant):
    """What no instrumentation that sees both the call and the request can be cheaper than."""

    name = "floor"
    label = "floor: two bare spans, and bytes kept"
    spans_per_call = 2

    def start(self) -> None:
        super().start()
        self._request: Any = SyncAPIClient.request
        self._send: Any = httpx2.Client._send_single_request

    def switch_on(self) -> None:
        tracer = self.provider.get_tracer("floor")
        request, send = self._request, self._send

        def request_with_span(client: Any, *args: Any, **kwargs: Any) -> Any:
            token = attach(trace.set_span_in_context(tracer.start_span("chat")))
            try:
                return request(client, *args, **kwargs)
            finally:
                detach(token)

        def send_with_span(client: Any, *args: Any, **kwargs: Any) -> Any:
            outer, inner = trace.get_current_span(), tracer.start_span("POST")
            response = send(client, *args, **kwargs)
            response.stream = _KeptBody(response.stream, (inner, outer))
            return response

        self._patch(request_with_span, send_with_span)

    def switch_off(self) -> None:
        self._patch(self._request, self._send)

    @staticmethod
    def _patch(request: Any, send: Any) -> None:
        client: Any = SyncAPIClient
        client.request = request
        client = httpx2.Client
        client._send_single_request = send


class Stock(Variant):
    """One span for each request, which ends with its headers."""

    name = "httpx"
    label = "opentelemetry-instrumentation-httpx"
    distribution = "opentelemetry-instrumentation-httpx"
    spans_per_call = 1

    def start(self) -> None:
        from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor

        super().start()
        self._instrumentor: Any = HTTPX2ClientInstrumentor

    def switch_on(self) -> None:
        # `instrument()` patches HTTPTransport alone; this is its own way for a client with another transport.
        self._instrumentor.instrument_client(self.application.http)

    def switch_off(self) -> None:
        self._instrumentor.uninstrument_client(self.application.http)


class GenAI(Variant):
    """One span for each call of the SDK, which ends with the stream."""

    name = "genai"
    label = "opentelemetry-instrumentation-genai-openai"
    distribution = "opentelemetry-instrumentation-genai-openai"
    spans_per_call = 1

    def start(self) -> None:
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor  # type: ignore[import-not-found]

        super().start()
        self._instrumentor = OpenAIInstrumentor()

    def switch_on(self) -> None:
        self._instrumentor.instrument()  # with its check of dependencies: it says whether it takes this openai
        assert self._instrumentor.is_instrumented_by_opentelemetry, f"{self.distribution} does not take this openai"

    def switch_off(self) -> None:
        self._instrumentor.uninstrument()


class Ours(Variant):
    """A run, a step and an attempt for each call, or a step and an attempt where it is inside of a span."""

    name = "chatdebug"
    label = "otel-chatdebug"
    spans_per_call = 2

    def start(self) -> None:
        if self.terms == PEERS:
            super().start()
            lifecycle.arm(writer=DroppingWriter(), tracer_provider=self.provider)
            return
        # As an application does it; OTLP and the database are set in the environment.
        chatdebug.configure()
        self.switch_off()
        provider = trace.get_tracer_provider()
        assert isinstance(provider, TracerProvider)
        self.provider = provider

    def switch_on(self) -> None:
        for instrumentor in INSTRUMENTORS.values():
            instrumentor().instrument(skip_dep_check=True)

    def switch_off(self) -> None:
        for instrumentor in INSTRUMENTORS.values():
            instrumentor().uninstrument()

    def drain(self) -> None:
        assert lifecycle.flush(DRAIN_SECONDS), "the tables are not written"
        super().drain()

    def spans(self) -> int | None:
        return self.exporter.spans if self.terms == PEERS else None

    def check(self, calls: int) -> None:
        if self.terms == PEERS:
            return
        path = os.environ["OTEL_CHATDEBUG_DATABASE_URL"].removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as connection:
            for table in (schema.steps.name, schema.attempts.name):
                ((rows,),) = connection.execute(f"SELECT count(*) FROM {table} WHERE status = 'completed'")
                assert rows == calls, f"{calls} calls, but {rows} finished {table}"

    def close(self) -> None:
        chatdebug.shutdown()
        super().close()


class OursAlone(Ours):
    """Outside of any span each call has a run of its own, with a span of its own."""

    name = "chatdebug-alone"
    label = "otel-chatdebug, outside of any span"
    local_root = False
    spans_per_call = 3


VARIANTS: Final[dict[str, type[Variant]]] = {
    kind.name: kind for kind in (Variant, Floor, Stock, GenAI, Ours, OursAlone)
}


def missing(kind: type[Variant]) -> str | None:
    """Why the variant cannot be measured here; None where it can."""
    if kind.distribution is None:
        return None
    try:
        importlib.metadata.version(kind.distribution)
    except importlib.metadata.PackageNotFoundError:
        return f"{kind.distribution} is not installed"
    return None
