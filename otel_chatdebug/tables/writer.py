"""The one thread that writes to the tables.

Guarantees:

- `Writer.put` costs one append. It takes no lock, opens nothing, never blocks and never raises, so a finalizer may
  call it in the middle of anybody's locked section.
- All that is put before `flush` or `close` is written when they return True; what was dropped is counted and told.
- The database's troubles stay here: one warning, back-off, bounded memory.
- `close` ends within its timeout. Afterwards there is no thread, and no file is open.

The thread calls what it is handed (`Source.records`, ``beat``), the database and logging without holding a lock of
ours. It shares with other threads: the queue, two events, and a few attributes that are written by one side only.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_chatdebug.records import Record
from otel_chatdebug.tables import database
from otel_chatdebug.tables.database import DatabaseError, Fault

if TYPE_CHECKING:
    from sqlalchemy import Engine

logger = logging.getLogger("otel_chatdebug")

GATHER_SECONDS = 0.1
"""Group commit: how long the first source that comes waits for others. A row must be there within a second."""

BATCH = 256
"""Sources in one transaction at most. It bounds the records in memory, and how long others wait for the lock."""

MAX_QUEUE = 10_000
"""Sources that wait at most. Beyond it those in progress are dropped, then, at twice as many, final ones, too."""

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 30.0
"""Seconds before the first retry, doubling up to the longest."""

BUSY_SECONDS = 1.0
"""How long one statement waits for another connection's lock. Short: a statement that waits cannot be interrupted,
and we try again anyway."""

CLOSING_BUSY_SECONDS = 0.1
"""The same during a close."""

CLOSE_MARGIN = 0.3
"""Seconds of a close's timeout that are kept for stopping what still runs and closing the connection."""

DRAIN_SECONDS = 1.0
"""How long the queue is left alone during a back-off: there it is only bounded by refusing, not by choosing."""

CLEANUP_SECONDS = 3600.0
"""Between two removals of what is too old or too much."""

CLEANUP_AGAIN_SECONDS = 1.0
"""Until a removal goes on that made way for records."""

FORK_SECONDS = 1.0
"""How long a fork waits for the connection to be closed before it, see `Writer.pause`."""

LOADING_FORK_SECONDS = 20.0
"""The same while the thread loads SQLAlchemy and Alembic, which takes half a second, and more on a busy machine. A
child that is forked in the middle of an import waits for ever when it imports that module itself, for its lock has an
owner that is not there; the application's own imports would hang, too."""

RESUME_SECONDS = 5.0
"""How long the thread waits for a fork that does not say that it is over."""

TELL_SECONDS = 60.0
"""Drops and troubles of the database are told at most this often."""


class Source(Protocol):
    """Something whose state can be written: a live run, step or attempt."""

    final: bool
    """Nothing will follow: dropped last when the queue is full."""
    queued: bool
    """Set by the producer just before `Writer.put`, and by the writer for what a beat brings; taken back by the writer
    just before it calls `records`, or when it drops the source. A producer need not put what is queued already."""

    def records(self) -> Sequence[Record]:
        """The state as it is now. Called by the writer's thread; may be slow (redaction); may raise."""


class Beat(NamedTuple):
    """What is open in this process."""

    sources: Sequence[Source] = ()
    """Those to be written anew: their counters have moved."""
    runs: Sequence[str] = ()
    """Ids of rows that get a heartbeat."""
    steps: Sequence[str] = ()
    attempts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class WriterStats:
    """Counts since the writer was made."""

    written: int
    """Records."""
    dropped: int
    """Sources that were refused, and records that could not be written."""
    failed: int
    """Errors of our own: sources, beats and cleanups that raised."""
    queue_length: int
    """Sources that wait now."""
    last_write_seconds: float | None
    """How long the last transaction took."""


class _Token:
    """In the queue between sources: ``done`` is set when all that was put before is settled."""

    def __init__(self) -> None:
        self.done = threading.Event()


class _Stop(_Token):
    """The last thing that the thread takes."""


class _Pause(_Token):
    """Closes the database at once; the thread goes on after `Writer.resume`."""


class _Waiting(NamedTuple):
    position: int
    source: Source


