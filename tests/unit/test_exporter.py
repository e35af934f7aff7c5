"""The exporters: pieces that a receiver takes, and rows for spans that this process did not record itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GRPCExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HTTPExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceState
from opentelemetry.trace import Status as SpanStatus

import otel_chatdebug as chatdebug
from otel_chatdebug import attributes
from otel_chatdebug.pipeline.exporter import (
    MESSAGE_LIMIT,
    ChatDebugOTLPSpanExporter,
    ChatDebugSpanExporter,
    PiecewiseSpanExporter,
    estimated_size,
    make_otlp_exporter,
    pieces,
)
from otel_chatdebug.pipeline.recorder import active
from otel_chatdebug.records import AttemptRecord, Source
from otel_chatdebug.status import Status
from tests.support.recording import Model, recording
from tests.support.records import NOW, attempt_record, run_record, step_record

SUCCESS, FAILURE = SpanExportResult.SUCCESS, SpanExportResult.FAILURE

GRPC_DEFAULT_LIMIT = 4 * 1024 * 1024
"""Bytes of a message that a gRPC receiver takes unless it is told otherwise."""


def span(name: str = "a span", trace: int = 0xA, id: int = 0xB, **more: Any) -> ReadableSpan:
    known: dict[str, Any] = {
        "context": SpanContext(trace, id, is_remote=False),
        "resource": Resource({"service.name": "elsewhere"}),
        "kind": SpanKind.CLIENT,
        "start_time": NOW * 1000,
        "end_time": NOW * 1000 + 5_000_000,
        "instrumentation_scope": InstrumentationScope("otel_chatdebug", "0", attributes.SCHEMA_URL),
    }
    return ReadableSpan(name, **(known | more))


class Receiver(SpanExporter):
    """Keeps what it is sent, and answers as it is told."""

    def __init__(self, answer: Callable[[Sequence[ReadableSpan]], SpanExportResult] = lambda _: SUCCESS) -> None:
        self.batches: list[list[str]] = []
        self.is_shut_down = False
        self._answer = answer

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._answer(spans)
        self.batches.append([span.name for span in spans])
        return result

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def shutdown(self) -> None:
        self.is_shut_down = True


# -- pieces

texts = st.text(max_size=300)
scalars = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats()
attribute_values = st.recursive(
    scalars | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
span_attributes = st.none() | st.dictionaries(texts, attribute_values, max_size=5)
schemas = st.none() | st.just(attributes.SCHEMA_URL)
contexts = st.builds(
    SpanContext,
    st.just(2**128 - 1),
    st.just(2**64 - 1),
    is_remote=st.booleans(),
    trace_state=st.just(TraceState([("vendor", "x" * 200), ("other", "y")])) | st.just(TraceState()),
)
spans = st.builds(
    span,
    texts,
    context=contexts,
    parent=st.none() | contexts,
    attributes=span_attributes,
    events=st.lists(st.builds(Event, texts, span_attributes, st.just(2**64 - 1)), max_size=3),
    links=st.lists(st.builds(Link, contexts, span_attributes), max_size=3),
    status=st.just(SpanStatus(StatusCode.OK)) | st.builds(SpanStatus, st.just(StatusCode.ERROR), texts),
    resource=st.builds(Resource, st.dictionaries(texts, texts, max_size=3), st.just(attributes.SCHEMA_URL)),
    instrumentation_scope=st.none() | st.builds(InstrumentationScope, texts, texts, schemas, span_attributes),
)


def encoded_size(spans: Sequence[ReadableSpan]) -> int:
    return int(encode_spans(spans).ByteSize())


@given(st.lists(spans, min_size=1, max_size=3))
def test_the_estimate_is_never_below_the_real_size(batch: list[ReadableSpan]) -> None:
    """Else a piece could be larger than the receiver takes, and would be lost for good."""
    assert sum(map(estimated_size, batch)) >= encoded_size(batch)


@pytest.mark.parametrize(
    "more",
    [
        {"attributes": {f"k{number}": "" for number in range(1000)}},
        {"attributes": {f"ключ{number}": -number for number in range(1000)}},
        {"attributes": {f"k{number}": True for number in range(1000)}},
        {"attributes": {"k": [-1] * 5000}},
        {"attributes": {"k": ["x" * 200] * 5000}},
        {"attributes": {"k": [[["ü"]]] * 5000}},
        {"attributes": {"k": {f"k{number}": {"k": b"x" * 200} for number in range(5000)}}},
        {"events": [Event("ä" * 200, {"k": "v"}, 2**64 - 1)] * 1000},
        {"links": [Link(SpanContext(1, 1, True), {"k": "v" * 200})] * 1000},
        {"resource": Resource({f"k{number}": "v" for number in range(1000)})},
        {"status": SpanStatus(StatusCode.ERROR, "é" * 100_000)},
        {"name": "é" * 100_000},
    ],
    ids=str.split("empty numbers flags integers texts nested mappings events links resource status name"),
)
def test_the_estimate_holds_for_a_thousand_of_anything(more: dict[str, Any]) -> None:
    """What is generous for one span would hide what is too little for each item."""
    one = span(**more)

    assert encoded_size([one]) <= estimated_size(one) <= 5 * encoded_size([one])


def test_the_estimate_is_close_where_it_matters() -> None:
    """Of spans that carry content the texts are nearly all."""
    large = span(attributes={"content": "ä" * 50_000, "more": ["x" * 10_000] * 2})

    assert encoded_size([large]) <= estimated_size(large) <= 1.02 * encoded_size([large])


@given(st.lists(st.integers(0, 3000), max_size=30), st.integers(1000, 10_000))
def test_pieces_keep_every_span_in_order_and_are_below_the_limit(sizes: list[int], limit: int) -> None:
    batch = [span(attributes={"text": "x" * size}) for size in sizes]

    found = pieces(batch, limit)

    assert [one for piece in found for one in piece] == batch
    assert all(len(piece) == 1 or encoded_size(piece) <= limit for piece in found)
    # No more pieces than needed: two that follow one another would not fit into one.
    for one, other in pairwise(found):
        assert sum(map(estimated_size, [*one, other[0]])) > limit


def test_200_spans_of_60_kb_are_sent_in_messages_that_any_grpc_receiver_takes() -> None:
    batch = [span(str(number), attributes={"text": "x" * 60_000}) for number in range(200)]

    found = pieces(batch)

    assert sum(map(len, found)) == 200
    assert max(map(encoded_size, found)) < MESSAGE_LIMIT < GRPC_DEFAULT_LIMIT
    assert encoded_size(batch) > GRPC_DEFAULT_LIMIT


# -- sending


def test_what_was_not_taken_is_counted_and_told() -> None:
    """A piece that is refused is lost; the pieces after it are sent all the same."""
    receiver = Receiver(lambda batch: FAILURE if batch[0].name == "0" else SUCCESS)
    batch = [span(str(number), attributes={"text": "x" * 1_000_000}) for number in range(5)]
    exporter = PiecewiseSpanExporter(receiver)

    assert exporter.export(batch) is FAILURE
    assert (receiver.batches, exporter.refused) == ([["0", "1", "2"], ["3", "4"]], 3)
    assert exporter.export(batch[3:]) is SUCCESS
    assert exporter.refused == 3


def test_a_span_that_cannot_be_encoded_costs_no_other_span() -> None:
    """As the SDK's encoder does it: one lone surrogate in a name raises for the whole batch."""

    def encode(batch: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(batch)
        return SUCCESS

    receiver = Receiver(encode)
    names = ["a", "b", "c\ud800", "d", "e"]
    exporter = PiecewiseSpanExporter(receiver)

    assert exporter.export([span(name) for name in names]) is FAILURE
    assert sorted(name for batch in receiver.batches for name in batch) == ["a", "b", "d", "e"]
    assert exporter.refused == 1


def test_an_exporter_that_raises_is_counted_as_refusal_and_not_asked_for_each_span() -> None:
    calls = []

    def fail(batch: Sequence[ReadableSpan]) -> SpanExportResult:
        calls.append(len(batch))
        raise OSError("no network")

    exporter = PiecewiseSpanExporter(Receiver(fail))

    assert exporter.export([span(), span()]) is FAILURE
    assert (calls, exporter.refused) == ([2], 2)


def test_the_exporter_of_both_sends_the_spans_on_and_shuts_down_what_sends_them() -> None:
    receiver = Receiver(lambda batch: FAILURE if len(batch) == 1 else SUCCESS)
    with recording() as recorded:
        exporter = ChatDebugOTLPSpanExporter(receiver)
        assert exporter.export(elsewhere()) is SUCCESS
        assert exporter.export(elsewhere()[:1]) is FAILURE
        assert exporter.force_flush()
        exporter.shutdown()

        assert len(recorded.attempts) == 1

    assert exporter.refused == 1
    assert [len(batch) for batch in receiver.batches] == [4, 1]
    assert receiver.is_shut_down


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, GRPCExporter),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, GRPCExporter),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": " http/protobuf"}, HTTPExporter),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, HTTPExporter),
    ],
)
def test_the_protocol_is_that_of_the_standard_variables(
    environment: dict[str, str], expected: type[SpanExporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    exporter = make_otlp_exporter()

    assert type(exporter) is expected
    exporter.shutdown()


# -- rows


def elsewhere() -> list[ReadableSpan]:
    """A run, its step and its attempt, as their spans come from another process."""
    run_id, times = f"{0xA:032x}", {"started_at": NOW, "finished_at": NOW + 5000, "trace_id": f"{0xA:032x}"}
    run = run_record(run_id, status=Status.COMPLETED, rank=3, chat_id="c", span_id="1" * 16, **times)
    step = step_record("2" * 16, status=Status.COMPLETED, rank=3, run_id=run_id, usage={"input_tokens": 7}, **times)
    attempt = attempt_record("3" * 16, status=Status.ERROR, run_id=run_id, step_id="2" * 16, **times)
    return [
        span("chat_turn", id=0x1111111111111111, attributes=attributes.run_attributes(run)),
        span("chat", id=0x2222222222222222, attributes=attributes.step_attributes(step, operation_name="chat")),
        span("POST", id=0x3333333333333333, attributes=attributes.attempt_attributes(attempt)),
        span("GET /health", id=0x4444444444444444),
    ]


def test_finished_spans_of_another_process_become_rows() -> None:
    with recording() as recorded:
        assert ChatDebugSpanExporter().export(elsewhere()) is SUCCESS

        run, step, attempt = recorded.run, recorded.step, recorded.attempt

    assert (run.id, run.kind, run.chat_id, run.service_name) == (f"{0xA:032x}", "chat_turn", "c", "elsewhere")
    assert (step.id, step.run_id, step.usage) == ("2" * 16, run.id, {"input_tokens": 7})
    assert (attempt.id, attempt.step_id, attempt.run_id) == ("3" * 16, step.id, run.id)
    assert (run.status, step.status, attempt.status) == (Status.COMPLETED, Status.COMPLETED, Status.ERROR)
    assert {run.source, step.source, attempt.source} == {Source.SPAN}
    assert run.replica_id == step.replica_id == attempt.replica_id != "replica"


def test_spans_that_this_process_recorded_live_are_not_written_a_second_time() -> None:
    with recording() as recorded:
        with chatdebug.run("chat_turn", chat_id="c"):
            Model().call()
        mine = list(recorded.spans.values())
        written: list[Any] = []
        recorded.recorder.sink.put = written.append  # type: ignore[method-assign]

        assert len(mine) == 3
        assert ChatDebugSpanExporter().export(mine) is SUCCESS
        assert written == []

        assert ChatDebugSpanExporter().export([*mine, *elsewhere()]) is SUCCESS
        assert [record.id for source in written for record in source.records()][1:] == ["2" * 16, "3" * 16]


def test_a_row_that_was_recorded_live_stays_as_it_is_where_its_span_comes_back() -> None:
    """Through a collector, say: then its scope is an equal one and not the same."""
    with recording() as recorded:
        Model().call()
        before = (recorded.runs, recorded.steps, recorded.attempts)
        back = [
            span(
                one.name,
                context=one.context,
                parent=one.parent,
                attributes=one.attributes,
                end_time=one.end_time,
                start_time=one.start_time,
            )
            for one in recorded.spans.values()
        ]
        assert ChatDebugSpanExporter().export(back) is SUCCESS

        assert (recorded.runs, recorded.steps, recorded.attempts) == before
        assert {row.source for rows in before for row in rows} == {Source.LIVE}


def test_one_span_that_says_nonsense_does_not_cost_the_rows_of_the_others() -> None:
    nonsense = span(id=0x5, attributes={"chatdebug.record": "attempt", "chatdebug.attempt.number": "?", "url.full": 1})
    with recording() as recorded:
        ChatDebugSpanExporter().export([nonsense, *elsewhere()])

        assert len(recorded.attempts) == 2
        assert all(isinstance(row, AttemptRecord) for row in recorded.attempts)


def test_after_a_shutdown_an_exporter_that_is_still_there_starts_nothing() -> None:
    """What remains is exported at the provider's shutdown, and that comes later."""
    with recording():
        exporter = ChatDebugSpanExporter()

    assert exporter.export(elsewhere()) is SUCCESS
    assert active() is None


def test_where_nothing_is_recorded_spans_are_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go on by OTLP all the same: the application's own spans are none of our business."""
    monkeypatch.setenv("OTEL_CHATDEBUG_ENABLED", "never")
    receiver = Receiver()

    assert ChatDebugSpanExporter().export(elsewhere()) is SUCCESS
    assert ChatDebugOTLPSpanExporter(receiver).export(elsewhere()) is SUCCESS
    assert len(receiver.batches[0]) == 4
