"""Starting and ending: one recorder in force at a time, its writer, the provider that it follows, fork and exit.

Called by the instrumentors (`arm`) and by `otel_chatdebug.configuration`. Everything that is started here is ended by
`disarm`: no thread and no open file is left, and it takes `SHUTDOWN_SECONDS` at most, whatever the database does.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace import TracerProvider as SDKTracerProvider

from otel_chatdebug import repeating
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline import metrics
from otel_chatdebug.pipeline import recorder as recorders
from otel_chatdebug.pipeline.live import ScopeEvent
from otel_chatdebug.pipeline.permits import Ask, Gate
from otel_chatdebug.pipeline.processor import ChatDebugSpanProcessor, processor_of
from otel_chatdebug.pipeline.recorder import TRACER_NAME, Recorder
from otel_chatdebug.redaction import Redact, Redactor, UserRedactor
from otel_chatdebug.settings import OPT_IN, SHORTEST_STALE_AFTER, Settings
from otel_chatdebug.status import Status, classify_error
from otel_chatdebug.tables import consent
from otel_chatdebug.tables.chores import heartbeat_interval
from otel_chatdebug.tables.writer import Beat, Keep, Writer

if TYPE_CHECKING:
    from otel_chatdebug.tables.merge import Numbered

logger = logging.getLogger("otel_chatdebug")

INSPECTION_TOKEN_BYTES: Final = 24
"""Of chance, in the token that only processes with the same database know of one another."""

SHUTDOWN_SECONDS: Final = 5.0
"""What ending takes at most, at `shutdown()` and at the exit of the interpreter."""

_lock = threading.RLock()
_armed: _Armed | None = None
_inspection_url: str | None = None
_inspection_token: str | None = None
_observed = False
"""Whether the metrics about ourselves are registered; once in a process."""


class _Armed:
    """What is in force: the recorder, its writer, and the provider's processor, if there is one."""

    def __init__(
        self, recorder: Recorder, writer: Writer, provider: trace.TracerProvider | None, is_enabled: Ask | None
    ) -> None:
        self.recorder = recorder
        self.writer = writer
        self.provider = provider
        self.is_enabled = is_enabled
        self.processor: ChatDebugSpanProcessor | None = None
        self.delegate: SpanProcessor | None = None

    def join(self) -> None:
        """Has our processor follow the provider: the one that was given, or the global one if there is one by now."""
        if self.processor is not None:
            return
        provider = self.provider or trace.get_tracer_provider()
        if isinstance(provider, SDKTracerProvider):
            self.processor = processor_of(provider)
            self.processor.arm(self.recorder, self.delegate)
            service = provider.resource.attributes.get("service.name")
            if self.recorder.service_name is None and service is not None:
                self.recorder.service_name = str(service)

    def start(self) -> None:
        """At the first attempt: by now the provider is there, and our exit handler must come before its own."""
        self.join()
        self.recorder.inbox.start()
        end_at_exit()


def arm(
    settings: Settings | None = None,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger_provider: LoggerProvider | None = None,
    classify: Callable[[BaseException | None], Status] | None = None,
    is_enabled: Ask | None = None,
    redact: Redact | None = None,
    delegate: SpanProcessor | None = None,
    writer: Any = None,
) -> Recorder | None:
    """Puts a recorder in force, if none is; None where the settings say that nothing is recorded.

    ``is_enabled`` says which runs are recorded; default: what the settings say. ``writer`` replaces the writer of the
    tables (for a benchmark). Nothing is opened and no thread is started by this; see `warm`.
    """
    global _armed
    with _lock:
        if _armed is not None:
            # An exporter that is made by hand arms before its provider is the global one; the instrumentors come later.
            _armed.join()
            return _armed.recorder
        settings = settings or Settings.load()
        if not settings.recording:
            return None
        replica_id = secrets.token_hex(8)
        if writer is None:
            writer = Writer(
                settings.database_url,
                replica_id=replica_id,
                heartbeat_interval=heartbeat_interval(settings.stale_after),
                beat=_beat,
                stale_after=settings.stale_after,
                numbered=_numbered,
                keep=Keep(settings.retention_days, settings.content_retention_days, settings.max_size),
                max_queue_size=settings.max_queue_size,
            )
        recorder = Recorder(
            settings,
            writer,
            replica_id=replica_id,
            redactor=Redactor(settings.allow_headers, settings.allow_query, settings.secret_keys),
            redact=None if redact is None else UserRedactor(redact),
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            logger_provider=logger_provider,
            classify=_guarded(classify or classify_error),
        )
        ask = is_enabled or (consent.asker(settings.database_url) if settings.enabled == OPT_IN else None)
        if ask is not None:
            recorder.ask_first(Gate(ask, writer.put))
        _armed = _Armed(recorder, writer, tracer_provider, is_enabled)
        _armed.delegate = delegate
        recorder.on_start = _armed.start
        _armed.join()
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)
        recorders.activate(recorder)
        _observe()
        return recorder


