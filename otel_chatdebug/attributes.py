"""Records as span attributes, and back.

The names are those of the semantic conventions (taken from their package, not typed by hand); only what they have no
name for stands under ``chatdebug.``. Every column of the three tables is either carried by a finished span or listed in
`NOT_CARRIED`, and a test makes the round trip over both lists: so a span of another process, or of another language,
can become a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Protocol

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes, url_attributes
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import StatusCode

from otel_chatdebug import storable
from otel_chatdebug.records import AttemptRank, AttemptRecord, Record, RunRecord, Source, StepRecord
from otel_chatdebug.status import Status

SCHEMA_URL: Final = Schemas.V1_44_0.value
"""The version of the semantic conventions that our spans follow."""

ERROR_TYPE: Final = error_attributes.ERROR_TYPE
URL_FULL: Final = url_attributes.URL_FULL
URL_PATH: Final = url_attributes.URL_PATH
RESEND_COUNT: Final = http_attributes.HTTP_REQUEST_RESEND_COUNT

CONVERSATION_ID: Final = gen_ai.GEN_AI_CONVERSATION_ID
OPERATION_NAME: Final = gen_ai.GEN_AI_OPERATION_NAME
PROVIDER_NAME: Final = gen_ai.GEN_AI_PROVIDER_NAME
REQUEST_MODEL: Final = gen_ai.GEN_AI_REQUEST_MODEL

RECORD: Final = "chatdebug.record"
"""``run``, ``step`` or ``attempt``."""
STATUS: Final = "chatdebug.status"
RUN_ID: Final = "chatdebug.run.id"
RUN_KIND: Final = "chatdebug.run.kind"
RUN_TRIGGER: Final = "chatdebug.run.trigger_message_id"
RUN_HISTORY_TIP: Final = "chatdebug.run.history_tip_message_id"
RUN_PARENT_CHAT: Final = "chatdebug.run.parent_chat_id"
RUN_ROOT_CHAT: Final = "chatdebug.run.root_chat_id"
STEP_ID: Final = "chatdebug.step.id"
STEP_NUMBER: Final = "chatdebug.step.number"
STEP_OPERATION: Final = "chatdebug.step.operation"
STEP_ATTEMPTS: Final = "chatdebug.step.attempts"
ATTEMPT_NUMBER: Final = "chatdebug.attempt.number"
ATTEMPT_END_REASON: Final = "chatdebug.attempt.end_reason"
ATTEMPT_BYTES: Final = "chatdebug.attempt.bytes"
STREAM_EVENTS: Final = "chatdebug.stream.events"
STREAM_LONGEST_GAP: Final = "chatdebug.stream.longest_gap"
"""Seconds between the two chunks of a body that were furthest apart."""

TIME_TO_FIRST_CHUNK: Final = gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK
"""Seconds from the start of the step to the first byte of its last attempt's body."""

USAGE: Final = {
    "input_tokens": gen_ai.GEN_AI_USAGE_INPUT_TOKENS,
    "output_tokens": gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS,
    "reasoning_tokens": gen_ai.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS,
    "cache_read_tokens": gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
    "cache_creation_tokens": gen_ai.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS,
}
"""``total_tokens`` has no attribute: it is the sum of input and output."""

_OF_THE_ROW: Final = {
    "source": "that a row comes from a span is told by where it is read",
    "replica_id": "of the process that writes the row",
    "updated_at": "the end of the span",
    "heartbeat_at": "of the writer",
    "changed_at": "of the writer",
}

NOT_CARRIED: Final = {
    "runs": {
        **_OF_THE_ROW,
        "owner_id": "a person's id does not leave the tables",
        "model_config_id": "no attribute; a matter of the application",
        "provider": "derived from the run's steps",
        "model": "derived from the run's steps",
        "summary": "derived from the run's steps; holds content",
    },
    "steps": {
        **_OF_THE_ROW,
        "history_tip_message_id": "on the run's span",
        "assistant_message_id": "no attribute; a matter of the application",
    },
    "attempts": {
        **_OF_THE_ROW,
        "first_byte_at": "the step's time_to_first_chunk",
        "last_byte_at": "no attribute",
        "longest_gap_at": "no attribute",
        "longest_gap_ms": "told in seconds, of a live attempt: chatdebug.stream.longest_gap",
    },
}
"""Columns that a span does not carry, and why."""

