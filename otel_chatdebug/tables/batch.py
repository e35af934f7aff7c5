"""A batch on its way into the tables: one transaction, and bisecting where a record cannot be written.

Most records that cannot be written are refused by the database, and told from the others at once. Some take the
connection along: one that the server crashes of, or that something on the way cuts. From outside that looks like a
database that is away, so a batch is taken apart only after it has lost its connection repeatedly, and a record is given
up only when it did so alone, while other transactions were committed in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from otel_chatdebug.records import Record
from otel_chatdebug.tables import database
from otel_chatdebug.tables.database import Fault

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from otel_chatdebug.tables.merge import Numbered

logger = logging.getLogger("otel_chatdebug")

LOSSES: Final = 3
"""So many times a batch may lose its connection before it is taken apart, and a single record before it is given up."""

MOST_NAMED: Final = 1_000
"""Records that are remembered as named; beyond it all are forgotten, and may be named once more."""

_Id: TypeAlias = tuple[type[Record], str]


@dataclass(slots=True)
class _Suspicion:
    """What is held against a record that was in a transaction whose connection was lost."""

    losses: int = 0
    """In company."""
    alone: int = 0
    """By itself."""
    most: int | None = None
    """It is written with not more than so many others, itself included."""


class Batch:
    """The records that are being written, from one trouble of the database to the next. The writer's thread only.

    ``prove`` commits something else than records, and raises where not even that is possible.
    """

    def __init__(
        self,
        numbered: Callable[[Sequence[Numbered]], None] = lambda steps: None,
        prove: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        self._numbered = numbered
        """Hears of steps that were given another number than the one that they proposed."""
        self._prove = prove
        self._chunks: list[list[Record]] = []
        """The last one is next."""
        self._suspects: dict[_Id, _Suspicion] = {}
        """Kept when the records are taken back: they may be added again."""
        self._named: set[_Id] = set()
        self._costly: set[_Id] = set()
        """Those of the named ones that were given up for their losses."""
        self.is_searching = False
        """The last `write` has failed for one of the records, as far as is known, and not for the database."""
        self.written = 0
        self.dropped = 0
        """Records that cannot be written, each of which was told."""
        self.last_write_seconds: float | None = None

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def add(self, records: Sequence[Record]) -> None:
        """Has the records written by the next `write`."""
        if records:
            self._chunks.append(list(records))

    def leftovers(self) -> list[Record]:
        """Gives up what is not written yet, and returns it."""
        left = [record for chunk in reversed(self._chunks) for record in chunk]
        self._chunks = []
        return left

    def write(self, engine: Engine) -> None:
        """Writes what was added. Raises where the database is in trouble; what is not written yet stays."""
        from otel_chatdebug.tables import merge

        self.is_searching = False
        while self._chunks:
            chunk = self._chunks[-1]
            if len(chunk) > self._most(chunk):
                self._split()
                continue
            if len(chunk) == 1 and _id(chunk[0]) in self._suspects:
                self._prove(engine)
            started = time.monotonic()
            try:
                with engine.begin() as connection:
                    numbered = merge.write(connection, chunk)
            except Exception as exc:
                fault, reason = database.diagnose(exc)
                if fault is Fault.RECORD:
                    if len(chunk) > 1:
                        self._split()
                    else:
                        self._drop(reason)
                    continue
                if database.is_lost(exc) and self._suspect(chunk, reason):
                    continue  # it is gone; the engine connects anew
                raise
            self._chunks.pop()
            self.written += len(chunk)
            for record in chunk if self._suspects else ():
                self._suspects.pop(_id(record), None)
                self._costly.discard(_id(record))
            if numbered:
                self._numbered(numbered)
            self.last_write_seconds = time.monotonic() - started
        self._suspects.clear()

    def _most(self, chunk: list[Record]) -> int:
        """How many records of the chunk may go together."""
        most = len(chunk)
        if self._suspects or self._costly:
            for id in map(_id, chunk):
                if id in self._costly:
                    self._suspects.setdefault(id, _Suspicion(alone=LOSSES - 1, most=1))
                suspect = self._suspects.get(id)
                if suspect is not None and suspect.most is not None:
                    most = min(most, suspect.most)
        return most

    def _split(self) -> None:
        chunk = self._chunks.pop()
        middle = len(chunk) // 2
        self._chunks += [chunk[middle:], chunk[:middle]]

    def _suspect(self, chunk: list[Record], reason: str) -> bool:
        """The chunk has lost its connection. True where it was given up for it."""
        for record in chunk:
            suspect = self._suspects.setdefault(_id(record), _Suspicion())
            if len(chunk) > 1:
                suspect.losses += 1
                if suspect.losses >= LOSSES:
                    suspect.most = (len(chunk) + 1) // 2
            else:
                suspect.alone += 1
                suspect.most = 1
            self.is_searching = self.is_searching or suspect.most is not None
            if suspect.alone >= LOSSES:
                del self._suspects[_id(record)]
                self._drop(f"each time the connection was lost ({reason})")
                self._costly.add(_id(record))
                return True
        return False

    def _drop(self, reason: str) -> None:
        (record,) = self._chunks.pop()
        self.dropped += 1
        if _id(record) in self._named:
            return
        if len(self._named) >= MOST_NAMED:
            self._named.clear()
            self._costly.clear()
        self._named.add(_id(record))
        logger.warning(
            "otel-chatdebug could not write the %s %s, and dropped it: %s", type(record).__name__, record.id, reason
        )


def _id(record: Record) -> _Id:
    return (type(record), record.id)
