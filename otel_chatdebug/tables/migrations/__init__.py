"""Creates the tables and brings them up to date: Alembic, forwards only.

Whether anything is to be done is known from one plain select; Alembic, which takes long to import, is loaded only
when there is. Revisions are numbered: a new one is ``versions/NNNN_what.py``, and `HEAD` is its number.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from otel_chatdebug.tables.database import DatabaseError

HEAD = "0002"
"""The newest revision that this code knows."""

VERSION_TABLE = "chat_debug_version"
"""Not Alembic's default name: the database may be shared with an application that uses Alembic itself."""

ADVISORY_LOCK = 0x6368_6174_6462_67  # "chatdbg"
"""Held on PostgreSQL while upgrading: the second of two processes waits, and finds nothing left to do."""


class SchemaTooNew(DatabaseError):
    """The database was written by a newer version of this package."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The database has schema version {found}, and this otel-chatdebug knows versions up to {HEAD}: "
            "upgrade otel-chatdebug, or set OTEL_CHATDEBUG_DATABASE_URL to another database."
        )


class SchemaTooOld(DatabaseError):
    """The database is to be upgraded before it can be read."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The database has schema version {found}, and this otel-chatdebug reads version {HEAD}: "
            "run `otel-chatdebug db upgrade`."
        )


def head() -> str:
    return HEAD


def current(source: Engine | Connection) -> str | None:
    """The revision of the database; None where it has none of our tables. Only reads."""
    if isinstance(source, Engine):
        with source.connect() as connection:
            return current(connection)
    if not inspect(source).has_table(VERSION_TABLE):
        return None
    found = source.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return None if found is None else str(found)


def is_newer(found: str) -> bool:
    """Whether ``found`` is a revision that this code does not know. Revisions are numbers of a fixed width."""
    return found > HEAD


def upgrade(engine: Engine) -> str | None:
    """Creates the tables, or brings them up to date. Returns the revision that was found; None for a new database.

    Safe when several processes start at once: the whole upgrade is one transaction that holds the write lock (SQLite)
    or an advisory lock (PostgreSQL) from before it looks. Raises `SchemaTooNew`, and what the database raises; then
    nothing was changed.
    """
    with engine.connect() as connection:
        found = current(connection)
    if found == HEAD:
        return found
    if found is not None and is_newer(found):
        raise SchemaTooNew(found)
    with _quiet_alembic():
        return _upgrade(engine)


def _upgrade(engine: Engine) -> str | None:
    import alembic.command  # before the lock is taken: this takes a while
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
        found = current(connection)
        if found is not None and is_newer(found):
            raise SchemaTooNew(found)
        if found != HEAD:
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
    return found


@contextlib.contextmanager
def _quiet_alembic() -> Iterator[None]:
    """Keeps what Alembic tells of itself in this thread out of an application's log."""
    thread = threading.get_ident()

    def is_heard(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.WARNING

    loggers = [logging.getLogger(f"alembic.runtime.{name}") for name in ("migration", "plugins")]
    for logger in loggers:
        logger.addFilter(is_heard)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_heard)
