"""The metrics of calls: names, units, buckets and attributes of the conventions; once for each call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as names
from opentelemetry.trace import SpanKind

import otel_chatdebug as chatdebug
from otel_chatdebug.pipeline import call_metrics
from tests.support.recording import Chunks, Model, answer, recording

DURATION = names.GEN_AI_CLIENT_OPERATION_DURATION
TOKENS = names.GEN_AI_CLIENT_TOKEN_USAGE
FIRST_CHUNK = names.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK
PER_CHUNK = names.GEN_AI_CLIENT_OPERATION_TIME_PER_OUTPUT_CHUNK

CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-mini",
    "server.address": "api.openai.com",
    "server.port": 443,
}
ANSWERED = {**CALL, "gen_ai.response.model": "gpt-5-mini-2026"}


class Metered:
    """A meter provider, and what it was told."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    @property
    def metrics(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name.startswith("gen_ai.")
        }

    def points(self, name: str) -> list[tuple[dict[str, Any], int, float]]:
        """``(attributes, count, sum)`` of each point of a metric."""
        metric = self.metrics.get(name)
        points = metric.data.data_points if metric else []
        return [(dict(point.attributes), point.count, point.sum) for point in points]


@pytest.fixture
def metered() -> Iterator[Metered]:
    found = Metered()
    yield found
    found.provider.shutdown()


class Meters(api.Meter):
    """Keeps what the package of the conventions asks a meter for."""

    def create_histogram(self, name: str, unit: str = "", description: str = "", **more: Any) -> Any:
        return (name, unit)

    create_counter = create_up_down_counter = create_observable_counter = create_histogram  # type: ignore[assignment]
    create_observable_gauge = create_observable_up_down_counter = create_histogram  # type: ignore[assignment]


def test_names_units_and_buckets_are_those_of_the_conventions(metered: Metered) -> None:
    """Names and units by their package, boundaries by their text (the package has none)."""
    with recording(meter_provider=metered.provider), closing(Model().open()) as response:
        response.read()
    meter = Meters("test")
    expected = {
        names.create_gen_ai_client_operation_duration(meter),
        names.create_gen_ai_client_operation_time_to_first_chunk(meter),
        names.create_gen_ai_client_operation_time_per_output_chunk(meter),
        names.create_gen_ai_client_token_usage(meter),
    }
    found = metered.metrics
    assert {(metric.name, metric.unit) for metric in found.values()} == expected
    seconds = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    tokens = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
    for name, metric in found.items():
        bounds = metric.data.data_points[0].explicit_bounds
        assert tuple(bounds) == (tokens if name == TOKENS else seconds)


def test_a_call_counts_once_with_its_tokens(metered: Metered) -> None:
    """Retries are attempts of one operation, and what is not streamed has no chunks."""
    with recording(meter_provider=metered.provider) as recorded:
        with chatdebug.step() as step:
            model = Model(answer(429), answer())
            model.call()
            model.call()
        (row,) = recorded.of_run(recorded.run)
        assert row.id == step.id
    assert row.finished_at is not None
    ((attributes, count, seconds),) = metered.points(DURATION)
    assert (attributes, count) == (ANSWERED, 1)
    assert seconds == pytest.approx((row.finished_at - row.started_at) / 1e6, abs=2e-6)
    by_type = {
        attributes.pop("gen_ai.token.type"): (attributes, total) for attributes, _, total in metered.points(TOKENS)
    }
    assert by_type == {
        "input": (ANSWERED, row.usage["input_tokens"]),
        "output": (ANSWERED, row.usage["output_tokens"]),
    }
    assert metered.points(FIRST_CHUNK) == metered.points(PER_CHUNK) == []


def test_a_stream_counts_its_chunks(metered: Metered) -> None:
    with recording(meter_provider=metered.provider) as recorded:
        with closing(Model().open()) as response:
            chunks = len(list(response.iter_raw()))
        (span,) = [span for span in recorded.spans.values() if span.name.startswith("chat")]
    assert chunks > 3
    ((attributes, count, seconds),) = metered.points(FIRST_CHUNK)
    assert (attributes, count) == (ANSWERED, 1)
    assert span.attributes is not None
    assert seconds == span.attributes["gen_ai.response.time_to_first_chunk"]
    ((attributes, count, seconds),) = metered.points(PER_CHUNK)
    assert (attributes, count) == (ANSWERED, chunks - 1)
    assert seconds > 0
    assert [count for _, count, _ in metered.points(DURATION)] == [1]


