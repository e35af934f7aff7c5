"""A record that no database takes costs nobody else: the rest is written, it is named once and counted."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select

from otel_chatdebug.records import Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, migrations, schema, troubles
from otel_chatdebug.tables.batch import LOSSES
from otel_chatdebug.tables.spool import Spool
from otel_chatdebug.tables.writer import Beat, Writer
from tests.support import leaks
from tests.support.postgres import Postgres
from tests.support.records import NOW, attempt_content, attempt_record, ended_run, step_content, step_record
from tests.support.sources import Live

SOON = 60.0
"""Seconds that a test waits for what must come, on a machine that others use, too."""

TOO_LONG = "".join(random.Random(1).choices("0123456789abcdef", k=20_000))
"""Longer than an entry of PostgreSQL's indexes, and nothing that could be compressed."""


def nested(depth: int) -> Any:
    value: Any = "core"
    for _ in range(depth):
        value = [value]
    return value


STORABLE: dict[str, Record] = {
    "lone surrogate": ended_run("lone surrogate", chat_id="a\ud800b", summary={"\udfff": "\ud800"}),
    "NUL": ended_run("NUL", chat_id="a\0b", summary={"\0": "a\0b"}),
    "long integer": step_record("long integer", run_id="r1", usage={"input_tokens": 2**70}),
    "longer integer": step_record("longer integer", run_id="r2", usage={"input_tokens": 10**5000}),
    "deep": step_content("deep", normalized_request=nested(100_000)),
    "NaN": step_record("NaN", run_id="r3", metadata={"a": float("nan"), "b": [float("inf"), -float("inf")]}),
    "body": attempt_content("body", request_body="\ud800\0", response_headers=[["\0", "\udfff"]]),
    "no JSON": ended_run("no JSON", summary={"a": object(), "b": {1, 2}, 3: b"bytes"}),
    "not a text": ended_run("not a text", chat_id=12345),
    "too long for an index": ended_run("too long for an index", chat_id=TOO_LONG, model=TOO_LONG, kind=TOO_LONG),
}
"""What is made storable on the way in, and must be there."""

POISON: dict[str, Record] = {
    "a number too large": attempt_record("a number too large", step_id="s1", bytes_received=2**70),
    "a violated constraint": ended_run("a violated constraint", kind=None),
    "a time beyond all calendars": ended_run("a time beyond all calendars", started_at=10**30),
    "a status that is none": step_record("a status that is none", run_id="r4", status=None),
}
"""What no database takes."""

POISON_OF_POSTGRESQL: dict[str, Record] = {
    "not a number": attempt_record("not a number", step_id="s2", response_status="two hundred"),
}
"""What SQLite takes."""


