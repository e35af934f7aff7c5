"""Opening a database: URLs, engines, SQLite's pragmas and file modes, and one sentence for each thing that goes wrong.

SQLAlchemy is imported where it is needed, not with this module (see the package's docstring).
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_chatdebug.settings import state_folder

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

TAKES = "it takes sqlite:////absolute/path.db or postgresql+psycopg://user:password@host/database"

BUSY_SECONDS = 5.0
"""How long a statement waits for another connection's lock on SQLite, where nobody says otherwise."""

CONNECT_SECONDS = 3
"""How long opening a connection to a server may take. Below the 5 s of a shutdown, which cannot interrupt it."""

SCHEMES = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg", "postgres")

LOGGING_NAME = "otel_chatdebug"


class DatabaseError(Exception):
    """What a person can do something about. The message is a sentence and says what."""


class BadDatabaseURL(DatabaseError):
    """The URL is no database URL, or one of a database that is not supported."""


class MissingDriver(DatabaseError):
    """The database's driver is not installed."""


class NoDatabase(DatabaseError):
    """There is no database yet, or it has none of our tables. Reading creates none."""


def check_url(url: str) -> None:
    """Raises `BadDatabaseURL` for what cannot be a database URL. Opens nothing and imports no SQLAlchemy."""
    match = re.match(r"([A-Za-z][\w+.-]*)://", url)
    if match is None:
        # What stands there may hold a password, so it is not repeated.
        raise BadDatabaseURL(f"OTEL_CHATDEBUG_DATABASE_URL is no database URL: {TAKES}.")
    if match[1].lower() not in SCHEMES:
        raise BadDatabaseURL(
            f"OTEL_CHATDEBUG_DATABASE_URL names a database that is not supported, {match[1]}: {TAKES}."
        )


def parse(url: str) -> URL:
    """The URL with its driver and, for SQLite, an absolute path. Raises `BadDatabaseURL`."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    check_url(url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise BadDatabaseURL(f"OTEL_CHATDEBUG_DATABASE_URL is no database URL: {TAKES}.") from None
    if not parsed.drivername.lower().startswith("sqlite"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.host or parsed.username:
        raise BadDatabaseURL(
            "OTEL_CHATDEBUG_DATABASE_URL has a host where SQLite takes a path: "
            "write three slashes before a relative path, four before an absolute one."
        )
    parsed = parsed.set(drivername="sqlite+pysqlite")
    if sqlite_path(parsed) is not None and not (parsed.database or "").startswith("file:"):
        parsed = parsed.set(database=os.path.abspath(parsed.database or ""))
    return parsed


def absolute(url: str) -> str:
    """The URL with the path of an SQLite file made absolute: the application may change its folder before it is opened.

    Leaves all else as it is, valid or not, and imports no SQLAlchemy.
    """
    match = re.fullmatch(r"(sqlite(?:\+pysqlite)?:///)([^?]+)(\?.*)?", url)
    if match is None or match[2].startswith((":memory:", "file:")):
        return url
    return match[1] + os.path.abspath(match[2]) + (match[3] or "")


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite URL; None for memory and for other databases."""
    if not url.drivername.startswith("sqlite"):
        return None
    name = url.database or ""
    if name.startswith("file:"):
        name = name.removeprefix("file:").split("?")[0]
        if name.startswith("//"):
            name = name[2:]
    if not name or ":memory:" in name or url.query.get("mode") == "memory":
        return None
    return Path(name)


def redacted(url: str) -> str:
    """The URL without its passwords, for messages and ``info``. Never raises."""
    try:
        parsed = parse(url)
    except DatabaseError:
        return "(not a database URL)"
    path = sqlite_path(parsed)
    if path is not None:
        return f"sqlite:///{path}"
    secrets = {name: "***" for name in parsed.query if "password" in name.lower()}
    return parsed.update_query_dict(secrets).render_as_string(hide_password=True)


