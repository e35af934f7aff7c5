"""The read side, for the CLI and the viewer: plain dicts, keyed by the names of the columns.

Times are ISO 8601 in UTC with a ``Z``, JSON columns are Python values. Reading creates nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, RowMapping, Select, Table, literal, select, tuple_

from otel_chatdebug.tables import database, migrations, schema
from otel_chatdebug.tables.database import NoDatabase

MOST_MATCHES = 5
"""Ids that are named where a prefix is not unique."""

Row: TypeAlias = dict[str, Any]


class NotFound(LookupError):
    """No run has this id; the message says what to do."""


class Ambiguous(LookupError):
    """More than one run has an id that begins like this; the message names some."""


def open_for_reading(url: str) -> Engine:
    """An engine that only reads. Close it with ``dispose()``.

    Raises `NoDatabase` where there is none or it has none of our tables, `migrations.SchemaTooNew`,
    `migrations.SchemaTooOld`, `database.BadDatabaseURL`, `database.MissingDriver`, and what the database raises.
    """
    path = database.sqlite_path(database.parse(url))
    if path is not None and not path.exists():
        raise NoDatabase(
            f"There is no database at {path} yet: it is made when an application records its first model call."
        )
    engine = database.open_engine(url, read_only=True)
    try:
        check(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def check(engine: Engine) -> None:
    """Raises where the database has none of our tables, or tables of another version."""
    found = migrations.current(engine)
    if found is None:
        where = engine.url.render_as_string(hide_password=True) if engine.dialect.name != "sqlite" else _path(engine)
        raise NoDatabase(f"The database {where} has no debug tables: is it the one that the application writes to?")
    if migrations.is_newer(found):
        raise migrations.SchemaTooNew(found)
    if found != migrations.HEAD:
        raise migrations.SchemaTooOld(found)


def list_runs(
    engine: Engine,
    *,
    chat_id: str | None = None,
    status: str | None = None,
    kind: str | None = None,
    limit: int = 50,
    before: str | None = None,
) -> list[Row]:
    """Runs, the newest first. The next page is ``before`` the id of the last run of this one.

    Raises `NotFound` where ``before`` is no run.
    """
    runs = schema.runs
    query = select(runs).order_by(runs.c.started_at.desc(), runs.c.id.desc()).limit(limit)
    for column, value in ((runs.c.chat_id, chat_id), (runs.c.status, status), (runs.c.kind, kind)):
        if value is not None:
            query = query.where(column == value)
    with engine.connect() as connection:
        if before is not None:
            last = connection.execute(select(runs.c.started_at, runs.c.id).where(runs.c.id == before)).one_or_none()
            if last is None:
                raise NotFound(f"There is no run {before} (any more) to list what came before it.")
            query = query.where(tuple_(runs.c.started_at, runs.c.id) < tuple_(*(_bound(runs, last))))
        return _rows(connection, query)


def find_run(engine: Engine, prefix: str) -> str:
    """The id of the one run whose id begins with ``prefix``. Raises `NotFound` and `Ambiguous`."""
    prefix = prefix.strip().lower()
    runs = schema.runs
    query = select(runs.c.id).where(runs.c.id.startswith(prefix, autoescape=True)).order_by(runs.c.id)
    with engine.connect() as connection:
        found = list(connection.scalars(query.limit(MOST_MATCHES + 1))) if prefix else []
    if not found:
        raise NotFound(f"No run has an id that begins with {prefix!r}: `otel-chatdebug runs` lists them.")
    if len(found) > 1 and prefix not in found:
        more = ", ..." if len(found) > MOST_MATCHES else ""
        raise Ambiguous(
            f"Several runs have an id that begins with {prefix!r}, give more of it: "
            f"{', '.join(found[:MOST_MATCHES])}{more}"
        )
    return prefix if prefix in found else found[0]


def load_run(engine: Engine, id: str) -> Row:
    """A run with all below it: ``run["steps"]``, each with ``step["attempts"]``, in the order of their numbers.

    A step has ``normalized_request`` and ``normalized_response`` too, an attempt ``request_headers``,
    ``request_body``, ``response_headers`` and ``response_body``; None where there is no content (any more).

    One snapshot: all is read in one transaction. Raises `NotFound`.
    """
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        runs = _rows(connection, select(schema.runs).where(schema.runs.c.id == id))
        if not runs:
            raise NotFound(f"There is no run {id}: `otel-chatdebug runs` lists them.")
        steps = _rows(
            connection,
            _with_content(schema.steps, schema.step_contents, "step_id", ("normalized_request", "normalized_response"))
            .where(schema.steps.c.run_id == id)
            .order_by(schema.steps.c.step_number.is_(None), schema.steps.c.step_number, schema.steps.c.started_at),
        )
        attempts = _rows(
            connection,
            _with_content(
                schema.attempts,
                schema.attempt_contents,
                "attempt_id",
                ("request_headers", "request_body", "response_headers", "response_body"),
            )
            .where(schema.attempts.c.step_id.in_(select(schema.steps.c.id).where(schema.steps.c.run_id == id)))
            .order_by(schema.attempts.c.number.is_(None), schema.attempts.c.number, schema.attempts.c.started_at),
        )
    run = runs[0]
    run["steps"] = steps
    by_id = {step["id"]: step for step in steps}
    for step in steps:
        step["attempts"] = []
    for attempt in attempts:
        by_id[attempt["step_id"]]["attempts"].append(attempt)
    return run


def iso(microseconds: int) -> str:
    """``2026-01-31T12:00:00.000000Z``."""
    moment = schema.EPOCH + timedelta(microseconds=microseconds)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _with_content(table: Table, contents: Table, key: str, columns: Iterable[str]) -> Select[Any]:
    wanted = (contents.c[name] for name in columns)
    return select(*table.c, *wanted).select_from(table.outerjoin(contents, contents.c[key] == table.c.id))


def _rows(connection: Connection, query: Select[Any]) -> list[Row]:
    times = {c.name for c in query.selected_columns if isinstance(c.type, schema.Time)}
    return [_row(row, times) for row in connection.execute(query).mappings()]


def _row(row: RowMapping, times: set[str]) -> Row:
    return {name: iso(value) if name in times and value is not None else value for name, value in row.items()}


def _bound(table: Table, row: Any) -> list[Any]:
    return [literal(value, table.c[name].type) for name, value in row._mapping.items()]


def _path(engine: Engine) -> str:
    return str(engine.url.database)