@pytest.fixture
def writer(database_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with leaks.no_leaks():
        writer = Writer(database_url, replica_id="replica", heartbeat_interval=3600, beat=Beat)
        yield writer
        writer.close(5.0)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    yield engine
    engine.dispose()


def ids(engine: Engine) -> set[str]:
    tables = (schema.runs, schema.steps, schema.attempts, schema.step_contents, schema.attempt_contents)
    with engine.connect() as connection:
        return {id for table in tables for id in connection.scalars(select(next(iter(table.primary_key))))}


def test_poison_is_named_once_and_all_else_is_written(
    writer: Writer, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    poison = dict(POISON)
    if engine.dialect.name == "postgresql":
        poison |= POISON_OF_POSTGRESQL
    good = [ended_run(f"good {number:03}") for number in range(100)]
    batch: list[Record] = [*good, *STORABLE.values(), *poison.values()]
    random.Random(2).shuffle(batch)
    for record in batch:
        writer.put(Live(record, final=True))
    assert writer.flush(SOON)
    found = ids(engine)
    assert {record.id for record in good} <= found
    assert set(STORABLE) <= found
    assert not set(poison) & found
    ours = [item for item in caplog.records if item.name == "otel_chatdebug"]
    told = [item.getMessage() for item in ours if item.levelno >= logging.WARNING]
    assert sorted(id for id in poison for line in told if id in line) == sorted(poison)
    assert len(told) == len(poison)
    assert TOO_LONG not in caplog.text
    stats = writer.stats
    assert (stats.dropped, stats.queue_length) == (len(poison), 0)
    assert stats.written == len(batch) - len(poison)
    # Nothing of it comes again.
    writer.put(Live(ended_run("after")))
    assert writer.flush(SOON)
    assert writer.stats.dropped == len(poison)
    assert "after" in ids(engine)


def test_a_run_that_cannot_be_written_does_not_take_its_steps_along(
    writer: Writer, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    run = ended_run(kind=None, status=Status.COMPLETED)
    writer.put(Live(run, step_record(), attempt_record(), step_content(), attempt_content()))
    assert writer.flush(SOON)
    assert {"step", "attempt"} <= ids(engine)
    assert writer.stats.dropped == 1
    with engine.connect() as connection:
        assert connection.scalars(select(schema.runs.c.started_at)).one() == NOW  # its stub


CUTS = """
CREATE FUNCTION cut() RETURNS trigger AS $$ BEGIN
    IF NEW.kind LIKE 'cuts%' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
    RETURN NEW;
END $$ LANGUAGE plpgsql
"""
CUTS_ON = "CREATE TRIGGER cut BEFORE INSERT OR UPDATE ON chat_debug_{} FOR EACH ROW EXECUTE FUNCTION cut()"
"""What a record does of which the server crashes, or which something on the way does not let through."""


@pytest.fixture
def cutting(postgres: Postgres, postgres_url: str) -> str:
    """A database that ends the connection on which a run of the kind ``cuts`` comes."""
    engine = database.open_engine(postgres_url)
    migrations.upgrade(engine)
    engine.dispose()
    postgres.sql(CUTS, CUTS_ON.format("runs"), database=postgres_url.rpartition("/")[2])
    return postgres_url


def told_of(caplog: pytest.LogCaptureFixture, id: str) -> int:
    ours = [item for item in caplog.records if item.name == "otel_chatdebug" and item.levelno >= logging.WARNING]
    return sum(id in item.getMessage() for item in ours)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_record_that_costs_the_connection_each_time_is_named_once_and_all_else_is_written(
    cutting: str, writer: Writer, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    records = [ended_run(f"good {number:03}") for number in range(200)] + [
        ended_run(f"poison {number}", kind="cuts") for number in range(2)
    ]
    random.Random(3).shuffle(records)
    for record in records:
        writer.put(Live(record, final=True))
    assert writer.flush(SOON)
    assert ids(engine) == {record.id for record in records if record.kind != "cuts"}
    assert [told_of(caplog, f"poison {number}") for number in range(2)] == [1, 1]
    assert (writer.stats.dropped, writer.stats.queue_length) == (2, 0)
    # It is not named again, and costs the others no more than a moment.
    writer.put(Live(ended_run("poison 0", kind="cuts", updated_at=NOW + 1), ended_run("after"), final=True))
    assert writer.flush(SOON)
    assert "after" in ids(engine)
    assert told_of(caplog, "poison 0") == 1
    assert writer.stats.dropped == 3


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_such_a_record_in_the_spool_is_named_once_and_all_else_is_taken_up(
    cutting: str, writer: Writer, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [ended_run(f"good {number}") for number in range(20)]
    kept.insert(7, ended_run("poison", kind="cuts"))
    assert Spool(cutting, 10**6).keep(kept) == len(kept)
    writer.start()
    ends = time.monotonic() + SOON
    while len(ids(engine)) < 20 or writer.stats.dropped < 1:
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)
    assert told_of(caplog, "poison") == 1
    assert writer.close(SOON)
    assert not Spool(cutting, 10**6).take_up(lambda records: pytest.fail(f"still there: {records}"))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_that_takes_nothing_makes_no_record_be_dropped(
    cutting: str, postgres: Postgres, writer: Writer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it answers: a record is given up only while other transactions are committed."""
    caplog.set_level(logging.DEBUG, "otel_chatdebug")
    monkeypatch.setattr(troubles, "BACKOFF_MOST", 0.01)
    name = cutting.rpartition("/")[2]
    postgres.sql(CUTS.replace("NEW.kind LIKE 'cuts%'", "true").replace("CREATE", "CREATE OR REPLACE"), database=name)
    postgres.sql(CUTS_ON.format("replicas"), database=name)
    for number in range(3):
        writer.put(Live(ended_run(f"run {number}"), final=True))
    ends = time.monotonic() + SOON
    while caplog.text.count("the database is in trouble") < 5 * LOSSES:
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)
    postgres.sql("DROP FUNCTION cut CASCADE", database=name)
    assert writer.flush(SOON)
    assert writer.stats.dropped == 0
    assert postgres.sql("SELECT count(*) FROM chat_debug_runs", database=name) == [(3,)]