def open_engine(url: str, *, read_only: bool = False, busy_seconds: float = BUSY_SECONDS) -> Engine:
    """An engine for ``url``; nothing is opened before its first connection.

    A writing engine creates an SQLite file that is not there (and the folder, where it is the default one), begins
    its transactions with the write lock and has at most one connection. ``read_only`` creates nothing: connecting
    raises where there is no file.

    Raises `BadDatabaseURL` and `MissingDriver`. Close with ``dispose()``.
    """
    from sqlalchemy import create_engine, event

    parsed = parse(url)
    # Statements carry what people wrote to models. An application that logs its own SQL must not log ours.
    for part in ("engine.Engine", "pool.impl.QueuePool", "pool.impl.NullPool"):
        logging.getLogger(f"sqlalchemy.{part}.{LOGGING_NAME}").setLevel(logging.WARNING)
    options: dict[str, Any] = {
        "logging_name": LOGGING_NAME,
        "pool_logging_name": LOGGING_NAME,
        "hide_parameters": True,
        "pool_size": 1,
        "max_overflow": 4 if read_only else 0,
    }
    if not parsed.drivername.startswith("sqlite"):
        milliseconds = int(busy_seconds * 1000)
        options["connect_args"] = {
            "connect_timeout": CONNECT_SECONDS,
            "options": f"-c lock_timeout={milliseconds} -c timezone=UTC",
            "application_name": "otel-chatdebug",
        }
        if read_only:
            options["execution_options"] = {"postgresql_readonly": True}
        try:
            return create_engine(parsed, **options)
        except ModuleNotFoundError as exc:
            raise MissingDriver(
                f"PostgreSQL needs the driver {exc.name}: pip install 'otel-chatdebug[postgres]'."
            ) from None

    from sqlalchemy.pool import QueuePool

    path = sqlite_path(parsed)
    if read_only and path is not None:
        mode = {"mode": "ro", "uri": "true"}
        parsed = parsed.set(database=path.absolute().as_uri()).update_query_dict(mode)
    # check_same_thread: sqlite3 is built serialized, the pool hands a connection to one thread at a time, and a
    # shutdown interrupts the writer's from its own thread.
    options |= {"poolclass": QueuePool, "connect_args": {"timeout": busy_seconds, "check_same_thread": False}}
    engine = create_engine(parsed, **options)

    @event.listens_for(engine, "do_connect")
    def create(dialect: object, record: object, args: object, kwargs: object) -> None:
        if path is not None and not read_only:
            create_private(path)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        if not read_only:
            # Before the first page is written, or it says nothing: freed pages can be given back (see cleanup).
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _wal(connection, busy_seconds)
            connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes then can fail at once when another wrote in between; one that
        # takes the write lock at its beginning waits.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _wal(connection: Any, busy_seconds: float) -> None:
    """Switches to WAL. SQLite does not wait for a lock here, so several processes that start at once need us to."""
    import sqlite3

    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF not in _SQLITE_LOCKED or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def create_private(path: Path) -> None:
    """Creates the file with mode 0600 (its -wal and -shm inherit that), and the default folder with 0700.

    A folder that somebody named and that is not there is their mistake: it is not created. Does nothing where the
    file exists. Raises ``OSError``.
    """
    folder = state_folder()
    if path.parent == folder and not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # whatever the umask took
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
            path.chmod(0o600)
    finally:
        os.close(descriptor)


class Fault(Enum):
    """What to do about an exception of the database."""

    LOCKED = "locked"
    """Another connection holds the lock, or a deadlock was broken: try again."""
    AWAY = "away"
    """The database cannot be reached, read or written: connect anew and try again."""
    HOPELESS = "hopeless"
    """Trying again changes nothing before a person has done something."""
    RECORD = "record"
    """Anything else: one of the records cannot be written."""


# Primary result codes, https://www.sqlite.org/rescode.html
_SQLITE_LOCKED = {5, 6}  # BUSY, LOCKED
_SQLITE_AWAY = {
    3: "access was denied",  # PERM
    7: "memory has run out",  # NOMEM
    8: "it is read-only: make the file and its folder writable",  # READONLY
    9: "the statement was interrupted",  # INTERRUPT
    10: "reading or writing the disk failed",  # IOERR
    11: "the file is damaged: move it away, a new one is made",  # CORRUPT
    13: "the disk is full",  # FULL
    14: "the file cannot be opened: create its folder, and make it writable",  # CANTOPEN
    15: "its locks do not work here: is it on a network file system?",  # PROTOCOL
    23: "access was denied",  # AUTH
    26: "the file is no SQLite database: move it away, or name another",  # NOTADB
}
_SQLITE_ERROR = 1  # "no such table", and other ways in which the schema is not what it was when we connected

# SQLSTATE classes and codes, https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRES_LOCKED = ("55P03", "40")  # lock_not_available, transaction rollback (deadlock, serialization)
_POSTGRES_AWAY = ("08", "25006", "28", "3D", "3F", "42501", "42P01", "42703", "53", "57", "58", "F0", "XX")


def diagnose(exc: BaseException) -> tuple[Fault, str]:
    """``(what to do, why)``: the reason is a clause for a warning, without SQL and without parameters."""
    if isinstance(exc, DatabaseError):
        return Fault.HOPELESS, str(exc)
    if isinstance(exc, OSError):
        if isinstance(exc, FileNotFoundError):
            return Fault.AWAY, "its folder is missing: create it"
        return Fault.AWAY, exc.strerror or str(exc)
    original = getattr(exc, "orig", None) or exc
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        primary = code & 0xFF
        if primary in _SQLITE_LOCKED:
            return Fault.LOCKED, "another connection holds its lock"
        if primary in _SQLITE_AWAY:
            return Fault.AWAY, _SQLITE_AWAY[primary]
        return (Fault.AWAY if primary == _SQLITE_ERROR else Fault.RECORD), str(original)
    state = getattr(original, "sqlstate", None)
    if state is not None:
        if state.startswith(_POSTGRES_LOCKED):
            return Fault.LOCKED, _first_line(original)
        return (Fault.AWAY if state.startswith(_POSTGRES_AWAY) else Fault.RECORD), _first_line(original)
    if getattr(exc, "connection_invalidated", False) or type(original).__name__ == "OperationalError":
        return Fault.AWAY, _first_line(original)
    return Fault.RECORD, f"{type(original).__name__}: {_first_line(original)}"


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