def _observe() -> None:
    global _observed
    if not _observed:
        _observed = True
        metrics.observe(TRACER_NAME, lambda: getattr(_armed and _armed.writer, "stats", None))


def warm() -> None:
    """Opens the tables in the background, where it is likely that there will soon be something to write.

    The first opening imports SQLAlchemy and, for a new database, Alembic: a second on a busy machine. Called when the
    application has called ``configure()``, or has imported a library that we patch; nobody waits for it.
    """
    armed = _armed
    if armed is not None and isinstance(armed.writer, Writer):
        armed.writer.start()


def set_stale_after(seconds: float) -> None:
    """Has this process count others as dead after that time without a heartbeat, and give its own often enough.

    Raises ``ValueError`` below `settings.SHORTEST_STALE_AFTER`. Does nothing where nothing is recorded.
    """
    if not SHORTEST_STALE_AFTER <= seconds < float("inf"):
        raise ValueError(f"stale_after is a number of seconds, {SHORTEST_STALE_AFTER:g} or more, not {seconds!r}")
    with _lock:
        armed = _armed
        if armed is None:
            return
        armed.recorder.settings = replace(armed.recorder.settings, stale_after=seconds)
        if isinstance(armed.writer, Writer):
            armed.writer.keep_pace(seconds)


def set_inspection_url(url: str | None) -> None:
    """Tells the other processes, in the row of this one, where it can be asked what it is doing; None: nowhere.

    There within a heartbeat, and gone from the row when recording ends. Told again when recording is configured anew,
    but not by a forked child.
    """
    global _inspection_url, _inspection_token
    _inspection_url, _inspection_token = url, None if url is None else secrets.token_urlsafe(INSPECTION_TOKEN_BYTES)


def inspection_token() -> str | None:
    """What the requests carry that other processes hand on to this one; None where none may."""
    return _inspection_token


def disarm(timeout: float = SHUTDOWN_SECONDS) -> bool:
    """Ends what `arm` began: open rows are told that the process left them, spans are ended, all is written.

    What is repeated in the background is tried once more then, and given up. False when not all of it was possible
    within ``timeout`` seconds. Can be repeated.
    """
    deadline = time.monotonic() + timeout
    done = _disarm(deadline)
    return repeating.repeater.close(_left(deadline)) and done


def _left(deadline: float) -> float:
    """Seconds until ``deadline``; never nothing at all."""
    return max(0.1, deadline - time.monotonic())


def _disarm(deadline: float) -> bool:
    global _armed
    with _lock:
        armed, _armed = _armed, None
        recorders.activate(None)
    if armed is None:
        return True
    recorder = armed.recorder
    _end_what_is_open(recorder, deadline)
    done = recorder.gate is None or recorder.gate.close(_left(deadline))
    recorder.closed = True
    # The tables first: they are why we are here. Meanwhile the inbox's thread ends the spans, which is user code: an
    # exporter may wait for a collector that is gone.
    done = armed.writer.close(_left(deadline)) and done
    done = recorder.inbox.stop(_left(deadline)) and done
    if recorder.redact is not None:
        recorder.redact.close(_left(deadline))
    if armed.processor is not None:
        _within(_left(deadline), armed.processor.disarm)
    return done


def flush(timeout: float = SHUTDOWN_SECONDS) -> bool:
    """Folds what has happened and writes it. False when that takes longer."""
    armed = _armed
    if armed is None:
        return True
    folded = armed.recorder.inbox.flush(timeout)
    gate = armed.recorder.gate
    decided = gate is None or gate.flush(timeout)
    return bool(armed.writer.flush(timeout)) and folded and decided


