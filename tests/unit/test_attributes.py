"""Records as span attributes and back: what a span carries, and the list of what it does not."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, StatusCode
from opentelemetry.trace import Status as SpanStatus

from otel_chatdebug import attributes
from otel_chatdebug.records import AttemptRank, AttemptRecord, Record, RunRecord, Source, StepRecord
from otel_chatdebug.status import Status
from otel_chatdebug.tables import schema
from tests.support.records import NOW, attempt_record, optional_texts, run_record, step_record, texts

TABLES: dict[type[Any], str] = {RunRecord: "runs", StepRecord: "steps", AttemptRecord: "attempts"}

outcomes = st.sampled_from([Status.INTERRUPTED, Status.ERROR, Status.COMPLETED])
span_ids = st.integers(1, 2**64 - 1).map(lambda number: f"{number:016x}")
trace_ids = st.integers(1, 2**128 - 1).map(lambda number: f"{number:032x}")
counts = st.none() | st.integers(0, 2**40)


@st.composite
def finished(draw: st.DrawFn, record_type: type[Any], **columns: st.SearchStrategy[Any]) -> Any:
    """A record of something that has ended, with every column that a span carries."""
    status = draw(outcomes)
    error = None
    if status is Status.ERROR:
        error = {"type": draw(texts.filter(bool)), "message": draw(texts)}
    values: dict[str, Any] = {name: draw(strategy) for name, strategy in columns.items()}
    started_at = draw(st.integers(NOW, NOW + 10**9))
    return record_type(
        **{"id": draw(span_ids), "rank": status.priority, **values},
        updated_at=NOW,
        replica_id="maker",
        status=status,
        error=error,
        started_at=started_at,
        finished_at=started_at + draw(st.integers(0, 10**9)),
        trace_id=draw(trace_ids),
        chat_id=draw(optional_texts),
    )


runs = finished(
    RunRecord,
    id=trace_ids,
    kind=texts.filter(bool),
    span_id=span_ids,
    root_chat_id=optional_texts,
    parent_chat_id=optional_texts,
    trigger_message_id=optional_texts,
    history_tip_message_id=optional_texts,
    service_name=texts.filter(bool),
)
steps = finished(
    StepRecord,
    run_id=trace_ids,
    step_number=st.integers(1, 2**31 - 1),
    operation=st.sampled_from([None, "stream", "generate", "by hand"]),
    provider=optional_texts,
    model=optional_texts,
    usage=st.fixed_dictionaries(dict.fromkeys(attributes.USAGE, counts)).map(
        lambda usage: {name: count for name, count in usage.items() if count is not None} or None
    ),
    metadata=st.none()
    | st.fixed_dictionaries(
        {"response_model": texts}, optional={"response_id": texts, "finish_reasons": st.lists(texts, min_size=1)}
    ),
)
attempts = finished(
    AttemptRecord,
    rank=st.just(AttemptRank.FINAL),
    step_id=span_ids,
    run_id=trace_ids,
    number=st.integers(1, 1000),
    end_reason=optional_texts,
    method=st.sampled_from(["GET", "POST", "BREW", "post"]),
    url=optional_texts,
    path=optional_texts,
    response_status=st.none() | st.integers(100, 599),
    bytes_received=st.integers(0, 2**63 - 1),
    events=st.integers(0, 2**63 - 1),
)


def span_of(record: Any) -> ReadableSpan:
    """The finished span that would carry the record."""
    resource = Resource({})
    if isinstance(record, RunRecord):
        span_attributes = attributes.run_attributes(record)
        resource = Resource({"service.name": record.service_name} if record.service_name is not None else {})
    elif isinstance(record, StepRecord):
        span_attributes = attributes.step_attributes(record, operation_name="chat", attempts=2)
    else:
        span_attributes = attributes.attempt_attributes(record)
    span_id = record.span_id or record.id
    status = SpanStatus(StatusCode.UNSET)
    if record.status is Status.ERROR:
        status = SpanStatus(StatusCode.ERROR, record.error["message"] or None)
    return ReadableSpan(
        "a name",
        context=SpanContext(int(record.trace_id, 16), int(span_id, 16), is_remote=False),
        resource=resource,
        attributes=span_attributes,
        status=status,
        start_time=record.started_at * 1000,
        end_time=record.finished_at * 1000,
    )


def carried(record: Record) -> dict[str, Any]:
    """What a span carries of a record, by column."""
    left_out = attributes.NOT_CARRIED[TABLES[type(record)]]
    return {item.name: getattr(record, item.name) for item in fields(record) if item.name not in left_out}


@given(st.one_of(runs, steps, attempts))
def test_a_record_comes_back_from_its_span_in_every_column_that_is_not_listed_as_left_out(record: Any) -> None:
    expected = carried(record)
    if isinstance(record, StepRecord | AttemptRecord):
        expected["span_id"] = record.id
    if isinstance(record, StepRecord) and record.usage and {"input_tokens", "output_tokens"} <= record.usage.keys():
        total = record.usage["input_tokens"] + record.usage["output_tokens"]
        expected["usage"] = {**record.usage, "total_tokens": total}
    if isinstance(record, AttemptRecord):
        expected["duration_ms"] = pytest.approx((record.finished_at - record.started_at) / 1000)

    found = attributes.record_from_span(span_of(record), "reader")

    assert type(found) is type(record)
    assert carried(found) == expected
    assert (found.source, found.replica_id, found.updated_at) == (Source.SPAN, "reader", record.finished_at)


@pytest.mark.parametrize(("kind", "table"), TABLES.items())
def test_every_column_is_carried_or_listed_with_the_reason_why_not(kind: type[Any], table: str) -> None:
    columns = set(getattr(schema, table).columns.keys())
    left_out = attributes.NOT_CARRIED[table]

    assert columns == {item.name for item in fields(kind)} | {"heartbeat_at", "changed_at"}
    assert left_out.keys() <= columns
    assert all(left_out.values())


@given(st.one_of(runs, steps, attempts))
def test_the_names_are_of_the_conventions_or_ours(record: Any) -> None:
    """Nothing stands under a prefix that is neither; our own names stand under ``chatdebug.`` only."""
    prefixes = ("chatdebug.", "gen_ai.", "http.", "url.", "error.type")

    assert all(name.startswith(prefixes) for name in span_of(record).attributes or {})


def test_absent_values_are_left_out() -> None:
    record = run_record(status=Status.COMPLETED, finished_at=NOW, trace_id="1" * 32, span_id="2" * 16)

    assert attributes.run_attributes(record) == {
        "chatdebug.record": "run",
        "chatdebug.status": "completed",
        "chatdebug.run.id": "run",
        "chatdebug.run.kind": "chat_turn",
    }


@pytest.mark.parametrize("status", Status)
def test_the_error_type_is_there_exactly_when_the_status_is_error(status: Status) -> None:
    """Also where the record has an error that its status has overcome, and where it has none."""
    told = {"type": "overloaded_error", "message": "Overloaded"}
    for error, expected in ((told, "overloaded_error"), (None, "_OTHER"), ({"message": "?"}, "_OTHER")):
        record = attempt_record(status=status, error=error)
        found = attributes.attempt_attributes(record).get("error.type")
        assert found == (expected if status is Status.ERROR else None)


def test_content_of_the_summary_and_of_the_applications_metadata_stays_off_the_spans() -> None:
    run = run_record(summary={"first_message": "MARKER"}, owner_id="MARKER", model_config_id="MARKER")
    step = step_record(metadata={"note": "MARKER", "response_model": "m"}, assistant_message_id="MARKER")

    found = {**attributes.run_attributes(run), **attributes.step_attributes(step, operation_name="chat")}

    assert "MARKER" not in str(found)
    assert found["gen_ai.response.model"] == "m"


@pytest.mark.parametrize(("number", "count"), [(1, None), (2, 1), (5, 4)])
def test_only_a_request_that_is_sent_again_has_a_resend_count(number: int, count: int | None) -> None:
    assert attributes.attempt_attributes(attempt_record(number=number)).get("http.request.resend_count") == count


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (("https", "api.openai.com", None), {"server.address": "api.openai.com", "server.port": 443}),
        (("http", "127.0.0.1", None), {"server.address": "127.0.0.1", "server.port": 80}),
        (("http", "::1", 8080), {"server.address": "::1", "server.port": 8080}),
        (("chat+unix", "", None), {}),
    ],
)
def test_the_server_has_a_port_where_the_url_has_none(
    url: tuple[str, str, int | None], expected: dict[str, Any]
) -> None:
    assert attributes.server_of(*url) == expected


def test_an_unknown_method_does_not_become_a_name_of_its_own() -> None:
    """HTTP conventions: names and ``http.request.method`` must be few, whatever is sent."""
    given = attributes.request_attributes("BREW", "http://pot/", {})

    assert (given["http.request.method"], given["http.request.method_original"]) == ("_OTHER", "BREW")
    assert attributes.attempt_name("BREW") == "HTTP"
    assert attributes.attempt_name("POST") == "POST"
    assert "http.request.method_original" not in attributes.request_attributes("POST", "http://pot/", {})


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.just("k"), inner)))
def test_what_goes_onto_a_span_can_be_encoded_and_is_changed_only_where_it_must_be(value: Any) -> None:
    found = attributes.encodable(value)

    repr(found).encode()
    str(found).encode()
    assert attributes.encodable(found) == found


def test_a_lone_surrogate_becomes_a_replacement_character() -> None:
    assert attributes.encodable({"a": ["x\ud83d"], "b": 1, "c": ("ö",)}) == {"a": ["x\ufffd"], "b": 1, "c": ["ö"]}


def finished_span(**more: Any) -> ReadableSpan:
    known: dict[str, Any] = {
        "context": SpanContext(0xA, 0xB, is_remote=False),
        "resource": Resource({}),
        "start_time": NOW * 1000,
        "end_time": NOW * 1000 + 999,
        "attributes": {"chatdebug.record": "attempt"},
    }
    return ReadableSpan("POST", **(known | more))


@pytest.mark.parametrize(
    "more",
    [
        {"attributes": {}},
        {"attributes": None},
        {"attributes": {"chatdebug.record": "chat"}},
        {"attributes": {"chatdebug.record": 1}},
        {"context": None},
        {"start_time": None},
        {"end_time": None},
    ],
)
def test_a_span_that_is_none_of_ours_or_has_not_ended_is_no_record(more: dict[str, Any]) -> None:
    assert attributes.record_from_span(finished_span(**more), "reader") is None


def test_a_span_of_another_language_with_little_on_it_still_becomes_a_record() -> None:
    """What is missing is told from the span itself: ids, times, its parent, its status."""
    span = finished_span(
        parent=SpanContext(0xA, 0xC, is_remote=True), status=SpanStatus(StatusCode.ERROR, "the socket broke")
    )

    found = attributes.record_from_span(span, "reader")

    assert isinstance(found, AttemptRecord)
    assert (found.id, found.step_id, found.run_id) == (f"{0xB:016x}", f"{0xC:016x}", f"{0xA:032x}")
    assert (found.status, found.error) == (Status.ERROR, {"type": "_OTHER", "message": "the socket broke"})
    assert (found.number, found.bytes_received, found.started_at, found.finished_at) == (1, 0, NOW, NOW)


@pytest.mark.parametrize("told", ["in_progress", "no status", 7])
def test_a_finished_span_is_never_in_progress(told: Any) -> None:
    found = attributes.record_from_span(
        finished_span(attributes={"chatdebug.record": "attempt", "chatdebug.status": told}), "reader"
    )

    assert found is not None
    assert found.status is Status.COMPLETED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chatdebug.attempt.number", "three"),
        ("chatdebug.attempt.number", [1]),
        ("chatdebug.attempt.bytes", "many"),
        ("http.response.status_code", "200 OK"),
    ],
)
def test_an_attribute_of_another_type_than_ours_is_as_good_as_absent(name: str, value: Any) -> None:
    found = attributes.record_from_span(
        finished_span(attributes={"chatdebug.record": "attempt", name: value}), "reader"
    )

    assert isinstance(found, AttemptRecord)
    assert (found.number, found.bytes_received, found.response_status) == (1, 0, None)


def test_the_id_of_a_local_run_differs_by_trace_and_by_root() -> None:
    """An application and its gateway share a trace and must not share a run."""
    ids = {attributes.local_run_id(trace, root) for trace in (1, 2) for root in (1, 2)}

    assert len(ids) == 4
    assert all(len(id) == 32 and int(id, 16) for id in ids)
    # SHA-256 of the two ids in hex, as other implementations must compute it.
    assert attributes.local_run_id(0xA, 0xB) == "9f65bb9384d3dce666667aaea29da883"
