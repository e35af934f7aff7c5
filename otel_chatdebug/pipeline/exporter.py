"""The exporters: spans of other sources become rows, and all spans go on by OTLP in pieces that a receiver takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_chatdebug import lifecycle
from otel_chatdebug.attributes import record_from_span
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline.processor import recorded_live
from otel_chatdebug.records import Record

logger = logging.getLogger("otel_chatdebug")

MESSAGE_LIMIT: Final = 3 * 1024 * 1024
"""Bytes of one OTLP message, by our estimate: gRPC receivers refuse messages over 4 MiB for good."""

SPAN_OVERHEAD: Final = 512
"""Bytes that a span costs beside its texts, estimated generously."""


class _SpanSource:
    """Rows of finished spans, for the writer."""

    final = True

    def __init__(self, found: list[Record]) -> None:
        self.queued = True
        self._found = found

    def records(self) -> Sequence[Record]:
        return self._found


class ChatDebugSpanExporter(SpanExporter):
    """Writes rows for finished spans of ours that this process did not record live (entry point ``chatdebug``).

    Whatever this process records itself is in the tables already, and says more than its spans do.
    """

    def __init__(self) -> None:
        lifecycle.arm()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the span processor's thread. Never fails: what cannot be written is the writer's to tell."""
        try:
            recorder = lifecycle.arm()
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


class ChatDebugOTLPSpanExporter(ChatDebugSpanExporter):
    """Sends all spans on by OTLP, and writes the tables as its base does (entry point ``chatdebug_otlp``).

    The protocol is that of the standard ``OTEL_EXPORTER_OTLP_*PROTOCOL`` variables; default ``grpc``, as the SDK's.
    What is sent is cut into pieces of `MESSAGE_LIMIT` bytes at most. ``refused`` counts spans that were not taken.
    """

    def __init__(self, otlp: SpanExporter | None = None) -> None:
        super().__init__()
        self._otlp = otlp or make_otlp_exporter()
        self.refused = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        super().export(spans)
        result = SpanExportResult.SUCCESS
        for piece in pieces(spans):
            if self._otlp.export(piece) is not SpanExportResult.SUCCESS:
                self.refused += len(piece)
                result = SpanExportResult.FAILURE
        return result

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
    """About how many bytes a span takes in an OTLP message, never much too few."""
    size = SPAN_OVERHEAD + _size(span.attributes)
    for event in span.events:
        size += SPAN_OVERHEAD // 8 + _size(event.attributes)
    for link in span.links:
        size += SPAN_OVERHEAD // 8 + _size(link.attributes)
    return size


def _size(attributes: Any) -> int:
    return sum(len(name) + 8 + _value_size(value) for name, value in (attributes or {}).items())


def _value_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    if isinstance(value, (list, tuple)):
        return sum(_value_size(item) + 4 for item in value)
    return len(value) if isinstance(value, bytes) else 10
