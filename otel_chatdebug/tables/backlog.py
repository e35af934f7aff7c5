"""What waits to be written: put by any thread without a lock, taken by the writer's thread, bounded by number and size.

`Backlog.offer` may run in a finalizer, so the way in is a ``SimpleQueue`` and a few counters that are near enough.
Whatever has been taken from it is the writer's thread's own: *sources*, whose state has not been read yet, and, while
the database is away, *held* records of those that have ended. They are read early because a redacted and bounded record
takes less memory than the bodies that it is made of, and because a process that ends can keep records, not bodies (see
`spool`). Of each row only the record with the highest key is held.

Where too much waits, what is worth least goes first (`Worth`), and of equal worth the oldest.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import partial
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol, TypeAlias

from otel_chatdebug import records as rules
from otel_chatdebug.records import AttemptContent, ContentRank, Record, StepContent, is_open, size_of

MAX_QUEUE = 10_000
"""Sources and records that wait at most. Beyond it the least worthy are dropped, and those in progress are not taken;
at twice as many nothing is."""

MAX_QUEUE_SIZE = 64 * 1024 * 1024
"""Bytes that wait at most, where no setting says otherwise. They are estimated, of the bodies and texts."""


class Worth(IntEnum):
    """What is dropped first where too much waits."""

    TEXT_SO_FAR = 0
    IN_PROGRESS = 1
    CONTENT = 2
    FINAL = 3


def worth_of(record: Record) -> Worth:
    """What is dropped first where too much waits."""
    if isinstance(record, (StepContent, AttemptContent)):
        return Worth.TEXT_SO_FAR if record.rank == ContentRank.PARTIAL else Worth.CONTENT
    return Worth.IN_PROGRESS if is_open(record) else Worth.FINAL


class Source(Protocol):
    """Something whose state can be written: a live run, step or attempt."""

    final: bool
    """Nothing will follow: dropped last when the queue is full."""
    queued: bool
    """Set by the producer just before `Writer.put`, and by the writer for what a beat brings; taken back by the writer
    just before it calls `records`, or when it drops the source. A producer need not put what is queued already, unless
    it has become final since: then its size counts."""

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory for its records. Any thread, asked often: an estimate at no cost."""

    def records(self) -> Sequence[Record]:
        """The state as it is now. Called by the writer's thread; may be slow (redaction); may raise."""

    def strip(self) -> None:
        """Lets go of its content; its state can still be written. Only called once it is final. Any thread, as
        `Writer.put`."""


class Token:
    """In the queue between sources: ``done`` is set when all that was put before is settled."""

    def __init__(self) -> None:
        self.done = threading.Event()


class Stop(Token):
    """The last thing that the thread takes."""


class Pause(Token):
    """Closes the database at once; the thread goes on after `Writer.resume`."""


class _Waiting(NamedTuple):
    position: int
    source: Source
    size: int
    """Counted for it; 0 while it is in progress, where it is in memory anyway."""


class _Held(NamedTuple):
    position: int
    record: Record
    size: int


_Id: TypeAlias = tuple[type[Record], str]


