"""The merge rule of `otel_chatdebug.records` in SQL: one upsert for each kind of record.

``INSERT ... ON CONFLICT (id) DO UPDATE ... WHERE`` the new key is higher: the same fold as `records.merge`, whatever
the order, the repetition and the number of writers. These columns stand outside of it:

- ``heartbeat_at`` is the database's clock at the insert, and moves by `liveness.heartbeat` alone.
- ``changed_at`` is the database's clock whenever the row is written (a heartbeat does not count): live views follow it.
- ``step_number`` of a step and ``number`` of an attempt are proposed by the record and assigned when the row is
  inserted: the proposed one if it is free, else the next free one of its run (its step). A stub has none yet.

No foreign key refuses a child that comes before its parent: it brings a stub of the parent (`stub_run`, `stub_step`),
a record of the lowest key, which the parent's own first word replaces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Integer,
    Table,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    null,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert

from otel_chatdebug import records
from otel_chatdebug.records import AttemptContent, AttemptRecord, Record, RunRecord, Source, StepContent, StepRecord
from otel_chatdebug.status import RunKind, Status
from otel_chatdebug.tables import schema

IDS_PER_SELECT = 500
"""Ids in one ``IN (...)``; below the lowest limit on parameters that an SQLite of our time is built with (999)."""

ALL_NUMBERS = 0x6368_6174_6E75_6D  # "chatnum"
"""The advisory lock on PostgreSQL above those of single runs and steps: shared by those who take these, exclusive for
a transaction that would take more than `MOST_LOCKS`."""

MOST_LOCKS = 64
"""Advisory locks of runs and steps that one transaction takes. As many as PostgreSQL has room for in the transaction of
each of its connections (``max_locks_per_transaction``); beyond that room *everybody's* statements fail."""

KEY = ("rank", "source", "updated_at", "replica_id")

CLOCKS = ("heartbeat_at", "changed_at")
"""Columns that hold the database's clock; no record carries them."""


class _Kind(NamedTuple):
    """How a kind of record is written."""

    table: Table
    number: str | None = None
    """The column that is assigned at the insert, unique within ``scope``."""
    scope: str | None = None


_KINDS: dict[type[Record], _Kind] = {
    # Parents first; every writer in the same order, so that two of them never wait for each other.
    RunRecord: _Kind(schema.runs),
    StepRecord: _Kind(schema.steps, "step_number", "run_id"),
    AttemptRecord: _Kind(schema.attempts, "number", "step_id"),
    StepContent: _Kind(schema.step_contents),
    AttemptContent: _Kind(schema.attempt_contents),
}


class Numbered(NamedTuple):
    """A step that was given another number than the one that its record proposed."""

    id: str
    run_id: str
    number: int


def write(connection: Connection, batch: Iterable[Record]) -> list[Numbered]:
    """Merges the records into the tables, within the caller's transaction. Any order, any repetition.

    Returns the steps whose number is not the proposed one: their process goes on counting from there.
    Raises what the database raises, and ``TypeError``, ``ValueError`` and the like for a record that holds what it
    must not; the caller rolls back then.
    """
    folded: dict[type[Record], dict[str, Record]] = {kind: {} for kind in _KINDS}
    told: dict[type[Record], list[Record]] = {kind: [] for kind in _KINDS}
    for record in batch:
        told[type(record)].append(record)
        _fold(folded[type(record)], record)
    if connection.dialect.name == "postgresql":
        _lock_numbers(connection, folded)
    _add_stubs(connection, told, folded)
    for kind in _KINDS:
        if folded[kind]:
            upsert = _Upsert.of(_KINDS[kind], connection.dialect)
            # Sorted: the numbers of a batch are given in their order, and rows are locked in the same order by all.
            connection.exec_driver_sql(upsert.sql, [upsert.row(record) for record in _in_order(folded[kind].values())])
    return _renumbered(connection, folded[StepRecord])


def stub_run(child: StepRecord | AttemptRecord) -> RunRecord:
    """What a step or an attempt tells of a run that nobody has told of yet."""
    return RunRecord(
        id=child.run_id,
        rank=Status.IN_PROGRESS.priority,
        source=Source.STUB,
        updated_at=child.updated_at,
        replica_id=child.replica_id,
        status=Status.IN_PROGRESS,
        kind=RunKind.AUTO,
        started_at=child.started_at,
        chat_id=child.chat_id,
    )