CARRIED_IN_PART: Final = {
    "error": ("type", "message"),
    "usage": tuple(USAGE),
    "metadata": ("response_model", "response_id", "finish_reasons"),
}
"""JSON columns of which a span carries these keys; ``usage.total_tokens`` is told again by their sum."""

_OTHER_METHOD: Final = http_attributes.HttpRequestMethodValues.OTHER.value
HTTP_METHODS: Final = frozenset(known.value for known in http_attributes.HttpRequestMethodValues) - {_OTHER_METHOD}
"""Methods that ``http.request.method`` takes as they are; any other is told as ``_OTHER``, to bound their number."""

_ENDED: Final = {status.value: status for status in Status if status is not Status.IN_PROGRESS}
"""What a finished span may say; anything else is told from its span status."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


_NONE: Final[Mapping[str, Any]] = {}


class StepView(Protocol):
    """What a step's span is told of: a `StepRecord`, or the live step."""

    @property
    def status(self) -> Status: ...
    @property
    def run_id(self) -> str: ...
    @property
    def step_number(self) -> int: ...
    @property
    def operation(self) -> str | None: ...
    @property
    def provider(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def chat_id(self) -> str | None: ...
    @property
    def usage(self) -> Any: ...
    @property
    def error(self) -> Any: ...
    @property
    def metadata(self) -> Any: ...


class AttemptView(Protocol):
    """What an attempt's span is told of: an `AttemptRecord`, or the live attempt."""

    @property
    def status(self) -> Status: ...
    @property
    def run_id(self) -> str: ...
    @property
    def step_id(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def end_reason(self) -> str | None: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def events(self) -> int: ...
    @property
    def method(self) -> str | None: ...
    @property
    def url(self) -> str | None: ...
    @property
    def path(self) -> str | None: ...
    @property
    def response_status(self) -> int | None: ...
    @property
    def chat_id(self) -> str | None: ...
    @property
    def error(self) -> Any: ...


def run_attributes(record: RunRecord) -> dict[str, Any]:
    """What a run's span says, from its record. Absent values are left out."""
    return _news(
        {
            RECORD: "run",
            STATUS: record.status.value,
            RUN_ID: record.id,
            RUN_KIND: record.kind,
            CONVERSATION_ID: record.chat_id,
            RUN_TRIGGER: record.trigger_message_id,
            RUN_HISTORY_TIP: record.history_tip_message_id,
            RUN_PARENT_CHAT: record.parent_chat_id,
            RUN_ROOT_CHAT: record.root_chat_id,
            ERROR_TYPE: error_type(record),
        },
        _NONE,
    )


def step_attributes(
    record: StepView,
    *,
    operation_name: str,
    attempts: int = 0,
    more: Mapping[str, Any] = _NONE,
    told: Mapping[str, Any] = _NONE,
) -> dict[str, Any]:
    """What a step's span says, from its record. ``operation_name`` is the ``gen_ai.operation.name``.

    ``more`` is said, too; what the span was ``told`` already is left out.
    """
    metadata = record.metadata or {}
    attributes = {
        RECORD: "step",
        STATUS: record.status.value,
        RUN_ID: record.run_id,
        STEP_NUMBER: record.step_number,
        STEP_OPERATION: record.operation,
        STEP_ATTEMPTS: attempts,
        OPERATION_NAME: operation_name,
        PROVIDER_NAME: record.provider,
        REQUEST_MODEL: record.model,
        CONVERSATION_ID: record.chat_id,
        gen_ai.GEN_AI_REQUEST_STREAM: True if record.operation == "stream" else None,
        gen_ai.GEN_AI_RESPONSE_MODEL: metadata.get("response_model"),
        gen_ai.GEN_AI_RESPONSE_ID: metadata.get("response_id"),
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: metadata.get("finish_reasons"),
        ERROR_TYPE: error_type(record),
    }
    if record.usage:
        for name, attribute in USAGE.items():
            attributes[attribute] = record.usage.get(name)
    attributes.update(more)
    return _news(attributes, told)


def metric_attributes(record: StepView, *, operation_name: str, server: Mapping[str, Any]) -> dict[str, Any]:
    """What the metrics of a step are told by: few values each, and none that is only one call's."""
    return _news(
        {
            OPERATION_NAME: operation_name,
            PROVIDER_NAME: record.provider,
            REQUEST_MODEL: record.model,
            gen_ai.GEN_AI_RESPONSE_MODEL: (record.metadata or {}).get("response_model"),
            server_attributes.SERVER_ADDRESS: server.get(server_attributes.SERVER_ADDRESS),
            server_attributes.SERVER_PORT: server.get(server_attributes.SERVER_PORT),
        },
        _NONE,
    )


def attempt_attributes(
    record: AttemptView, *, longest_gap: float | None = None, told: Mapping[str, Any] = _NONE
) -> dict[str, Any]:
    """What an attempt's span says, from its record.

    ``longest_gap`` in seconds, of a streamed body; what the span was ``told`` already is left out.
    """
    return _news(
        {
            RECORD: "attempt",
            STATUS: record.status.value,
            RUN_ID: record.run_id,
            STEP_ID: record.step_id,
            ATTEMPT_NUMBER: record.number,
            ATTEMPT_END_REASON: record.end_reason,
            ATTEMPT_BYTES: record.bytes_received,
            STREAM_EVENTS: record.events if record.events or longest_gap is not None else None,
            STREAM_LONGEST_GAP: longest_gap,
            **_method(record.method),
            URL_FULL: record.url,
            URL_PATH: record.path,
            http_attributes.HTTP_RESPONSE_STATUS_CODE: record.response_status,
            RESEND_COUNT: record.number - 1 or None,
            CONVERSATION_ID: record.chat_id,
            ERROR_TYPE: error_type(record),
        },
        told,
    )


def request_attributes(method: str, url: str | None, server: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler may want to see of an attempt: the HTTP attributes that are known before it is sent."""
    given = {RECORD: "attempt", **_method(method), **server}
    if url is not None:
        given[URL_FULL] = url
    return given


def server_of(scheme: str, host: str, port: int | None) -> dict[str, Any]:
    """Where a request goes, for an attempt and for its step. ``port`` is None where the URL has none."""
    return _known(
        {
            server_attributes.SERVER_ADDRESS: host or None,
            server_attributes.SERVER_PORT: port or _DEFAULT_PORTS.get(scheme),
        }
    )


def attempt_name(method: str) -> str:
    """The name of an attempt's span: its method, or ``HTTP`` for one that nobody knows."""
    return method if method in HTTP_METHODS else "HTTP"


def encodable(value: Any) -> Any:
    """A span's name, attribute or attributes with its texts made such as OTLP can encode.

    One lone surrogate (JSON can spell them, and a provider's error message may) in a name or a status fails the
    encoding of the whole batch, other people's spans included.
    """
    if isinstance(value, str):
        return value if value.isascii() else storable.text(value)
    if isinstance(value, (list, tuple)):
        return [encodable(item) for item in value]
    if isinstance(value, dict):
        return {name: encodable(item) for name, item in value.items()}
    return value


def _news(given: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``given`` is known and not ``told`` yet, encodable. Setting an attribute costs more than comparing it."""
    return {
        name: value if type(value) is int or (type(value) is str and value.isascii()) else encodable(value)
        for name, value in given.items()
        if value is not None and told.get(name) != value
    }


def local_run_id(trace_id: int, root_span_id: int) -> str:
    """The id of the auto run of a local root span that has a (remote) parent.

    An application and its gateway share a trace and must not share a run, so the trace id alone does not do.
    """
    return hashlib.sha256(f"{trace_id:032x}{root_span_id:016x}".encode()).hexdigest()[:32]


def record_from_span(span: ReadableSpan, replica_id: str) -> Record | None:
    """The record that a finished span of another process carries; None for a span that is none of ours."""
    attributes: Mapping[str, Any] = span.attributes or {}
    make = {"run": _run, "step": _step, "attempt": _attempt}.get(str(attributes.get(RECORD)))
    if make is None or span.context is None or span.start_time is None or span.end_time is None:
        return None
    failed = span.status.status_code is StatusCode.ERROR
    status = _ENDED.get(str(attributes.get(STATUS)), Status.ERROR if failed else Status.COMPLETED)
    error = None
    if status is Status.ERROR:
        error = {"type": attributes.get(ERROR_TYPE) or "_OTHER", "message": span.status.description or ""}
    common: dict[str, Any] = {
        "source": Source.SPAN,
        "replica_id": replica_id,
        "status": status,
        "error": error,
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "chat_id": attributes.get(CONVERSATION_ID),
        "started_at": span.start_time // 1000,
        "finished_at": span.end_time // 1000,
        "updated_at": span.end_time // 1000,
    }
    return make(attributes, common, span)


def _run(attributes: Mapping[str, Any], common: dict[str, Any], span: ReadableSpan) -> RunRecord:
    service = span.resource.attributes.get("service.name") if span.resource else None
    return RunRecord(
        **common,
        id=storable.name(str(attributes.get(RUN_ID) or common["trace_id"])),
        rank=common["status"].priority,
        kind=str(attributes.get(RUN_KIND) or span.name),
        trigger_message_id=attributes.get(RUN_TRIGGER),
        history_tip_message_id=attributes.get(RUN_HISTORY_TIP),
        parent_chat_id=attributes.get(RUN_PARENT_CHAT),
        root_chat_id=attributes.get(RUN_ROOT_CHAT),
        service_name=None if service is None else str(service),
    )


def _step(attributes: Mapping[str, Any], common: dict[str, Any], span: ReadableSpan) -> StepRecord:
    usage = {name: count for name, key in USAGE.items() if (count := _number(attributes.get(key))) is not None}
    if "input_tokens" in usage and "output_tokens" in usage:
        usage["total_tokens"] = usage["input_tokens"] + usage["output_tokens"]
    reasons = attributes.get(gen_ai.GEN_AI_RESPONSE_FINISH_REASONS)
    metadata = _known(
        {
            "response_model": attributes.get(gen_ai.GEN_AI_RESPONSE_MODEL),
            "response_id": attributes.get(gen_ai.GEN_AI_RESPONSE_ID),
            "finish_reasons": list(reasons) if reasons else None,
        }
    )
    return StepRecord(
        **common,
        id=common["span_id"],
        rank=common["status"].priority,
        run_id=storable.name(str(attributes.get(RUN_ID) or common["trace_id"])),
        step_number=_number(attributes.get(STEP_NUMBER)) or 1,
        operation=attributes.get(STEP_OPERATION),
        provider=attributes.get(PROVIDER_NAME),
        model=attributes.get(REQUEST_MODEL),
        usage=usage or None,
        metadata=metadata or None,
    )


def _attempt(attributes: Mapping[str, Any], common: dict[str, Any], span: ReadableSpan) -> AttemptRecord:
    parent = f"{span.parent.span_id:016x}" if span.parent else common["span_id"]
    started_ns, ended_ns = span.start_time or 0, span.end_time or 0
    return AttemptRecord(
        **common,
        id=common["span_id"],
        rank=AttemptRank.FINAL,
        step_id=storable.name(str(attributes.get(STEP_ID) or parent)),
        run_id=storable.name(str(attributes.get(RUN_ID) or common["trace_id"])),
        number=_number(attributes.get(ATTEMPT_NUMBER)) or 1,
        end_reason=attributes.get(ATTEMPT_END_REASON),
        method=attributes.get(http_attributes.HTTP_REQUEST_METHOD_ORIGINAL)
        or attributes.get(http_attributes.HTTP_REQUEST_METHOD),
        url=attributes.get(URL_FULL),
        path=attributes.get(URL_PATH),
        response_status=_number(attributes.get(http_attributes.HTTP_RESPONSE_STATUS_CODE)),
        bytes_received=_number(attributes.get(ATTEMPT_BYTES)) or 0,
        events=_number(attributes.get(STREAM_EVENTS)) or 0,
        duration_ms=(ended_ns - started_ns) / 1e6,
    )


def _method(method: str | None) -> dict[str, Any]:
    if method is None or method in HTTP_METHODS:
        return {http_attributes.HTTP_REQUEST_METHOD: method}
    return {
        http_attributes.HTTP_REQUEST_METHOD: _OTHER_METHOD,
        http_attributes.HTTP_REQUEST_METHOD_ORIGINAL: method,
    }


def error_type(record: RunRecord | StepView | AttemptView) -> str | None:
    """``error.type`` of what has ended; None unless its status is ``error``."""
    if record.status is not Status.ERROR:
        return None
    return str((record.error or {}).get("type") or "_OTHER")


def _number(value: Any) -> int | None:
    """A span of another source may carry anything; what is no whole number is as good as absent."""
    return value if type(value) is int else None


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
