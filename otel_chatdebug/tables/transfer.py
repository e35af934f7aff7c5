"""Runs as one JSON file, and back: to hand a recorded chat to a colleague, or to keep it.

The file holds the records as the tables do, with the keys by which they merge, so what is imported goes by the merge
rule: importing twice changes nothing, and a newer row is never overwritten. ::

    {"format": "otel-chatdebug export", "version": 1, "otel_chatdebug": "0.1.0", "exported_at": "2026-01-31T...Z",
     "runs": [
     {<columns of a run>, "steps": [
         {<columns of a step>, "content": {<columns of its content>} or null, "attempts": [
             {<columns of an attempt>, "content": {...} or null}, ...]}, ...]},
     ...]}

Times are ISO 8601 in UTC. One line for each run, so that a large file can be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    SmallInteger,
    Table,
    bindparam,
    func,
    select,
    update,
)

from otel_chatdebug.records import AttemptContent, AttemptRecord, Record, RunRecord, StepContent, StepRecord
from otel_chatdebug.status import Status
from otel_chatdebug.tables import merge, schema
from otel_chatdebug.tables.queries.rows import batches, fetch, iso, microseconds
from otel_chatdebug.tables.queries.runs import RunFilter, list_runs
from otel_chatdebug.version import __version__

FORMAT = "otel-chatdebug export"

VERSION = 1
"""Of the file. A reader takes its own and older ones."""

RUNS_PER_TRANSACTION = 50
"""Runs that one transaction imports; others wait for the lock meanwhile."""

NOT_EXPORTED = frozenset({"changed_at"})
"""Columns that belong to one database."""


class BadExport(ValueError):
    """The file cannot be imported; the message says where and why. Nothing was imported."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the runs of a file."""

    added: int = 0
    updated: int = 0
    """Were there, and the file knew something newer: of the run itself, or of what is below it."""
    kept: int = 0
    """Were there, and nothing in the file is newer."""

    def __add__(self, other: Imported) -> Imported:
        return Imported(self.added + other.added, self.updated + other.updated, self.kept + other.kept)


@dataclass(frozen=True, slots=True)
class ExportedRun:
    """A run of a file, with all below it."""

    id: str
    records: tuple[Record, ...]
    heartbeats: tuple[tuple[Table, str, int | None], ...]
    """No record carries them: the table, the row's id, and when it was last alive."""

    def ended_before(self, seconds: float) -> bool:
        """Whether the run ended, or was last alive, longer ago than that."""
        run = self.records[0]
        assert isinstance(run, RunRecord)
        last = run.finished_at or self.heartbeats[0][2] or run.started_at
        return last < microseconds(_now()) - seconds * 1e6


class _Kind(NamedTuple):
    """How a kind of row is named in the file, and which record it becomes."""

    record: type[Record]
    table: Table
    key: str
    """The column that is the record's ``id``."""


_RUN = _Kind(RunRecord, schema.runs, "id")
_STEP = _Kind(StepRecord, schema.steps, "id")
_ATTEMPT = _Kind(AttemptRecord, schema.attempts, "id")
_STEP_CONTENT = _Kind(StepContent, schema.step_contents, "step_id")
_ATTEMPT_CONTENT = _Kind(AttemptContent, schema.attempt_contents, "attempt_id")
_KINDS = {kind.record: kind for kind in (_RUN, _STEP, _ATTEMPT, _STEP_CONTENT, _ATTEMPT_CONTENT)}

UNNUMBERED = frozenset({"step_number", "number"})
"""Columns that a record must give and a row need not have."""

_BITS = {SmallInteger: 16, BigInteger: 64, Integer: 32}
"""Of the whole numbers that a column can hold; those that are a kind of `Integer` first."""


def count_runs(engine: Engine, chat_id: str) -> int:
    """How many runs a chat has: what `export_chat` will give."""
    query = select(func.count()).select_from(schema.runs).where(schema.runs.c.chat_id == chat_id)
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def export_chat(engine: Engine, chat_id: str, *, advance: Callable[[], None] = lambda: None) -> Iterator[str]:
    """A chat's runs, the newest first, as the pieces of a file. ``advance`` is called after each run.

    Runs that are added meanwhile may be missing. Raises what the database raises.
    """

    def ids() -> Iterator[str]:
        cursor = None
        while True:
            page = list_runs(engine, RunFilter(chat_id=chat_id), cursor=cursor, limit=500)
            yield from (run["id"] for run in page)
            cursor = page.older
            if cursor is None:
                return

    return export_runs(engine, ids(), advance=advance)


