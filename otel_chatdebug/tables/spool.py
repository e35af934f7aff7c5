"""What the database did not take before a process ended: a file in the state folder, until a process finds it back.

One SQLite file (mode 0600) for all processes and all databases of a user. SQLite brings what such a file needs: a
process that is killed while it writes leaves what it had committed, and several may use it at once. It holds records
that have ended, redacted as in the tables, each with the database that it is for: rows never go to another one.

It is bounded in bytes. What is worth least goes first, and of equal worth the oldest: contents before the facts.

A process that takes records up *claims* them, writes them, and removes them after the commit. So nothing is locked
while a database makes it wait, no two processes take up the same, and a claim whose process has died lapses. Were a
record written twice all the same, the merge rule makes that the same row.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import NamedTuple, TypeAlias

from otel_chatdebug import storable
from otel_chatdebug.records import AttemptContent, AttemptRecord, Record, RunRecord, StepContent, StepRecord
from otel_chatdebug.settings import state_folder
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database
from otel_chatdebug.tables.backlog import MAX_QUEUE_SIZE, Worth, worth_of
from otel_chatdebug.tables.database import Fault

logger = logging.getLogger("otel_chatdebug")

FILE = "spool.db"
"""Its name in the state folder."""

FORMAT = 1
"""``user_version`` of the file. One of a later format is left alone."""

CLAIM_SECONDS = 30.0
"""How long a claim holds: far longer than a chunk takes."""

KEPT_SECONDS = 14 * 86_400.0
"""How long records wait for a database that nobody uses any more: as long as rows are kept, by default."""

CHUNK = 256
"""Records that are taken up at a time."""

RECORDS_PER_LOOK = 32
"""So many records are added between two looks at the time."""

SETTLED_NS = 1_000_000_000
"""So long ago a file was written that its time tells it from the next writing, on any file system."""

BUSY_SECONDS = 1.0
"""How long another process's transaction is waited for: they are short, but several children may end at once."""

_TABLE = """
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY,
    database TEXT NOT NULL,
    worth INTEGER NOT NULL,
    kind TEXT NOT NULL,
    record TEXT NOT NULL,
    size INTEGER NOT NULL,
    kept_at REAL NOT NULL,
    claim TEXT,
    claimed_at REAL
)
"""

_KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (RunRecord, StepRecord, AttemptRecord, StepContent, AttemptContent)
}


_FileStatus: TypeAlias = tuple[int, int, int] | None
"""Inode, size and time of the last writing, in nanoseconds; None where there is no file."""


class Kept(NamedTuple):
    """What is in the file."""

    records: int = 0
    """For the database that was asked about."""
    size: int = 0
    """Their bytes."""
    others: int = 0
    """Records for other databases."""


