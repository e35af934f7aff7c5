"""The metrics of the GenAI conventions: how long calls took, and how many tokens they used.

They are recorded where the application has a meter provider, for every call that is watched: also where a sampler
drops the trace, since a rate that depends on sampling would tell nothing. Not for a call whose span another
OpenTelemetry instrumentation has made: that one records these metrics itself, and tokens must not be counted twice.

Recording is user code (a meter provider may be anybody's), so it is deferred like the end of a span.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry.metrics import Histogram, MeterProvider
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as names
from opentelemetry.trace import NonRecordingSpan, SpanContext

from otel_chatdebug.attributes import ERROR_TYPE, OPERATION_NAME, SCHEMA_URL
from otel_chatdebug.faults import fault
from otel_chatdebug.version import __version__

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Boundaries of the buckets of the three durations, by the conventions."""

TOKENS: Final = tuple(4**power for power in range(14))
"""Boundaries of the buckets of token counts, by the conventions: 1, 4, 16, ... 67,108,864."""

MOST_GAPS: Final = 65_536
"""Chunks of one body whose time is kept until it has ended (8 bytes each); those behind them are not recorded."""

OWN_METRICS: Final = "opentelemetry."
"""How the instrumentation scopes begin whose owners record these metrics themselves. An SDK's own spans (anthropic's,
mistralai's) come without metrics."""

TOKEN_TYPES: Final = {
    "input_tokens": gen_ai.GenAiTokenTypeValues.INPUT.value,
    "output_tokens": gen_ai.GenAiTokenTypeValues.OUTPUT.value,
}
"""``gen_ai.token.type`` of the counts in a step's usage."""

_API: Final = "opentelemetry.metrics"
"""Where the classes of the API's own providers live, which record nothing."""


class CallMetrics:
    """The four instruments of one meter provider. Any thread; user code behind it: never while folding."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = metrics.get_meter("otel_chatdebug", __version__, provider, SCHEMA_URL)

        def seconds(name: str, description: str) -> Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=SECONDS)

        self._duration = seconds(names.GEN_AI_CLIENT_OPERATION_DURATION, "GenAI operation duration.")
        self._to_first_chunk = seconds(
            names.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK,
            "Time from the start of a streamed call to its first chunk.",
        )
        self._per_chunk = seconds(
            names.GEN_AI_CLIENT_OPERATION_TIME_PER_OUTPUT_CHUNK,
            "Time between two chunks of a stream, as they were read.",
        )
        self._tokens = meter.create_histogram(
            names.GEN_AI_CLIENT_TOKEN_USAGE,
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )

    def call_ended(
        self,
        attributes: Mapping[str, Any],
        error_type: str | None,
        seconds: float,
        to_first_chunk: float | None,
        usage: Mapping[str, int] | None,
        span_context: SpanContext | None,
    ) -> None:
        """A step is over. ``usage`` is that of its record; ``to_first_chunk`` in seconds, of a stream."""
        context = _context(span_context)
        ended = attributes if error_type is None else {**attributes, ERROR_TYPE: error_type}
        self._duration.record(seconds, ended, context)
        if to_first_chunk is not None:
            self._to_first_chunk.record(to_first_chunk, attributes, context)
        for name, kind in TOKEN_TYPES.items():
            count = (usage or {}).get(name)
            if count is not None:
                self._tokens.record(count, {**attributes, gen_ai.GEN_AI_TOKEN_TYPE: kind}, context)

    def chunks_came(
        self, attributes: Mapping[str, Any], gaps_ns: Iterable[int], span_context: SpanContext | None
    ) -> None:
        """A stream is over; ``gaps_ns`` are the nanoseconds between its chunks."""
        context = _context(span_context)
        for gap in gaps_ns:
            self._per_chunk.record(gap / 1e9, attributes, context)


def _context(span_context: SpanContext | None) -> Any:
    """For exemplars: the metric points to the trace."""
    return None if span_context is None else trace.set_span_in_context(NonRecordingSpan(span_context))


_known: weakref.WeakKeyDictionary[MeterProvider, CallMetrics] = weakref.WeakKeyDictionary()


def call_metrics(provider: MeterProvider | None) -> CallMetrics | None:
    """The instruments of ``provider``, default the global one; None where nobody would record.

    User code the first time: not to be called while folding. Raises nothing.
    """
    provider = provider or metrics.get_meter_provider()
    if type(provider).__module__.startswith(_API):
        return None
    found = _known.get(provider)
    if found is None:
        try:
            found = _known[provider] = CallMetrics(provider)
        except Exception:
            fault("making the metrics of calls")
    return found


def told_elsewhere(span: Any) -> bool:
    """Whether ``span`` is a GenAI span of an OpenTelemetry instrumentation: it has metrics and events of its own."""
    scope = getattr(span, "instrumentation_scope", None)
    given = getattr(span, "attributes", None)
    return bool(scope and given and scope.name.startswith(OWN_METRICS) and OPERATION_NAME in given)
