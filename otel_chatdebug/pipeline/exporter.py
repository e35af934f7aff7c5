"""The exporters: spans of other sources become rows, and all spans go on by OTLP in pieces that a receiver takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_chatdebug import lifecycle
from otel_chatdebug.attributes import record_from_span
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline.processor import recorded_live
from otel_chatdebug.pipeline.recorder import active
from otel_chatdebug.records import Record, size_of

logger = logging.getLogger("otel_chatdebug")

MESSAGE_LIMIT: Final = 3 * 1024 * 1024
"""Bytes of one OTLP message, by our estimate: gRPC receivers refuse messages over 4 MiB for good."""

SPAN_OVERHEAD: Final = 256
"""Bytes that a span costs beside its texts, at most: ids, times, kind, flags, counts, and the messages around it."""

ITEM_OVERHEAD: Final = 64
"""The same for an event or a link."""

FIELD: Final = 6
"""Bytes before a text or a message, at most: protobuf's tag and length."""

NUMBER: Final = 11
"""Bytes of a number, at most: protobuf's tag and a negative integer."""


class _SpanSource:
    """Rows of finished spans, for the writer."""

    final = True

    def __init__(self, found: list[Record]) -> None:
        self.queued = True
        self.size = sum(map(size_of, found))
        self._found = found

    def strip(self) -> None:
        """Rows of spans have no content."""

    def records(self) -> Sequence[Record]:
        return self._found


class ChatDebugSpanExporter(SpanExporter):
    """Writes rows for finished spans of ours that this process did not record live (entry point ``chatdebug``).

    Whatever this process records itself is in the tables already, and says more than its spans do. Starts recording
    where nothing has yet; after ``shutdown()`` no rows are written until somebody starts it again.
    """

    def __init__(self) -> None:
        lifecycle.arm()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the span processor's thread. Never fails: what cannot be written is the writer's to tell."""
        try:
            recorder = active()
            if recorder is not None:
                found = [
                    record
                    for span in spans
                    if not recorded_live(span) and (record := record_from_span(span, recorder.replica_id)) is not None
                ]
                if found:
                    recorder.sink.put(_SpanSource(found))
        except Exception:
            fault("ChatDebugSpanExporter.export")
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Has the rows written."""
        return lifecycle.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Nothing to do: the writer belongs to the process."""


class PiecewiseSpanExporter(SpanExporter):
    """Sends spans on by OTLP in messages of `MESSAGE_LIMIT` bytes at most.

    The protocol is that of the standard ``OTEL_EXPORTER_OTLP_*PROTOCOL`` variables; default ``grpc``, as the SDK's.
    ``refused`` counts spans that were not taken.
    """

    def __init__(self, otlp: SpanExporter | None = None) -> None:
        self._otlp = otlp or make_otlp_exporter()
        self.refused = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the span processor's thread."""
        refused = sum(self._send(piece) for piece in pieces(spans))
        self.refused += refused
        return SpanExportResult.FAILURE if refused else SpanExportResult.SUCCESS

    def _send(self, piece: Sequence[ReadableSpan]) -> int:
        """How many spans of ``piece`` were refused."""
        try:
            return 0 if self._otlp.export(piece) is SpanExportResult.SUCCESS else len(piece)
        except ValueError:  # a span that cannot be encoded (whosever it is) must not cost all the others
            if len(piece) > 1:
                middle = len(piece) // 2
                return self._send(piece[:middle]) + self._send(piece[middle:])
            fault("encoding a span")
        except Exception:
            fault("PiecewiseSpanExporter.export")
        return len(piece)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._otlp.force_flush(timeout_millis)

    def shutdown(self) -> None:
        self._otlp.shutdown()


class ChatDebugOTLPSpanExporter(ChatDebugSpanExporter):
    """Sends all spans on by OTLP, and writes the tables as its base does (entry point ``chatdebug_otlp``)."""

    def __init__(self, otlp: SpanExporter | None = None) -> None:
        super().__init__()
        self._otlp = PiecewiseSpanExporter(otlp)

    @property
    def refused(self) -> int:
        """Spans that the receiver did not take."""
        return self._otlp.refused

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        super().export(spans)
        return self._otlp.export(spans)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        flushed = self._otlp.force_flush(timeout_millis)
        return super().force_flush(timeout_millis) and flushed

    def shutdown(self) -> None:
        self._otlp.shutdown()


def make_otlp_exporter() -> SpanExporter:
    """The SDK's exporter for the protocol that the environment names."""
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if (protocol or "grpc").strip() == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HTTPExporter

        return HTTPExporter()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GRPCExporter

    return GRPCExporter()


def pieces(spans: Sequence[ReadableSpan], limit: int = MESSAGE_LIMIT) -> list[list[ReadableSpan]]:
    """``spans`` in order, cut so that no piece is over ``limit`` bytes (a single larger span is a piece of its own)."""
    found: list[list[ReadableSpan]] = []
    size = limit + 1
    for span in spans:
        cost = estimated_size(span)
        if size + cost > limit:
            found.append([])
            size = 0
        found[-1].append(span)
        size += cost
    return found


def estimated_size(span: ReadableSpan) -> int:
    """How many bytes a span takes in an OTLP message, never too few: its resource and scope are counted with it."""
    size = SPAN_OVERHEAD + _text(span.name) + _text(span.status.description) + _attributes(span.attributes)
    if span.context is not None and span.context.trace_state:
        size += _text(span.context.trace_state.to_header())
    for event in span.events:
        size += ITEM_OVERHEAD + _text(event.name) + _attributes(event.attributes)
    for link in span.links:
        size += ITEM_OVERHEAD + _attributes(link.attributes)
    size += _attributes(span.resource.attributes) + _text(span.resource.schema_url)
    scope = span.instrumentation_scope
    if scope is not None:
        size += _text(scope.name) + _text(scope.version) + _text(scope.schema_url) + _attributes(scope.attributes)
    return size


def _attributes(attributes: Any) -> int:
    return sum(2 * FIELD + _text(str(name)) + FIELD + _value(value) for name, value in (attributes or {}).items())


def _value(value: Any) -> int:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return FIELD + sum(FIELD + _value(item) for item in value)
    if isinstance(value, Mapping):
        return FIELD + _attributes(value)
    return FIELD + len(value) if isinstance(value, bytes) else NUMBER


def _text(text: str | None) -> int:
    if not text:
        return 0
    return FIELD + (len(text) if text.isascii() else len(text.encode("utf-8", "replace")))