class Spool:
    """The records of one database in the file. Nothing is open between two calls, each of which one thread makes."""

    def __init__(self, url: str, max_size: int = MAX_QUEUE_SIZE) -> None:
        self.path = state_folder() / FILE
        self._url = url
        self._max_size = max_size
        self.dropped = 0
        """Records that were taken up and are none that this version knows."""
        self.elsewhere = False
        """What the last `take_up` found was being taken up by another process, or was when that one died."""
        self._seen: _FileStatus = None
        """When `take_up` found nothing."""

    def keep(self, records: Iterable[Record], *, late: Callable[[], bool] = lambda: False) -> int:
        """Adds the records that have ended, those first that are worth most, until ``late``; how many were added.

        The first ones are added however late it is: they take a millisecond, and are lost else.

        Raises ``OSError``, ``sqlite3.Error`` and `DatabaseError`; then none was.
        """
        identity = database.identity(self._url)
        if identity is None:
            return 0
        ended = [(worth_of(record), record) for record in records]
        ended = sorted((item for item in ended if item[0] >= Worth.CONTENT), key=lambda item: -item[0])
        kept, now = 0, time.time()
        with self._open(create=True) as connection, _transaction(connection):
            for number, (worth, record) in enumerate(ended):
                if number % RECORDS_PER_LOOK == RECORDS_PER_LOOK - 1 and late():
                    break
                text = _encoded(record)
                connection.execute(
                    "INSERT INTO records (database, worth, kind, record, size, kept_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (identity, worth, type(record).__name__, text, len(text.encode()), now),
                )
                kept += 1
            before = connection.execute("SELECT count(*) FROM records").fetchone()[0]
            connection.execute("DELETE FROM records WHERE kept_at < ?", (now - KEPT_SECONDS,))
            connection.execute(
                "DELETE FROM records WHERE position IN (SELECT position FROM "
                "(SELECT position, sum(size) OVER (ORDER BY worth DESC, position DESC) AS total FROM records) "
                "WHERE total > ?)",
                (self._max_size,),
            )
            removed = before - connection.execute("SELECT count(*) FROM records").fetchone()[0]
        if removed:
            logger.warning("otel-chatdebug removed %d older records from %s: there was no room.", removed, self.path)
        return kept

    def take_up(self, write: Callable[[list[Record]], None]) -> bool:
        """Has ``write`` write some records, and removes them when it returns. True when there may be more.

        What ``write`` raises is raised; the records are kept then. Never raises for the file's sake: it is tried again
        another time.
        """
        status, now = self._status(), time.time_ns()
        self.elsewhere = False
        if status is None:
            self._seen = None
            return False
        identity = database.identity(self._url)
        claim = secrets.token_hex(8)
        try:
            with self._open() as connection:
                rows = self._claim(connection, identity, claim)
        except (OSError, sqlite3.Error) as exc:
            logger.debug("otel_chatdebug: %s cannot be read", self.path, exc_info=True)
            self._seen = None if database.diagnose(exc)[0] is Fault.LOCKED else status
            return False
        if not rows:
            # A file that was written just now may be written once more without looking any different.
            self._seen = status if status[2] < now - SETTLED_NS else None
            return False
        written = False
        try:
            records = [record for kind, text in rows if (record := _decoded(kind, text)) is not None]
            self.dropped += len(rows) - len(records)
            write(records)
            written = True
        finally:
            done = "DELETE FROM records" if written else "UPDATE records SET claim = NULL, claimed_at = NULL"
            # Where this fails the claim lapses; written twice is written once.
            with contextlib.suppress(OSError, sqlite3.Error), self._open() as connection:
                connection.execute(f"{done} WHERE claim = ?", (claim,))
        return True

    def kept(self) -> Kept:
        """What is there now. Raises ``OSError``, ``sqlite3.Error`` and `DatabaseError`."""
        if not self.path.exists():
            return Kept()
        mine = "database = ?"
        with self._open() as connection:
            found = connection.execute(
                f"SELECT coalesce(sum({mine}), 0), coalesce(sum(size) FILTER (WHERE {mine}), 0), count(*) FROM records",
                [database.identity(self._url)] * 2,
            ).fetchone()
        return Kept(found[0], found[1], found[2] - found[0])

    def has_changed(self) -> bool:
        """Whether anything may have been added since `take_up` found nothing. Costs a look at the file's status."""
        return self._status() != self._seen

    def _status(self) -> _FileStatus:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return (status.st_ino, status.st_size, status.st_mtime_ns)

    def _claim(self, connection: sqlite3.Connection, identity: str | None, claim: str) -> list[tuple[str, str]]:
        now = time.time()
        with _transaction(connection):
            connection.execute(
                "UPDATE records SET claim = ?, claimed_at = ? WHERE position IN (SELECT position FROM records "
                "WHERE database = ? AND (claim IS NULL OR claimed_at NOT BETWEEN ? AND ?) ORDER BY position LIMIT ?)",
                (claim, now, identity, now - CLAIM_SECONDS, now, CHUNK),
            )
            rows = connection.execute(
                "SELECT kind, record FROM records WHERE claim = ? ORDER BY position", (claim,)
            ).fetchall()
            if not rows:
                theirs = "SELECT EXISTS (SELECT 1 FROM records WHERE database = ? AND claim IS NOT NULL)"
                self.elsewhere = bool(connection.execute(theirs, (identity,)).fetchone()[0])
        return rows

    @contextmanager
    def _open(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        if create:
            database.create_private(self.path)
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > FORMAT:
                raise sqlite3.DatabaseError(f"format {version} is newer than {FORMAT}")
            connection.execute("PRAGMA secure_delete = ON")
            if version == 0:
                connection.execute("PRAGMA auto_vacuum = FULL")  # it shrinks when records are removed
                with _transaction(connection):
                    connection.execute(_TABLE)
                    connection.execute(f"PRAGMA user_version = {FORMAT}")
            yield connection
        finally:
            connection.close()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _encoded(record: Record) -> str:
    told = {item.name: getattr(record, item.name) for item in fields(record)}
    return storable.json_text({name: value for name, value in told.items() if value is not None})


def _decoded(kind: str, text: str) -> Record | None:
    """The record; None where it is none that this version knows."""
    try:
        known = _KINDS[kind]
        told = json.loads(text)
        names = {item.name for item in fields(known)}
        if "status" in told:
            told["status"] = Status(told["status"])
        return known(**{name: value for name, value in told.items() if name in names})
    except Exception:  # whatever stands there
        logger.warning("otel-chatdebug dropped a %s from the spool: it is none that this version knows.", kind)
        return None
