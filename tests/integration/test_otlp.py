"""What arrives in a real Jaeger, through a real collector, from applications that are processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GRPCExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from sqlalchemy.exc import OperationalError

from otel_chatdebug import attributes
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.pipeline.exporter import PiecewiseSpanExporter
from otel_chatdebug.tables import migrations, queries
from otel_chatdebug.tables.database import NoDatabase
from tests.support.backends import COLLECTOR_CONFIG, Backends, Collector, Jaeger
from tests.support.recording import Model, recording

pytestmark = pytest.mark.backends

TIMEOUT = 60.0
"""Seconds for one application."""

MARKERS = ("PROMPTMARKER", "ANSWERMARKER", "sk-SECRETMARKER", "QUERYMARKER", "HEADERMARKER")
"""What the user says, what the model says, and three secrets. None of them belongs on a span."""

KNOWING = """
import sys
import openai
import otel_chatdebug as chatdebug

if "configure" in sys.argv:
    chatdebug.configure(service_name="the-app")
client = openai.OpenAI(
    base_url=sys.argv[1],
    api_key="sk-SECRETMARKER4567890abcdef",
    default_query={"key": "QUERYMARKER"},
    default_headers={"x-tenant-key": "HEADERMARKER"},
    max_retries=1,
)

def ask():
    stream = client.chat.completions.create(
        model="gpt-5-mini",
        messages=[{"role": "user", "content": "PROMPTMARKER"}],
        temperature=0.5,
        stream=True,
        stream_options={"include_usage": True},
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

with chatdebug.run("chat_turn", chat_id="chat-1", trigger_message_id="m-1", owner_id="somebody") as run:
    assert ask() == "ANSWERMARKER one two three"
try:
    with chatdebug.run("title_generation", chat_id="chat-1"):
        ask()
except openai.APIError:
    pass
if "configure" in sys.argv:
    chatdebug.shutdown()
"""

UNKNOWING = """
import sys
import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="sk-SECRETMARKER4567890abcdef")
client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "PROMPTMARKER"}])
"""


@dataclass
class Start:
    """A way to start an application."""

    protocol: str = "grpc"
    exporter: str = "otlp"
    instrument: bool = False
    """Under ``opentelemetry-instrument``; else it calls ``configure()``."""
    endpoint: bool = True
    """Whether the environment names the collector."""

    def command(self, app: Path, *arguments: str) -> list[str]:
        if self.instrument:
            return [
                str(Path(sys.executable).with_name("opentelemetry-instrument")),
                sys.executable,
                str(app),
                *arguments,
            ]
        return [sys.executable, str(app), *arguments, "configure"]

    def environment(self, collector: Collector) -> dict[str, str]:
        environment = {
            **os.environ,
            "OTEL_TRACES_EXPORTER": self.exporter,
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_SERVICE_NAME": "the-app",
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
        }
        if self.endpoint:
            grpc = self.protocol == "grpc"
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.grpc_endpoint if grpc else collector.http_endpoint
        return environment


STARTS = {
    "configure, grpc": Start(),
    "configure, http": Start(protocol="http/protobuf"),
    "instrument, chatdebug_otlp, grpc": Start(exporter="chatdebug_otlp", instrument=True),
    "instrument, chatdebug_otlp, http": Start(exporter="chatdebug_otlp", instrument=True, protocol="http/protobuf"),
    "instrument, otlp": Start(instrument=True),
}

starts = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        yield server


@pytest.fixture
def rows(chatdebug_home: Path) -> Callable[[], list[dict[str, Any]]]:
    """Call it for the runs that were recorded, in the order of their start, with all below them."""

    def read() -> list[dict[str, Any]]:
        engine = queries.open_for_reading(f"sqlite:///{chatdebug_home / 'chatdebug.db'}")
        try:
            return [queries.load_run(engine, run["id"]) for run in reversed(queries.list_runs(engine))]
        finally:
            engine.dispose()

    return read


def started(start: Start, source: str, provider: Provider, collector: Collector, folder: Path) -> subprocess.Popen[str]:
    app = folder / "app.py"
    app.write_text(source)
    return subprocess.Popen(
        start.command(app, f"{provider.url}/v1"),
        env=start.environment(collector),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for an application, which must have ended well and have had nothing to complain of."""
    try:
        _, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    assert "WARNING" not in errors, errors


