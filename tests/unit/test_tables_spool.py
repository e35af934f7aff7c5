"""What the database did not take before the end is kept in a file, and written when a process finds it back."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path

import pytest

from otel_chatdebug.records import Record
from otel_chatdebug.settings import state_folder
from otel_chatdebug.tables import spool
from otel_chatdebug.tables.database import Fault, diagnose
from otel_chatdebug.tables.spool import Spool
from tests.support.records import attempt_content, attempt_record, ended_run, run_record, step_content, step_record

URL = "sqlite:////somewhere/tables.db"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def make(url: str = URL, max_size: int = 10**6) -> Spool:
    return Spool(url, max_size)


def taken(url: str = URL) -> list[Record]:
    found: list[Record] = []
    while make(url).take_up(found.extend):
        pass
    return found


def test_what_is_kept_comes_back_as_it_was_and_only_once() -> None:
    records = [
        ended_run(summary={"first_message": "h\xe9"}, chat_id="c"),
        step_record(status=ended_run().status, rank=3, usage={"input_tokens": 1}),
        attempt_record(rank=3, error={"type": "x", "message": "\U0001f600"}, duration_ms=1.5),
        step_content(normalized_request={"messages": [{"role": "user"}]}),
        attempt_content(request_headers=[["a", "b"]], response_body="data: x\n\n"),
    ]
    assert make().keep(records) == 5
    found = taken()
    assert found == records
    assert [type(record) for record in found] == [type(record) for record in records]
    assert taken() == []


def test_only_what_has_ended_is_kept() -> None:
    assert make().keep([run_record(), attempt_record(), attempt_content(rank=0), ended_run("ended")]) == 1
    assert [record.id for record in taken()] == ["ended"]


def test_only_the_user_may_read_it_and_what_was_taken_is_gone_from_it() -> None:
    secret = "what somebody wrote " * 1000
    make().keep([attempt_content(request_body=secret)])
    path = state_folder() / spool.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"what somebody wrote" in path.read_bytes()
    large = path.stat().st_size
    taken()
    assert b"what somebody wrote" not in path.read_bytes()
    assert path.stat().st_size < large
    assert [file.name for file in path.parent.iterdir()] == [spool.FILE]


def test_rows_never_go_to_another_database() -> None:
    make("postgresql://me:secret@host/one").keep([ended_run("one")])
    make("postgresql://me:secret@host/two").keep([ended_run("two")])
    make("postgresql://me:secret@host:5433/one").keep([ended_run("port")])
    assert b"secret" not in (state_folder() / spool.FILE).read_bytes()
    # Another password, another user, the default port: the same database.
    assert [record.id for record in taken("postgresql+psycopg://you:other@host:5432/one")] == ["one"]
    assert [record.id for record in taken("postgresql://me:secret@host/two")] == ["two"]
    assert [record.id for record in taken("postgresql://me:secret@host:5433/one")] == ["port"]


def test_a_database_in_memory_has_no_spool() -> None:
    assert make("sqlite://").keep([ended_run()]) == 0
    assert not (state_folder() / spool.FILE).exists()


def test_it_is_bounded_content_goes_first_and_then_the_oldest(caplog: pytest.LogCaptureFixture) -> None:
    def content(id: str) -> Record:
        return attempt_content(id, response_body="x" * 100_000)

    for number in range(5):
        make(max_size=250_000).keep([ended_run(f"run {number}"), content(f"content {number}")])
    assert (state_folder() / spool.FILE).stat().st_size < 500_000
    assert "there was no room" in caplog.text
    found = [record.id for record in taken()]
    assert found == ["run 0", "run 1", "run 2", "run 3", "content 3", "run 4", "content 4"]


def test_what_is_late_is_left_out_and_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "RECORDS_PER_LOOK", 1)
    answers = iter([False, False, True])
    assert make().keep([attempt_content(), ended_run("a"), ended_run("b")], late=lambda: next(answers)) == 2
    assert [record.id for record in taken()] == ["a", "b"]


def test_a_few_are_kept_however_late_it_is() -> None:
    kept = make().keep([ended_run(f"{number:03}") for number in range(100)], late=lambda: True)
    assert 0 < kept < 50
    assert len(taken()) == kept


def test_a_write_that_fails_keeps_the_records() -> None:
    make().keep([ended_run()])

    def fail(records: list[Record]) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        make().take_up(fail)
    assert [record.id for record in taken()] == ["run"]


def test_two_that_take_up_at_once_get_different_records_and_an_abandoned_claim_lapses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool, "CHUNK", 2)
    make().keep([ended_run(str(number)) for number in range(4)])
    one: list[Record] = []
    other: list[Record] = []

    def write(records: list[Record]) -> None:
        one.extend(records)
        make().take_up(other.extend)  # while the first one is at it

    make().take_up(write)
    assert [record.id for record in one] == ["0", "1"]
    assert [record.id for record in other] == ["2", "3"]

    class Killed(BaseException):
        pass

    make().keep([ended_run("again")])
    with contextlib.closing(sqlite3.connect(state_folder() / spool.FILE)) as connection:
        connection.execute("UPDATE records SET claim = 'x', claimed_at = unixepoch()")
        connection.commit()
        assert taken() == []
        connection.execute("UPDATE records SET claimed_at = unixepoch() - 31")
        connection.commit()
    assert [record.id for record in taken()] == ["again"]


def test_whether_anything_was_added_is_seen_at_the_file() -> None:
    """Without opening it: a process looks with each of its heartbeats."""
    mine = make()
    assert not mine.has_changed()  # there is no file
    make().keep([ended_run("one")])
    assert mine.has_changed()
    assert mine.take_up(lambda records: None)
    assert not mine.take_up(lambda records: None)
    assert mine.has_changed()  # it was written this moment, and might be once more within it
    long_ago = time.time() - 60
    os.utime(mine.path, (long_ago, long_ago))
    assert not mine.take_up(lambda records: None)
    assert not mine.has_changed()
    make("sqlite:////other.db").keep([ended_run("two")])
    assert mine.has_changed()


def test_what_another_process_is_taking_up_is_told_from_nothing() -> None:
    mine = make()
    make().keep([ended_run()])

    def write(records: list[Record]) -> None:
        assert not mine.take_up(lambda records: None)
        assert mine.elsewhere

    make().take_up(write)
    assert not mine.take_up(lambda records: None)
    assert not mine.elsewhere


def test_what_is_there_can_be_counted() -> None:
    assert make().kept() == (0, 0, 0)
    make().keep([ended_run("one"), attempt_content(request_body="x" * 1000)])
    make("sqlite:////other.db").keep([ended_run("theirs")])
    kept = make().kept()
    assert (kept.records, kept.others) == (2, 1)
    assert 1000 < kept.size < 3000


def test_what_is_no_record_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    make().keep([ended_run("good")])
    with contextlib.closing(sqlite3.connect(state_folder() / spool.FILE)) as connection:
        for kind, record in [("RunRecord", "{"), ("RunRecord", "[]"), ("Other", "{}"), ("StepRecord", '{"id": "x"}')]:
            connection.execute(
                "INSERT INTO records (database, worth, kind, record, size, kept_at) "
                "SELECT database, 3, ?, ?, 1, kept_at FROM records WHERE position = 1",
                (kind, record),
            )
        connection.commit()
    assert [record.id for record in taken()] == ["good"]
    assert len(caplog.records) == 4


def test_a_file_of_a_later_format_is_left_alone() -> None:
    make().keep([ended_run()])
    path = state_folder() / spool.FILE
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {spool.FORMAT + 1}")
    before = path.read_bytes()
    assert taken() == []
    with pytest.raises(sqlite3.DatabaseError, match="newer"):
        make().keep([ended_run("other")])
    assert path.read_bytes() == before


def test_a_file_that_is_damaged_is_left_alone_and_is_one_reason() -> None:
    folder = state_folder()
    folder.mkdir(parents=True)
    (folder / spool.FILE).write_bytes(b"Dear diary" * 1000)
    assert taken() == []
    with pytest.raises(sqlite3.DatabaseError) as caught:
        make().keep([ended_run()])
    assert diagnose(caught.value)[0] is Fault.AWAY


def test_several_threads_may_keep_at_once() -> None:
    threads = [threading.Thread(target=lambda n=n: make().keep([ended_run(str(n))])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record.id for record in taken()} == {str(number) for number in range(8)}
