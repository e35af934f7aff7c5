"""What goes when a chat is edited or archived, and what stays: on SQLite and on PostgreSQL, with real rows."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Engine, select

import otel_chatdebug as chatdebug
from otel_chatdebug import Deleted, editing, lifecycle, repeating, scopes
from otel_chatdebug.cli import main
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.records import AttemptRank, Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, deletion, merge, migrations, schema
from otel_chatdebug.tables.chores import Beat, Heart
from otel_chatdebug.tables.deletion import Deletion
from otel_chatdebug.tables.spool import Spool
from tests.support.apps import run, started, until
from tests.support.postgres import Postgres
from tests.support.recording import Model
from tests.support.records import NOW, attempt_content, attempt_record, run_record, step_content, step_record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TABLES = (schema.runs, schema.steps, schema.attempts, schema.step_contents, schema.attempt_contents)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def recorded(database_url: str, engine: Engine) -> Iterator[str]:
    """This process records into the database, whose URL it is."""
    chatdebug.configure(database_url=database_url, tracer_provider=TracerProvider(shutdown_on_exit=False))
    yield database_url
    chatdebug.shutdown()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def turn(
    name: str, chat_id: str = "c", *, trigger: Any = None, tip: Any = None, assistant: Any = None, at: int = NOW
) -> list[Record]:
    """A whole turn of a chat: one row in each table."""
    step, attempt = f"step {name}", f"attempt {name}"
    return [
        run_record(name, chat_id=chat_id, trigger_message_id=trigger, history_tip_message_id=tip, started_at=at),
        step_record(step, run_id=name, chat_id=chat_id, assistant_message_id=assistant, started_at=at),
        attempt_record(attempt, run_id=name, step_id=step, chat_id=chat_id, started_at=at),
        step_content(step, run_id=name, chat_id=chat_id, normalized_request={"messages": []}),
        attempt_content(attempt, run_id=name, step_id=step, chat_id=chat_id, request_body="secret"),
    ]


def left(engine: Engine) -> list[str]:
    """The runs that are there; fails where any of them has not got all of its rows, or another row is left."""
    with engine.connect() as connection:
        runs, *others = (
            list(connection.scalars(select(table.c.id if table is schema.runs else table.c.run_id))) for table in TABLES
        )
    assert all(sorted(rows) == sorted(runs) for rows in others)
    return sorted(runs)


def moment(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


# -- what goes


def test_a_chat_goes_with_all_that_belongs_to_it(engine: Engine, database_url: str) -> None:
    write(engine, *turn("1"), *turn("2"), *turn("3", "other"))
    assert chatdebug.delete_chat("c", database_url=database_url) == Deleted(runs=2, steps=2, attempts=2)
    assert left(engine) == ["3"]
    assert chatdebug.delete_chat("c", database_url=database_url) == (0, 0, 0)


def test_what_is_spooled_on_this_machine_goes_with_it(
    engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come back later else, when some process takes it up. What it is not about is written."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    write(engine, *turn("1"))

    def spool(*ids: str, chat_id: str = "c", **more: Any) -> None:
        over: dict[str, Any] = {"status": Status.COMPLETED, "rank": 3, "finished_at": NOW}
        for id in ids:
            states, contents = turn(id, chat_id, **more)[:3], turn(id, chat_id, **more)[3:]
            Spool(database_url).keep([*(replace(record, **over) for record in states), *contents])

    spool("old", at=NOW - 1)
    spool("new")
    spool("of another", chat_id="other")
    assert chatdebug.delete_chat("c", started_before=moment(NOW), database_url=database_url) == (1, 1, 1)
    assert left(engine) == ["1", "new", "of another"]
    spool("17", trigger="17")
    spool("18", trigger="18")
    assert chatdebug.delete_after_message("c", 17, database_url=database_url).runs == 1
    assert left(engine) == ["1", "17", "new", "of another"]
    spool("19")
    result = CliRunner().invoke(main, ["delete", "--chat", "c", "--yes", "--json", "--database-url", database_url])
    assert json.loads(result.stdout)["runs"] == 4
    assert left(engine) == ["of another"]
    assert Spool(database_url).kept().records == 0


def test_only_what_started_before_goes(engine: Engine, database_url: str) -> None:
    write(engine, *turn("old", at=NOW - 1), *turn("new", at=NOW))
    assert chatdebug.delete_chat("c", started_before=moment(NOW), database_url=database_url).runs == 1
    assert left(engine) == ["new"]


def test_a_step_of_the_chat_within_a_run_of_another_goes_alone(engine: Engine, database_url: str) -> None:
    """Of a run that works on several chats."""
    write(
        engine,
        *turn("1", "other"),
        step_record("foreign", run_id="1", chat_id="c", step_number=2),
        attempt_record("of it", run_id="1", step_id="foreign", chat_id="c"),
        step_content("foreign", run_id="1", chat_id="c"),
        attempt_content("of it", run_id="1", step_id="foreign", chat_id="c"),
    )
    assert chatdebug.delete_chat("c", started_before=moment(NOW), database_url=database_url) == (0, 0, 0)
    assert chatdebug.delete_chat("c", database_url=database_url) == (0, 1, 1)
    assert left(engine) == ["1"]
    write(engine, step_record("another", run_id="1", chat_id="c", step_number=2))
    assert chatdebug.delete_chat("other", database_url=database_url) == (1, 2, 1)
    assert left(engine) == []


@pytest.mark.parametrize("column", ["trigger", "tip", "assistant"])
def test_each_column_tells_that_a_run_comes_after_a_message(column: str, engine: Engine, database_url: str) -> None:
    """9 and 10 are numbers: as texts they would be the other way round."""
    write(engine, *turn("before", **{column: "8"}), *turn("it", **{column: "9"}), *turn("after", **{column: "10"}))
    write(engine, *turn("title"), *turn("elsewhere", "other", **{column: "11"}))
    assert chatdebug.delete_after_message("c", 9, database_url=database_url) == (1, 1, 1)
    assert left(engine) == ["before", "elsewhere", "it", "title"]


def test_a_steps_history_tells_it_too_and_the_cutoff_holds(engine: Engine, database_url: str) -> None:
    write(engine, *turn("1", trigger="1", at=NOW - 1), step_record("more", run_id="1", chat_id="c", step_number=2))
    write(
        engine,
        step_record("more", run_id="1", chat_id="c", step_number=2, history_tip_message_id="5", updated_at=NOW + 1),
        *turn("replacement", trigger="6", at=NOW),
    )
    found = chatdebug.delete_after_message("c", "4", started_before=moment(NOW), database_url=database_url)
    assert found == (1, 2, 1)
    assert left(engine) == ["replacement"]


def test_ids_that_are_no_numbers_are_in_the_order_in_which_the_rows_name_them(
    engine: Engine, database_url: str
) -> None:
    """The turn whose question stays and whose answer goes is one run: it goes, and a title of that question stays."""
    write(
        engine,
        *turn("1", trigger="zulu", tip="zulu", assistant="yankee", at=NOW),
        *turn("title", trigger="zulu", at=NOW + 1),
        *turn("2", trigger="x-ray", tip="x-ray", assistant="alpha", at=NOW + 2),
        *turn("3", trigger="bravo", tip="bravo", at=NOW + 3),
    )
    assert chatdebug.delete_after_message("c", "alpha", database_url=database_url).runs == 1
    assert left(engine) == ["1", "2", "title"]
    assert chatdebug.delete_after_message("c", "yankee", database_url=database_url).runs == 1
    assert left(engine) == ["1", "title"]
    assert chatdebug.delete_after_message("c", "zulu", database_url=database_url).runs == 1
    assert left(engine) == ["title"]


def test_a_message_that_nobody_knows_deletes_nothing_and_says_so(
    engine: Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(engine, *turn("1", trigger="zulu"))
    assert chatdebug.delete_after_message("c", "nobody", database_url=database_url) == (0, 0, 0)
    assert "nobody" in caplog.text
    caplog.clear()
    assert chatdebug.delete_after_message("no such chat", "nobody", database_url=database_url) == (0, 0, 0)
    assert caplog.text == ""


def test_more_than_fit_into_one_transaction(engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "IDS_PER_TRANSACTION", 2)
    write(engine, *(record for number in range(5) for record in turn(str(number))))
    assert chatdebug.delete_chat("c", database_url=database_url) == (5, 5, 5)
    assert left(engine) == []


def test_where_there_is_no_database_yet_nothing_is_deleted_and_none_is_made(database_url: str, tmp_path: Any) -> None:
    assert chatdebug.delete_chat("c", database_url=database_url) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []


# -- clocks


def database_now(engine: Engine) -> datetime:
    with engine.connect() as connection:
        return moment(connection.execute(select(schema.utc_now())).scalar_one())


@pytest.mark.parametrize(("behind", "survives"), [(0, True), (29, True), (31, False)])
def test_the_turn_that_replaces_an_edited_one_survives_on_a_replica_whose_clock_is_behind(
    behind: int, survives: bool, recorded: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By as much as is promised, and by more. The old turn had begun a minute before."""
    began = time.time_ns()

    def replica(seconds: float) -> None:
        monkeypatch.setattr(scopes, "time_ns", lambda: int(began + seconds * 1e9))

    replica(-60)
    with chatdebug.run(chat_id="c", trigger_message_id=1) as old:  # type: ignore[call-overload]
        Model().call()
    replica(-10)
    with chatdebug.run(chat_id="c", trigger_message_id=1) as within_the_buffer:  # type: ignore[call-overload]
        pass
    updated_at = database_now(engine)
    replica(0.1 - behind)
    with chatdebug.run(chat_id="c", trigger_message_id=1) as replacement:  # type: ignore[call-overload]
        Model().call()
    deleted = chatdebug.delete_chat("c", started_before=chatdebug.cutoff_from(updated_at))
    assert deleted.runs == (1 if survives else 2)
    with engine.connect() as connection:
        found = set(connection.scalars(select(schema.runs.c.id)))
    assert found == ({within_the_buffer.id, replacement.id} if survives else {within_the_buffer.id})
    assert old.id not in found