def release_when_recorded(held: Behaviour, rows: Callable[[], list[dict[str, Any]]]) -> int:
    """Lets an application go on once its rows begin to come; returns when (nanoseconds).

    A process that ends at once has 5 s to write its rows, of which a busy machine may need more to make the tables.
    """
    assert held.wait_held(TIMEOUT)
    deadline = time.monotonic() + TIMEOUT
    while True:
        with contextlib.suppress(NoDatabase, migrations.SchemaTooOld, OperationalError):
            if rows():
                break
        assert time.monotonic() < deadline, f"no rows after {TIMEOUT:g} s"
        time.sleep(0.02)  # another process writes: only looking tells
    released = time.time_ns()
    held.release()
    return released


def microseconds(nanoseconds: int) -> str:
    return queries.iso(nanoseconds // 1000)


@starts
def test_a_chat_turn_arrives_in_jaeger_as_it_is_in_the_tables(
    start: Start,
    provider: Provider,
    collector: Collector,
    jaeger: Jaeger,
    rows: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """A run with a retry and a streamed answer, and a run that fails: the same ids, nesting, times and outcomes."""
    held = Behaviour(text="ANSWERMARKER one two three", stall_after=2)
    provider.script(
        Behaviour(status=429, retry_after=0.01), held, Behaviour(text="ANSWERMARKER cut", chunks=4, error_after=2)
    )
    app = started(start, KNOWING, provider, collector, tmp_path)
    released = release_when_recorded(held, rows)
    finish(app)

    good, failed = rows()
    run, step, refused, answered = jaeger.trace(good["id"], spans=4)

    # Names, kinds, nesting
    assert [span["name"] for span in (run, step, refused, answered)] == ["chat_turn", "chat gpt-5-mini", "POST", "POST"]
    assert [span["kind"] for span in (run, step, refused, answered)] == ["INTERNAL", "CLIENT", "CLIENT", "CLIENT"]
    assert run["parent_span_id"] is None
    assert step["parent_span_id"] == run["span_id"]
    assert refused["parent_span_id"] == answered["parent_span_id"] == step["span_id"]
    assert {span["trace_id"] for span in (run, step, refused, answered)} == {good["id"]}
    assert run["resource"]["service.name"] == good["service_name"] == "the-app"
    assert run["scope"]["name"] == "otel_chatdebug"

    # The same in the tables
    (step_row,) = good["steps"]
    first, second = step_row["attempts"]
    spans = {run["span_id"]: good, step["span_id"]: step_row, refused["span_id"]: first, answered["span_id"]: second}
    assert [row["span_id"] for row in spans.values()] == list(spans)
    assert [step_row["id"], first["id"], second["id"]] == [step["span_id"], refused["span_id"], answered["span_id"]]
    for span in (run, step, refused, answered):
        row = spans[span["span_id"]]
        assert row["started_at"] == microseconds(span["start_ns"])
        assert row["finished_at"] == microseconds(span["end_ns"])
        assert row["status"] == span["attributes"]["chatdebug.status"]
    assert good["chat_id"] == "chat-1"
    assert good["owner_id"] == "somebody"

    # The attempt ends with its body, not with its headers; times are whole to the nanosecond
    assert refused["end_ns"] < answered["start_ns"] < released < answered["end_ns"] <= step["end_ns"] <= run["end_ns"]
    assert any(span["start_ns"] % 1000 for span in (run, step, refused, answered))

    # Outcomes
    assert [span["status"] for span in (run, step, refused, answered)] == ["UNSET", "UNSET", "ERROR", "UNSET"]
    assert refused["status_message"] == "HTTP status 429"  # its body is closed unread by the SDK: that is all we know

    # Attributes
    port = int(provider.url.rpartition(":")[2])
    assert run["attributes"] == {
        "chatdebug.record": "run",
        "chatdebug.status": "completed",
        "chatdebug.run.id": good["id"],
        "chatdebug.run.kind": "chat_turn",
        "chatdebug.run.trigger_message_id": "m-1",
        "gen_ai.conversation.id": "chat-1",
    }
    waited = step["attributes"].pop("gen_ai.response.time_to_first_chunk")
    assert 0 < waited < (step["end_ns"] - step["start_ns"]) / 1e9
    assert step["attributes"] == {
        "chatdebug.record": "step",
        "chatdebug.status": "completed",
        "chatdebug.run.id": good["id"],
        "chatdebug.step.number": 1,
        "chatdebug.step.operation": "stream",
        "chatdebug.step.attempts": 2,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.conversation.id": "chat-1",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "gpt-5-mini",
        "gen_ai.response.id": "chatcmpl-demo",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 1200,
        "gen_ai.usage.output_tokens": 84,
        "gen_ai.usage.reasoning.output_tokens": 64,
        "gen_ai.usage.cache_read.input_tokens": 1024,
        "server.address": "127.0.0.1",
        "server.port": port,
    }
    gap = answered["attributes"].pop("chatdebug.stream.longest_gap")
    assert 0 < gap < (answered["end_ns"] - answered["start_ns"]) / 1e9
    common = {
        "chatdebug.record": "attempt",
        "chatdebug.run.id": good["id"],
        "chatdebug.step.id": step["span_id"],
        "gen_ai.conversation.id": "chat-1",
        "http.request.method": "POST",
        "url.full": f"{provider.url}/v1/chat/completions?key=[REDACTED]",
        "url.path": "/v1/chat/completions",
        "server.address": "127.0.0.1",
        "server.port": port,
    }
    assert answered["attributes"] == {
        **common,
        "chatdebug.status": "completed",
        "chatdebug.attempt.number": 2,
        "chatdebug.attempt.end_reason": "body_close",
        "chatdebug.attempt.bytes": second["bytes_received"],
        "chatdebug.stream.events": second["events"],
        "http.response.status_code": 200,
        "http.request.resend_count": 1,
    }
    assert refused["attributes"] == {
        **common,
        "chatdebug.status": "error",
        "chatdebug.attempt.number": 1,
        "chatdebug.attempt.end_reason": first["end_reason"],
        "chatdebug.attempt.bytes": first["bytes_received"],
        "http.response.status_code": 429,
        "error.type": "429",
    }

    # The run that failed: an error event inside of a stream with status 200, to its end
    broken = jaeger.trace(failed["id"], spans=3)
    assert [span["name"] for span in broken] == ["title_generation", "chat gpt-5-mini", "POST"]
    assert [span["status"] for span in broken] == ["ERROR"] * 3
    assert broken[0]["attributes"]["error.type"] == failed["error"]["type"] == "openai.APIError"
    assert broken[2]["attributes"]["error.type"] == "server_error"
    assert broken[2]["attributes"]["http.response.status_code"] == 200

    # No content and no secret on any span; the content is in the tables
    for marker in MARKERS:
        assert marker not in json.dumps([run, step, refused, answered, *broken])
    assert "PROMPTMARKER" in second["request_body"]
    assert "ANSWERMARKER" in second["response_body"]


def test_our_spans_name_the_version_of_the_conventions_that_they_follow() -> None:
    """Jaeger's JSON leaves the schema URL out, so this looks at what is sent."""
    with recording() as recorded:
        Model().call()
        sent = encode_spans(list(recorded.spans.values()))

    (resource_spans,) = sent.resource_spans
    assert {scope.schema_url for scope in resource_spans.scope_spans} == {attributes.SCHEMA_URL}
    assert attributes.SCHEMA_URL.startswith("https://opentelemetry.io/schemas/1.")


@pytest.mark.parametrize(
    "start",
    [
        Start(exporter="chatdebug_otlp", instrument=True),
        Start(instrument=True, protocol="http/protobuf"),
    ],
    ids=["chatdebug_otlp, grpc", "otlp, http"],
)
def test_an_application_that_knows_nothing_of_us_has_the_same_spans_and_rows(
    start: Start,
    provider: Provider,
    collector: Collector,
    jaeger: Jaeger,
    rows: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """Also: the stock httpx instrumentation, which is on here too, adds no second span."""
    held = Behaviour(stall_headers=True)
    provider.script(held)
    app = started(start, UNKNOWING, provider, collector, tmp_path)
    release_when_recorded(held, rows)
    finish(app)

    (row,) = rows()
    # The run is made for its step: they begin at the same nanosecond and may end at the same.
    spans = {span["name"]: span for span in jaeger.trace(row["id"], spans=3)}
    run, step, attempt = (spans[name] for name in ("auto", "chat gpt-5-mini", "POST"))

    assert run["start_ns"] == step["start_ns"] < attempt["start_ns"] < attempt["end_ns"] <= step["end_ns"]
    assert step["end_ns"] <= run["end_ns"]
    assert [span["scope"]["name"] for span in (run, step, attempt)] == ["otel_chatdebug"] * 3
    assert [run["parent_span_id"], step["parent_span_id"]] == [None, run["span_id"]]
    assert attempt["parent_span_id"] == step["span_id"]
    assert (row["kind"], row["span_id"], row["service_name"]) == ("auto", run["span_id"], "the-app")
    assert row["steps"][0]["id"] == step["span_id"]
    assert row["steps"][0]["attempts"][0]["id"] == attempt["span_id"]
    (request,) = provider.requests
    assert request.headers["traceparent"].startswith(f"00-{row['id']}-{attempt['span_id']}-")
    assert "PROMPTMARKER" not in json.dumps([run, step, attempt])


def test_the_first_request_that_a_traced_application_serves_is_one_run(
    provider: Provider,
    collector: Collector,
    jaeger: Jaeger,
    rows: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """Its root span starts before there was a model call: by then we must follow the provider."""
    app = """
import sys
import openai
from opentelemetry import trace

client = openai.OpenAI(base_url=sys.argv[1], api_key="key")
with trace.get_tracer("app").start_as_current_span("GET /chat"):
    for _ in range(2):
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello?"}])
"""
    held = Behaviour(stall_headers=True)
    provider.script(held)
    process = started(Start(exporter="chatdebug_otlp", instrument=True), app, provider, collector, tmp_path)
    release_when_recorded(held, rows)
    finish(process)

    (run,) = rows()
    root, *others = jaeger.trace(run["id"], spans=5)
    assert root["name"] == "GET /chat"
    assert (run["kind"], run["span_id"], run["status"]) == ("auto", root["span_id"], "completed")
    assert run["finished_at"] == microseconds(root["end_ns"])
    assert [len(step["attempts"]) for step in run["steps"]] == [1, 1]
    assert sorted(span["name"] for span in others) == ["POST", "POST", "chat gpt-5-mini", "chat gpt-5-mini"]


@pytest.mark.parametrize("exporter", ["none", "console", ""])
def test_without_otlp_the_tables_are_written_all_the_same(
    exporter: str,
    provider: Provider,
    collector: Collector,
    jaeger: Jaeger,
    rows: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """``OTEL_TRACES_EXPORTER`` goes over an endpoint that is set; and an empty one is as good as none."""
    start = Start(exporter=exporter, endpoint=bool(exporter))
    held = Behaviour(text="ANSWERMARKER one two three", stall_after=1)
    provider.script(held, Behaviour(status=400))
    app = started(start, KNOWING, provider, collector, tmp_path)
    release_when_recorded(held, rows)
    finish(app)

    assert [run["status"] for run in rows()] == ["completed", "error"]
    for run in rows():
        with pytest.raises(AssertionError, match="0 of 1 spans"):
            jaeger.trace(run["id"], timeout=0.2)


def test_what_configure_is_told_holds_with_otlp_too(
    provider: Provider, collector: Collector, jaeger: Jaeger, chatdebug_home: Path, tmp_path: Path
) -> None:
    """The exporter is made before the recorder; it must not start one with the environment's settings. And again:
    configure() after shutdown() sends once more."""
    app = """
import sys
import openai
import otel_chatdebug as chatdebug
from otel_chatdebug.pipeline.recorder import active

client = openai.OpenAI(base_url=sys.argv[1], api_key="key")
for number in range(2):
    chatdebug.configure(database_url=f"sqlite:///here{number}.db")
    with chatdebug.run("chat_turn") as run:
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello?"}])
    assert chatdebug.flush(60)
    chatdebug.shutdown()
    assert active() is None
"""
    finish(started(Start(), app, provider, collector, tmp_path))

    assert not (chatdebug_home / "chatdebug.db").exists()
    for number in range(2):
        engine = queries.open_for_reading(f"sqlite:///{tmp_path}/here{number}.db")
        (run,) = queries.list_runs(engine)
        engine.dispose()
        assert len(jaeger.trace(run["id"], spans=3)) == 3


def test_200_spans_of_60_kb_arrive_at_a_receiver_with_the_usual_limit(
    backends: Backends, jaeger: Jaeger, tmp_path: Path
) -> None:
    """gRPC receivers refuse messages over 4 MiB for good. In one message, not one of these spans would arrive."""
    usual = re.sub(r"max_recv_msg_size_mib: \d+", "max_recv_msg_size_mib: 4", COLLECTOR_CONFIG.read_text())
    assert "max_recv_msg_size_mib: 4\n" in usual
    config = tmp_path / "collector.yaml"
    config.write_text(usual)
    with Collector(backends, tmp_path, backend=jaeger.grpc_endpoint, config=config) as collector:
        otlp = GRPCExporter(endpoint=collector.grpc_endpoint, insecure=True, timeout=1)
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
        batch = []
        with tracer.start_as_current_span("parent") as parent:
            for _ in range(200):
                span = tracer.start_span("child", attributes={"text": "x" * 60_000})
                span.end()
                assert isinstance(span, ReadableSpan)
                batch.append(span)
        trace_id = parent.get_span_context().trace_id

        assert otlp.export(batch) is SpanExportResult.FAILURE
        exporter = PiecewiseSpanExporter(otlp)
        assert exporter.export(batch) is SpanExportResult.SUCCESS

        assert exporter.refused == 0
        assert len(jaeger.trace(trace_id, spans=200)) == 200
        exporter.shutdown()
