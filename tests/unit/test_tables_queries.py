"""What the CLI and the viewer read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from otel_chatdebug.records import Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, merge, migrations, queries
from otel_chatdebug.tables.database import NoDatabase
from otel_chatdebug.tables.queries import RunFilter
from tests.support.records import NOW, attempt_content, attempt_record, run_record, step_content, step_record


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Engine]:
    engine = database.open_engine(f"sqlite:///{tmp_path / 'tables.db'}")
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(writing: Engine, tmp_path: Path) -> Iterator[Engine]:
    engine = queries.open_for_reading(f"sqlite:///{tmp_path / 'tables.db'}")
    yield engine
    engine.dispose()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def test_reading_makes_no_database(tmp_path: Path) -> None:
    path = tmp_path / "tables.db"
    with pytest.raises(NoDatabase, match=re.escape(str(path))):
        queries.open_for_reading(f"sqlite:///{path}")
    assert not path.exists()


def test_a_database_of_something_else_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    path.touch()
    with pytest.raises(NoDatabase, match=re.escape(str(path))):
        queries.open_for_reading(f"sqlite:///{path}")
    assert path.stat().st_size == 0


def test_a_database_of_something_else_is_named_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "with a space.db"
    path.touch()
    with pytest.raises(NoDatabase, match=re.escape(f"The database sqlite:///{path} has no debug tables")):
        queries.open_for_reading(f"sqlite:///{path}")


@pytest.mark.parametrize(("version", "error"), [("0000", migrations.SchemaTooOld), ("9999", migrations.SchemaTooNew)])
def test_tables_of_another_version_are_refused(
    version: str, error: type[Exception], writing: Engine, tmp_path: Path
) -> None:
    with writing.begin() as connection:
        connection.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '{version}'"))
    with pytest.raises(error, match=version):
        queries.open_for_reading(f"sqlite:///{tmp_path / 'tables.db'}")


def test_a_run_is_loaded_with_all_below_it_in_order(writing: Engine, engine: Engine) -> None:
    write(
        writing,
        run_record(summary={"step_count": 2}, finished_at=NOW + 1_500_000),
        step_record("second", step_number=2),
        step_record("first", step_number=1),
        attempt_record("retry", step_id="first", number=2, error={"type": "rate_limit"}),
        attempt_record("try", step_id="first", number=1),
        step_content("first", normalized_request=[{"role": "user"}]),
        attempt_content("try", step_id="first", request_headers=[["a", "b"]], response_body="text"),
        attempt_record("elsewhere", run_id="other", step_id="other"),
    )
    run = queries.load_run(engine, "run")
    assert run["summary"] == {"step_count": 2}
    assert run["started_at"] == "2026-05-28T20:26:40.000000Z"
    assert run["finished_at"] == "2026-05-28T20:26:41.500000Z"
    first, second = run["steps"]
    assert (first["id"], second["id"]) == ("first", "second")
    assert first["normalized_request"] == [{"role": "user"}]
    assert second["normalized_request"] is None
    assert second["attempts"] == []
    assert [attempt["id"] for attempt in first["attempts"]] == ["try", "retry"]
    assert first["attempts"][0]["request_headers"] == [["a", "b"]]
    assert first["attempts"][0]["response_body"] == "text"
    assert first["attempts"][1]["error"] == {"type": "rate_limit"}
    json.dumps(run)
    with pytest.raises(queries.NotFound):
        queries.load_run(engine, "nobody")


AT = datetime(2026, 1, 31, tzinfo=UTC)

QUERIES: dict[str, Callable[[Engine], object]] = {
    "runs": lambda engine: queries.list_runs(engine),
    "runs of the next page": lambda engine: queries.list_runs(engine, cursor=queries.list_runs(engine, limit=1).older),
    "runs of the page before": lambda engine: queries.list_runs(
        engine, cursor=queries.list_runs(engine, cursor=queries.list_runs(engine, limit=1).older).newer
    ),
    "runs of a chat": lambda engine: queries.list_runs(engine, RunFilter(chat_id="chat")),
    "runs of a status": lambda engine: queries.list_runs(engine, RunFilter(status="error")),
    "runs of a kind": lambda engine: queries.list_runs(engine, RunFilter(kind="chat_turn")),
    "runs of a model": lambda engine: queries.list_runs(engine, RunFilter(model="gpt-5-mini")),
    "runs of a time": lambda engine: queries.list_runs(engine, RunFilter(since=AT, until=AT)),
    "runs by text": lambda engine: queries.list_runs(engine, RunFilter(text="sky")),
    "runs by error": lambda engine: queries.list_runs(engine, RunFilter(error="429")),
    "runs by all": lambda engine: queries.list_runs(
        engine,
        RunFilter(chat_id="chat", kind="chat_turn", status="completed", model="gpt", since=AT, text="sky", error="429"),
    ),
    "chats": lambda engine: queries.list_chats(engine),
    "chats by text": lambda engine: queries.list_chats(engine, text="chat"),
    "facets": queries.facets,
    "find": lambda engine: queries.find(engine, "attempt2"),
    "run": lambda engine: queries.load_run(engine, "run2"),
    "run without content": lambda engine: queries.load_run(engine, "run2", content=False),
    "step content": lambda engine: queries.load_step_content(engine, "step2"),
    "attempt content": lambda engine: queries.load_attempt_content(engine, "attempt2"),
    "body": lambda engine: queries.load_body(engine, "attempt2", "request_body"),
    "messages": lambda engine: queries.load_messages(engine, "step2", "request"),
    "waiting": lambda engine: queries.list_waiting(engine),
    "waiting in a chat": lambda engine: queries.list_waiting(engine, chat_id="chat"),
    "waiting in a run": lambda engine: queries.list_waiting(engine, run_id="run1"),
    "a chat's state": lambda engine: queries.load_chat(engine, "chat"),
    "changes": lambda engine: queries.Follower(engine, cursor="0").poll(),
    "changes of a chat": lambda engine: queries.Follower(engine, chat_id="chat", cursor="0").poll(),
    "changes of a run": lambda engine: queries.Follower(engine, run_id="run1", cursor="0").poll(),
}


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_goes_by_an_index(name: str, writing: Engine, engine: Engine) -> None:
    """SQLite's own plan of each statement looks through no table and sorts no list of runs."""
    for n in range(4):
        open_or_not = {} if n % 2 else {"status": Status.COMPLETED, "rank": 3, "finished_at": NOW}
        write(
            writing,
            run_record(f"run{n}", chat_id="chat", model="gpt", started_at=NOW + n, **open_or_not),
            step_record(f"step{n}", run_id=f"run{n}", chat_id="chat"),
            attempt_record(f"attempt{n}", step_id=f"step{n}", run_id=f"run{n}", chat_id="chat"),
            step_content(f"step{n}", run_id=f"run{n}"),
            attempt_content(f"attempt{n}", step_id=f"step{n}", run_id=f"run{n}"),
        )
    statements: list[tuple[str, Any]] = []

    def remember(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", remember)
    QUERIES[name](engine)
    event.remove(engine, "before_cursor_execute", remember)
    tables = [(statement, parameters) for statement, parameters in statements if "chat_debug_" in statement]
    assert tables, "a plan is asked for nothing"
    with engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        raw.create_function("casefold", 1, str, deterministic=True)
        for statement, parameters in tables:
            plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            whole = [line for line in plan if re.search(r"^SCAN (?!known)(?!.* USING (COVERING )?INDEX)", line)]
            assert not whole, (statement, plan)
            if re.search(r"ORDER BY chat_debug_runs.started_at", statement):
                assert not [line for line in plan if "TEMP B-TREE" in line], (statement, plan)
            if re.search(r"AND \(?chat_debug_runs.chat_id.*\s+ORDER BY chat_debug_runs.heartbeat_at", statement):
                # However many runs of other chats are open, and however many of this one have ended.
                assert "ix_chat_debug_runs_chat_open" in plan[0], (statement, plan)
