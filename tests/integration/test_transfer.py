"""Export and import, on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Engine

from otel_chatdebug.records import AttemptRank, Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, liveness, merge, migrations, queries, schema, transfer
from otel_chatdebug.tables.transfer import Imported
from tests.support.records import (
    NOW,
    attempt_content,
    attempt_record,
    histories,
    run_record,
    step_content,
    step_record,
)

WHOLE: list[Record] = [
    run_record(
        chat_id="c/ä", summary={"first_message": "\x1b[31mred"}, error={"type": "x"}, status=Status.ERROR, rank=2
    ),
    step_record(usage={"input_tokens": 3}, metadata={"a": [1.5, None]}),
    step_record("second", step_number=2),
    step_content(normalized_request={"messages": []}),
    attempt_record(response_status=200, duration_ms=1.25, bytes_received=2**40),
    attempt_record("retry", number=2, rank=AttemptRank.FINAL, status=Status.COMPLETED, finished_at=NOW + 5),
    attempt_content(request_headers=[["a", "b"]], response_body="text\n"),
    run_record("other", chat_id="c/ä", started_at=NOW + 1),
    run_record("elsewhere", chat_id="d"),
    attempt_record("orphan", step_id="untold", run_id="untold", chat_id="c/ä"),
]


@pytest.fixture
def new_engine(tmp_path: Any, request: pytest.FixtureRequest, database_url: str) -> Iterator[Callable[[], Engine]]:
    """Call it for an empty database with our tables, of the kind that the test is for."""
    made: list[Engine] = []

    def make() -> Engine:
        url = f"{database_url}{len(made)}"
        if not url.startswith("sqlite"):
            url = request.getfixturevalue("postgres").url(request.getfixturevalue("postgres").new_database())
        engine = database.open_engine(url)
        migrations.upgrade(engine)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.dispose()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def exported(engine: Engine, chat: str = "c/ä") -> dict[str, Any]:
    file: dict[str, Any] = json.loads("".join(transfer.export_chat(engine, chat)))
    return file


def test_a_round_trip_gives_the_same_file_and_a_second_import_changes_nothing(
    new_engine: Callable[[], Engine],
) -> None:
    here, there = new_engine(), new_engine()
    write(here, *WHOLE)
    file = exported(here)
    assert [run["id"] for run in file["runs"]] == ["other", "untold", "run"]
    assert transfer.count_runs(here, "c/ä") == 3
    runs = transfer.read_export(json.dumps(file))
    assert transfer.import_runs(there, runs) == Imported(added=3)
    again = exported(there)
    assert again.pop("exported_at") >= file.pop("exported_at")
    assert again == file
    assert transfer.import_runs(there, runs) == Imported(kept=3)
    assert exported(there)["runs"] == file["runs"]


def test_what_is_newer_stays_and_what_is_older_is_replaced(new_engine: Callable[[], Engine]) -> None:
    here, there = new_engine(), new_engine()
    write(here, run_record(chat_id="c/ä", updated_at=NOW), step_record(updated_at=NOW + 9))
    write(there, run_record(chat_id="c/ä", updated_at=NOW + 5, model="newer"), step_record(updated_at=NOW))
    runs = transfer.read_export("".join(transfer.export_runs(here, ["run", "gone"])))
    assert transfer.import_runs(there, runs) == Imported(updated=1)
    found = queries.load_run(there, "run")
    assert (found["model"], found["steps"][0]["updated_at"]) == ("newer", queries.iso(NOW + 9))


def test_a_run_that_was_open_is_swept_by_its_own_last_sign_of_life(new_engine: Callable[[], Engine]) -> None:
    here, there = new_engine(), new_engine()
    write(here, run_record(chat_id="c/ä"))
    with here.begin() as connection:
        connection.execute(schema.runs.update().values(heartbeat_at=NOW + 7))
    transfer.import_runs(there, transfer.read_export("".join(transfer.export_runs(here, ["run"]))))
    assert liveness.finalize_stale(there, 60.0).runs == 1
    assert queries.load_run(there, "run")["finished_at"] == queries.iso(NOW + 7)


def test_progress_is_told(new_engine: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RUNS_PER_TRANSACTION", 2)
    here, there = new_engine(), new_engine()
    write(here, *(run_record(f"{n}", chat_id="c") for n in range(5)))
    done: list[int] = []
    text = "".join(transfer.export_chat(here, "c", advance=lambda: done.append(1)))
    assert len(done) == 5
    done.clear()
    transfer.import_runs(there, transfer.read_export(text), advance=done.append)
    assert done == [2, 2, 1]


@hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(history=histories(min_size=1))
def test_any_rows_survive_a_round_trip(history: list[Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("transfer")
    engines = [database.open_engine(f"sqlite:///{folder / name}") for name in ("here.db", "there.db")]
    try:
        for engine in engines:
            migrations.upgrade(engine)
        write(engines[0], *history)
        ids = [run["id"] for run in queries.list_runs(engines[0])]
        file = "".join(transfer.export_runs(engines[0], ids))
        transfer.import_runs(engines[1], transfer.read_export(file))
        assert json.loads("".join(transfer.export_runs(engines[1], ids)))["runs"] == json.loads(file)["runs"]
    finally:
        for engine in engines:
            engine.dispose()
