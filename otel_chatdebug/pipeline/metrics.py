"""Metrics about ourselves: whether what happens reaches the tables, and how quickly.

They are observed when a metric reader asks, in its thread, and cost nothing otherwise. Without a meter provider the API
drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from otel_chatdebug import faults
from otel_chatdebug.attributes import SCHEMA_URL
from otel_chatdebug.version import __version__

DROPPED: Final = "chatdebug.writer.dropped"
WRITTEN: Final = "chatdebug.writer.written"
QUEUE: Final = "chatdebug.writer.queue.length"
QUEUE_SIZE: Final = "chatdebug.writer.queue.size"
SPOOLED: Final = "chatdebug.writer.spooled"
LATENCY: Final = "chatdebug.writer.write.duration"
FAULTS: Final = "chatdebug.faults"


class Stats(Protocol):
    """What the writer of the tables counts."""

    @property
    def dropped(self) -> int: ...
    @property
    def written(self) -> int: ...
    @property
    def queue_length(self) -> int: ...
    @property
    def queue_size(self) -> int: ...
    @property
    def spooled(self) -> int: ...
    @property
    def last_write_seconds(self) -> float | None: ...


def observe(meter_name: str, stats: Callable[[], Stats | None]) -> None:
    """Registers the instruments; once in a process, since instruments cannot be taken back.

    ``stats`` gives what is counted now, or None while nothing is recorded.
    """
    meter = metrics.get_meter(meter_name, __version__, schema_url=SCHEMA_URL)

    def of(field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            now: Any = stats()
            value = None if now is None else getattr(now, field)
            return [] if value is None else [Observation(value)]

        return callback

    meter.create_observable_counter(
        DROPPED, [of("dropped")], "{record}", "Records that could not be written, or were refused for want of room."
    )
    meter.create_observable_counter(WRITTEN, [of("written")], "{record}", "Records written to the debug tables.")
    meter.create_observable_up_down_counter(
        QUEUE, [of("queue_length")], "{record}", "Runs, steps and attempts that wait to be written."
    )
    meter.create_observable_up_down_counter(QUEUE_SIZE, [of("queue_size")], "By", "Memory that they take, near enough.")
    meter.create_observable_counter(
        SPOOLED, [of("spooled")], "{record}", "Records kept in the spool, because the database was away at the end."
    )
    meter.create_observable_gauge(
        LATENCY, [of("last_write_seconds")], "s", "How long the last transaction on the debug tables took."
    )

    def fault_counts(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"chatdebug.fault.place": place}) for place, count in faults.counts().items()]

    meter.create_observable_counter(
        FAULTS, [fault_counts], "{fault}", "Errors inside of otel_chatdebug that were kept from the application."
    )