def test_the_cutoff_is_thirty_seconds_before_the_edit_in_any_time_zone() -> None:
    edit = datetime(2026, 5, 1, 12, 0, 0, 123, tzinfo=UTC)
    assert chatdebug.cutoff_from(edit) == edit - timedelta(seconds=30)
    assert chatdebug.cutoff_from(edit.astimezone()) == edit - timedelta(seconds=30)
    assert chatdebug.cutoff_from.__doc__ is not None
    assert f"{editing.CLOCK_SKEW.total_seconds():g} s" in chatdebug.cutoff_from.__doc__
    with pytest.raises(ValueError, match="time zone"):
        chatdebug.cutoff_from(edit.replace(tzinfo=None))
    with pytest.raises(ValueError, match="time zone"):
        chatdebug.delete_chat("c", started_before=edit.replace(tzinfo=None))
    with pytest.raises(TypeError, match="datetime"):
        chatdebug.delete_chat("c", started_before=edit.timestamp())  # type: ignore[arg-type]


# -- a turn that is still running


def test_a_run_of_this_process_that_is_still_open_does_not_come_back(recorded: str, engine: Engine) -> None:
    """Its call goes on as if nothing had been, and the next run of the chat is recorded."""
    model = Model()
    with chatdebug.run(chat_id="c") as run:
        body = model.open()
        pieces = body.iter_raw()
        next(pieces)
        chatdebug.flush()
        assert chatdebug.delete_chat("c") == (1, 1, 1)
        assert len(list(pieces)) > 1
        model.call()
        with chatdebug.step():
            model.call()
    chatdebug.flush()
    assert left(engine) == []
    assert run.status is Status.COMPLETED
    with chatdebug.run(chat_id="c") as again:
        model.call()
    chatdebug.flush()
    assert left(engine) == [again.id]


