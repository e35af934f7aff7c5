"""Opening a database: URLs, engines, SQLite's pragmas and file modes. What goes wrong is worded in `diagnosis`.

SQLAlchemy is imported where it is needed, not with this module (see the package's docstring).
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from otel_chatdebug.settings import state_folder
from otel_chatdebug.tables.diagnosis import (
    SQLITE_LOCKED,
    DatabaseError,
    Fault,
    diagnose,
    first_line,
    is_about_schema,
    is_lost,
)

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

TAKES = "it takes sqlite:////absolute/path.db or postgresql://user:password@host/database"

BUSY_SECONDS = 5.0
"""How long a statement waits for another connection's lock on SQLite, where nobody says otherwise."""

WAL_SIZE = 16 * 1024 * 1024
"""Bytes to which SQLite's -wal file shrinks again after it had to be larger. It is carried over every 4 MiB."""

CONNECT_SECONDS = 3
"""How long opening a connection to a server may take. Below the 5 s of a shutdown, which cannot interrupt it."""

_NOTICE_THAT_IT_IS_GONE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""For libpq: a server that has vanished without a word (a network that is cut, a host that is off) is given up after
15 to 25 s, and connected to anew. Left alone, the kernel takes a quarter of an hour, or two hours."""

DRIVERS = {
    "sqlite": ("", "pysqlite", "aiosqlite"),
    "postgresql": ("", "psycopg", "psycopg_async", "psycopg2", "asyncpg", "pg8000"),
}
"""What a URL may name before and after its ``+``. Whichever driver it names, ours is used: an application can hand us
the URL that it uses itself."""

LOGGING_NAME = "otel_chatdebug"

__all__ = [
    "BUSY_SECONDS", "BadDatabaseURL", "DatabaseError", "Fault", "MissingDriver", "NoDatabase", "absolute",
    "check_shared", "check_url", "create_private", "diagnose", "first_line", "is_about_schema", "is_lost",
    "open_engine", "parse", "redacted", "sqlite_path",
]  # fmt: skip


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
    name, _, driver = match[1].lower().partition("+")
    if driver not in DRIVERS.get("postgresql" if name == "postgres" else name, ()):
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


def check_shared(url: str) -> None:
    """Raises `BadDatabaseURL` for a database that only the process that made it can see."""
    parsed = parse(url)
    if parsed.drivername.startswith("sqlite") and sqlite_path(parsed) is None:
        raise BadDatabaseURL(
            "OTEL_CHATDEBUG_DATABASE_URL is an SQLite database in memory, which nobody but the process that made it "
            "can read: name a file, sqlite:////absolute/path.db."
        )


def absolute(url: str) -> str:
    """The URL with the path of an SQLite file made absolute: the application may change its folder before it is opened.

    Leaves all else as it is, valid or not, and imports no SQLAlchemy.
    """
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^?]+)(\?.*)?", url)
    if match is None or match[2].startswith((":memory:", "file:")):
        return url
    return match[1] + os.path.abspath(match[2]) + (match[3] or "")


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite URL; None for memory and for other databases."""
    if not url.drivername.startswith("sqlite"):
        return None
    name = url.database or ""
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").split("?")[0])
        if name.startswith("//"):
            name = name[2:]
    if not name or ":memory:" in name or url.query.get("mode") == "memory":
        return None
    return Path(name)


def identity(url: str) -> str | None:
    """Which database a URL names, whoever logs in: without user and password. None for one in memory.

    Raises `BadDatabaseURL`.
    """
    parsed = parse(url)
    if parsed.drivername.startswith("sqlite"):
        path = sqlite_path(parsed)
        return None if path is None else f"sqlite:///{path.resolve()}"
    host = parsed.host or parsed.query.get("host") or ""
    options = parsed.query.get("options") or ""  # may name another schema
    return f"postgresql://{host}:{parsed.port or 5432}/{parsed.database or parsed.username or ''}?{options}"


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
            **_NOTICE_THAT_IT_IS_GONE,
        }
        if read_only:
            options["execution_options"] = {"postgresql_readonly": True}
        try:
            return create_engine(parsed, **options)
        except ModuleNotFoundError as exc:
            raise MissingDriver(
                f"PostgreSQL needs the driver {exc.name}, which is not installed: "
                "pip install 'otel-chatdebug[postgres]'."
            ) from None
        except ImportError as exc:  # psycopg is there, and libpq is not
            raise MissingDriver(
                f"PostgreSQL's driver psycopg cannot be loaded ({first_line(exc).rstrip('.')}): "
                "pip install 'otel-chatdebug[postgres]'."
            ) from None

    from sqlalchemy.pool import QueuePool

    path = sqlite_path(parsed)
    if read_only:
        check_shared(url)
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
            # The -wal file grows with the largest transaction, and would stay so for good.
            connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE}")

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
            if exc.sqlite_errorcode & 0xFF not in SQLITE_LOCKED or time.monotonic() > deadline:
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
