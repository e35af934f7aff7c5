"""What waits to be written: put by any thread without a lock, taken by the writer's thread, bounded.

`Backlog.offer` may run in a finalizer, so the way in is a ``SimpleQueue`` and a few counters with one side that writes.
Whatever has been taken from it is the writer's thread's own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

from otel_chatdebug.records import Record

MAX_QUEUE = 10_000
"""Sources that wait at most. Beyond it those in progress are dropped, then, at twice as many, final ones, too."""


class Source(Protocol):
    """Something whose state can be written: a live run, step or attempt."""

    final: bool
    """Nothing will follow: dropped last when the queue is full."""
    queued: bool
    """Set by the producer just before `Writer.put`, and by the writer for what a beat brings; taken back by the writer
    just before it calls `records`, or when it drops the source. A producer need not put what is queued already."""

    def records(self) -> Sequence[Record]:
        """The state as it is now. Called by the writer's thread; may be slow (redaction); may raise."""


class Token:
    """In the queue between sources: ``done`` is set when all that was put before is settled."""

    def __init__(self) -> None:
        self.done = threading.Event()


class Stop(Token):
    """The last thing that the thread takes."""


class Pause(Token):
    """Closes the database at once; the thread goes on after `Writer.resume`."""


class Waiting(NamedTuple):
    position: int
    source: Source


class Backlog:
    """Sources in the order in which they came, and tokens between them."""

    def __init__(self) -> None:
        # Shared with other threads.
        self._queue: SimpleQueue[Source | Token] = SimpleQueue()
        self.refused = 0
        """Counted by `offer` in many threads without a lock: near enough, and never zero when something was refused."""

        # The thread's own.
        self.dropped = 0
        self.stopping = False
        """A `Stop` has been taken."""
        self.pauses: list[Pause] = []
        self._position = 0
        self._sources: list[Waiting] = []
        self._tokens: list[tuple[int, Token]] = []

    # Any thread.

    def __len__(self) -> int:
        return self._queue.qsize() + len(self._sources)

    @property
    def arriving(self) -> bool:
        """Something has come that has not been taken yet."""
        return not self._queue.empty()

    def offer(self, source: Source) -> bool:
        """Puts the source in line; False where too many wait."""
        if len(self) >= (2 * MAX_QUEUE if source.final else MAX_QUEUE):
            self.refuse(source)
            return False
        self._queue.put(source)
        return True

    def refuse(self, source: Source) -> None:
        source.queued = False
        self.refused += 1

    def tell(self, token: Token) -> None:
        """Puts the token in line. Never refused."""
        self._queue.put(token)

    # The writer's thread.

    @property
    def waits(self) -> bool:
        """Something that was taken waits to be written."""
        return bool(self._sources)

    @property
    def called(self) -> bool:
        """Somebody waits for us: there is no time to gather more."""
        return bool(self._tokens or self.pauses)

    def take_first(self, timeout: float) -> bool:
        """Waits for something to come; False when nothing did within ``timeout`` seconds."""
        try:
            self.take(self._queue.get(timeout=min(timeout, threading.TIMEOUT_MAX)))
        except Empty:
            return False
        return True

    def drain(self) -> None:
        """Takes all that has come, and drops what is too much of it."""
        with contextlib.suppress(Empty):
            while True:
                self.take(self._queue.get_nowait())
        excess = len(self._sources) - MAX_QUEUE
        if excess > 0:
            # What is in progress goes first, the oldest first; then the oldest of the others.
            by_worth = sorted(self._sources, key=lambda waiting: (waiting.source.final, waiting.position))
            for waiting in by_worth[:excess]:
                waiting.source.queued = False
            self.dropped += excess
            self._sources = sorted(by_worth[excess:], key=lambda waiting: waiting.position)

    def take(self, item: Source | Token) -> None:
        self._position += 1
        if not isinstance(item, Token):
            self._sources.append(Waiting(self._position, item))
        elif isinstance(item, Pause):
            self.pauses.append(item)
        else:
            self._tokens.append((self._position, item))
            if isinstance(item, Stop):
                self.stopping = True

    def batch(self, size: int) -> list[Source]:
        """Takes the first ``size`` sources out of the line."""
        batch, self._sources = self._sources[:size], self._sources[size:]
        return [source for _, source in batch]

    def discard(self) -> None:
        """Drops all sources that were taken."""
        for waiting in self._sources:
            waiting.source.queued = False
        self.dropped += len(self._sources)
        self._sources = []

    def settle(self) -> None:
        """Tells those who wait for what is settled now. Not called while a batch is under way."""
        oldest = self._sources[0].position if self._sources else self._position + 1
        for position, token in self._tokens:
            if position < oldest:
                token.done.set()
        self._tokens = [(position, token) for position, token in self._tokens if position >= oldest]

    def stand_aside(self) -> bool:
        """Tells those who wait for a pause that the database is closed. False where nobody does."""
        pauses, self.pauses = self.pauses, []
        for pause in pauses:
            pause.done.set()
        return bool(pauses)