def stub_step(child: AttemptRecord) -> StepRecord:
    """What an attempt tells of a step that nobody has told of yet. Its number, 0, is none: see `write`."""
    return StepRecord(
        id=child.step_id,
        rank=Status.IN_PROGRESS.priority,
        source=Source.STUB,
        updated_at=child.updated_at,
        replica_id=child.replica_id,
        run_id=child.run_id,
        status=Status.IN_PROGRESS,
        step_number=0,
        started_at=child.started_at,
        chat_id=child.chat_id,
    )


def _renumbered(connection: Connection, told: Mapping[str, Record]) -> list[Numbered]:
    steps = {id: step for id, step in told.items() if isinstance(step, StepRecord) and step.source != Source.STUB}
    ids = list(steps)
    found = []
    for start in range(0, len(ids), IDS_PER_SELECT):
        for row in connection.execute(_select_numbers(), {"ids": ids[start : start + IDS_PER_SELECT]}):
            given = Numbered(*row)
            if given.number is not None and given.number != steps[given.id].step_number:
                found.append(given)
    return found


@cache
def _select_numbers() -> Any:
    steps = schema.steps
    return select(steps.c.id, steps.c.run_id, steps.c.step_number).where(
        steps.c.id.in_(bindparam("ids", expanding=True))
    )


def _fold(known: dict[str, Record], record: Record) -> None:
    other = known.get(record.id)
    known[record.id] = record if other is None else records.merge(other, record)


def _in_order(batch: Iterable[Record]) -> list[Record]:
    def order(record: Record) -> tuple[Any, ...]:
        if isinstance(record, StepRecord):
            return (record.run_id, record.step_number, record.id)
        if isinstance(record, AttemptRecord):
            return (record.step_id, record.number, record.id)
        return (record.id,)

    return sorted(batch, key=order)


def _add_stubs(
    connection: Connection, told: dict[type[Record], list[Record]], folded: dict[type[Record], dict[str, Record]]
) -> None:
    """Adds a stub for each parent that neither the batch nor the table has.

    As long as a row is a stub, the stub of every child's every record is merged into it, not only the first one: so
    that this, too, comes out the same for any order.
    """
    for parent, children, stub_of in _PARENTS:
        stubs: dict[str, Record] = {}
        for record in chain.from_iterable(told[kind] for kind in children):
            stub = stub_of(record)
            if stub.id not in folded[parent] or folded[parent][stub.id].source == Source.STUB:
                _fold(stubs, stub)
        known = _known(connection, _KINDS[parent].table, list(stubs))
        for id, stub in stubs.items():
            if id not in known:
                _fold(folded[parent], stub)


_PARENTS: tuple[tuple[type[Record], tuple[type[Record], ...], Callable[[Any], Record]], ...] = (
    (StepRecord, (AttemptRecord,), stub_step),
    (RunRecord, (StepRecord, AttemptRecord), stub_run),
)


def _known(connection: Connection, table: Table, ids: list[str]) -> set[str]:
    """Which of the ids have a row that is more than a stub."""
    found: set[str] = set()
    for start in range(0, len(ids), IDS_PER_SELECT):
        found.update(connection.scalars(_select_known(table), {"ids": ids[start : start + IDS_PER_SELECT]}))
    return found


@cache
def _select_known(table: Table) -> Any:
    return select(table.c.id).where(table.c.id.in_(bindparam("ids", expanding=True)), table.c.source > Source.STUB)


_POSITIONAL: dict[str, Dialect] = {
    "sqlite": sqlite.dialect(),
    "postgresql": psycopg.dialect(paramstyle="format"),  # type: ignore[no-untyped-call]
}