def disown(runs: Container[str], steps: Container[str]) -> bool:
    """Has these runs and steps not recorded any further: their rows are being deleted. True where any is open here."""
    armed = _armed
    if armed is None:
        return False
    recorder = armed.recorder
    return bool(recorder.inbox.reading(lambda: recorder.disown(runs, steps)))


def _end_what_is_open(recorder: Recorder, deadline: float) -> None:
    now = time_ns()
    inbox = recorder.inbox
    inbox.fold(max(0.0, deadline - time.monotonic()))
    for step in list(recorder.open_steps.values()):
        inbox.emit(step, ScopeEvent.SHUTDOWN, now)
    for run in list(recorder.open_runs.values()):
        inbox.emit(run, ScopeEvent.SHUTDOWN, now)
    inbox.fold(max(0.0, deadline - time.monotonic()))


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Performs ``action`` in a thread of its own, and goes on without it when it takes too long."""

    def act() -> None:
        try:
            action()
        except Exception:
            fault("shutting down OTLP")

    thread = threading.Thread(target=act, name="otel-chatdebug-shutdown", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is too far gone for threads
        act()
        return
    thread.join(seconds)


def _beat() -> Beat:
    """What is open, for the writer's heartbeat."""
    armed = _armed
    if armed is None:
        return Beat()
    recorder = armed.recorder

    def look() -> tuple[list[Any], list[str], list[str], list[str]]:
        attempts = _recorded(recorder.open_attempts)
        runs, steps = _recorded(recorder.open_runs), _recorded(recorder.open_steps)
        return list(attempts.values()), list(runs), list(steps), list(attempts)

    if recorder.gate is not None:
        recorder.gate.expire()
    recorder.inbox.fold()
    attempts, runs, steps, ids = recorder.inbox.reading(look)
    return Beat(
        [attempt for attempt in attempts if attempt.beat()],
        runs,
        steps,
        ids,
        service_name=recorder.service_name,
        inspection_url=_inspection_url,
        inspection_token=_inspection_token,
        deleted=lambda ids: disown(ids, ()),
    )


def _numbered(steps: Sequence[Numbered]) -> None:
    """Called by the writer's thread: other processes number steps of the same runs."""
    armed = _armed
    if armed is None:
        return
    recorder = armed.recorder
    for step in steps:
        run = recorder.open_runs.get(step.run_id)
        if run is not None:
            recorder.inbox.emit(run, ScopeEvent.NUMBERED, time_ns(), step)
    recorder.inbox.wake()


def _recorded(live: Mapping[str, Any]) -> dict[str, Any]:
    """Those whose rows are written."""
    return {id: each for id, each in live.items() if each.permit.allowed}


def _guarded(classify: Callable[[BaseException | None], Status]) -> Callable[[BaseException | None], Status]:
    """A user's ``classify_error`` that raises, or answers something else, is replaced by ours for that exception."""

    def guarded(exc: BaseException | None) -> Status:
        try:
            return Status(classify(exc))
        except Exception:
            fault("classify_error")
            return classify_error(exc)

    return guarded


def end_at_exit() -> None:
    """Has `disarm` called at the exit of the interpreter, before whatever was registered for it until now."""
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)
    _at_exit_of_a_child()


def _at_exit() -> None:
    try:
        disarm()
    except Exception:
        fault("the exit handler")


def _at_exit_of_a_child() -> None:
    """A child of `multiprocessing` ends by ``os._exit``: exit handlers are not run (before Python 3.14), only its own.

    Nothing is imported: whoever is such a child has it.
    """
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _at_exit, exitpriority=0)


def _after_fork_in_child() -> None:
    """The child has none of the parent's open attempts, queue, connection and replica id; it has its own."""
    global _armed, _inspection_token, _inspection_url, _lock
    _inspection_url = _inspection_token = None
    _lock = threading.RLock()
    armed, _armed = _armed, None
    if armed is None:
        return
    old = armed.recorder
    old.closed = True
    recorders.activate(None)
    armed.writer.forget()
    recorder = arm(
        old.settings,
        tracer_provider=armed.provider,
        meter_provider=old.meter_provider,
        logger_provider=old.logger_provider,
        classify=old.classify,
        is_enabled=armed.is_enabled,
        redact=None if old.redact is None else old.redact.redact,
        delegate=armed.delegate,
    )
    if recorder is not None:
        recorder.service_name = old.service_name


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
