"""Runs that somebody else has a hand in: step numbers that two processes give at once, touching and finishing by id."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

import otel_chatdebug as chatdebug
from otel_chatdebug import Outcome
from otel_chatdebug.records import Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, liveness, merge, migrations, schema
from tests.support.records import NOW, run_record, step_record


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Of another process."""
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def recording(database_url: str, chatdebug_home: Path) -> Iterator[None]:
    """This process records into the tables."""
    chatdebug.configure(database_url=database_url)
    yield
    chatdebug.shutdown()


def write(engine: Engine, *batch: Record) -> list[merge.Numbered]:
    with engine.begin() as connection:
        return merge.write(connection, batch)


def row(engine: Engine, id: str, table: Any = schema.runs) -> dict[str, Any]:
    with engine.connect() as connection:
        return dict(connection.execute(select(table).where(table.c.id == id)).mappings().one())


class TestStepNumbers:
    def test_the_insertion_says_which_number_it_gave(self, engine: Engine) -> None:
        assert write(engine, step_record("a"), step_record("b", step_number=2)) == []
        assert write(engine, step_record("c"), step_record("d", run_id="other")) == [("c", "run", 3)]
        assert write(engine, step_record("c", updated_at=NOW + 1)) == [("c", "run", 3)]  # an update changes nothing

    def test_the_counter_of_the_process_follows(self, engine: Engine, recording: None) -> None:
        """Another process has given 2 and 3 meanwhile: what proposes 2 gets 4, and the next one proposes 5."""
        with chatdebug.run() as run:
            with chatdebug.step() as first:
                pass
            assert chatdebug.flush(60)
            write(engine, *(step_record(f"theirs {n}", run_id=run.id, step_number=n) for n in (2, 3)))
            with chatdebug.step() as second:
                assert chatdebug.flush(60)
                assert chatdebug.flush(60)  # and what the writer's thread has told of it is folded
                assert second._live is not None
                assert second._live.number == 4
            with chatdebug.step() as third:
                assert third._live is not None
                assert third._live.number == 5
        assert chatdebug.flush(60)
        numbers = [row(engine, step.id, schema.steps)["step_number"] for step in (first, second, third)]
        assert numbers == [1, 4, 5]

    def test_a_call_under_a_run_that_has_finished_gets_a_run_of_its_own(self, engine: Engine, recording: None) -> None:
        run = chatdebug.run(chat_id="c")
        with run:
            pass
        with run.attach(), chatdebug.step() as late:
            pass
        assert chatdebug.flush(60)
        step = row(engine, late.id, schema.steps)
        assert step["run_id"] != run.id
        assert row(engine, step["run_id"])["kind"] == "auto"


REASONS = {Outcome.NOT_FOUND: "not found", Outcome.OTHER_CHAT: "belongs to another chat"}


class TestRunsOfAnotherProcess:
    @pytest.fixture(autouse=True)
    def _run(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, database_url: str, chatdebug_home: Path) -> None:
        monkeypatch.setenv("OTEL_CHATDEBUG_DATABASE_URL", database_url)
        write(engine, run_record(chat_id="c", summary={"first_message": "hello"}))

    def test_touching_keeps_it_alive(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(schema.runs.update().values(heartbeat_at=NOW))
        assert chatdebug.touch_run("run", chat_id="c") is Outcome.RECORDED
        assert row(engine, "run")["heartbeat_at"] > NOW
        assert liveness.finalize_stale(engine, 60) == (0, 0, 0)

    def test_finishing_is_merged_with_all_that_is_known_of_it(self, engine: Engine) -> None:
        assert chatdebug.finish_run("run", "error", chat_id="c", error="gave up, key sk-abcdefghijklmnopqrstuvwx")
        found = row(engine, "run")
        assert (found["status"], found["rank"], found["summary"]) == ("error", 2, {"first_message": "hello"})
        assert found["finished_at"] is not None
        assert found["error"]["message"] == "gave up, key sk-[REDACTED]"
        write(engine, run_record(rank=3, status=Status.COMPLETED, finished_at=NOW))
        assert row(engine, "run")["status"] == "completed"

    @pytest.mark.parametrize("act", [chatdebug.touch_run, chatdebug.finish_run])
    def test_what_cannot_be_done_says_why(self, act: Any, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "otel_chatdebug")
        before = row(engine, "run")
        for outcome, arguments in (
            (Outcome.NOT_FOUND, {"run_id": "nobody's"}),
            (Outcome.OTHER_CHAT, {"run_id": "run", "chat_id": "d"}),
        ):
            assert act(**arguments) is outcome
            assert not act(**arguments)
            assert f"the run {arguments['run_id']}: {REASONS[outcome]}" in caplog.text
        assert row(engine, "run") == before
        write(engine, run_record(chat_id="c", rank=3, status=Status.COMPLETED, finished_at=NOW, updated_at=NOW + 1))
        before = row(engine, "run")
        assert act("run", chat_id="c") is Outcome.ALREADY_FINISHED
        assert "the run run: already finished" in caplog.text
        assert row(engine, "run") == before

    def test_a_run_that_was_swept_is_open_again_when_it_is_touched(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(schema.runs.update().values(heartbeat_at=NOW))
        liveness.finalize_stale(engine, 60)
        assert chatdebug.touch_run("run")
        assert row(engine, "run")["status"] == "in_progress"


class TestRunsOfThisProcess:
    def test_by_id_as_by_handle(self, engine: Engine, recording: None) -> None:
        run = chatdebug.run(chat_id="c")
        assert chatdebug.touch_run(run.id, chat_id="c")
        assert chatdebug.finish_run(run.id, chat_id="d") is Outcome.OTHER_CHAT
        assert run.status is Status.IN_PROGRESS
        assert chatdebug.finish_run(run.id, chat_id="c")
        assert run.status is Status.COMPLETED
        assert chatdebug.finish_run(run.id) is Outcome.ALREADY_FINISHED  # also before its row has been written
        assert run.finish("error") is Outcome.ALREADY_FINISHED
        assert run.finish() is Outcome.RECORDED  # an equal status updates

    def test_a_run_whose_rows_were_deleted_is_not_found(self, engine: Engine, recording: None) -> None:
        with chatdebug.run(chat_id="gone") as run, chatdebug.step() as step:
            assert chatdebug.delete_chat("gone").runs == 1
            assert run.finish() is Outcome.NOT_FOUND
            assert step.finish() is Outcome.NOT_FOUND
            assert chatdebug.touch_run(run.id) is Outcome.NOT_FOUND
            assert chatdebug.finish_run(run.id) is Outcome.NOT_FOUND


def test_where_nothing_can_be_recorded_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chatdebug.touch_run("run", database_url=f"sqlite:///{tmp_path}/none.db") is Outcome.NOT_FOUND
    assert chatdebug.touch_run("run", database_url="mysql://u:hush@h/d") is Outcome.NOT_RECORDING
    monkeypatch.setenv("OTEL_CHATDEBUG_ENABLED", "never")
    assert chatdebug.finish_run("run", database_url=f"sqlite:///{tmp_path}/none.db") is Outcome.NOT_RECORDING
    with pytest.raises(ValueError, match="touch_run"):
        chatdebug.finish_run("run", "in_progress")