class Backlog:
    """Sources and records in the order in which they came, and tokens between them."""

    def __init__(self, max_size: int = MAX_QUEUE_SIZE) -> None:
        # Shared with other threads.
        self._max_size = max_size
        self._queue: SimpleQueue[Source | Token] = SimpleQueue()
        self._arriving_size = 0
        """Bytes of what has come and was not taken: counted by `offer` in many threads without a lock, and begun anew
        at each taking."""
        self.refused = 0
        """Counted likewise: near enough, and never zero when something was refused or stripped."""

        # The thread's own.
        self.dropped = 0
        self.stopping = False
        """A `Stop` has been taken."""
        self.pauses: list[Pause] = []
        self._position = 0
        self._sources: dict[int, _Waiting] = {}
        """By ``id`` of the source."""
        self._held: dict[_Id, _Held] = {}
        self._taken_size = 0
        """Bytes of both."""
        self._tokens: list[tuple[int, Token]] = []

    # Any thread.

    def __len__(self) -> int:
        return self._queue.qsize() + len(self._sources) + len(self._held)

    @property
    def size(self) -> int:
        """Bytes that wait, near enough."""
        return self._arriving_size + self._taken_size

    @property
    def arriving(self) -> bool:
        """Something has come that has not been taken yet."""
        return not self._queue.empty()

    def offer(self, source: Source) -> bool:
        """Puts the source in line; False where too much waits."""
        length, size, final = len(self), self.size, source.final
        factor = 2 if final else 1
        if length >= factor * MAX_QUEUE or size >= factor * self._max_size:
            self.refuse(source)
            return False
        if final:
            if size + source.size > self._max_size:
                # The thread is busy, and only it could choose: the newest content goes.
                source.strip()
                self.refused += 1
            self._arriving_size += source.size
        self._queue.put(source)
        return True

    def refuse(self, source: Source) -> None:
        source.queued = False
        self.refused += 1

    def tell(self, token: Token) -> None:
        """Puts the token in line. Never refused."""
        self._queue.put(token)

    # The writer's thread: taking.

    @property
    def waits(self) -> bool:
        """Something that was taken waits to be written."""
        return bool(self._sources or self._held)

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
        """Takes all that has come."""
        self._arriving_size = 0  # first: what comes meanwhile is counted twice rather than never
        with contextlib.suppress(Empty):
            while True:
                self.take(self._queue.get_nowait())

    def take(self, item: Source | Token) -> None:
        self._position += 1
        if not isinstance(item, Token):
            if item.queued:  # else it was read, or dropped, after it was put
                known = self._sources.get(id(item))
                size = item.size if item.final else 0
                self._taken_size += size - (known.size if known else 0)
                self._sources[id(item)] = _Waiting(known.position if known else self._position, item, size)
        elif isinstance(item, Pause):
            self.pauses.append(item)
        else:
            self._tokens.append((self._position, item))
            if isinstance(item, Stop):
                self.stopping = True

    # The writer's thread: handing out.

    def next_records(self, count: int, size: int) -> list[Record]:
        """Takes held records out of the line: the first ones, not more than ``count`` and about ``size`` bytes."""
        taken: list[Record] = []
        for key in list(self._held)[:count]:
            held = self._held.pop(key)
            self._taken_size -= held.size
            size -= held.size
            taken.append(held.record)
            if size <= 0:
                break
        return taken

    def next_sources(self, count: int, size: int) -> list[Source]:
        """Takes sources out of the line, in the same way."""
        taken: list[Source] = []
        for waiting in list(self._sources.values())[:count]:
            self._forget(waiting)
            size -= waiting.size
            taken.append(waiting.source)
            if size <= 0:
                break
        return taken

    def ended(self) -> Iterator[tuple[int, Source]]:
        """Takes the sources that are final out of the line, one by one, with their positions, for `hold`."""
        for waiting in list(self._sources.values()):
            if waiting.source.final:
                self._forget(waiting)
                yield waiting.position, waiting.source

    def everything(self) -> Iterator[Source]:
        """Takes all sources out of the line, one by one, those that are final first."""
        for waiting in sorted(self._sources.values(), key=lambda waiting: not waiting.source.final):
            self._forget(waiting)
            yield waiting.source

    def all_held(self) -> list[Record]:
        """Takes all held records out of the line."""
        return self.next_records(len(self._held), sys.maxsize)

    def hold(self, records: Iterable[Record], position: int) -> None:
        """Has the records wait at ``position``."""
        for record in records:
            key = (type(record), record.id)
            first, before = position, 0
            known = self._held.get(key)
            if known is not None:
                record = rules.merge(known.record, record)
                first, before = min(position, known.position), known.size
            size = size_of(record)
            self._taken_size += size - before
            self._held[key] = _Held(first, record, size)

    def _forget(self, waiting: _Waiting) -> None:
        del self._sources[id(waiting.source)]
        self._taken_size -= waiting.size

    # The writer's thread: letting go.

    def relieve(self) -> None:
        """Drops what is too much, the least worthy first."""
        if not self._overfull():
            return
        for _, _, let_go in sorted(self._candidates(), key=itemgetter(0, 1)):
            if not self._overfull():
                return
            let_go()

    def _overfull(self) -> bool:
        return len(self._sources) + len(self._held) > MAX_QUEUE or self._taken_size > self._max_size

    @property
    def crowded(self) -> bool:
        """So much waits that its bodies should not: see `ended`."""
        return self.size > self._max_size // 4

    def _candidates(self) -> Iterator[tuple[Worth, int, Callable[[], None]]]:
        for key, held in self._held.items():
            yield worth_of(held.record), held.position, partial(self._drop_held, key)
        for waiting in self._sources.values():
            if waiting.source.final:
                yield Worth.CONTENT, waiting.position, partial(self._strip, waiting)
                yield Worth.FINAL, waiting.position, partial(self._drop_source, waiting.source)
            else:
                yield Worth.IN_PROGRESS, waiting.position, partial(self._drop_source, waiting.source)

    def _drop_held(self, key: _Id) -> None:
        self._taken_size -= self._held.pop(key).size
        self.dropped += 1

    def _drop_source(self, source: Source) -> None:
        self._forget(self._sources[id(source)])
        source.queued = False
        self.dropped += 1

    def _strip(self, waiting: _Waiting) -> None:
        waiting.source.strip()
        size = waiting.source.size
        if size < waiting.size:
            self._sources[id(waiting.source)] = waiting._replace(size=size)
            self._taken_size += size - waiting.size
            self.dropped += 1

    def discard(self) -> None:
        """Drops all that was taken."""
        for waiting in self._sources.values():
            waiting.source.queued = False
        self.dropped += len(self._sources) + len(self._held)
        self._sources, self._held, self._taken_size = {}, {}, 0

    # The writer's thread: telling.

    def settle(self) -> None:
        """Tells those who wait for what is settled now. Not called while a batch is under way."""
        if not self._tokens:
            return
        positions = [waiting.position for waiting in self._sources.values()]
        positions += [held.position for held in self._held.values()]
        oldest = min(positions, default=self._position + 1)
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