def test_what_was_recorded_a_moment_ago_goes_too(recorded: str, engine: Engine) -> None:
    """It waits in the queue, and would be written after its deletion."""
    for _ in range(20):
        with chatdebug.run(chat_id="c"):
            Model().call()
    assert chatdebug.delete_chat("c").runs == 20
    chatdebug.flush()
    assert left(engine) == []


def test_a_run_of_another_process_is_not_told_any_further_once_that_has_noticed(
    database_url: str, engine: Engine, chatdebug_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its next heartbeat: deleted once, without any repetition, its stream goes on and nothing comes back."""
    monkeypatch.setenv("OTEL_CHATDEBUG_DATABASE_URL", database_url)
    stuck = Behaviour(chunks=5, stall_after=3)
    with Provider() as provider:
        provider.script(stuck)
        with started(
            """
            from otel_chatdebug import lifecycle
            with chatdebug.run(chat_id="c") as run:
                response = open_stream()
                pieces = response.iter_raw()
                next(pieces)
                (live,) = lifecycle._armed.recorder.open_runs.values()
                while live.permit.allowed:
                    threading.Event().wait(0.02)
                say("noticed")
                for _ in pieces:
                    pass
                call()
            say(run.status)
            """,
            provider.url,
        ) as app:
            # Not before its heartbeat has seen it: what is deleted sooner is a matter of the repetitions.
            first = until(lambda: beaten(engine))
            until(lambda: beaten(engine) != first)
            assert chatdebug.delete_chat("c", database_url=database_url) == (1, 1, 1)
            app.wait_for("noticed")
            stuck.release()
            assert app.wait_for("completed") == ""
            assert app.ended().returncode == 0
    assert left(engine) == []


def beaten(engine: Engine) -> list[int | None]:
    with engine.connect() as connection:
        return list(connection.scalars(select(schema.runs.c.heartbeat_at)))


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_heartbeat_tells_that_a_run_was_deleted_also_where_a_child_has_brought_a_stub_of_it(
    comes_back: bool, engine: Engine
) -> None:
    told: list[str] = []
    heart = Heart(lambda: Beat(runs=["1", "2"], deleted=told.extend), 0.0, "replica")

    def beat() -> None:
        heart.collect()
        heart.write(engine)

    write(engine, *turn("1"))
    beat()  # the second one has not been written yet, which is no deletion
    assert told == []
    write(engine, *turn("2", "other"))
    beat()
    assert told == []
    chatdebug.delete_chat("c", database_url=engine.url.render_as_string(hide_password=False))
    if comes_back:
        write(engine, *late_rows("1"))
    beat()
    assert told == ["1"]
    assert left(engine) == ["2"]


def late_rows(name: str) -> list[Record]:
    """What a process that knows nothing of the edit writes of a turn that is still running: its next step, which
    starts after the cut-off, the end of its attempt, and contents. They bring stubs of what is not there any more."""
    done: dict[str, Any] = {"status": Status.COMPLETED, "updated_at": NOW + 9, "finished_at": NOW + 9, "chat_id": "c"}
    return [
        attempt_record(f"attempt {name}", run_id=name, step_id=f"step {name}", rank=AttemptRank.FINAL, **done),
        step_record("next step", run_id=name, chat_id="c", step_number=2, started_at=NOW + 9),
        step_content(f"step {name}", run_id=name, chat_id="c", updated_at=NOW + 9),
        attempt_content(f"attempt {name}", run_id=name, step_id=f"step {name}", chat_id="c", updated_at=NOW + 9),
    ]


@pytest.mark.parametrize("message_id", [None, "1"])
def test_what_a_running_turn_writes_after_its_deletion_goes_the_next_time(
    message_id: str | None, engine: Engine
) -> None:
    write(engine, *turn("1", trigger="2"), *turn("2", trigger="1", at=NOW + 1))
    what = Deletion("c", message_id=message_id, started_before=NOW + 1)
    what.find(engine)
    assert what.count(engine) == what.apply(engine) == (1, 1, 1)
    write(engine, *late_rows("1"))
    what.find(engine)
    assert what.count(engine) == what.apply(engine) == (1, 2, 1)
    write(engine, attempt_content("attempt 1", run_id="1", step_id="step 1", chat_id="c"))
    what.find(engine)
    assert what.apply(engine) == (0, 0, 0)
    assert left(engine) == ["2"]


def test_the_background_repeats_it_and_the_handle_says_when_it_is_done(
    recorded: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine, *turn("1"), *turn("2", at=NOW + 1))
    tried = threading.Semaphore(0)
    go_on = threading.Semaphore(0)
    perform = editing._perform

    def held(*args: Any) -> Deleted:
        deleted = perform(*args)
        tried.release()
        assert go_on.acquire(timeout=30)
        return deleted

    monkeypatch.setattr(editing, "_perform", held)
    handle = chatdebug.schedule_cleanup("c", started_before=moment(NOW + 1), tries=3, delay=0.001)
    assert tried.acquire(timeout=30)
    assert left(engine) == ["2"]
    assert not handle.done
    assert handle.wait(0) is False
    for _ in range(2):
        write(engine, *late_rows("1"))
        go_on.release()
        assert tried.acquire(timeout=30)
    go_on.release()
    assert handle.wait(30) is True
    assert (handle.done, handle.error, handle.deleted) == (True, None, Deleted(3, 5, 3))
    assert left(engine) == ["2"]
    assert not tried.acquire(timeout=0.1)  # three times and no more


def test_the_defaults_are_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tries; without the waiting."""
    pauses = []
    handle = chatdebug.Cleanup(editing._what("c", None, EPOCH), "sqlite://", editing.TRIES, editing.FIRST_DELAY)
    monkeypatch.setattr(editing, "_perform", lambda *_: Deleted(runs=1))
    while (pause := handle.step()) is not None:
        pauses.append(pause)
    assert pauses == [1, 2, 4, 8]
    assert handle.wait(0) is True
    assert handle.deleted == (5, 0, 0)


def test_two_cleanups_at_once_and_rows_that_are_being_written(recorded: str, engine: Engine) -> None:
    """No error, no deadlock that anybody notices, and nothing is left of what is older than the cut-off."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        own = database.open_engine(recorded)
        try:
            while not stop.is_set():
                for name in ("a", "b", "c"):
                    try:
                        write(own, *turn(name), *late_rows(name))
                    except Exception as exc:
                        if database.diagnose(exc)[0] is not database.Fault.LOCKED:
                            raise
        except BaseException as exc:
            failures.append(exc)
        finally:
            own.dispose()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    handles = [chatdebug.schedule_cleanup("c", started_before=moment(NOW + 1), tries=6, delay=0.01) for _ in range(2)]
    assert all(handle.wait(60) for handle in handles)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(handle.deleted.runs for handle in handles) > 3
    chatdebug.delete_chat("c")
    assert left(engine) == []


# -- when it cannot be done


def test_a_database_that_is_away_is_tried_again_and_told_at_the_end(
    own_postgres: Callable[..., Postgres], caplog: pytest.LogCaptureFixture
) -> None:
    server = own_postgres()
    url = server.url(server.new_database())
    engine = database.open_engine(url)
    migrations.upgrade(engine)
    write(engine, *turn("1"))
    engine.dispose()
    server.stop()
    with pytest.raises(Exception, match="connection"):
        chatdebug.delete_chat("c", database_url=url)
    handle = chatdebug.schedule_cleanup("c", started_before=moment(NOW + 1), database_url=url, tries=2, delay=0.001)
    assert handle.wait(60) is False
    assert handle.done
    assert handle.error is not None
    assert len([entry for entry in caplog.records if entry.levelno >= logging.WARNING]) == 1
    assert "otel-chatdebug delete" in caplog.text
    handle = chatdebug.schedule_cleanup("c", started_before=moment(NOW + 1), database_url=url, tries=100, delay=0.01)
    server.start()
    for _ in range(1000):
        if handle.deleted.runs:
            break
        handle.wait(0.05)
    assert handle.deleted == (1, 1, 1)
    repeating.repeater.close(30)


def test_a_shutdown_tries_once_more_when_the_last_rows_are_written(recorded: str, engine: Engine) -> None:
    write(engine, *turn("1"))
    handle = chatdebug.schedule_cleanup("c", started_before=moment(NOW + 1), tries=2, delay=3600)
    while not handle.deleted.runs:
        handle.wait(0.01)
    write(engine, *late_rows("1"))
    chatdebug.shutdown()
    assert handle.wait(0) is True
    assert left(engine) == []
    assert not any(thread.name == repeating.THREAD_NAME for thread in threading.enumerate())


def test_the_end_of_a_script_that_records_nothing_loses_no_cleanup(
    engine: Engine, database_url: str, chatdebug_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_CHATDEBUG_DATABASE_URL", database_url)
    write(engine, *turn("1"))
    done = run(
        """
        import datetime, sqlalchemy.dialects.postgresql.psycopg, otel_chatdebug.tables.queries
        # All is loaded: on a busy machine that alone may take the 5 s that an exit has.
        chatdebug.schedule_cleanup("c", started_before=datetime.datetime.now(datetime.UTC))
        """,
        "",
        configure=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert left(engine) == []


def test_a_shutdown_gives_up_what_the_database_does_not_do_in_time(
    own_postgres: Callable[..., Postgres], caplog: pytest.LogCaptureFixture
) -> None:
    server = own_postgres()
    url = server.url(server.new_database())
    engine = database.open_engine(url)
    migrations.upgrade(engine)
    write(engine, *turn("1"))
    engine.dispose()
    server.freeze()
    try:
        handles = [
            chatdebug.schedule_cleanup(chat, started_before=moment(NOW + 1), database_url=url) for chat in ("c", "d")
        ]
        assert lifecycle.disarm(0.5) is False  # a connection takes 3 s to fail, and is not waited for
        assert [(handle.done, handle.wait(0)) for handle in handles] == [(True, False)] * 2
        assert caplog.text.count("could not be deleted") == 2
    finally:
        server.thaw()
        repeating.repeater.close(60)