def export_runs(engine: Engine, ids: Iterable[str], *, advance: Callable[[], None] = lambda: None) -> Iterator[str]:
    """The runs as the pieces of a file, each run read in one transaction. Those that are gone are left out."""
    head = {"format": FORMAT, "version": VERSION, "otel_chatdebug": __version__, "exported_at": _now()}
    yield json.dumps(head, ensure_ascii=False).removesuffix("}") + ', "runs": [\n'
    separator = ""
    for id in ids:
        run = _read(engine, id)
        if run is not None:
            yield separator + json.dumps(run, ensure_ascii=False)
            separator = ",\n"
        advance()
    yield "\n]}\n"


def read_export(text: str | bytes) -> list[ExportedRun]:
    """The runs of a file, checked. Raises `BadExport`."""
    try:
        file = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadExport(f"The file is no JSON: {str(exc) or 'it is nested too deeply'}.") from None
    if not isinstance(file, dict) or file.get("format") != FORMAT:
        raise BadExport("The file is no export of otel-chatdebug: make one with `otel-chatdebug export`.")
    version = file.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadExport(f"The file's version is {version!r}: it should be a number, 1 or more.")
    if version > VERSION:
        raise BadExport(
            f"The file has version {version}, and this otel-chatdebug ({__version__}) reads versions up to {VERSION}: "
            "upgrade otel-chatdebug to import it."
        )
    return [_Reader().read(run, f"runs[{place}]") for place, run in enumerate(_list(file, "runs", ""))]


def import_runs(
    engine: Engine, runs: Sequence[ExportedRun], *, advance: Callable[[int], None] = lambda _: None
) -> Imported:
    """Merges the records of `read_export` into the tables. ``advance`` is called with how many runs were done.

    In several transactions: what was done stays done should one fail, and a second import does the rest. Raises what
    the database raises.
    """
    imported = Imported()
    for start in range(0, len(runs), RUNS_PER_TRANSACTION):
        some = runs[start : start + RUNS_PER_TRANSACTION]
        with engine.begin() as connection:
            imported += _import(connection, some)
        advance(len(some))
    return imported


def _read(engine: Engine, id: str) -> dict[str, Any] | None:
    """A run as it stands in the file; None where it is not there."""
    steps, attempts = schema.steps, schema.attempts
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        found = _rows(connection, _RUN, "id", id)
        if not found:
            return None
        below = _rows(connection, _STEP, "run_id", id, steps.c.step_number.is_(None), steps.c.step_number)
        requests = _rows(connection, _ATTEMPT, "run_id", id, attempts.c.number.is_(None), attempts.c.number)
        said = {row["step_id"]: row for row in _rows(connection, _STEP_CONTENT, "run_id", id)}
        bodies = {(row["step_id"], row["attempt_id"]): row for row in _rows(connection, _ATTEMPT_CONTENT, "run_id", id)}
    for attempt in requests:
        attempt["content"] = bodies.get((attempt["step_id"], attempt["id"]))
    for step in below:
        step["content"] = said.get(step["id"])
        step["attempts"] = [attempt for attempt in requests if attempt["step_id"] == step["id"]]
    return {**found[0], "steps": below}


def _rows(connection: Connection, kind: _Kind, column: str, value: str, *order: Any) -> list[dict[str, Any]]:
    columns = [item for item in kind.table.c if item.name not in NOT_EXPORTED]
    query = select(*columns).where(kind.table.c[column] == value).order_by(*order, kind.table.c[kind.key])
    return fetch(connection, query)


