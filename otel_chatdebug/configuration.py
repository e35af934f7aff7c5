"""``configure()`` and ``shutdown()``: all that an application has to call, if it calls anything."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable
from importlib.util import find_spec

from opentelemetry import trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # untyped
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SDKTracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_chatdebug import lifecycle
from otel_chatdebug.capture.instrumentor import INSTRUMENTORS
from otel_chatdebug.pipeline.exporter import PiecewiseSpanExporter
from otel_chatdebug.pipeline.permits import checked
from otel_chatdebug.redaction import Redact
from otel_chatdebug.settings import Settings, logger
from otel_chatdebug.status import Status

LIBRARIES = ("httpx", "httpx2")

_instrumented: list[BaseInstrumentor] = []
"""What `configure` has switched on, for `shutdown` to switch off."""
_one_at_a_time = threading.RLock()
"""Held by whoever configures or shuts down: two threads at once would each undo a part of what the other does."""
_made: weakref.WeakSet[SDKTracerProvider] = weakref.WeakSet()
"""The tracer providers that `configure` has made."""


def configure(
    *,
    database_url: str | None = None,
    enabled: str | None = None,
    stale_after: float | None = None,
    allow_headers: tuple[str, ...] | None = None,
    allow_query: tuple[str, ...] | None = None,
    secret_keys: tuple[str, ...] | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger_provider: LoggerProvider | None = None,
    service_name: str | None = None,
    classify_error: Callable[[BaseException | None], Status] | None = None,
    is_enabled: Callable[[str | None, str | None], bool] | None = None,
    redact: Redact | None = None,
    http_spans: bool = False,
) -> None:
    """Starts recording: patches httpx and httpx2 (now, or when they are imported) and follows the tracer provider.

    All arguments are optional and go over the environment (see `otel_chatdebug.settings`). An SDK tracer provider that
    is there is joined (``tracer_provider``, else the global one); where there is none, a global one is made, with
    ``service_name``.
    The metrics of calls go to ``meter_provider``, their events (where messages are asked for, see
    `otel_chatdebug.pipeline.call_content`) to ``logger_provider``, else to the global ones.
    OTLP is on only where ``OTEL_TRACES_EXPORTER`` or an ``OTEL_EXPORTER_OTLP_*ENDPOINT`` says so. ``classify_error``
    replaces `otel_chatdebug.classify_error`. ``is_enabled(chat_id, owner_id)`` says whether a run is recorded, in place
    of the settings in the tables (and also where ``enabled`` is ``always``); it is called in a thread of ours, at most
    once per run, its answer holds for a few seconds for the same ids, and without one in a second the run is not
    recorded.
    ``redact(text, place)`` returns what may be written of a text that our own rules have been over; where it fails or
    takes too long, ``[REDACTED]`` is (see `otel_chatdebug.redaction.hook`).
    ``http_spans`` also switches the stock httpx instrumentation on, for all
    requests that are no model calls; it imports httpx and httpx2, so alias them first.

    Can be repeated: what was in force is shut down first. Of several threads at once, each waits for the one before it,
    and what the last one says is in force. Raises nothing but ``TypeError`` and ``ValueError`` for wrong
    arguments: a bad database URL is one logged sentence, and the application goes on without tables.
    """
    ask = None if is_enabled is None else checked(is_enabled)
    for name, function in (("classify_error", classify_error), ("redact", redact)):
        if function is not None and (not callable(function) or inspect.iscoroutinefunction(function)):
            raise TypeError(f"{name} is a plain function, not {function!r}")
    for name, given, kind in (
        ("tracer_provider", tracer_provider, trace.TracerProvider),
        ("meter_provider", meter_provider, MeterProvider),
        ("logger_provider", logger_provider, LoggerProvider),
    ):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name} is a {kind.__name__} of OpenTelemetry, not {given!r}")
    settings = Settings.load(
        database_url=database_url,
        enabled=enabled,
        stale_after=stale_after,
        allow_headers=allow_headers,
        allow_query=allow_query,
        secret_keys=secret_keys,
    )
    with _one_at_a_time:
        shutdown()
        if not settings.recording:
            return
        provider = tracer_provider or trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):  # the API's own: nobody has set one
            resource = Resource.create({"service.name": service_name} if service_name else {})
            # It stays the global one for good, so it is never shut down; OTLP hangs on our processor, which is.
            provider = SDKTracerProvider(resource=resource, shutdown_on_exit=False)
            _made.add(provider)
            trace.set_tracer_provider(provider)
            if settings.other_exporters:
                logger.warning(
                    "OTEL_TRACES_EXPORTER names %s: configure() knows otlp, chatdebug, chatdebug_otlp and none. Any "
                    "other exporter is made by opentelemetry-instrument, or by a TracerProvider of the application's.",
                    ", ".join(settings.other_exporters),
                )
        delegate = None
        if settings.wants_otlp and provider in _made:  # one that was joined has exporters of its own
            delegate = BatchSpanProcessor(PiecewiseSpanExporter())
        lifecycle.arm(
            settings,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            logger_provider=logger_provider,
            classify=classify_error,
            is_enabled=ask,
            redact=redact,
            delegate=delegate,
        )
        lifecycle.warm()
        if "*" not in settings.disabled_instrumentations:
            for name, instrumentor in INSTRUMENTORS.items():
                if name not in settings.disabled_instrumentations:
                    _switch_on(instrumentor(), tracer_provider)
        if http_spans:
            _switch_on_stock(tracer_provider)
        if not any(name in sys.modules or find_spec(name) for name in LIBRARIES):
            logger.warning(
                "Neither httpx nor httpx2 is installed in this environment: otel_chatdebug has nothing to record. "
                "Install it beside the SDK that the application uses."
            )


def shutdown() -> None:
    """Ends recording: what is open is told that it was left, spans are ended, everything is written.

    No thread and no open file of ours is left. Takes 5 s at most, whatever the database does. A tracer provider that
    was joined is not shut down. Can be repeated, and `configure` starts anew.
    """
    with _one_at_a_time:
        lifecycle.disarm()
        while _instrumented:
            _instrumented.pop().uninstrument()


def set_stale_after(seconds: float) -> None:
    """Changes, while recording goes on, after how many seconds without a heartbeat a process counts as dead.

    What was set by ``configure(stale_after=...)`` or ``OTEL_CHATDEBUG_STALE_AFTER``. This process gives its heartbeats
    often enough for it from now on (a third of it, 2 s at most). Processes that share tables should have the same: one
    that waits less than another's interval would call that one's runs interrupted, until their next heartbeat.
    ``ValueError`` below 0.1 s.
    """
    lifecycle.set_stale_after(seconds)


def _switch_on(instrumentor: BaseInstrumentor, tracer_provider: trace.TracerProvider | None) -> None:
    if not instrumentor.is_instrumented_by_opentelemetry:
        # The library need not be installed: it is patched when it is imported, if ever.
        instrumentor.instrument(tracer_provider=tracer_provider, skip_dep_check=True)
        _instrumented.append(instrumentor)


def _switch_on_stock(tracer_provider: trace.TracerProvider | None) -> None:
    from opentelemetry.instrumentation import httpx as stock  # imports httpx and httpx2

    for name in ("HTTPXClientInstrumentor", "HTTPX2ClientInstrumentor"):
        instrumentor = getattr(stock, name, None)
        if instrumentor is None or instrumentor().is_instrumented_by_opentelemetry:
            continue
        with contextlib.suppress(ModuleNotFoundError):  # one of the two libraries is enough
            instrumentor().instrument(tracer_provider=tracer_provider, skip_dep_check=True)
            _instrumented.append(instrumentor())


def _after_fork_in_child() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.RLock()  # a thread that is not there may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