class _Upsert:
    """The statement for a kind of record as the driver takes it, and how a record becomes its parameters.

    Compiled once and handed to the driver as it is: ``Connection.execute`` would take 40 % more time for each row
    (measured on SQLite), in the process that serves the chat.
    """

    _made: ClassVar[dict[tuple[_Kind, str], _Upsert]] = {}

    @classmethod
    def of(cls, kind: _Kind, dialect: Dialect) -> _Upsert:
        made = cls._made.get((kind, dialect.name))
        if made is None:
            made = cls._made[kind, dialect.name] = cls(kind, dialect)
        return made

    def __init__(self, kind: _Kind, dialect: Dialect) -> None:
        statement, attributes = _upsert(kind, dialect.name)
        # Parameters by position, for psycopg too: a dictionary for each row takes longer to make, and to take apart.
        compiled = statement.compile(dialect=_POSITIONAL[dialect.name])
        assert isinstance(compiled, SQLCompiler)
        self.sql = str(compiled)
        self._values = attrgetter(*attributes.values())
        converters = [schema.converter(kind.table.c[name], dialect.name) for name in attributes]
        self._converters = [(index, converter) for index, converter in enumerate(converters) if converter is not None]
        names = [_parameter(attribute) for attribute in attributes.values()]
        # A parameter may stand in several places: the proposed number does.
        self._arranged = itemgetter(*(names.index(name) for name in compiled.positiontup or ()))

    def row(self, record: Record) -> tuple[Any, ...]:
        values = list(self._values(record))
        for index, convert in self._converters:
            value = values[index]
            if value is not None:
                values[index] = convert(value)
        row: tuple[Any, ...] = self._arranged(values)
        return row


def _upsert(kind: _Kind, dialect: str) -> tuple[Insert, dict[str, str]]:
    """The statement for a kind of record; for each column that a record gives, the record's attribute."""
    table, number, scope = kind
    id = next(iter(table.primary_key.columns)).name
    attributes = {c.name: "id" if c.name == id else c.name for c in table.columns if c.name not in CLOCKS}
    # A column's own name is reserved for the parameters that SQLAlchemy makes by itself.
    values: dict[str, Any] = {
        name: bindparam(_parameter(attribute), type_=table.c[name].type) for name, attribute in attributes.items()
    }
    if number and scope:
        values[number] = _assigned(table, number, scope)
    clocks = [name for name in CLOCKS if name in table.c]
    values |= dict.fromkeys(clocks, schema.utc_now())

    insert = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table).values(values)
    new = insert.excluded
    changes: dict[str, Any] = {name: new[name] for name in attributes if name != id}
    if "changed_at" in clocks:
        changes["changed_at"] = new["changed_at"]
    if number and scope:
        kept = and_(table.c[scope] == new[scope], table.c[number].is_not(None))
        changes[number] = case((kept, table.c[number]), else_=new[number])
    higher = tuple_(*(new[name] for name in KEY)) > tuple_(*(table.c[name] for name in KEY))
    statement = insert.on_conflict_do_update(index_elements=[id], set_=changes, where=higher)
    return statement, attributes


def _parameter(attribute: str) -> str:
    return f"new_{attribute}"


def _assigned(table: Table, number: str, scope: str) -> ColumnElement[int | None]:
    """The proposed number if it is free, else the next one after the highest; NULL where none is proposed."""
    one: ColumnElement[int] = literal_column("1", Integer)  # a parameter would have no name of ours
    proposed: ColumnElement[int] = cast(bindparam(_parameter(number)), Integer)
    within: ColumnElement[str] = bindparam(_parameter(scope), type_=table.c[scope].type)
    others = table.alias("others")
    taken = exists().where(others.c[scope] == within, others.c[number] == proposed)
    highest = select(func.max(others.c[number])).where(others.c[scope] == within).scalar_subquery()
    return case((proposed < one, null()), (taken, highest + one), else_=proposed)


def _lock_numbers(connection: Connection, folded: dict[type[Record], dict[str, Record]]) -> None:
    """Has the transactions that give numbers within the same run or step wait for each other.

    SQLite has but one writer at a time; on PostgreSQL two of them could see the same number free. They are taken in the
    order of their keys by all, so that two transactions never wait for each other.
    """
    scopes = {
        getattr(record, scope)
        for kind, (_, _, scope) in _KINDS.items()
        if scope is not None
        for record in folded[kind].values()
    }
    if not scopes:
        return
    if len(scopes) > MOST_LOCKS:
        connection.execute(text("SELECT pg_advisory_xact_lock(:all)"), {"all": ALL_NUMBERS})
        return
    connection.execute(text("SELECT pg_advisory_xact_lock_shared(:all)"), {"all": ALL_NUMBERS})
    keys = [int.from_bytes(hashlib.blake2b(scope.encode(), digest_size=8).digest(), signed=True) for scope in scopes]
    # A volatile function in the list of columns is called for the rows as they come, which is sorted.
    in_order = text("SELECT count(pg_advisory_xact_lock(key)) FROM unnest(CAST(:keys AS bigint[])) AS key")
    connection.execute(in_order, {"keys": sorted(keys)})