class Writer:
    """Writes to the tables in a daemon thread of its own, which starts at the first `put`.

    Making one opens nothing and imports no SQLAlchemy. ``beat`` is called by the thread every
    ``heartbeat_interval`` seconds and says what is open. ``retention_days`` and ``max_size`` (bytes) bound what is
    kept, see `cleanup`; 0 is no bound.
    """

    def __init__(
        self,
        url: str,
        *,
        replica_id: str,
        heartbeat_interval: float,
        beat: Callable[[], Beat],
        retention_days: float = 0.0,
        max_size: int = 0,
    ) -> None:
        self.replica_id = replica_id
        self._url = database.absolute(url)
        self._heartbeat_interval = heartbeat_interval
        self._beat = beat
        self._retention_days = retention_days
        self._max_size = max_size
        self._closed = False
        self._given_up = False
        self._reset()
        try:
            database.check_url(url)
        except DatabaseError as exc:
            self._give_up(str(exc))
        _writers.add(self)

    def _reset(self) -> None:
        # Shared with other threads. The queue and the events are made for it, counters have one side that writes.
        self._queue: SimpleQueue[Source | _Token] = SimpleQueue()
        self._hurry = threading.Event()
        """Ends the gathering and a back-off: somebody waits."""
        self._stopped = threading.Event()
        self._ticket: list[None] = [None]
        """Who takes it starts the thread. ``list.pop`` is atomic."""
        self._thread: threading.Thread | None = None
        self._deadline = float("inf")
        """When a close gives up (monotonic seconds)."""
        self._raw: Any = None
        """The DBAPI connection, for a close that must interrupt it."""
        self._refused = 0
        """Counted by `put` in many threads without a lock: near enough, and never zero when something was refused."""

        self._forks: list[None] = []
        """One for each fork that is going on in some thread. Changed by append and pop alone, which are atomic."""
        self._resumed = threading.Event()

        # The thread's own.
        self._loaded = False
        """All that the thread imports is imported: it has worked once. Written by the thread, read by `pause`."""
        self._engine: Engine | None = None
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of ``_path``, when it was opened."""
        self._position = 0
        self._pending: list[_Waiting] = []
        self._chunks: list[list[Record]] = []
        """Records of the batch that is being written; the last one is next."""
        self._alive = Beat()
        self._tokens: list[tuple[int, _Token]] = []
        self._stopping = False
        self._pauses: list[_Pause] = []
        self._next_beat = self._next_cleanup = 0.0
        self._backoff = self._retry_at = 0.0
        self._troubles = 0
        self._told_trouble = False
        self._told_trouble_at = float("-inf")
        self._told_drops = 0
        self._told_drops_at = float("-inf")
        self._written = self._dropped = self._failed = 0
        self._last_write: float | None = None

    # Any thread.

    def put(self, source: Source) -> None:
        """Has the source's state written soon; drops it where too many wait, or nothing can be written any more.

        Any thread, at any point: a finalizer, a locked section. Set ``source.queued`` before.
        """
        waiting = self._queue.qsize() + len(self._pending)
        if self._closed or self._given_up or waiting >= (2 * MAX_QUEUE if source.final else MAX_QUEUE):
            source.queued = False
            self._refused += 1
            return
        self._queue.put(source)
        if self._ticket:
            self.start()

    def flush(self, timeout: float) -> bool:
        """Waits until all that was put before is written, or dropped and counted. False where that takes longer.

        ``timeout`` in seconds. Not to be called by the writer's own thread, which gets False.
        """
        if self._ticket or self._stopped.is_set():
            return True
        if threading.current_thread() is self._thread:
            return False
        token = _Token()
        self._queue.put(token)
        self._hurry.set()
        # In this order: the thread looks for tokens once more after it said that it has stopped.
        return self._stopped.is_set() or token.done.wait(timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Writes what waits, ends the thread and closes the database; nothing can be put any more. Can be repeated.

        Takes no longer than ``timeout`` seconds, whatever the database does. False, with a warning, where records
        were lost by that or the thread is still in a call that cannot be interrupted.
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
        margin = min(CLOSE_MARGIN, timeout / 4)
        self._deadline = min(self._deadline, ends - margin)
        lost = self._dropped
        self._queue.put(_Stop())
        self._hurry.set()
        if not self._stopped.wait(max(0.0, ends - margin - time.monotonic())):
            self._interrupt()
            self._stopped.wait(max(0.0, ends - time.monotonic()))
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, ends - time.monotonic()))
        if not self._stopped.is_set() or (thread is not None and thread.is_alive()):
            logger.warning(
                "The debug tables could not be closed within %.1f s: the database does not answer. "
                "Records that were waiting may be lost.",
                timeout,
            )
            return False
        return self._dropped == lost

    def pause(self) -> None:
        """Before a fork: has the thread close the database, and keep it closed until `resume`.

        Called for every writer by a hook of this module. SQLite keeps its locks by process and file: a child that
        inherits an open connection, even unused, believes that it holds the parent's locks, and loses what it writes
        when the parent closes (https://www.sqlite.org/howtocorrupt.html, 2.6). Waits `FORK_SECONDS` at most, and
        `LOADING_FORK_SECONDS` where the thread is importing.
        """
        self._forks.append(None)
        self._resumed.clear()
        if self._ticket or self._stopped.is_set() or threading.current_thread() is self._thread:
            return
        token = _Pause()
        self._queue.put(token)
        self._hurry.set()
        patience = FORK_SECONDS if self._loaded else LOADING_FORK_SECONDS
        if not self._stopped.is_set() and not token.done.wait(patience):
            logger.debug("otel_chatdebug: a fork did not wait any longer for the database to be closed")

    def resume(self) -> None:
        """After a fork, in the parent."""
        with contextlib.suppress(IndexError):  # a writer that was made between the two hooks
            self._forks.pop()
        if not self._forks:
            self._resumed.set()

    def forget(self) -> None:
        """In a forked child: has none of the parent's queue, thread and connection, and starts anew at the next put."""
        # Not closed, and never collected either: SQLite forbids both in a child (https://www.sqlite.org/howtocorrupt.html
        # 2.6), and on a socket to PostgreSQL a goodbye would end the parent's session.
        _inherited.append((self._engine, self._raw, self._thread, self._queue, self._pending, self._chunks))
        self._reset()

    @property
    def stats(self) -> WriterStats:
        return WriterStats(
            written=self._written,
            dropped=self._dropped + self._refused,
            failed=self._failed,
            queue_length=self._queue.qsize() + len(self._pending),
            last_write_seconds=self._last_write,
        )

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

    def _interrupt(self) -> None:
        raw = self._raw
        stop = getattr(raw, "interrupt", None) or getattr(raw, "cancel", None)  # sqlite3, psycopg: any thread may
        if stop is not None:
            with contextlib.suppress(Exception):  # it was closed at this moment
                stop()

    # The writer's thread.

    def _run(self) -> None:
        with suppress_instrumentation():
            try:
                while not self._given_up and (not self._stopping or self._pending or self._chunks):
                    self._wait()
                    self._stand_aside()
                    if self._late():
                        self._discard()
                    elif self._retry_at <= time.monotonic():
                        self._work()
                    self._settle()
                    self._tell_drops()
            except Exception:
                self._failed += 1
                logger.debug("otel_chatdebug: the writer's thread failed", exc_info=True)
                self._give_up(
                    "The writer of the debug tables failed, by an error of otel-chatdebug that is logged at debug."
                )
            finally:
                self._told_drops_at = float("-inf")
                self._tell_drops()
                self._dispose()
                self._stopped.set()
                self._drain()
                self._discard()
                self._settle()
                for pause in self._pauses:
                    pause.done.set()

    def _wait(self) -> None:
        """Until there is something to do; then has the queue's content in ``_pending``."""
        now = time.monotonic()
        if self._retry_at > now:
            wake = min(self._retry_at, now + DRAIN_SECONDS, self._deadline)
            if self._hurry.wait(max(0.0, wake - now)):
                self._retry_at = 0.0
        elif not (self._pending or self._chunks or self._stopping):
            wake = min(self._next_beat, self._next_cleanup)
            with contextlib.suppress(Empty):
                self._take(self._queue.get(timeout=min(max(0.0, wake - now), threading.TIMEOUT_MAX)))
                if not self._tokens and not self._pauses:
                    self._hurry.wait(GATHER_SECONDS)
        self._hurry.clear()
        self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._take(self._queue.get_nowait())
        excess = len(self._pending) - MAX_QUEUE
        if excess > 0:
            # What is in progress goes first, the oldest first; then the oldest of the others.
            by_worth = sorted(self._pending, key=lambda waiting: (waiting.source.final, waiting.position))
            for waiting in by_worth[:excess]:
                waiting.source.queued = False
            self._dropped += excess
            self._pending = sorted(by_worth[excess:], key=lambda waiting: waiting.position)

    def _take(self, item: Source | _Token) -> None:
        self._position += 1
        if not isinstance(item, _Token):
            self._pending.append(_Waiting(self._position, item))
            return
        if isinstance(item, _Pause):
            self._pauses.append(item)
            return
        self._tokens.append((self._position, item))
        if isinstance(item, _Stop):
            self._stopping = True

    def _stand_aside(self) -> None:
        """Has the database closed while some thread forks."""
        if not self._pauses:
            return
        self._dispose()
        for pause in self._pauses:
            pause.done.set()
        self._pauses = []
        self._resumed.wait(RESUME_SECONDS)

    def _settle(self) -> None:
        """Tells those who wait for what is settled now."""
        if self._chunks:
            return
        oldest = self._pending[0].position if self._pending else self._position + 1
        for position, token in self._tokens:
            if position < oldest:
                token.done.set()
        self._tokens = [(position, token) for position, token in self._tokens if position >= oldest]

    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _discard(self) -> None:
        for waiting in self._pending:
            waiting.source.queued = False
        self._dropped += len(self._pending) + sum(map(len, self._chunks))
        self._pending, self._chunks = [], []

    def _work(self) -> None:
        try:
            engine = self._opened()
            self._hasten()
            self._collect_beat()
            self._write(engine)
            if not self._pending and not self._stopping and time.monotonic() >= self._next_cleanup:
                self._clean(engine)
        except Exception as exc:
            self._trouble(exc)
        else:
            self._recovered()
        finally:
            self._loaded = True

    def _opened(self) -> Engine:
        """The engine; opened, and its tables created or upgraded, where that has not been done."""
        if self._engine is not None and self._file != self._identity():
            self._dispose()  # somebody has removed or replaced the file: go on in the one that is there now
        if self._engine is None:
            # Here, not at the top: the application pays for SQLAlchemy when something is written, and in this thread.
            from sqlalchemy import event

            from otel_chatdebug.tables import migrations

            self._path = database.sqlite_path(database.parse(self._url))
            engine = database.open_engine(self._url, busy_seconds=BUSY_SECONDS)
            event.listen(engine, "connect", self._connected)
            try:
                found = migrations.upgrade(engine)
            except BaseException:
                engine.dispose()
                raise
            self._engine = engine
            self._file = self._identity()
            if found is None:
                logger.info(
                    "otel-chatdebug records the model calls of this process, with redacted messages, in %s. "
                    "OTEL_CHATDEBUG_ENABLED=never switches it off.",
                    database.redacted(self._url),
                )
        return self._engine

    def _connected(self, connection: Any, record: object) -> None:
        self._raw = connection
        self._hasten()

    def _hasten(self) -> None:
        """Waits less for SQLite's lock where a close waits for us."""
        if self._stopping and isinstance(self._raw, sqlite3.Connection):
            self._raw.execute(f"PRAGMA busy_timeout = {int(CLOSING_BUSY_SECONDS * 1000)}")

    def _identity(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return (0, 0)
        return (status.st_dev, status.st_ino)

    def _dispose(self) -> None:
        engine, self._engine, self._raw = self._engine, None, None
        if engine is not None:
            try:
                engine.dispose()
            except Exception:
                logger.debug("otel_chatdebug: closing the database failed", exc_info=True)

    def _collect_beat(self) -> None:
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + self._heartbeat_interval
        try:
            self._alive = self._beat()
        except Exception:
            self._failed += 1
            logger.debug("otel_chatdebug: the beat failed", exc_info=True)
            return
        for source in self._alive.sources:
            if not source.queued:  # else it waits already: while the database is away, beat after beat
                source.queued = True
                self._take(source)

    def _write(self, engine: Engine) -> None:
        """Writes one batch, and the heartbeats. Raises where the database is in trouble; then it goes on later."""
        from otel_chatdebug.tables import merge

        if not self._chunks and self._pending:
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            records = self._records(batch)
            if records:
                self._chunks.append(records)
        while self._chunks:
            chunk = self._chunks[-1]
            started = time.monotonic()
            try:
                with engine.begin() as connection:
                    merge.write(connection, chunk)
            except Exception as exc:
                fault, reason = database.diagnose(exc)
                if fault is not Fault.RECORD:
                    raise
                self._chunks.pop()
                if len(chunk) > 1:
                    middle = len(chunk) // 2
                    self._chunks += [chunk[middle:], chunk[:middle]]
                else:
                    self._drop(chunk[0], reason)
            else:
                self._chunks.pop()
                self._written += len(chunk)
                self._last_write = time.monotonic() - started
        alive, self._alive = self._alive, Beat()
        if alive.runs or alive.steps or alive.attempts:
            with engine.begin() as connection:
                merge.heartbeat(connection, runs=alive.runs, steps=alive.steps, attempts=alive.attempts)

    def _records(self, batch: list[_Waiting]) -> list[Record]:
        records: list[Record] = []
        for _, source in batch:
            source.queued = False
            if self._late():
                self._dropped += 1
                continue
            try:
                records.extend(source.records())
            except Exception:
                self._failed += 1
                logger.debug("otel_chatdebug: the state of %s could not be read", type(source), exc_info=True)
        return records

    def _drop(self, record: Record, reason: str) -> None:
        self._dropped += 1
        self._told_drops += 1  # here and now
        logger.warning(
            "otel-chatdebug could not write the %s %s, and dropped it: %s", type(record).__name__, record.id, reason
        )

    def _clean(self, engine: Engine) -> None:
        from otel_chatdebug.tables import cleanup

        self._next_cleanup = time.monotonic() + CLEANUP_SECONDS

        def stop() -> bool:
            return not self._queue.empty()

        try:
            done = cleanup.remove_old(engine, self._retention_days, stop=stop)
            done = cleanup.trim_content(engine, self._max_size, stop=stop) and done
        except Exception as exc:
            if database.diagnose(exc)[0] is not Fault.RECORD:
                raise
            self._failed += 1
            logger.debug("otel_chatdebug: the cleanup failed", exc_info=True)
        else:
            if not done:
                self._next_cleanup = time.monotonic() + CLEANUP_AGAIN_SECONDS

    def _trouble(self, exc: Exception) -> None:
        fault, reason = database.diagnose(exc)
        logger.debug("otel_chatdebug: the database is in trouble", exc_info=True)
        if fault is Fault.HOPELESS:
            self._give_up(reason)
            return
        if fault is not Fault.LOCKED:
            self._dispose()
        now = time.monotonic()
        self._backoff = min(max(2 * self._backoff, BACKOFF_FIRST), BACKOFF_MOST)
        if self._stopping:
            self._backoff = BACKOFF_FIRST
        self._retry_at = now + self._backoff
        self._troubles += 1
        if fault is Fault.LOCKED and self._troubles == 1:
            return  # several processes that start or write at once
        if not self._told_trouble and now - self._told_trouble_at >= TELL_SECONDS:
            self._told_trouble, self._told_trouble_at = True, now
            logger.warning(
                "The debug tables in %s cannot be written: %s. The application goes on; up to %d records wait, "
                "and it is tried again.",
                database.redacted(self._url),
                reason,
                MAX_QUEUE,
            )

    def _recovered(self) -> None:
        self._backoff = self._retry_at = 0.0
        self._troubles = 0
        if self._told_trouble:
            self._told_trouble = False
            logger.info("The debug tables in %s are written again.", database.redacted(self._url))

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        logger.warning("%s No debug rows are written now; the application goes on.", reason)

    def _tell_drops(self) -> None:
        drops = self._dropped + self._refused
        now = time.monotonic()
        if self._given_up or drops == self._told_drops or now - self._told_drops_at < TELL_SECONDS:
            return
        logger.warning(
            "otel-chatdebug dropped %d records that the database did not take in time.", drops - self._told_drops
        )
        self._told_drops, self._told_drops_at = drops, now


_inherited: list[object] = []
"""What forked children got from their parents; see `Writer.forget`."""

_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


def _before_fork() -> None:
    for writer in list(_writers):
        writer.pause()


def _after_fork_in_parent() -> None:
    for writer in list(_writers):
        writer.resume()


if hasattr(os, "register_at_fork"):
    # In the child whoever owns the writer calls `Writer.forget`, in its own order.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
