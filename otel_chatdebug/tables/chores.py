"""What the writer's thread does beside writing, each at its time: heartbeats, the sweep, taking up what was spooled,
and the removal of what is too old."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from otel_chatdebug.records import Record
from otel_chatdebug.status import Outcome
from otel_chatdebug.tables import database
from otel_chatdebug.tables.backlog import Source
from otel_chatdebug.tables.batch import Batch
from otel_chatdebug.tables.database import Fault
from otel_chatdebug.tables.spool import CLAIM_SECONDS, Spool
from otel_chatdebug.words import plural

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from otel_chatdebug.tables.replicas import Replica

logger = logging.getLogger("otel_chatdebug")

CLEANUP_SECONDS = 3600.0
"""Between two removals of what is too old or too much."""

BEATS_PER_THRESHOLD = 3
"""Heartbeats in ``stale_after`` seconds at least: one may be late, and there are two still."""

LONGEST_BEAT = 2.0
"""Seconds between two heartbeats at most, where something is open: a stuck stream's counters are in its row soon,
whatever the threshold."""

LOOK_SECONDS = 1.0
"""Between two looks at what is open, at most: what has moved is written anew, so that the text of a stream is there
nearly as soon as it came, whatever becomes of the process. Where nothing moved it costs the database nothing."""

SWEEPS_PER_THRESHOLD = 3
"""Sweeps in ``stale_after`` seconds: what is stale is seen as such within a third of that time."""

CLEANUP_AGAIN_SECONDS = 1.0
"""Until a removal goes on that made way for records."""


TAKE_UP_SECONDS = 3600.0
"""Between two looks into a spool that has not changed, as far as its file tells. One that has is looked into with the
next heartbeat: a child that lived for a moment only may have left its rows there, on a machine that is busy."""


def heartbeat_interval(stale_after: float) -> float:
    """Seconds between two heartbeats of a process in which something is open."""
    return min(stale_after / BEATS_PER_THRESHOLD, LONGEST_BEAT)


class Beat(NamedTuple):
    """What is open in this process, and what it tells of itself."""

    sources: Sequence[Source] = ()
    """Those to be written anew: their counters have moved."""
    runs: Sequence[str] = ()
    """Ids of rows that get a heartbeat."""
    steps: Sequence[str] = ()
    attempts: Sequence[str] = ()
    service_name: str | None = None
    inspection_url: str | None = None
    """Where this process can be asked what it is doing."""
    inspection_token: str | None = None
    """By which it knows requests that other processes hand on to it."""
    deleted: Callable[[Collection[str]], object] | None = None
    """Hears which of the runs somebody has deleted: they are not to be told any more."""


class Heart:
    """Asks ``beat`` every `LOOK_SECONDS` what is open, and tells the database every ``interval`` seconds that this
    process lives. The writer's thread only, but for `keep_pace`."""

    def __init__(
        self, beat: Callable[[], Beat], interval: float, replica_id: str, stale_after: float | None = None
    ) -> None:
        self._beat = beat
        self.interval = interval
        self.idle_interval = float("inf") if stale_after is None else max(interval, stale_after / BEATS_PER_THRESHOLD)
        """Between two signs of life of a process in which nothing is open: an idle one writes next to nothing."""
        self._replica_id = replica_id
        self._replica: Replica | None = None
        self._alive: Beat | None = None
        self._looked_at = self._beaten_at = self._written_at = float("-inf")
        self._told: Mapping[str, Outcome] = {}
        self._seen: Collection[str] = ()
        """The runs that the last beat has found in the table of `_seen_in`."""
        self._seen_in: Engine | None = None
        self._told_of_itself: tuple[str | None, str | None] | None = None
        self.failed = 0

    @property
    def due(self) -> float:
        """When the next look comes (monotonic seconds)."""
        return min(self._looked_at + LOOK_SECONDS, self._beaten_at + self.interval)

    def collect(self) -> Sequence[Source]:
        """What has moved since the last look, if it is time for one."""
        now = time.monotonic()
        if now < self.due:
            return ()
        beats = now >= self._beaten_at + self.interval
        self._looked_at = now
        if beats:
            self._beaten_at = now
        try:
            seen = self._beat()
        except Exception:
            self.failed += 1
            logger.debug("otel_chatdebug: the beat failed", exc_info=True)
            return ()
        if beats:
            self._alive = seen
        return seen.sources

    def write(self, engine: Engine) -> float | None:
        """Writes the heartbeats of the last beat, once. Raises what the database raises.

        Returns how many seconds ago the database had heard of this process before; None where nothing was written, or
        it never had.
        """
        from otel_chatdebug.tables import deletion, liveness, replicas

        alive, self._alive = self._alive, None
        if alive is None:
            return None
        now = time.monotonic()
        itself = (alive.service_name, alive.inspection_url)
        is_open = alive.runs or alive.steps or alive.attempts
        if not is_open and itself == self._told_of_itself and now < self._written_at + self.idle_interval:
            return None
        with engine.begin() as connection:
            gap = replicas.beat(
                connection,
                self._itself(),
                service_name=alive.service_name,
                inspection_url=alive.inspection_url,
                inspection_token=alive.inspection_token,
            )
            untouched = liveness.heartbeat(connection, runs=alive.runs, steps=alive.steps, attempts=alive.attempts)
            there = deletion.told_runs(connection, alive.runs)
            before = self._seen if engine is self._seen_in else ()  # another database has none of them
            deleted = [id for id in alive.runs if id in before and id not in there]
            deletion.remove_runs(connection, deleted)  # what this process has written of them since
        self._seen, self._seen_in = there, engine
        if deleted and alive.deleted is not None:
            alive.deleted(deleted)
        self._written_at, self._told_of_itself = now, itself
        for id, why in untouched.items():
            if self._told.get(id) is not why:
                logger.debug("otel_chatdebug: the row %s, which is open here, could not be touched: %s", id, why)
        self._told = untouched
        return gap

    def sign(self, engine: Engine) -> None:
        """Commits a sign of life, whatever is due: that the database takes anything at all is seen by it. Raises what
        the database raises."""
        from otel_chatdebug.tables import replicas

        with engine.begin() as connection:
            replicas.sign(connection, self._itself())

    def _itself(self) -> Replica:
        from otel_chatdebug.tables import replicas

        if self._replica is None:
            self._replica = replicas.Replica.this_process(self._replica_id)
        return self._replica

    def keep_pace(self, stale_after: float) -> None:
        """Has the intervals follow the threshold. Any thread."""
        self.interval = heartbeat_interval(stale_after)
        self.idle_interval = stale_after / BEATS_PER_THRESHOLD

    @property
    def is_known(self) -> bool:
        """The database has heard of this process."""
        return self._told_of_itself is not None

    def leave(self, engine: Engine) -> None:
        """Tells the database that this process ends in order. Raises what the database raises."""
        from otel_chatdebug.tables import replicas

        with engine.begin() as connection:
            replicas.leave(connection, self._replica_id)


