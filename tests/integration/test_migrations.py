"""Migrations on both databases: what they build, who takes turns, what a kill leaves, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner, Result
from sqlalchemy import Engine, inspect, text

from otel_chatdebug.cli import main
from otel_chatdebug.tables import database, migrations, schema
from otel_chatdebug.tables.migrations import State
from tests.support.at_once import at_once

ROOT = Path(migrations.__file__).parents[3]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    yield engine
    engine.dispose()


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def described(engine: Engine) -> dict[str, Any]:
    """All that the database says of our tables: columns, keys, constraints, indexes with their predicates."""
    found: dict[str, Any] = {}

    def options(index: Any) -> list[Any]:
        return [value for _, value in sorted(index.get("dialect_options", {}).items())]

    inspector = inspect(engine)
    for table in inspector.get_table_names():
        if table == migrations.VERSION_TABLE:
            continue
        columns = {column["name"]: repr(sorted(column.items(), key=str)) for column in inspector.get_columns(table)}
        found[table] = {
            "columns": columns,
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "unique": sorted(inspector.get_unique_constraints(table), key=str),
            "indexes": sorted(
                (str(index["name"]), index["column_names"], index["unique"], [str(o) for o in options(index)])
                for index in inspector.get_indexes(table)
            ),
        }
    return found


def invoke(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--database-url", url], prog_name="otel-chatdebug")


def test_migrations_build_what_the_schema_declares(engine: Engine) -> None:
    assert migrations.upgrade(engine) is None
    built = described(engine)
    assert built.keys() == schema.metadata.tables.keys()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migrations.VERSION_TABLE})
        assert compare_metadata(context, schema.metadata) == []
    with engine.begin() as connection:
        schema.metadata.drop_all(connection)
        schema.metadata.create_all(connection)
    assert described(engine) == built


UPGRADE = """
import sys
from otel_chatdebug.tables import database, migrations
engine = database.open_engine(sys.argv[1], busy_seconds=120)
print("ready", flush=True)
sys.stdin.readline()
print(migrations.upgrade(engine))
engine.dispose()
"""


def test_processes_that_upgrade_at_once_take_turns(database_url: str) -> None:
    """One of them builds the tables, the other waits for it and finds nothing left to do."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        said = at_once([partial(process.communicate, "go\n") for process in processes])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sorted(out for out, _ in said) == [f"{migrations.HEAD}\n", "None\n"]


def test_an_older_database_is_brought_up_to_date_with_its_rows(engine: Engine) -> None:
    """From the first version that was published."""
    migrations.upgrade(engine, to="0001")
    execute(
        engine,
        "INSERT INTO chat_debug_runs (id, kind, status, rank, source, replica_id, started_at, updated_at) VALUES "
        "('old', 'chat_turn', 'completed', 3, 2, 'r', '2026-01-01 00:00:00.000000', '2026-01-01 00:00:01.000000')",
    )
    assert migrations.examine(engine) == (State.BEHIND, "0001", ())
    assert migrations.upgrade(engine) == "0001"
    assert migrations.examine(engine).state is State.CURRENT
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM chat_debug_runs")).scalars().all() == ["old"]


class TestCommands:
    """``otel-chatdebug db``: what each state is called, and its exit status."""

    def test_upgrade_then_check(self, database_url: str) -> None:
        behind = invoke(database_url, "db", "check")
        assert behind.exit_code == 1
        assert "db upgrade" in behind.output
        assert "Created the tables" in invoke(database_url, "db", "upgrade").output
        current = invoke(database_url, "db", "check", "--json")
        assert current.exit_code == 0
        assert json.loads(current.output)["schema_version"] == migrations.HEAD
        assert "Nothing to do" in invoke(database_url, "db", "upgrade").output

    def test_behind(self, engine: Engine, database_url: str) -> None:
        migrations.upgrade(engine, to="0001")
        behind = invoke(database_url, "db", "check")
        assert behind.exit_code == 1
        assert "0001" in behind.output
        assert migrations.HEAD in behind.output
        assert invoke(database_url, "runs").exit_code == 2
        assert f"Upgraded from schema version 0001 to {migrations.HEAD}" in invoke(database_url, "db", "upgrade").output

    def test_newer_is_refused_with_both_versions(self, engine: Engine, database_url: str) -> None:
        migrations.upgrade(engine)
        execute(engine, f"UPDATE {migrations.VERSION_TABLE} SET version_num = '0777'")
        for command in (["check"], ["upgrade"]):
            refused = invoke(database_url, "db", *command)
            assert refused.exit_code == 2
            assert "0777" in refused.output
            assert migrations.HEAD in refused.output

    @pytest.mark.parametrize(
        ("damage", "named"),
        [
            ("DROP TABLE chat_debug_attempts", "chat_debug_attempts"),
            ("ALTER TABLE chat_debug_runs DROP COLUMN summary", "chat_debug_runs.summary"),
            (f"DROP TABLE {migrations.VERSION_TABLE}", "no schema version"),
        ],
    )
    def test_half_upgraded(self, engine: Engine, database_url: str, damage: str, named: str) -> None:
        """One sentence that says what is missing and what to do; nothing is made better or worse by asking."""
        migrations.upgrade(engine)
        execute(engine, damage)
        before = described(engine)
        checked = invoke(database_url, "db", "check")
        assert checked.exit_code == 2
        assert named in checked.output
        assert "backup" in checked.output
        assert len(checked.output.splitlines()) == 1
        assert described(engine) == before
        for command in (["runs"], ["stuck"], ["delete", "--chat", "c"], ["sweep"], ["info"]):
            refused = invoke(database_url, *command)
            assert refused.exit_code == 2, refused.output
            assert named in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
        upgraded = invoke(database_url, "db", "upgrade")
        assert upgraded.exit_code == 2
        assert named in upgraded.output
        information = invoke(database_url, "db", "info")
        assert information.exit_code == 0
        assert named in information.output

    def test_an_upgrade_of_half_a_schema_is_one_sentence(self, engine: Engine, database_url: str) -> None:
        migrations.upgrade(engine, to="0001")
        execute(engine, "DROP TABLE chat_debug_runs")
        failed = invoke(database_url, "db", "upgrade")
        assert failed.exit_code == 2
        assert "0001" in failed.output
        assert "chat_debug_runs" in failed.output
        assert len(failed.output.splitlines()) == 1

    def test_info(self, engine: Engine, database_url: str) -> None:
        migrations.upgrade(engine)
        facts = json.loads(invoke(database_url, "db", "info", "--json").output)
        assert facts["server"].split()[0] == {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[engine.name]
        assert facts["state"] == "up to date"
        assert facts["rows"] == dict.fromkeys(schema.metadata.tables, 0)
        assert "chat_debug_runs" in invoke(database_url, "db", "info").output


def test_looking_at_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    assert invoke(f"sqlite:///{tmp_path}/none.db", "db", "check").exit_code == 1
    assert invoke(f"sqlite:///{tmp_path}/none.db", "db", "info").exit_code == 2
    assert os.listdir(tmp_path) == []
