"""The one thread that writes to the tables.

Guarantees:

- `Writer.put` costs one append. It takes no lock, opens nothing, never blocks and never raises, so a finalizer may
  call it in the middle of anybody's locked section.
- All that is put before `flush` or `close` is written when they return True; what was dropped is counted and told.
- The database's troubles stay here: one warning, back-off, bounded memory.
- `close` ends within its timeout. Afterwards there is no thread, and no file is open.

The thread calls what it is handed (`Source.records`, ``beat``), the database and logging without holding a lock of
ours. What it works with are parts of their own: the `Backlog` that others put into, the `Batch` under way, the
`OpenDatabase`, its `Troubles`, the `Forks` of the process, and what is done beside writing (`chores`). Here is the
rhythm, and starting and ending. It shares with other threads: the backlog's way in, three events, and a few attributes
that are written by one side only.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_chatdebug.records import Record
from otel_chatdebug.tables import database
from otel_chatdebug.tables.backlog import MAX_QUEUE_SIZE, Backlog, Source, Stop, Token
from otel_chatdebug.tables.batch import Batch
from otel_chatdebug.tables.chores import Beat, Heart, Housekeeping, Keep, Sweeper, TakingUp, heartbeat_interval
from otel_chatdebug.tables.counts import WriterStats
from otel_chatdebug.tables.database import DatabaseError, Fault
from otel_chatdebug.tables.forks import Forks, pausing
from otel_chatdebug.tables.opened import OpenDatabase
from otel_chatdebug.tables.spool import Spool
from otel_chatdebug.tables.troubles import Troubles

if TYPE_CHECKING:
    from otel_chatdebug.tables.merge import Numbered

__all__ = ["Beat", "Keep", "Source", "Writer", "WriterStats"]

logger = logging.getLogger("otel_chatdebug")

GATHER_SECONDS = 0.1
"""Group commit: how long the first source that comes waits for others. A row must be there within a second."""

BATCH = 256
"""Sources, or records, in one transaction at most. It bounds how long others wait for the lock."""

BATCH_SIZE = 8 * 1024 * 1024
"""Bytes of them, about: what is in memory beside the backlog."""

CLOSE_MARGIN = 0.3
"""Seconds of a close's timeout that are kept for stopping what still runs and closing the connection."""

SPOOL_SECONDS = 1.2
"""The same for keeping in the spool what the database does not take. It takes milliseconds; but on a machine that is
busy, the database is late for that reason, and so is this."""

INTERRUPT_SECONDS = 0.2
"""How long a close waits for the thread after it interrupted a statement, before it takes over what waits."""

DRAIN_SECONDS = 1.0
"""How long the queue is left alone during a back-off: there it is only bounded by refusing, not by choosing."""


class _TakenOver(Exception):
    """A close has taken what waits, and the thread has nothing left to do."""