class Sweeper:
    """Sweeps what others left open, every now and then. The writer's thread only, but for `stale_after`, which any
    thread may set. Does nothing where it is None."""

    def __init__(self, stale_after: float | None) -> None:
        self.stale_after = stale_after
        self._swept_at = float("-inf")
        self._grace_until = float("-inf")
        self.failed = 0

    @property
    def due(self) -> float:
        """When the next sweep comes (monotonic seconds)."""
        if self.stale_after is None:
            return float("inf")
        return max(self._swept_at + self.stale_after / SWEEPS_PER_THRESHOLD, self._grace_until)

    def heard_after(self, gap: float | None) -> None:
        """``gap`` is what `Heart.write` returned. Where it is long, this process was asleep or the database away, and
        so it may have been for others, whose heartbeats are as old as ours was: they get the time to come back."""
        if gap is not None and self.stale_after is not None and gap > self.stale_after / 2:
            self._grace_until = time.monotonic() + self.stale_after

    def sweep(self, engine: Engine) -> None:
        """Sweeps if it is time. Raises where the database is in trouble."""
        from otel_chatdebug.tables import liveness

        now, stale_after = time.monotonic(), self.stale_after
        if stale_after is None or now < self.due:
            return
        self._swept_at = now
        try:
            swept = liveness.finalize_stale(engine, stale_after, in_turn=False)
        except Exception as exc:
            if database.diagnose(exc)[0] is not Fault.RECORD:
                raise
            self.failed += 1
            logger.debug("otel_chatdebug: the sweep failed", exc_info=True)
            return
        if any(swept):
            logger.info(
                "otel-chatdebug marked what gave no sign of life for %g s as interrupted: %s.",
                stale_after,
                ", ".join(plural(count, kind) for count, kind in zip(swept, ("run", "step", "attempt"), strict=True)),
            )


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


class TakingUp:
    """Writes what was spooled while the database was away, by this process or another. The writer's thread only."""

    def __init__(self, spool: Spool, prove: Callable[[Engine], None] = lambda engine: None) -> None:
        self._spool = spool
        self._batch = Batch(prove=prove)
        self.due = 0.0
        """When the spool is looked into next (monotonic seconds)."""

    @property
    def written(self) -> int:
        return self._batch.written

    @property
    def dropped(self) -> int:
        return self._batch.dropped + self._spool.dropped

    @property
    def is_searching(self) -> bool:
        """See `Batch.is_searching`."""
        return self._batch.is_searching

    def some(self, engine: Engine) -> None:
        """Writes a chunk, if it is time. Raises where the database is in trouble; then they stay spooled."""
        if time.monotonic() < self.due and not self._spool.has_changed():
            return
        self.due = float("-inf")  # where it raises it is tried again once the database is back
        if not self.next(engine):
            self.due = time.monotonic() + (CLAIM_SECONDS if self._spool.elsewhere else TAKE_UP_SECONDS)

    def next(self, engine: Engine) -> bool:
        """Writes a chunk, and raises likewise. True where there may be more."""

        def write(records: list[Record]) -> None:
            self._batch.leftovers()
            self._batch.add(records)
            self._batch.write(engine)

        return self._spool.take_up(write)
