"""Creates the tables and brings them up to date: Alembic, forwards only.

Whether anything is to be done is known from one plain select; Alembic, which takes long to import, is loaded only
when there is. Revisions are numbered: a new one is ``versions/NNNN_what.py``, and `HEAD` is its number.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from otel_chatdebug.tables import schema
from otel_chatdebug.tables.database import DatabaseError, first_line, is_about_schema

HEAD = "0007"
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


class SchemaDamaged(DatabaseError):
    """The tables are not those of the version that the database says it has."""

    def __init__(self, found: str | None, what: str) -> None:
        version = f"schema version {found}" if found else "no schema version"
        super().__init__(
            f"The database has {version}, and its tables do not fit that ({what}): restore all chat_debug_* tables "
            "from a backup, or drop them all, or set OTEL_CHATDEBUG_DATABASE_URL to another database."
        )


class State(Enum):
    """What a database is to this code; see `examine`."""

    CURRENT = "up to date"
    EMPTY = "empty"
    """None of our tables is there."""
    BEHIND = "behind"
    NEWER = "newer"
    DAMAGED = "damaged"


class Examined(NamedTuple):
    """What `examine` has found."""

    state: State
    found: str | None
    """The revision of the database; None where it says none."""
    missing: tuple[str, ...] = ()
    """Tables and columns that should be there and are not: ``chat_debug_runs``, ``chat_debug_runs.status``."""

    @property
    def problem(self) -> DatabaseError | None:
        """What would have to be done before it can be read; None where nothing has to."""
        match self.state:
            case State.NEWER:
                return SchemaTooNew(self.found or "")
            case State.BEHIND:
                return SchemaTooOld(self.found or "")
            case State.DAMAGED:
                what = f"missing: {', '.join(self.missing)}" if self.missing else "there are chat_debug_* tables"
                return SchemaDamaged(self.found, what)
            case _:
                return None


def head() -> str:
    return HEAD


def examine(engine: Engine) -> Examined:
    """Compares the database with what this code expects, down to the columns. Only reads."""
    with engine.connect() as connection:
        found = current(connection)
        if found is None:
            return Examined(State.DAMAGED if _ours(connection) else State.EMPTY, None)
        if is_newer(found):
            return Examined(State.NEWER, found)
        if found != HEAD:
            return Examined(State.BEHIND, found)
        missing = _missing(connection)
    return Examined(State.DAMAGED if missing else State.CURRENT, found, missing)


def _ours(connection: Connection) -> set[str]:
    """Which of our tables are there."""
    return set(schema.metadata.tables) & set(inspect(connection).get_table_names())


_COLUMNS = {
    "sqlite": "SELECT tables.name, columns.name "
    "FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns "
    "WHERE tables.type = 'table' AND tables.name LIKE 'chat!_debug!_%' ESCAPE '!'",
    "postgresql": "SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid "
    "WHERE relname LIKE 'chat!_debug!_%' ESCAPE '!' AND relkind IN ('r', 'p') AND pg_table_is_visible(pg_class.oid) "
    "AND attnum > 0 AND NOT attisdropped",
}
"""The columns of our tables, in one statement: whoever reads looks first."""


def _missing(connection: Connection) -> tuple[str, ...]:
    there: dict[str, set[str]] = {}
    for table, column in connection.execute(text(_COLUMNS[connection.dialect.name])):
        there.setdefault(table, set()).add(column)
    missing = []
    for name, declared in schema.metadata.tables.items():
        columns = there.get(name)
        if columns is None:
            missing.append(name)
        else:
            missing += [f"{name}.{column.name}" for column in declared.columns if column.name not in columns]
    return tuple(sorted(missing))


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


def upgrade(engine: Engine, *, to: str = HEAD) -> str | None:
    """Creates the tables, or brings them up to date. Returns the revision that was found; None for a new database.

    Safe when several processes start at once: the whole upgrade is one transaction that holds the write lock (SQLite)
    or an advisory lock (PostgreSQL) from before it looks. Raises `SchemaTooNew`, `SchemaDamaged`, and what the database
    raises; then nothing was changed. ``to`` is an older revision, for tests.
    """
    with engine.connect() as connection:
        found = current(connection)
    if found == to:
        return found
    if found is not None and is_newer(found):
        raise SchemaTooNew(found)
    with _quiet_alembic():
        return _upgrade(engine, to)


def _upgrade(engine: Engine, to: str) -> str | None:
    import alembic.command  # before the lock is taken: see `load`
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    found = None
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            found = current(connection)
            if found is not None and is_newer(found):
                raise SchemaTooNew(found)
            if found is None and _ours(connection):
                raise SchemaDamaged(None, "there are chat_debug_* tables")
            if found != to:
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, to)
    except (OperationalError, ProgrammingError) as exc:
        if is_about_schema(exc):
            raise SchemaDamaged(found, first_line(exc.orig or exc)) from exc
        raise
    return found


def load() -> None:
    """Imports what an upgrade takes, which takes a while."""
    with _quiet_alembic():
        import alembic.command
        import alembic.config  # noqa: F401


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
