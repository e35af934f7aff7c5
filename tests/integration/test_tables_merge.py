"""The merge rule in SQL gives what the fold in Python gives, on SQLite and on PostgreSQL."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial, reduce
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, Table, delete, select

from otel_chatdebug import records
from otel_chatdebug.records import AttemptContent, AttemptRecord, Record, RunRecord, Source, StepContent, StepRecord
from otel_chatdebug.tables import database, liveness, merge, migrations, schema
from tests.support.at_once import at_once
from tests.support.records import (
    NOW,
    attempt_content,
    attempt_record,
    histories,
    run_record,
    step_content,
    step_record,
)

TABLES: dict[type[Record], Table] = {
    RunRecord: schema.runs,
    StepRecord: schema.steps,
    AttemptRecord: schema.attempts,
    StepContent: schema.step_contents,
    AttemptContent: schema.attempt_contents,
}
WRITERS = 3

NUMBERS = {StepRecord: ("step_number", "run_id"), AttemptRecord: ("number", "step_id")}


@pytest.fixture
def engines(database_url: str) -> Iterator[list[Engine]]:
    """Connections of several writers to one database."""
    engines = [database.open_engine(database_url) for _ in range(WRITERS)]
    migrations.upgrade(engines[0])
    yield engines
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(engines: list[Engine]) -> Engine:
    return engines[0]


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in TABLES.values():
            connection.execute(delete(table))


def write_all(engine: Engine, batches: Sequence[Sequence[Record]]) -> None:
    for batch in batches:
        write(engine, *batch)


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def rows(engine: Engine, kind: type[Record]) -> dict[str, dict[str, Any]]:
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(select(TABLES[kind])).mappings()]
    for row in found:
        if "id" not in row:
            row["id"] = row.pop("step_id" if kind is StepContent else "attempt_id")
    return {row["id"]: row for row in found}


def as_row(record: Record) -> dict[str, Any]:
    """What the table is to hold, without what stands outside of the fold."""
    outside = NUMBERS.get(type(record), ("", ""))[0]
    return {field.name: getattr(record, field.name) for field in fields(record) if field.name != outside}


def folded(history: Sequence[Record]) -> dict[tuple[type[Record], str], Record]:
    """The fold in Python, of the records and of the stubs that they bring."""
    known = defaultdict(list)
    stub_steps = [merge.stub_step(record) for record in history if isinstance(record, AttemptRecord)]
    stub_runs = [merge.stub_run(record) for record in history if isinstance(record, (StepRecord, AttemptRecord))]
    for record in [*history, *stub_steps, *stub_runs]:
        known[type(record), record.id].append(record)
    return {identity: reduce(records.merge, told) for identity, told in known.items()}


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the tables are emptied for each example
@given(st.data())
def test_any_history_gives_what_the_fold_in_python_gives(engines: list[Engine], data: st.DataObject) -> None:
    """Any order, any repetition, any batches, two connections; numbers are unique and stay what they are."""
    empty(engines[0])
    history = data.draw(histories())
    told = data.draw(
        st.permutations(history + data.draw(st.lists(st.sampled_from(history)) if history else st.just([])))
    )
    numbers: dict[tuple[type[Record], str], tuple[str, int]] = {}
    while told:
        size = data.draw(st.integers(1, len(told)))
        batch, told = told[:size], told[size:]
        write(data.draw(st.sampled_from(engines)), *batch)
        for kind, (number, scope) in NUMBERS.items():
            given_now = {
                (row[scope], row[number]) for row in rows(engines[0], kind).values() if row[number] is not None
            }
            numbered = 0
            for id, row in rows(engines[0], kind).items():
                if row[number] is None:
                    continue
                numbered += 1
                of, before = numbers.get((kind, id), (None, None))
                assert of != row[scope] or before == row[number]
                numbers[kind, id] = (row[scope], row[number])
            assert numbered == len(given_now)

    expected = folded(history)
    found = {(kind, id): row for kind in TABLES for id, row in rows(engines[0], kind).items()}
    assert found.keys() == expected.keys()
    for identity, record in expected.items():
        row = found[identity]
        assert tuple(row[name] for name in merge.KEY) == record.key
        if record.source != Source.STUB:  # stubs of two children may have the same key
            assert {name: row[name] for name in as_row(record)} == as_row(record)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_writers_that_write_at_once_give_what_the_fold_in_python_gives(
    engines: list[Engine], data: st.DataObject
) -> None:
    """Each has some of the records, in its order and its batches, and all write at the same time: none of them fails,
    none waits for another for ever, and no number is given twice."""
    empty(engines[0])
    history = data.draw(histories(max_size=20))
    again = data.draw(st.lists(st.sampled_from(history), max_size=5)) if history else []
    shares: list[list[list[Record]]] = [[] for _ in engines]
    for record in data.draw(st.permutations(history + again)):
        share = shares[data.draw(st.integers(0, len(shares) - 1))]
        if not share or data.draw(st.booleans()):
            share.append([])
        share[-1].append(record)
    at_once([partial(write_all, engine, share) for engine, share in zip(engines, shares, strict=True)])

    expected = folded(history)
    found = {(kind, id): row for kind in TABLES for id, row in rows(engines[0], kind).items()}
    assert found.keys() == expected.keys()
    for identity, record in expected.items():
        row = found[identity]
        assert tuple(row[name] for name in merge.KEY) == record.key
        if record.source != Source.STUB:
            assert {name: row[name] for name in as_row(record)} == as_row(record)
    for kind, (number, scope) in NUMBERS.items():
        given_numbers = [(row[scope], row[number]) for row in rows(engines[0], kind).values() if row[number]]
        assert len(given_numbers) == len(set(given_numbers))


def test_the_proposed_number_is_taken_where_it_is_free_and_else_the_next(engine: Engine) -> None:
    write(engine, step_record("a", step_number=1), step_record("b", step_number=1), step_record("c", step_number=7))
    write(engine, step_record("d", step_number=7), step_record("other", run_id="other", step_number=7))
    assert {id: row["step_number"] for id, row in rows(engine, StepRecord).items()} == {
        "a": 1, "b": 2, "c": 7, "d": 8, "other": 7,
    }  # fmt: skip


def test_an_update_leaves_the_number_alone(engine: Engine) -> None:
    write(engine, step_record(step_number=3))
    write(engine, step_record(step_number=9, updated_at=NOW + 1))
    assert rows(engine, StepRecord)["step"]["step_number"] == 3


def test_a_child_before_its_parent_brings_a_stub_that_the_parent_replaces(engine: Engine) -> None:
    write(engine, attempt_record(updated_at=NOW + 9, chat_id="chat"))
    assert rows(engine, StepRecord)["step"]["step_number"] is None
    assert rows(engine, RunRecord)["run"]["source"] == Source.STUB
    assert rows(engine, RunRecord)["run"]["chat_id"] == "chat"
    write(engine, run_record(kind="compaction"), step_record(step_number=4))
    assert rows(engine, RunRecord)["run"]["kind"] == "compaction"
    assert rows(engine, StepRecord)["step"]["step_number"] == 4


def test_a_child_does_not_touch_a_parent_that_is_there(engine: Engine) -> None:
    write(engine, run_record(), step_record())
    before = rows(engine, RunRecord), rows(engine, StepRecord)
    write(engine, attempt_record(updated_at=NOW + 5))
    assert (rows(engine, RunRecord), rows(engine, StepRecord)) == before


def test_a_heartbeat_moves_its_own_column_forwards_and_nothing_else(engine: Engine) -> None:
    write(engine, run_record(), step_record(), attempt_record())
    for table in schema.STATE_TABLES:
        with engine.begin() as connection:
            connection.execute(table.update().values(heartbeat_at=NOW))
    before = rows(engine, RunRecord)["run"]
    with engine.begin() as connection:
        liveness.heartbeat(connection, runs=["run", "nobody"], steps=["step"], attempts=["attempt"])
    after = rows(engine, RunRecord)
    assert after.keys() == {"run"}
    assert after["run"].pop("heartbeat_at") > before.pop("heartbeat_at")
    assert after["run"] == before
    assert rows(engine, StepRecord)["step"]["heartbeat_at"] > NOW
    assert rows(engine, AttemptRecord)["attempt"]["heartbeat_at"] > NOW


def test_a_heartbeat_of_a_clock_that_is_behind_changes_nothing(engine: Engine) -> None:
    write(engine, run_record())
    future = NOW * 2
    with engine.begin() as connection:
        connection.execute(schema.runs.update().values(heartbeat_at=future))
        liveness.heartbeat(connection, runs=["run"])
    assert rows(engine, RunRecord)["run"]["heartbeat_at"] == future


def test_a_merge_leaves_the_heartbeat_alone(engine: Engine) -> None:
    write(engine, run_record())
    with engine.begin() as connection:
        connection.execute(schema.runs.update().values(heartbeat_at=NOW))
    write(engine, run_record(updated_at=NOW + 1, chat_id="changed"))
    assert rows(engine, RunRecord)["run"]["chat_id"] == "changed"
    assert rows(engine, RunRecord)["run"]["heartbeat_at"] == NOW


def test_what_cannot_be_stored_as_it_is_is_stored_all_the_same(engine: Engine) -> None:
    write(
        engine, run_record(chat_id="a\0b\ud800", summary={"n": 2**70, "f": float("nan"), "o": object, "\0": "\udfff"})
    )
    row = rows(engine, RunRecord)["run"]
    assert row["chat_id"] == "a\ufffdb\ufffd"
    assert row["summary"] == {"n": str(2**70), "f": "nan", "o": repr(object), "\ufffd": "\ufffd"}


def test_absent_json_is_null_in_sql(engine: Engine) -> None:
    write(engine, run_record(summary=None))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM chat_debug_runs WHERE summary IS NULL").scalar() == 1


def test_times_have_microseconds_and_no_time_zone_of_a_server(engine: Engine) -> None:
    write(engine, run_record(started_at=1_000_001))
    with engine.connect() as connection:
        as_text = "CAST(started_at AT TIME ZONE 'UTC' AS text)" if engine.name == "postgresql" else "started_at"
        shown = connection.exec_driver_sql(f"SELECT {as_text} FROM chat_debug_runs").scalar()
    assert shown == "1970-01-01 00:00:01.000001"
    assert rows(engine, RunRecord)["run"]["started_at"] == 1_000_001


def test_steps_that_many_number_at_once_have_numbers_of_their_own(engines: list[Engine]) -> None:
    """Every one of them proposes the same numbers, a batch is large enough for the lock on all, and none fails."""
    size = merge.MOST_LOCKS * 2
    # Not as stubs: those are merged by every step, so that their rows alone would have the writers wait for each other.
    write(engines[0], *map(run_record, ["one", "two", *(f"run {n}" for n in range(size))]))

    def steps(writer: str, run: str, of: range) -> list[Record]:
        return [step_record(f"{writer}{run}{n}", run_id=run, step_number=n) for n in of]

    def many(engine: Engine, writer: str) -> None:
        for first in (1, 4, 7):
            write(
                engine, *steps(writer, "one", range(first, first + 3)), *steps(writer, "two", range(first, first + 3))
            )
            write(engine, *(step_record(f"{writer}{n}-{first}", run_id=f"run {n}") for n in range(size)))

    at_once([partial(many, engine, name) for engine, name in zip(engines, "abc", strict=True)])
    found = list(rows(engines[0], StepRecord).values())
    for run in ("one", "two"):
        assert sorted(row["step_number"] for row in found if row["run_id"] == run) == list(range(1, 9 * WRITERS + 1))
    for n in range(size):
        assert sorted(row["step_number"] for row in found if row["run_id"] == f"run {n}") == list(range(1, 10))


@pytest.mark.parametrize("kinds", [[StepRecord, AttemptRecord], [RunRecord, StepContent, AttemptContent]])
def test_batches_that_write_the_same_rows_in_other_orders_do_not_wait_for_each_other_for_ever(
    engines: list[Engine], kinds: list[type[Record]]
) -> None:
    """A deadlock is an error of PostgreSQL's, and fails here. Those with numbers, and those without, each have a way of
    their own to avoid it."""
    names = [f"{n:03}" for n in range(200 if RunRecord in kinds else merge.MOST_LOCKS // 2)]
    made: list[Record] = []
    for name in names:
        made += [run_record(name), step_record(name, run_id=name), attempt_record(name, run_id=name, step_id=name)]
        made += [step_content(name, run_id=name), attempt_content(name, run_id=name, step_id=name)]
    write(engines[0], *(record for record in made if isinstance(record, RunRecord | StepRecord)))
    made = [record for record in made if type(record) in kinds]

    def many(engine: Engine, number: int) -> None:
        for turn in range(10):
            batch = [replace(record, updated_at=NOW + turn, replica_id=str(number)) for record in made]
            random.Random(f"{number}-{turn}").shuffle(batch)
            write(engine, *batch)

    at_once([partial(many, engine, number) for number, engine in enumerate(engines)])
    for kind in kinds:
        found = rows(engines[0], kind)
        assert {id: (row["updated_at"], row["replica_id"]) for id, row in found.items()} == {
            name: (NOW + 9, str(WRITERS - 1)) for name in names
        }
