"""The road that spans take: OTLP, the collector with the configuration that users get, Jaeger."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from tests.support.backends import COLLECTOR_CONFIG, Backends, Collector, Jaeger

START = 1_700_000_000_123_456_789
"""Nanoseconds that neither microseconds nor a float hold."""


def send(exporter: SpanExporter, text: str = "hello", spans: int = 1) -> int:
    """Sends a trace of a parent with ``spans`` children in one batch; returns its id."""
    provider = TracerProvider()
    batch = []
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("parent", start_time=START, end_on_exit=False) as parent:
        batch.append(parent)
        for number in range(spans):
            child = tracer.start_span("child", start_time=START + 1 + number, kind=SpanKind.CLIENT)
            child.set_attributes({"text": text, "number": 2**53 + 1, "ratio": 0.5, "yes": True, "list": ["a", "b"]})
            child.set_status(Status(StatusCode.ERROR, "broken"))
            child.end(START + 1001 + number)
            batch.append(child)
    parent.end(START + 10_000_001)
    exporter.export(batch)
    exporter.shutdown()
    provider.shutdown()
    return parent.get_span_context().trace_id


@pytest.fixture(params=["grpc", "http"])
def exporter(request: pytest.FixtureRequest, collector: Collector) -> SpanExporter:
    if request.param == "grpc":
        return GrpcExporter(endpoint=collector.grpc_endpoint, insecure=True)
    return HttpExporter(endpoint=f"{collector.http_endpoint}/v1/traces")


def test_a_span_arrives_as_it_was_sent(exporter: SpanExporter, jaeger: Jaeger) -> None:
    """Through the collector into Jaeger: the same nanoseconds, parent, kind, status and typed attributes."""
    trace_id = send(exporter)

    parent, child = jaeger.trace(trace_id, spans=2)

    assert (parent["name"], parent["start_ns"], parent["end_ns"]) == ("parent", START, START + 10_000_001)
    assert (parent["parent_span_id"], parent["status"], parent["kind"]) == (None, "UNSET", "INTERNAL")
    assert (child["name"], child["start_ns"], child["end_ns"]) == ("child", START + 1, START + 1001)
    assert child["parent_span_id"] == parent["span_id"]
    assert child["trace_id"] == parent["trace_id"] == format(trace_id, "032x")
    assert (child["status"], child["status_message"], child["kind"]) == ("ERROR", "broken", "CLIENT")
    assert child["attributes"] == {
        "text": "hello",
        "number": 2**53 + 1,
        "ratio": 0.5,
        "yes": True,
        "list": ["a", "b"],
    }


def test_a_batch_over_the_usual_limit_of_4_mib_arrives(exporter: SpanExporter, jaeger: Jaeger) -> None:
    """200 spans of 60 kB in one message: with the receivers' default limit, none would arrive and nobody would tell."""
    trace_id = send(exporter, text="x" * 60_000, spans=200)

    assert len(jaeger.trace(trace_id, spans=201)) == 201


def test_what_was_accepted_survives_that_jaeger_is_away_and_the_collector_is_killed(
    backends: Backends, tmp_path: Path
) -> None:
    """The queue of collector-config.yaml is on disk."""
    jaeger = Jaeger(backends, tmp_path)
    collector = Collector(backends, tmp_path, backend=jaeger.grpc_endpoint)
    with collector:
        trace_id = send(GrpcExporter(endpoint=collector.grpc_endpoint, insecure=True))
        collector.kill()
        with jaeger:
            collector.start()
            assert len(jaeger.trace(trace_id, spans=2)) == 2


def test_the_collector_accepts_the_configuration_as_it_stands(backends: Backends, tmp_path: Path) -> None:
    """Without any variable set, from any folder, and without a file left behind."""
    command = [backends.otelcol, "validate", "--config", COLLECTOR_CONFIG]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert list(tmp_path.iterdir()) == []
