"""URLs and engines."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from otel_chatdebug.tables import database
from otel_chatdebug.tables.database import BadDatabaseURL


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tables.db",
        "/var/tables.db",
        "https://example.com/",
        "mysql://u:secret@h/d",
        "postgresql+odd://u:secret@h/d",
        "sqlite:/x",
        "://secret",
    ],
)
def test_what_is_no_database_url_is_said_in_one_sentence_without_it(url: str) -> None:
    with pytest.raises(BadDatabaseURL) as caught:
        database.check_url(url)
    assert "OTEL_CHATDEBUG_DATABASE_URL" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert database.redacted(url) == "(not a database URL)"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////var/x.db", "sqlite:////var/x.db"),
        ("postgresql://me:secret@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgres://host/db?password=secret", "postgresql+psycopg://host/db?password=%2A%2A%2A"),
        ("postgresql://host:nonsense/db", "(not a database URL)"),
    ],
)
def test_shown_urls_have_no_password(url: str, shown: str) -> None:
    assert database.redacted(url) == shown


def test_a_relative_path_is_made_absolute_and_all_else_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert database.absolute("sqlite:///x.db?timeout=3") == f"sqlite:///{tmp_path}/x.db?timeout=3"
    for url in ("sqlite:////var/x.db", "sqlite://", "sqlite:///:memory:", "postgresql://host/db", "nonsense"):
        assert database.absolute(url) == url


def test_a_reading_engine_neither_creates_nor_writes(tmp_path: Path) -> None:
    path = tmp_path / "a folder with ? and %" / "x.db"
    path.parent.mkdir()
    engine = database.open_engine(
        database.parse("sqlite://").set(database=str(path)).render_as_string(), read_only=True
    )
    with pytest.raises(OperationalError):
        engine.connect()
    assert not path.exists()
    sqlite3.connect(path).executescript("CREATE TABLE t (x)")
    with engine.connect() as connection, pytest.raises(OperationalError, match="readonly"):
        connection.execute(text("INSERT INTO t VALUES (1)"))
    engine.dispose()


def test_a_writing_engine_uses_wal_and_can_give_freed_pages_back(tmp_path: Path) -> None:
    engine = database.open_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 1  # NORMAL
        assert connection.execute(text("PRAGMA auto_vacuum")).scalar() == 2  # INCREMENTAL
    engine.dispose()


def test_a_folder_that_somebody_named_is_not_made(tmp_path: Path) -> None:
    engine = database.open_engine(f"sqlite:///{tmp_path}/missing/x.db")
    with pytest.raises(FileNotFoundError):
        engine.connect()
    assert not (tmp_path / "missing").exists()
