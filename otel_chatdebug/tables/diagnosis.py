"""What an exception of the database means: what to do about it, and one clause that tells a person.

Knows SQLite's and PostgreSQL's codes and words, and imports neither.
"""

from __future__ import annotations

import re
from enum import Enum


class DatabaseError(Exception):
    """What a person can do something about. The message is a sentence and says what."""


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
SQLITE_LOCKED = {5, 6}  # BUSY, LOCKED
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
_POSTGRES_LOCK_TIMEOUT = "55P03"  # lock_not_available
_POSTGRES_LOCKED = (_POSTGRES_LOCK_TIMEOUT, "40")  # and transaction rollback (deadlock, serialization)
_POSTGRES_SCHEMA = ("42P01", "42703", "42P07", "42701", "42883", "3F")  # undefined and duplicate tables and columns
_POSTGRES_AWAY = (*_POSTGRES_SCHEMA, "08", "25006", "28", "3D", "42501", "53", "57", "58", "F0", "XX")

_POSTGRES_WORDS = (
    (r'password authentication failed for user "(.*?)"',
     'the server refuses the password of the user "{0}": check both'),
    (r"no password supplied", "the server asks for a password, and the URL has none"),
    (r"no pg_hba\.conf entry", "the server's pg_hba.conf does not let this user in from here"),
    (r'role "(.*?)" does not exist', 'the server has no user "{0}": create it, or name another'),
    (r'database "(.*?)" does not exist', 'the server has no database "{0}": create it, or name another'),
    (
        r'permission denied for database "(.*?)"',
        'the user may not use it: GRANT CONNECT ON DATABASE "{0}" TO the user, as its owner',
    ),
    (
        r"permission denied for schema (\S+)",
        "the user may not create tables in the schema {0}: GRANT USAGE, CREATE ON SCHEMA {0} TO the user, or run "
        "`otel-chatdebug db upgrade` as one who may",
    ),
    (
        r"permission denied for (?:table|relation) (\S+)",
        "the user may not use the table {0}: GRANT SELECT, INSERT, UPDATE, DELETE ON all "
        "chat_debug_* tables TO the user",
    ),
    (
        r"must be owner of (?:table|relation) (\S+)",
        "only the owner of the table {0} may change it: run `otel-chatdebug db upgrade` as that user",
    ),
    (r"in a read-only transaction", "it is read-only (a standby?): name the primary server"),
    (r'connection to server at "(.*?)", port (\d+) failed: Connection refused',
     "nobody listens at {0}, port {1}: is PostgreSQL running there?"),
    (r"failed to resolve host '(.*?)'", 'the host "{0}" is not known: check the URL'),
    (r"could not translate host name \"(.*?)\"", 'the host "{0}" is not known: check the URL'),
    (r"timeout expired", "the server did not answer in time: check host and port, and firewalls"),
    (r'invalid connection option "(.*?)"',
     'the URL has an option that PostgreSQL does not know, "{0}": remove it'),
)  # fmt: skip
"""What people can do something about: what PostgreSQL says of it in English, and what we say. Anything else is told in
the server's own words."""


def diagnose(exc: BaseException) -> tuple[Fault, str]:
    """``(what to do, why)``: the reason is a clause for a warning, without SQL, parameters and passwords."""
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
        if primary in SQLITE_LOCKED:
            return Fault.LOCKED, "another connection holds its lock"
        if primary in _SQLITE_AWAY:
            return Fault.AWAY, _SQLITE_AWAY[primary]
        if primary == _SQLITE_ERROR:
            return Fault.AWAY, _not_our_schema(original)
        return Fault.RECORD, str(original)
    state = getattr(original, "sqlstate", None)
    if state is not None:
        if state == _POSTGRES_LOCK_TIMEOUT:
            return Fault.LOCKED, "another connection holds its lock (is an upgrade under way?)"
        if state.startswith(_POSTGRES_LOCKED):
            return Fault.LOCKED, first_line(original)
        if state.startswith(_POSTGRES_SCHEMA):
            return Fault.AWAY, _not_our_schema(original)
        return (Fault.AWAY if state.startswith(_POSTGRES_AWAY) else Fault.RECORD), _in_our_words(original)
    unreached = type(original).__name__ == "OperationalError" or "connection option" in str(original)
    if unreached or is_lost(exc):
        return Fault.AWAY, _in_our_words(original)
    return Fault.RECORD, f"{type(original).__name__}: {first_line(original)}"


def is_lost(exc: BaseException) -> bool:
    """Whether a connection broke that had been made: it was cut, or the process at its other end has ended."""
    return bool(getattr(exc, "connection_invalidated", False))


def is_about_schema(exc: BaseException) -> bool:
    """Whether the database says that a table or a column is not there, or is there already."""
    original = getattr(exc, "orig", None) or exc
    if (code := getattr(original, "sqlite_errorcode", None)) is not None:
        return bool(code == _SQLITE_ERROR)
    return (getattr(original, "sqlstate", None) or "").startswith(_POSTGRES_SCHEMA)


def _not_our_schema(original: BaseException) -> str:
    return f"its tables are not what they should be ({first_line(original)}): see `otel-chatdebug db check`"


def _in_our_words(original: BaseException) -> str:
    said = str(original)
    for pattern, words in _POSTGRES_WORDS:
        if match := re.search(pattern, said):
            return words.format(*match.groups())
    return first_line(original)


def first_line(exc: BaseException) -> str:
    """What an exception says, without the SQL that drivers add in further lines."""
    return (str(exc).splitlines() or [type(exc).__name__])[0]
