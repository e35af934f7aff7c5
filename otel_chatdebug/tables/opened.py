"""The writer's database while it is open: one engine with one connection, opened when needed, closed on trouble."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_chatdebug.tables import database

if TYPE_CHECKING:
    from sqlalchemy import Engine

logger = logging.getLogger("otel_chatdebug")

BUSY_SECONDS = 1.0
"""How long one statement waits for another connection's lock. Short: a statement that waits cannot be interrupted,
and we try again anyway."""

CLOSING_BUSY_SECONDS = 0.1
"""The same during a close."""


class OpenDatabase:
    """Used by the writer's thread, but for `interrupt`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.raw: Any = None
        """The DBAPI connection, for a close that must interrupt it."""
        self._engine: Engine | None = None
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of ``_path``, when it was opened."""
        self._hasty = False
        self._in_use = threading.Lock()
        """Held for a moment, so that `interrupt` never meets a connection that is being closed."""

    def engine(self) -> Engine:
        """The engine; opened, and its tables created or upgraded, where that has not been done.

        Raises what the database raises, and `DatabaseError`.
        """
        if self._engine is not None and self._file != self._identity():
            self.close()  # somebody has removed or replaced the file: go on in the one that is there now
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
        self.raw = connection
        if self._hasty:
            self.hasten()

    def hasten(self) -> None:
        """From now on waits less for SQLite's lock: a close waits for us."""
        self._hasty = True
        if isinstance(self.raw, sqlite3.Connection):
            self.raw.execute(f"PRAGMA busy_timeout = {int(CLOSING_BUSY_SECONDS * 1000)}")

    def _identity(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return (0, 0)
        return (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Never raises; can be repeated; opened again by `engine`."""
        with self._in_use:
            engine, self._engine, self.raw = self._engine, None, None
        if engine is not None:
            try:
                engine.dispose()
            except Exception:
                logger.debug("otel_chatdebug: closing the database failed", exc_info=True)

    def interrupt(self) -> None:
        """Ends the statement that is running, whatever the database does. Any thread."""
        with self._in_use, contextlib.suppress(Exception):  # it was closed at this moment
            if isinstance(self.raw, sqlite3.Connection):
                self.raw.interrupt()
            elif self.raw is not None:
                _hang_up(self.raw.pgconn)


def _hang_up(pgconn: Any) -> None:
    """Shuts down the socket to PostgreSQL. Asking the server to cancel would need a server that answers."""
    descriptor = pgconn.socket
    with socket.socket(fileno=os.dup(descriptor)) as ours:
        if pgconn.socket == descriptor:  # else it was closed before we had our own, which may be anybody's now
            ours.shutdown(socket.SHUT_RDWR)
