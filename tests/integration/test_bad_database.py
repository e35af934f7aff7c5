"""A database that cannot be used: one sentence that says what is wrong and what to do, never a password; the CLI ends
with status 2, and an application goes on with one warning."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url

from otel_chatdebug.cli import main
from otel_chatdebug.tables import database, migrations
from otel_chatdebug.tables.database import Fault
from otel_chatdebug.tables.writer import Beat, Writer
from tests.support.net import free_port
from tests.support.postgres import PASSWORD, Postgres
from tests.support.records import run_record
from tests.support.sources import Live

SECRET = "hush hush/?#"
ROOT = Path(migrations.__file__).parents[3]


@pytest.fixture
def weak(postgres: Postgres, postgres_url: str) -> Iterator[str]:
    """The URL of a user who may connect and nothing more; the tables are there."""
    postgres.sql(f"CREATE ROLE weak LOGIN PASSWORD '{SECRET}'")
    engine = database.open_engine(postgres_url)
    migrations.upgrade(engine)
    engine.dispose()
    name = make_url(postgres_url).database
    assert name is not None
    yield postgres.url(name, user="weak", password=SECRET)
    postgres.sql("DROP OWNED BY weak", database=name)
    postgres.sql("DROP ROLE weak")


def wrong_password(postgres: Postgres) -> str:
    return postgres.url("postgres", password=SECRET)


def no_password(postgres: Postgres) -> str:
    return f"postgresql://chatdebug@127.0.0.1:{postgres.port}/postgres"


def no_such_database(postgres: Postgres) -> str:
    return postgres.url("nowhere")


def nobody_listens(postgres: Postgres) -> str:
    return f"postgresql://u:{SECRET.split()[0]}@127.0.0.1:{free_port()}/db"


def unknown_host(postgres: Postgres) -> str:
    return "postgresql://u:hush@localhost.invalid/db"  # cannot exist: RFC 6761


def unknown_option(postgres: Postgres) -> str:
    return postgres.url("postgres") + "?ssl=require"


BAD = [
    (wrong_password, "refuses the password"),
    (no_password, "asks for a password"),
    (no_such_database, 'no database "nowhere"'),
    (nobody_listens, "is PostgreSQL running there?"),
    (unknown_host, '"localhost.invalid" is not known'),
    (unknown_option, '"ssl"'),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_the_command_line_says_it_in_one_sentence(
    postgres: Postgres, bad: Callable[[Postgres], str], said: str
) -> None:
    for command in (["runs"], ["sweep"], ["db", "check"], ["db", "upgrade"]):
        result = CliRunner().invoke(main, [*command, "--database-url", bad(postgres)])
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
        for password in (SECRET, PASSWORD, "hush"):
            assert password not in result.output


@pytest.mark.parametrize("rights", ["", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO weak"])
def test_missing_rights_on_the_tables(weak: str, postgres: Postgres, rights: str) -> None:
    """Who may read may look, and is told when they try to write."""
    if rights:
        postgres.sql(rights, database=make_url(weak).database or "")
    result = CliRunner().invoke(main, ["runs", "--database-url", weak])
    assert result.exit_code == (0 if rights else 2)
    result = CliRunner().invoke(main, ["sweep", "--database-url", weak])
    assert result.exit_code == 2
    assert "GRANT SELECT, INSERT, UPDATE, DELETE" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_missing_rights_to_create_the_tables(weak: str, postgres: Postgres) -> None:
    name = postgres.new_database()
    result = CliRunner().invoke(main, ["db", "upgrade", "--database-url", weak.rpartition("/")[0] + f"/{name}"])
    assert result.exit_code == 2
    assert "GRANT USAGE, CREATE ON SCHEMA public" in result.stderr
    postgres.sql(f"DROP DATABASE {name}")


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_an_application_gets_one_warning_and_goes_on(
    postgres: Postgres, caplog: pytest.LogCaptureFixture, bad: Callable[[Postgres], str], said: str
) -> None:
    writer = Writer(bad(postgres), replica_id="r", heartbeat_interval=9, beat=Beat)
    told = threading.Event()
    caplog.handler.addFilter(lambda record: told.set() or True)
    writer.put(Live(run_record()))
    assert told.wait(60)
    writer.close(0.2)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said in warnings[0]
    assert "The application goes on" in warnings[0]
    assert [warning for warning in warnings if said in warning] == warnings[:1]
    for password in (SECRET, PASSWORD, "hush"):
        assert password not in caplog.text


def test_rights_that_are_granted_later_are_used(
    weak: str, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """What was waiting is written then."""
    writer = Writer(weak, replica_id="r", heartbeat_interval=9, beat=Beat)
    writer.put(Live(run_record()))
    assert not writer.flush(0.3)
    name = make_url(weak).database or ""
    postgres.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO weak", database=name)
    assert writer.flush(30)
    assert postgres.sql("SELECT id FROM chat_debug_runs", database=name) == [("run",)]
    writer.close()
    assert "GRANT SELECT, INSERT, UPDATE, DELETE" in caplog.text


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_a_url_without_a_driver_or_with_that_of_the_application_works(postgres_url: str, scheme: str) -> None:
    url = scheme + postgres_url.removeprefix("postgresql+psycopg")
    result = CliRunner().invoke(main, ["db", "upgrade", "--database-url", url])
    assert result.exit_code == 0, result.output
    assert PASSWORD not in result.output


WITHOUT = """
import sys
sys.modules["psycopg"] = None  # as if it were not installed
import otel_chatdebug.cli
otel_chatdebug.cli.main(["runs", "--database-url", "postgresql://u:hush@127.0.0.1/db"])
"""


def test_a_missing_driver_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT, env=os.environ)
    assert done.returncode == 2
    assert "pip install 'otel-chatdebug[postgres]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hush" not in done.stderr


def test_what_cannot_be_stored_is_the_record_and_not_the_database(postgres_url: str) -> None:
    """Else it would be tried again for ever. psycopg refuses a NUL by itself, without a code of the server's."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    engine = database.open_engine(postgres_url)
    with pytest.raises(SQLAlchemyError) as nul, engine.begin() as connection:
        connection.execute(text("SELECT :text"), {"text": "\0"})
    engine.dispose()
    assert database.diagnose(nul.value)[0] is Fault.RECORD
