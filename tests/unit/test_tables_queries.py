"""What the CLI and the viewer read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from otel_chatdebug.records import Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, merge, migrations, queries
from otel_chatdebug.tables.database import NoDatabase
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


@pytest.mark.parametrize(("version", "error"), [("0000", migrations.SchemaTooOld), ("9999", migrations.SchemaTooNew)])
def test_tables_of_another_version_are_refused(
    version: str, error: type[Exception], writing: Engine, tmp_path: Path
) -> None:
    with writing.begin() as connection:
        connection.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '{version}'"))
    with pytest.raises(error, match=version):
        queries.open_for_reading(f"sqlite:///{tmp_path / 'tables.db'}")


def test_runs_come_newest_first_and_in_pages(writing: Engine, engine: Engine) -> None:
    write(writing, *(run_record(f"{number}", started_at=NOW + number // 3) for number in range(8)))
    pages, last = [], None
    while page := queries.list_runs(engine, limit=3, before=last):
        pages.append([run["id"] for run in page])
        last = page[-1]["id"]
    assert pages == [["7", "6", "5"], ["4", "3", "2"], ["1", "0"]]
    with pytest.raises(queries.NotFound):
        queries.list_runs(engine, before="nobody")


def test_runs_are_found_by_chat_status_and_kind(writing: Engine, engine: Engine) -> None:
    write(
        writing,
        run_record("chat", chat_id="c"),
        run_record("failed", status=Status.ERROR, rank=2),
        run_record("title", kind="title_generation"),
    )
    assert [run["id"] for run in queries.list_runs(engine, chat_id="c")] == ["chat"]
    assert [run["id"] for run in queries.list_runs(engine, status="error")] == ["failed"]
    assert [run["id"] for run in queries.list_runs(engine, kind="title_generation")] == ["title"]


def test_a_prefix_finds_the_run_that_has_it(writing: Engine, engine: Engine) -> None:
    write(writing, run_record("abc1"), run_record("abd2"), run_record("abd"))
    assert queries.find_run(engine, " ABC ") == "abc1"
    assert queries.find_run(engine, "abd") == "abd"
    with pytest.raises(queries.Ambiguous, match="abc1, abd, abd2"):
        queries.find_run(engine, "ab")
    for nobody in ("x", "", "ab%", "_bc1"):
        with pytest.raises(queries.NotFound, match="otel-chatdebug runs"):
            queries.find_run(engine, nobody)


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
