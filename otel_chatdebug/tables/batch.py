"""A batch on its way into the tables: one transaction, and bisecting where a record cannot be written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from otel_chatdebug.records import Record
from otel_chatdebug.tables import database
from otel_chatdebug.tables.database import Fault

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from otel_chatdebug.tables.merge import Numbered

logger = logging.getLogger("otel_chatdebug")


class Batch:
    """The records that are being written, from one trouble of the database to the next. The writer's thread only."""

    def __init__(self, numbered: Callable[[Sequence[Numbered]], None] = lambda steps: None) -> None:
        self._numbered = numbered
        """Hears of steps that were given another number than the one that they proposed."""
        self._chunks: list[list[Record]] = []
        """The last one is next."""
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

        while self._chunks:
            chunk = self._chunks[-1]
            started = time.monotonic()
            try:
                with engine.begin() as connection:
                    numbered = merge.write(connection, chunk)
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
                self.written += len(chunk)
                if numbered:
                    self._numbered(numbered)
                self.last_write_seconds = time.monotonic() - started

    def _drop(self, record: Record, reason: str) -> None:
        self.dropped += 1
        logger.warning(
            "otel-chatdebug could not write the %s %s, and dropped it: %s", type(record).__name__, record.id, reason
        )