class _Reader:
    """Reads one run of a file: checks every value, and says where a wrong one stands."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.heartbeats: list[tuple[Table, str, int | None]] = []

    def read(self, run: Any, place: str) -> ExportedRun:
        run_id = self._add(_RUN, run, place)
        for number, step in enumerate(_list(run, "steps", place)):
            at = f"{place}.steps[{number}]"
            step_id = self._add(_STEP, step, at, run_id=run_id)
            self._add_content(_STEP_CONTENT, step, at, run_id=run_id, step_id=step_id)
            for count, attempt in enumerate(_list(step, "attempts", at)):
                below = f"{at}.attempts[{count}]"
                id = self._add(_ATTEMPT, attempt, below, run_id=run_id, step_id=step_id)
                self._add_content(_ATTEMPT_CONTENT, attempt, below, run_id=run_id, step_id=step_id, attempt_id=id)
        return ExportedRun(run_id, tuple(self.records), tuple(self.heartbeats))

    def _add_content(self, kind: _Kind, row: Mapping[str, Any], place: str, **parents: str) -> None:
        if row.get("content") is not None:
            self._add(kind, row["content"], f"{place}.content", **parents)

    def _add(self, kind: _Kind, row: Any, place: str, **parents: str) -> str:
        """Adds the row's record, and returns its id. What it says of its parents must be true."""
        if not isinstance(row, dict):
            raise BadExport(f"In the file, {place} is no object.")
        for name, parent in parents.items():
            said = row.get(name)
            if not isinstance(said, str) or schema.stored_name(said) != parent:
                raise BadExport(f"In the file, {place}.{name} is not the id of what it stands in.")
        values: dict[str, Any] = {}
        for field in fields(kind.record):
            column = kind.key if field.name == "id" else field.name
            values[field.name] = self._value(kind.table.c[column], row.get(column), f"{place}.{column}")
            if values[field.name] is None and field.default is MISSING:
                if column not in UNNUMBERED:
                    raise BadExport(f"In the file, {place}.{column} is missing.")
                values[field.name] = 0  # a stub's, which has none until it is told: see `merge`
        self.records.append(kind.record(**values))
        id = str(values["id"])
        if "heartbeat_at" in kind.table.c:
            beat = self._value(kind.table.c.heartbeat_at, row.get("heartbeat_at"), f"{place}.heartbeat_at")
            self.heartbeats.append((kind.table, id, beat))
        return id

    @staticmethod
    def _value(column: Column[Any], value: Any, place: str) -> Any:
        """As a record holds it."""
        if value is None or isinstance(column.type, schema.JSON):
            return value
        wanted = _wanted(column)
        try:
            if wanted == "a status":
                return Status(value)
            if wanted == "a time":
                return microseconds(value)
            if wanted == "a number":
                fits = isinstance(value, int | float)
            elif wanted == "a text":
                fits = isinstance(value, str)
                value = schema.stored_name(value) if fits and isinstance(column.type, schema.Name) else value
            else:
                bits = next(bits for type, bits in _BITS.items() if isinstance(column.type, type))
                fits = isinstance(value, int) and -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)
            if not fits or isinstance(value, bool):
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise BadExport(f"In the file, {place} is {_shortened(value)}, which is not {wanted}.") from None
        return value


def _wanted(column: Column[Any]) -> str:
    if column.name == "status":
        return "a status"
    if isinstance(column.type, schema.Time):
        return "a time"
    if isinstance(column.type, Float):
        return "a number"
    return "a whole number" if isinstance(column.type, Integer) else "a text"


def _list(row: Any, name: str, place: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list):
        raise BadExport(f"In the file, {place}.{name} is no list." if place else f"The file has no list {name!r}.")
    return value


def _import(connection: Connection, runs: Sequence[ExportedRun]) -> Imported:
    before = _keys(connection, runs)
    merge.write(connection, [record for run in runs for record in run.records])
    # A row that is new here was last alive when it was exported from, not now: the sweep goes by that.
    for table in schema.STATE_TABLES:
        beats = [
            {"row": id, "beat": beat}
            for run in runs
            for owner, id, beat in run.heartbeats
            if owner is table and (table.name, id) not in before
        ]
        if beats:
            told = bindparam("beat", type_=schema.Time())
            connection.execute(update(table).where(table.c.id == bindparam("row")).values(heartbeat_at=told), beats)
    after = _keys(connection, runs)
    added = updated = 0
    for run in runs:
        keys = [(_KINDS[type(record)].table.name, record.id) for record in run.records]
        if (schema.runs.name, run.id) not in before:
            added += 1
        elif any(before.get(key) != after.get(key) for key in keys):
            updated += 1
    return Imported(added, updated, len(runs) - added - updated)


def _keys(connection: Connection, runs: Sequence[ExportedRun]) -> dict[tuple[str, str], Any]:
    """``{(table, id): key}`` of those of the file's rows that are there."""
    found: dict[tuple[str, str], Any] = {}
    for kind in _KINDS.values():
        ids = list({record.id for run in runs for record in run.records if type(record) is kind.record})
        id = kind.table.c[kind.key]
        for some in batches(ids):
            query = select(id, *(kind.table.c[name] for name in merge.KEY)).where(id.in_(some))
            found.update({(kind.table.name, row[0]): tuple(row[1:]) for row in connection.execute(query)})
    return found


def _shortened(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _now() -> str:
    return iso((datetime.now(UTC) - schema.EPOCH) // timedelta(microseconds=1))
