"""Messages on spans, events and metrics, as they arrive at a real collector with the limits that collectors have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.pipeline.call_content import MOST_CONTENT
from tests.support.backends import Backends, Collector

pytestmark = pytest.mark.backends

TIMEOUT = 60.0
"""Seconds for one application."""

USUAL_LIMIT = 4 * 1024 * 1024
"""Bytes of a message that a gRPC receiver takes where nobody says otherwise, as in this configuration."""

CONFIG = """
extensions:
  health_check: {endpoint: "${env:CHATDEBUG_HEALTH_ENDPOINT}"}
receivers:
  otlp:
    protocols:
      grpc: {endpoint: "${env:CHATDEBUG_OTLP_GRPC_ENDPOINT}"}
exporters:
  file: {path: "OUT", flush_interval: 100ms}
service:
  extensions: [health_check]
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [file]}
    metrics: {receivers: [otlp], exporters: [file]}
    logs: {receivers: [otlp], exporters: [file]}
"""

APP = """
import sys, openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="sk-proj-SECRETMARKER1234567890")
calls, parts = int(sys.argv[2]), int(sys.argv[3])
history = [{"role": "user", "content": f"PROMPTMARKER {number} " + "x" * 9000} for number in range(parts)]
for _ in range(calls):
    stream = client.chat.completions.create(
        model="gpt-5-mini", messages=history, stream=True, stream_options={"include_usage": True},
    )
    for _ in stream:
        pass
"""


@pytest.fixture
def arrived(backends: Backends, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs the application against a collector, and returns what that has written down."""

    def run(calls: int, parts: int, **environment: str) -> list[dict[str, Any]]:
        out, config = tmp_path / "out.json", tmp_path / "collector.yaml"
        config.write_text(CONFIG.replace("OUT", str(out)))
        out.touch()
        with Collector(backends, tmp_path, backend="", config=config) as collector, Provider() as provider:
            provider.script(*(Behaviour(text="ANSWERMARKER one two three", chunks=5) for _ in range(calls)))
            instrument = str(Path(sys.executable).with_name("opentelemetry-instrument"))
            done = subprocess.run(
                [instrument, sys.executable, "-c", APP, f"{provider.url}/v1", str(calls), str(parts)],
                env={
                    **os.environ,
                    "OTEL_EXPORTER_OTLP_ENDPOINT": collector.grpc_endpoint,
                    "OTEL_TRACES_EXPORTER": "chatdebug_otlp",
                    "OTEL_METRICS_EXPORTER": "otlp",
                    "OTEL_LOGS_EXPORTER": "otlp",
                    **environment,
                },
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
            assert "Failed to export" not in done.stderr
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    """The attributes of OTLP's JSON, with plain values for those that are."""
    found = {}
    for item in attributes:
        ((kind, value),) = item["value"].items()
        found[item["key"]] = int(value) if kind == "intValue" else value
    return found


def spans(arrived: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        values(span["attributes"])
        for batch in arrived
        for resource in batch.get("resourceSpans", [])
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_spans_with_a_mebibyte_of_messages_each_arrive_at_a_receiver_with_the_usual_limit(
    arrived: Callable[..., list[dict[str, Any]]],
) -> None:
    """Together they are more than one message may have."""
    calls = 6
    found = arrived(calls, 150, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="SPAN_ONLY")
    steps = [span for span in spans(found) if span["chatdebug.record"] == "step"]
    assert len(steps) == calls
    sizes = [len(step["gen_ai.input.messages"]) for step in steps]
    assert all(0.9 * MOST_CONTENT < size < MOST_CONTENT for size in sizes)
    assert sum(sizes) > USUAL_LIMIT
    for step in steps:
        assert step["chatdebug.content.omitted_messages"] > 0
        (message,) = json.loads(step["gen_ai.output.messages"])
        assert message["parts"] == [{"type": "text", "content": "ANSWERMARKER one two three"}]
    assert not any("resourceLogs" in batch for batch in found)
    assert "SECRETMARKER" not in json.dumps(found)


def test_events_and_metrics_arrive_and_spans_have_no_content(arrived: Callable[..., list[dict[str, Any]]]) -> None:
    calls = 2
    found = arrived(calls, 2, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="EVENT_ONLY")
    events = [
        record
        for batch in found
        for resource in batch.get("resourceLogs", [])
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
        if scope["scope"]["name"] == "otel_chatdebug"
    ]
    assert [event["eventName"] for event in events] == ["gen_ai.client.inference.operation.details"] * calls
    told = values(events[0]["attributes"])
    assert told["gen_ai.request.model"] == "gpt-5-mini"
    assert "PROMPTMARKER 1 " in json.dumps(told["gen_ai.input.messages"])
    assert "ANSWERMARKER one two three" in json.dumps(told["gen_ai.output.messages"])
    by_step = {span.get("chatdebug.record") for span in spans(found)}
    assert by_step == {"run", "step", "attempt"}
    assert "PROMPTMARKER" not in json.dumps(spans(found))

    points: dict[str, list[dict[str, Any]]] = {}
    for batch in found:
        for resource in batch.get("resourceMetrics", []):
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    if metric["name"].startswith("gen_ai."):
                        points[metric["name"]] = metric["histogram"]["dataPoints"]
    assert set(points) == {
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.client.operation.time_per_output_chunk",
        "gen_ai.client.token.usage",
    }
    (duration,) = points["gen_ai.client.operation.duration"]
    assert int(duration["count"]) == calls
    tokens = {
        values(point["attributes"])["gen_ai.token.type"]: point["sum"] for point in points["gen_ai.client.token.usage"]
    }
    assert tokens == {"input": 1200 * calls, "output": 84 * calls}
    assert "SECRETMARKER" not in json.dumps(found)
