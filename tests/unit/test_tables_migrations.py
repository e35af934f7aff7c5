"""Migrations: their order, what they import and log, several threads. On both databases: tests/integration."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from otel_chatdebug.tables import database, migrations, schema


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = database.open_engine(f"sqlite:///{tmp_path / 'tables.db'}")
    yield engine
    engine.dispose()


def dump(engine: Engine) -> dict[str, str]:
    """``{name: SQL}`` of all tables and indexes, without the order of lines within."""
    with engine.connect() as connection:
        found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
    return {name: "".join(sorted(" ".join(sql.split()))) for name, sql in found if name != migrations.VERSION_TABLE}


def test_the_columns_are_those_of_the_design() -> None:
    columns = {table.name.removeprefix("chat_debug_"): set(table.c.keys()) for table in schema.metadata.sorted_tables}
    state = "status rank source trace_id span_id replica_id started_at updated_at heartbeat_at finished_at changed_at"
    of = {
        "runs": "id chat_id root_chat_id parent_chat_id owner_id model_config_id trigger_message_id kind provider "
        f"model history_tip_message_id summary error service_name {state}",
        "steps": "id run_id chat_id step_number operation provider model history_tip_message_id assistant_message_id "
        f"usage error metadata {state}",
        "attempts": "id step_id run_id chat_id number end_reason method url path response_status error bytes_received "
        f"events first_byte_at last_byte_at duration_ms longest_gap_at longest_gap_ms {state}",
        "step_contents": "step_id run_id chat_id rank source normalized_request normalized_response replica_id "
        "updated_at",
        "attempt_contents": "attempt_id step_id run_id chat_id rank source request_headers request_body "
        "response_headers response_body replica_id updated_at",
    }
    assert {name: columns[name] for name in of} == {name: set(names.split()) for name, names in of.items()}
    assert columns.keys() == {*of, "replicas", "runner_leases", "settings"}


def test_head_is_the_newest_revision_and_revisions_are_in_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [migrations.head()]
    names = [revision.revision for revision in script.walk_revisions()]
    assert names == sorted(names, reverse=True)


def test_a_second_upgrade_changes_nothing(engine: Engine) -> None:
    migrations.upgrade(engine)
    before = dump(engine)
    assert migrations.upgrade(engine) == migrations.HEAD
    assert dump(engine) == before


def test_a_database_that_is_up_to_date_needs_no_alembic(engine: Engine, tmp_path: Path) -> None:
    migrations.upgrade(engine)
    code = (
        "import sys; from otel_chatdebug.tables import database, migrations; "
        "engine = database.open_engine(sys.argv[1]); migrations.upgrade(engine); engine.dispose(); "
        "assert 'sqlalchemy' in sys.modules; assert 'alembic' not in sys.modules"
    )
    url = f"sqlite:///{tmp_path / 'tables.db'}"
    subprocess.run([sys.executable, "-c", code, url], check=True, cwd=Path(migrations.__file__).parents[3])


def test_importing_the_writer_imports_no_sqlalchemy() -> None:
    """The application pays for it in the writer's thread."""
    for name in ("writer", "database", "__init__"):
        tree = ast.parse((Path(database.__file__).parent / f"{name}.py").read_text())
        imported = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not [node for node in imported if "sqlalchemy" in ast.unparse(node) or "migrations" in ast.unparse(node)]


def test_many_that_upgrade_at_once_make_one_database(tmp_path: Path) -> None:
    engines = [database.open_engine(f"sqlite:///{tmp_path / 'tables.db'}", busy_seconds=60) for _ in range(4)]
    found: list[str | None] = []
    start = threading.Barrier(len(engines))

    def upgrade(engine: Engine) -> None:
        start.wait()
        found.append(migrations.upgrade(engine))

    threads = [threading.Thread(target=upgrade, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert found.count(None) == 1
    for engine in engines:
        engine.dispose()


def test_an_upgrade_that_fails_leaves_nothing_behind(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE mine (x TEXT)"))
        connection.execute(text("CREATE INDEX ix_chat_debug_attempts_open ON mine (x)"))  # made after the tables
    with pytest.raises(migrations.SchemaDamaged, match="already exists"):
        migrations.upgrade(engine)
    assert dump(engine).keys() == {"mine", "ix_chat_debug_attempts_open"}
    assert migrations.current(engine) is None


def test_an_application_that_uses_alembic_itself_is_not_touched(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
    migrations.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "theirs"


def test_alembic_says_nothing_when_it_is_imported_for_later() -> None:
    """As where the database cannot be opened: an application that logs at INFO is told what is wrong, and no more."""
    code = (
        "import logging; logging.basicConfig(level=logging.DEBUG);"
        "from otel_chatdebug.tables import migrations; migrations.load();"
        "import sys; assert 'alembic.command' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "alembic" not in done.stderr


def test_alembic_tells_an_application_nothing_of_ours(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    migrations.upgrade(engine)
    assert caplog.records == []