def test_an_error_is_told_by_its_type_and_an_interruption_by_none(metered: Metered) -> None:
    with recording(meter_provider=metered.provider) as recorded:
        model = Model(answer(429), httpx.ConnectError("gone"))
        model.call()
        with pytest.raises(httpx.ConnectError):
            model.call()
        with closing(model.open()) as response:
            next(response.iter_raw())
        rows = [(row.status.value, (row.error or {}).get("type")) for row in recorded.steps]
    assert [status for status, _ in rows] == ["error", "error", "interrupted"]
    assert [kind for _, kind in rows] == [rows[0][1], "httpx.ConnectError", None]
    assert [given.get("error.type") for given, _, _ in metered.points(DURATION)] == [kind for _, kind in rows]


def test_what_a_broken_stream_had_told_of_its_tokens_is_counted(metered: Metered) -> None:
    message = {"type": "message_start", "message": {"id": "m", "model": "c", "usage": {"input_tokens": 7}}}
    chunks = [f"event: message_start\ndata: {json.dumps(message)}\n\n".encode(), b": wait\n\n"]
    model = Model(httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks(chunks)))
    with recording(meter_provider=metered.provider):
        url = "https://api.anthropic.com/v1/messages"
        response = model.sync.send(model.sync.build_request("POST", url, json={"stream": True}), stream=True)
        next(response.iter_raw())
        response.close()
    ((attributes, count, tokens),) = metered.points(TOKENS)
    assert (attributes["gen_ai.token.type"], count, tokens) == ("input", 1, 7)


def test_a_trace_that_the_sampler_drops_counts(metered: Metered) -> None:
    with recording(meter_provider=metered.provider, sampler=ALWAYS_OFF) as recorded:
        Model().call()
        assert recorded.spans == {}
    assert [count for _, count, _ in metered.points(DURATION)] == [1]


def test_what_is_not_recorded_at_all_does_not_count(metered: Metered) -> None:
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with recording(meter_provider=metered.provider), suppress_instrumentation():
        Model().call()
    assert metered.metrics == {}


@pytest.mark.parametrize(
    ("scope", "counted"), [("opentelemetry.instrumentation.genai.openai", False), ("anthropic", True)]
)
@pytest.mark.parametrize("explicit", [False, True])
def test_a_call_that_another_instrumentation_counts_is_not_counted_again(
    metered: Metered, scope: str, counted: bool, explicit: bool
) -> None:
    """OpenTelemetry's instrumentations of GenAI record the same metrics; an SDK's own spans come without."""
    with recording(meter_provider=metered.provider) as recorded:
        assert recorded.provider is not None
        tracer = recorded.provider.get_tracer(scope)
        given = {"gen_ai.operation.name": "chat"}
        with tracer.start_as_current_span("chat", kind=SpanKind.CLIENT, attributes=given) as span:
            if explicit:
                with chatdebug.step(), tracer.start_as_current_span("chat", attributes=given):
                    Model().call()
            else:
                Model().call()
        assert span.is_recording() is False
    assert [count for _, count, _ in metered.points(DURATION)] == ([1] if counted else [])


def test_a_meter_provider_that_fails_harms_nothing() -> None:
    class Failing(api.NoOpMeterProvider):
        def get_meter(self, *args: Any, **given: Any) -> Any:
            raise RuntimeError("theirs")

    with recording(meter_provider=Failing()) as recorded:
        Model().call()
        assert recorded.step.status is chatdebug.Status.COMPLETED
        assert len(recorded.spans) == 3


def test_without_a_meter_provider_nothing_is_kept_for_it() -> None:
    """The API's own provider records nothing, and no chunk's time is kept."""
    assert call_metrics.call_metrics(None) is None
    with recording() as recorded, closing(Model().open()) as response:
        iterator = response.iter_raw()
        next(iterator)
        next(iterator)
        recorded.recorder.inbox.settle(wait=True)
        (attempt,) = recorded.recorder.open_attempts.values()
        assert attempt.gaps_ns is None  # type: ignore[attr-defined]


def test_the_times_of_a_bounded_number_of_chunks_are_kept(metered: Metered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_chatdebug.capture.attempt.MOST_GAPS", 2)
    with recording(meter_provider=metered.provider), closing(Model().open()) as response:
        response.read()
    assert [count for _, count, _ in metered.points(PER_CHUNK)] == [2]


def test_the_trace_is_an_exemplar(metered: Metered) -> None:
    with recording(meter_provider=metered.provider) as recorded:
        Model().call()
        step = recorded.step
    (point,) = metered.metrics[DURATION].data.data_points
    assert [f"{exemplar.span_id:016x}" for exemplar in point.exemplars] == [step.id]
