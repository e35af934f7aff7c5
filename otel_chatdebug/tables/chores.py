"""What the writer's thread does beside writing, each at its time: the heartbeat, and the removal of what is too old."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from otel_chatdebug.tables import database
from otel_chatdebug.tables.backlog import Source
from otel_chatdebug.tables.database import Fault

if TYPE_CHECKING:
    from sqlalchemy import Engine

logger = logging.getLogger("otel_chatdebug")

CLEANUP_SECONDS = 3600.0
"""Between two removals of what is too old or too much."""

CLEANUP_AGAIN_SECONDS = 1.0
"""Until a removal goes on that made way for records."""


class Beat(NamedTuple):
    """What is open in this process."""

    sources: Sequence[Source] = ()
    """Those to be written anew: their counters have moved."""
    runs: Sequence[str] = ()
    """Ids of rows that get a heartbeat."""
    steps: Sequence[str] = ()
    attempts: Sequence[str] = ()


class Heart:
    """Asks ``beat`` every ``interval`` seconds what is open, and tells the database. The writer's thread only."""

    def __init__(self, beat: Callable[[], Beat], interval: float) -> None:
        self._beat = beat
        self._interval = interval
        self._alive = Beat()
        self.due = 0.0
        """When the next beat comes (monotonic seconds)."""
        self.failed = 0

    def collect(self) -> Sequence[Source]:
        """What has moved since the last beat, if it is time for one."""
        now = time.monotonic()
        if now < self.due:
            return ()
        self.due = now + self._interval
        try:
            self._alive = self._beat()
        except Exception:
            self.failed += 1
            logger.debug("otel_chatdebug: the beat failed", exc_info=True)
            return ()
        return self._alive.sources

    def write(self, engine: Engine) -> None:
        """Writes the heartbeats of the last beat, once. Raises what the database raises."""
        from otel_chatdebug.tables import merge

        alive, self._alive = self._alive, Beat()
        if alive.runs or alive.steps or alive.attempts:
            with engine.begin() as connection:
                merge.heartbeat(connection, runs=alive.runs, steps=alive.steps, attempts=alive.attempts)


class Keep(NamedTuple):
    """How much is kept, and how long; 0 is no bound."""

    days: float = 0.0
    """Rows, with their contents."""
    content_days: float = 0.0
    """Contents (messages, headers, bodies)."""
    max_size: int = 0
    """Bytes of contents."""


class Housekeeping:
    """Removes what is too old or too much, hourly. The writer's thread only."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self.due = 0.0
        """When the next removal comes (monotonic seconds)."""
        self.failed = 0

    def clean(self, engine: Engine, stop: Callable[[], bool]) -> None:
        """Does what is due; makes way, and goes on later, where ``stop`` says so. Raises where the database is in
        trouble."""
        from otel_chatdebug.tables import retention

        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + CLEANUP_SECONDS
        try:
            done = retention.keep(engine, self._keep, stop=stop)
        except Exception as exc:
            if database.diagnose(exc)[0] is not Fault.RECORD:
                raise
            self.failed += 1
            logger.debug("otel_chatdebug: the cleanup failed", exc_info=True)
        else:
            if not done:
                self.due = time.monotonic() + CLEANUP_AGAIN_SECONDS