class Writer:
    """Writes to the tables in a daemon thread of its own, which starts at the first `put`.

    Making one opens nothing and imports no SQLAlchemy. ``beat`` is called by the thread every
    ``heartbeat_interval`` seconds and says what is open. What had no heartbeat for ``stale_after`` seconds is swept
    from time to time; None sweeps nothing. ``keep`` bounds what is kept; default: no bounds.
    ``max_queue_size`` (bytes) bounds what waits.
    ``numbered`` hears, in the thread, of steps that were given another number than the one that they proposed; it must
    not raise.
    """

    def __init__(
        self,
        url: str,
        *,
        replica_id: str,
        heartbeat_interval: float,
        beat: Callable[[], Beat],
        stale_after: float | None = None,
        keep: Keep | None = None,
        max_queue_size: int = MAX_QUEUE_SIZE,
        numbered: Callable[[Sequence[Numbered]], None] = lambda steps: None,
    ) -> None:
        self.replica_id = replica_id
        self._url = database.absolute(url)
        self._heartbeat_interval = heartbeat_interval
        self._beat = beat
        self._stale_after = stale_after
        self._keep = keep or Keep()
        self._max_queue_size = max_queue_size
        self._numbered = numbered
        self._closed = False
        self._given_up = False
        self._reset()
        try:
            database.check_url(url)
        except DatabaseError as exc:
            self._give_up(str(exc))
        pausing.add(self)

    def _reset(self) -> None:
        # Shared with other threads. The backlog and the events are made for it, counters have one side that writes.
        self._backlog = Backlog(self._max_queue_size)
        self._hurry = threading.Event()
        """Ends the gathering and a back-off: somebody waits."""
        self._stopped = threading.Event()
        self._ticket: list[None] = [None]
        """Who takes it starts the thread. ``list.pop`` is atomic."""
        self._thread: threading.Thread | None = None
        self._deadline = float("inf")
        """When a close gives up on the database (monotonic seconds)."""
        self._last_deadline = float("inf")
        """When a close gives up on the spool."""
        self._database = OpenDatabase(self._url)
        self._elsewhere: list[None] = []
        """Has an item while the thread is in the database, and touches nothing of what waits. Who takes it has that."""
        self._forks = Forks(self._backlog, self._hurry, self._database, _load_before_fork)

        # The thread's own.
        self._troubles = Troubles(self._url)
        self._heart = Heart(self._beat, self._heartbeat_interval, self.replica_id, self._stale_after)
        self._batch = Batch(self._numbered, prove=self._heart.sign)
        self._sweeper = Sweeper(self._stale_after)
        self._housekeeping = Housekeeping(self._keep)
        self._spool = Spool(self._url, self._max_queue_size)
        self._taking_up = TakingUp(self._spool, prove=self._heart.sign)
        self._spooled = 0
        self._failed = 0

    # Any thread.

    def keep_pace(self, stale_after: float) -> None:
        """From now on sweeps what had no heartbeat for that many seconds, and gives heartbeats in time for it."""
        self._stale_after, self._heartbeat_interval = stale_after, heartbeat_interval(stale_after)
        self._heart.keep_pace(stale_after)
        self._sweeper.stale_after = stale_after
        if not self._ticket:
            self._backlog.tell(Token())  # wakes the thread, which waits for what was due before

    def put(self, source: Source) -> None:
        """Has the source's state written soon; drops it where too many wait, or nothing can be written any more.

        Any thread, at any point: a finalizer, a locked section. Set ``source.queued`` before.
        """
        if self._closed or self._given_up:
            self._backlog.refuse(source)
        elif self._backlog.offer(source) and self._ticket:
            self.start()

    def flush(self, timeout: float) -> bool:
        """Waits until all that was put before is written, or dropped and counted. False where that takes longer.

        ``timeout`` in seconds. Not to be called by the writer's own thread, which gets False.
        """
        if self._ticket or self._stopped.is_set():
            return True
        if threading.current_thread() is self._thread:
            return False
        token = Token()
        self._backlog.tell(token)
        self._hurry.set()
        # In this order: the thread looks for tokens once more after it said that it has stopped.
        return self._stopped.is_set() or token.done.wait(timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Writes what waits, ends the thread and closes the database; nothing can be put any more. Can be repeated.

        Takes no longer than ``timeout`` seconds, whatever the database does; what it does not take by then is kept in
        the spool. False, with a warning, where records were lost or the thread is still in a call that cannot be
        interrupted.
        """
        ends = time.monotonic() + timeout
        self._closed = True
        with contextlib.suppress(IndexError):
            self._ticket.pop()
            self._stopped.set()  # there never was a thread
        if self._stopped.is_set() and self._thread is None:
            return True
        if threading.current_thread() is self._thread:
            return False
        self._last_deadline = min(self._last_deadline, ends - min(CLOSE_MARGIN, timeout / 4))
        self._deadline = min(self._deadline, self._last_deadline - min(SPOOL_SECONDS, timeout / 4))
        lost = self._dropped()
        self._backlog.tell(Stop())
        self._hurry.set()
        if not self._stopped.wait(max(0.0, self._deadline - time.monotonic())):
            self._database.interrupt()
            if not self._stopped.wait(min(INTERRUPT_SECONDS, timeout / 10)) and self._take_over():
                self._last_deadline = ends
                self._backlog.drain()
                self._save_what_waits()
                self._end()
            self._stopped.wait(max(0.0, ends - time.monotonic()))
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, ends - time.monotonic()))
        if not self._stopped.is_set() or (thread is not None and thread.is_alive()):
            logger.warning("The debug tables could not be closed within %.1f s: the database does not answer.", timeout)
            return False
        return self._dropped() == lost

    def _take_over(self) -> bool:
        """Whether the caller has what waits from now on: the thread is in a call that may never return."""
        try:
            self._elsewhere.pop()
        except IndexError:
            return False
        return True

    def pause(self) -> None:
        """Before a fork: has the thread close the database, and keep it closed until `resume`. See `forks`."""
        self._forks.begin()
        if not (self._ticket or self._stopped.is_set() or threading.current_thread() is self._thread):
            self._forks.wait_until_closed(self._stopped)

    def resume(self) -> None:
        """After a fork, in the parent."""
        self._forks.end()

    def forget(self) -> None:
        """In a forked child: has none of the parent's queue, thread and connection, and starts anew at the next put."""
        # Not closed, and never collected either: that would be the parent's locks and session (see `forks`).
        _inherited.append((self._database, self._thread, self._backlog, self._batch))
        self._reset()

    @property
    def stats(self) -> WriterStats:
        return WriterStats(
            written=self._batch.written + self._taking_up.written,
            spooled=self._spooled,
            dropped=self._dropped(),
            failed=self._failed + self._heart.failed + self._sweeper.failed + self._housekeeping.failed,
            queue_length=len(self._backlog),
            queue_size=self._backlog.size,
            last_write_seconds=self._batch.last_write_seconds,
        )

    def _dropped(self) -> int:
        return self._backlog.dropped + self._backlog.refused + self._batch.dropped + self._taking_up.dropped

    def start(self) -> None:
        """Starts the thread, which opens the database, if it is not there. `put` does so by itself."""
        try:
            self._ticket.pop()
        except IndexError:
            return  # somebody else has just taken it
        try:
            # Not Thread.start: it takes locks of the threading module and waits for the new thread, and we may be in
            # a finalizer that runs in the middle of such a section.
            _thread.start_new_thread(self._launch, ())
        except RuntimeError:  # no more threads, or the interpreter is ending; the next put tries again
            self._ticket.append(None)

    def _launch(self) -> None:
        thread = threading.Thread(target=self._run, name="otel-chatdebug-writer", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # as above
            self._thread = None
            self._given_up = True
            self._stopped.set()

    # The writer's thread.

    def _run(self) -> None:
        backlog = self._backlog
        with suppress_instrumentation():
            taken_over = False
            try:
                while not self._given_up and (not backlog.stopping or backlog.waits or self._batch):
                    self._wait()
                    self._forks.stand_aside()
                    if self._late():
                        self._save_what_waits()
                    else:
                        if self._troubles or backlog.crowded:
                            self._hold()
                        if self._troubles.retry_at <= time.monotonic():
                            self._work()
                    backlog.relieve()
                    self._settle()
                    self._tell_drops()
                self._leave()
            except _TakenOver:
                taken_over = True
            except Exception:
                self._failed += 1
                logger.debug("otel_chatdebug: the writer's thread failed", exc_info=True)
                self._give_up(
                    "The writer of the debug tables failed, by an error of otel-chatdebug that is logged at debug."
                )
            finally:
                self._database.close()
                if not taken_over:
                    self._end()

    def _end(self) -> None:
        """Nothing is written any more; whoever waits for us is told."""
        self._tell_drops(last=True)
        self._stopped.set()
        self._backlog.drain()
        self._discard()
        self._settle()
        self._backlog.stand_aside()

    def _leave(self) -> None:
        if self._given_up or self._late() or self._troubles.retry_at or not self._heart.is_known:
            return
        try:
            self._heart.leave(self._database.engine())
        except Exception:
            logger.debug("otel_chatdebug: the end of this process could not be told", exc_info=True)

    def _wait(self) -> None:
        """Until there is something to do; then it has been taken from the queue."""
        backlog, now = self._backlog, time.monotonic()
        retry_at = self._troubles.retry_at
        if retry_at > now:
            wake = min(retry_at, now + DRAIN_SECONDS, self._deadline)
            if self._hurry.wait(max(0.0, wake - now)):
                self._troubles.retry_at = 0.0
        elif not (backlog.waits or self._batch or backlog.stopping):
            wake = min(self._heart.due, self._sweeper.due, self._taking_up.due, self._housekeeping.due)
            if backlog.take_first(max(0.0, wake - now)) and not backlog.called:
                self._hurry.wait(GATHER_SECONDS)
        self._hurry.clear()
        backlog.drain()

    def _settle(self) -> None:
        if not self._batch:
            self._backlog.settle()

    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _discard(self) -> None:
        self._backlog.discard()
        self._backlog.dropped += len(self._batch.leftovers())

    def _save_what_waits(self) -> None:
        """The process ends, and the database is away: what has ended goes into the spool, and all else is dropped."""
        self._deadline = self._last_deadline
        backlog = self._backlog
        backlog.hold(self._batch.leftovers(), 0)
        for source in backlog.everything():
            backlog.hold(self._read(source), 0)
        records = backlog.all_held()
        try:
            kept = self._spool.keep(records, late=self._late)
        except Exception as exc:
            kept = 0
            logger.warning("What waited could not be kept in %s: %s", self._spool.path, database.diagnose(exc)[1])
        self._spooled += kept
        backlog.dropped += len(records) - kept
        if kept:
            logger.warning(
                "The debug tables in %s could not be written. %d records are kept in %s, until a process that records "
                "into the same database starts.",
                database.redacted(self._url),
                kept,
                self._spool.path,
            )

    def _work(self) -> None:
        backlog = self._backlog
        try:
            with self._in_the_database():
                engine = self._database.engine()
            if self._late():  # opening took all the time there was: what waits belongs to the spool
                return
            if backlog.stopping:
                self._database.hasten()
            for source in self._heart.collect():
                if not source.queued:  # else it waits already: while the database is away, beat after beat
                    source.queued = True
                    backlog.take(source)
            if not self._batch:
                self._batch.add(self._next())
            quiet = not backlog.waits and not backlog.stopping
            with self._in_the_database():
                self._batch.write(engine)
                self._sweeper.heard_after(self._heart.write(engine))
                if not backlog.stopping:
                    self._sweeper.sweep(engine)
                if quiet:
                    self._taking_up.some(engine)
                    self._housekeeping.clean(engine, stop=lambda: backlog.arriving)
        except _TakenOver:
            raise
        except Exception as exc:
            self._trouble(exc)
            if not (self._forks.loaded or self._given_up or backlog.stopping):
                _load()  # else a fork might meet these imports later, and not wait for them
        else:
            if self._troubles.over():
                self._taking_up.due = 0.0
        self._forks.loaded = True

    @contextmanager
    def _in_the_database(self) -> Iterator[None]:
        """Around calls that may not return in time. What waits may be gone afterwards: then it raises `_TakenOver`."""
        self._elsewhere.append(None)
        try:
            yield
        finally:
            if not self._take_over():
                raise _TakenOver

    def _next(self) -> list[Record]:
        """The records of the next batch."""
        records = self._backlog.next_records(BATCH, BATCH_SIZE)
        if not records:
            for source in self._backlog.next_sources(BATCH, BATCH_SIZE):
                records.extend(self._read(source))
        return records

    def _hold(self) -> None:
        """Reads what has ended before it can be written: a record takes less memory than the bodies it is made of."""
        for position, source in self._backlog.ended():
            self._backlog.hold(self._read(source), position)
            if self._hurry.is_set() or self._late():
                return

    def _read(self, source: Source) -> Sequence[Record]:
        source.queued = False
        if time.monotonic() >= self._last_deadline:
            self._backlog.dropped += 1
            return ()
        try:
            return source.records()
        except Exception:
            self._failed += 1
            logger.debug("otel_chatdebug: the state of %s could not be read", type(source), exc_info=True)
            return ()

    def _trouble(self, exc: Exception) -> None:
        fault, reason = database.diagnose(exc)
        logger.debug("otel_chatdebug: the database is in trouble", exc_info=True)
        if fault is Fault.HOPELESS:
            self._give_up(reason)
            return
        if fault is not Fault.LOCKED:
            self._database.close()
        if self._backlog.stopping and fault is Fault.AWAY:
            self._save_what_waits()  # it will hardly come back within these seconds, which are the user's
        is_of_a_record = database.is_lost(exc) and (self._batch.is_searching or self._taking_up.is_searching)
        self._troubles.struck(fault, reason, hurry=self._backlog.stopping or is_of_a_record)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        logger.warning("%s No debug rows are written now; the application goes on.", reason)

    def _tell_drops(self, *, last: bool = False) -> None:
        if not self._given_up:
            # Those of the batch were told when they were dropped.
            self._troubles.tell_drops(self._backlog.dropped + self._backlog.refused, last=last)


def _load() -> None:
    """Imports what the thread imports in the course of its first work that succeeds."""
    from otel_chatdebug.tables import migrations

    _load_before_fork()
    migrations.load()


def _load_before_fork() -> None:
    """The same, but for what only an upgrade takes: the parent does it once, and not each child for itself."""
    from otel_chatdebug.tables import deletion, liveness, merge, replicas, retention  # noqa: F401


_inherited: list[object] = []
"""What forked children got from their parents; see `Writer.forget`."""
