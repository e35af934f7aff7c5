"""Lists: runs by all filters, chats with their counts, and which kinds and models there are.

A filter on a column that has an index drives the query; what else is asked for is looked at row by row, in chunks of
`CHUNK` rows of that index. So every statement is short, whatever is searched for and however rare it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy import Text as SQLText
from sqlalchemy import cast as sql_cast

from otel_chatdebug.status import Status
from otel_chatdebug.tables import schema
from otel_chatdebug.tables.queries.rows import Chat, Cursor, NotFound, Page, Run, fetch, iso, microseconds

PAGE = 50
"""Rows of a page, where nobody says otherwise."""

CHUNK = 5_000
"""Rows that one statement looks at one by one."""

MOST_FACETS = 200
"""Kinds and models that `facets` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs. Conditions that are given hold together; None is no condition."""

    chat_id: str | None = None
    kind: str | None = None
    status: str | None = None
    model: str | None = None
    """The run's, exactly."""
    since: datetime | None = None
    """Started then or later. With a time zone, as all times here."""
    until: datetime | None = None
    """Started before."""
    text: str | None = None
    """Part of the first message, in upper or lower case."""
    error: str | None = None
    """Part of an error of the run, or of one of its steps or attempts, in upper or lower case. An empty text matches
    any error: a retried attempt's as well."""


@dataclass(frozen=True, slots=True)
class Facets:
    """What a list can be filtered by."""

    kinds: tuple[str, ...]
    models: tuple[str, ...]
    statuses: tuple[str, ...] = tuple(str(status) for status in Status)


def list_runs(
    engine: Engine,
    which: RunFilter | None = None,
    *,
    limit: int = PAGE,
    cursor: str | None = None,
    most_scanned: int | None = None,
) -> Page[Run]:
    """Runs by when they started, the newest first: a page, which goes on at ``cursor``.

    A search for text, or by several filters at once, looks at runs one by one until the page is full. It gives up
    after ``most_scanned`` of them (None: never); the page has what was found until then, and ``older`` goes on.

    Raises `BadCursor`.
    """
    which = which or RunFilter()
    driver, rest = _conditions(which)
    with engine.connect() as connection:
        rest += _text_conditions(connection, which)
        return cast(Page[Run], _page(connection, driver, rest, which, limit, cursor, most_scanned))


def list_chats(
    engine: Engine,
    *,
    text: str | None = None,
    limit: int = PAGE,
    cursor: str | None = None,
    most_scanned: int | None = None,
) -> Page[Chat]:
    """Chats by their newest run, the newest first. ``text`` is a part of the chat's id, in upper or lower case.

    Pages and ``most_scanned`` are those of `list_runs`. A chat moves to the front when it gets a new run: it may then
    appear on two pages. Raises `BadCursor`.
    """
    runs = schema.runs
    later = runs.alias("later")
    newer = tuple_(later.c.started_at, later.c.id) > tuple_(runs.c.started_at, runs.c.id)
    rest: list[ColumnElement[bool]] = [
        runs.c.chat_id.is_not(None),
        ~exists().where(later.c.chat_id == runs.c.chat_id, newer),
    ]
    with engine.connect() as connection:
        if text:
            rest.append(_contains(connection, runs.c.chat_id, text))
        latest = cast(Page[Run], _page(connection, None, rest, RunFilter(), limit, cursor, most_scanned))
        counts = _counts(connection, [str(run["chat_id"]) for run in latest])
    chats = tuple(
        Chat(
            chat_id=str(run["chat_id"]),
            runs=sum(count for count, _ in counts[str(run["chat_id"])].values()),
            first_started_at=iso(min(first for _, first in counts[str(run["chat_id"])].values())),
            latest=run,
            **{str(status): counts[str(run["chat_id"])].get(status, (0, 0))[0] for status in Status},  # type: ignore[typeddict-item]
        )
        for run in latest
    )
    return Page(chats, latest.older, latest.newer)


def cursor_at(engine: Engine, run_id: str, *, to_newer: bool = False) -> str:
    """The cursor of the page of `list_runs` that begins behind this run. Raises `NotFound`."""
    runs = schema.runs
    with engine.connect() as connection:
        found = connection.execute(select(runs.c.started_at, runs.c.id).where(runs.c.id == run_id)).one_or_none()
    if found is None:
        raise NotFound(f"There is no run {run_id} (any more): begin with the first page.")
    return Cursor(found.started_at, found.id, to_newer).encode()


def facets(engine: Engine) -> Facets:
    """The kinds and models that runs have, in alphabetical order. Looks up each once, however many runs there are."""
    with engine.connect() as connection:
        return Facets(*(tuple(_distinct(connection, column)) for column in (schema.runs.c.kind, schema.runs.c.model)))


def _conditions(which: RunFilter) -> tuple[ColumnElement[bool] | None, list[Any]]:
    """The condition on a column whose index drives the query, and those on other columns."""
    runs = schema.runs
    given: list[tuple[Column[Any], str]] = []
    common = which.status == Status.COMPLETED  # most runs are: any other column tells more
    for column, value in (
        (runs.c.chat_id, which.chat_id),
        (runs.c.status, None if common else which.status),
        (runs.c.model, which.model),
        (runs.c.kind, which.kind),
        (runs.c.status, which.status if common else None),
    ):
        if value is not None:
            given.append((column, value))
    if not given:
        return None, []
    (column, value), *others = given
    # As expressions no index fits the others: SQLite's planner, which knows nothing of the data, would choose any.
    return column == value, [other + "" == value for other, value in others]


def _page(
    connection: Connection,
    driver: ColumnElement[bool] | None,
    rest: list[ColumnElement[bool]],
    which: RunFilter,
    limit: int,
    cursor: str | None,
    most_scanned: int | None,
) -> Page[dict[str, Any]]:
    runs = schema.runs
    start = None if cursor is None else Cursor.decode(cursor)
    to_newer = start is not None and start.to_newer
    bounds: list[ColumnElement[bool]] = [] if driver is None else [driver]
    if which.since is not None:
        bounds.append(runs.c.started_at >= _time(which.since))
    if which.until is not None:
        bounds.append(runs.c.started_at < _time(which.until))

    key = tuple_(runs.c.started_at, runs.c.id)
    order = (runs.c.started_at, runs.c.id) if to_newer else (runs.c.started_at.desc(), runs.c.id.desc())

    def beyond(place: Cursor) -> ColumnElement[bool]:
        other = _key(place)
        condition: ColumnElement[bool] = key > other if to_newer else key < other
        return condition

    found: list[dict[str, Any]] = []
    place, scanned, stopped = start, 0, None
    while True:
        here = [*bounds, *([] if place is None else [beyond(place)])]
        end = None
        if rest:  # where the chunk ends; found in the index alone
            chunk = CHUNK if most_scanned is None else min(CHUNK, max(1, most_scanned - scanned))
            last = select(runs.c.started_at, runs.c.id).where(*here).order_by(*order).offset(chunk - 1).limit(1)
            row = connection.execute(last).one_or_none()
            end = None if row is None else Cursor(row.started_at, row.id)
            scanned += chunk
        within = [] if end is None else [~beyond(end)]
        query = select(runs).where(*here, *within, *rest).order_by(*order).limit(limit + 1 - len(found))
        found += fetch(connection, query)
        if len(found) > limit or end is None:
            break
        place = end
        if most_scanned is not None and scanned >= most_scanned:
            stopped = end
            break
    more = len(found) > limit
    found = found[:limit]
    first, last_found = (_place(found[0]), _place(found[-1])) if found else (start, start)
    onward = last_found if more else stopped
    if to_newer:
        found.reverse()
        return Page(tuple(found), older=_encode(first, False), newer=_encode(onward, True))
    return Page(tuple(found), older=_encode(onward, False), newer=None if start is None else _encode(first, True))


def _place(row: dict[str, Any]) -> Cursor:
    return Cursor(microseconds(row["started_at"]), row["id"])


def _encode(place: Cursor | None, to_newer: bool) -> str | None:
    return None if place is None else place._replace(to_newer=to_newer).encode()


def _key(place: Cursor) -> Any:
    runs = schema.runs
    return tuple_(literal(place.started_at, runs.c.started_at.type), literal(place.id, runs.c.id.type))


def _time(moment: datetime) -> ColumnElement[int]:
    return literal((moment - schema.EPOCH) // timedelta(microseconds=1), schema.Time())


def _text_conditions(connection: Connection, which: RunFilter) -> Iterator[ColumnElement[bool]]:
    runs, steps, attempts = schema.STATE_TABLES
    if which.text:
        if connection.dialect.name == "sqlite":
            first_message: ColumnElement[str] = func.json_extract(runs.c.summary, "$.first_message", type_=SQLText())
        else:
            first_message = runs.c.summary.op("->>", return_type=SQLText())(literal("first_message", SQLText()))
        yield _contains(connection, first_message, which.text)
    if which.error is not None:
        yield or_(
            _has_error(connection, runs, which.error),
            *(
                # With an offset PostgreSQL looks below each run. Else it may look once through all that ever failed.
                exists(
                    select(literal(1))
                    .where(table.c.run_id == runs.c.id, _has_error(connection, table, which.error))
                    .correlate(runs)
                    .offset(0)
                )
                for table in (steps, attempts)
            ),
        )


def _has_error(connection: Connection, table: FromClause, part: str) -> ColumnElement[bool]:
    error = table.c.error
    if not part:
        return error.is_not(None)
    return and_(error.is_not(None), _contains(connection, sql_cast(error, SQLText()), part))


def _contains(connection: Connection, value: ColumnElement[Any], part: str) -> ColumnElement[bool]:
    """Whether the text has this part, in upper or lower case."""
    if connection.dialect.name == "sqlite":
        if part.isascii():
            escaped = re.sub(r"[%_\\]", r"\\\g<0>", part)
            return sql_cast(value, SQLText()).like(f"%{escaped}%", escape="\\")
        # A function of ours for text of other scripts: LIKE knows the case of ASCII only.
        raw: Any = connection.connection.dbapi_connection
        raw.create_function("casefold", 1, _casefold, deterministic=True)
        return func.instr(func.casefold(value), literal(part.casefold(), SQLText())) > 0
    # The same for PostgreSQL: in the collation "C", which the column has and the database may have, lower() is so too.
    known = connection.scalars(text("SELECT collname FROM pg_collation WHERE collname = ANY (:names)"), {"names": _ICU})
    collation = next(iter(known), "default")
    lowered, sought = (
        func.lower(sql_cast(side, SQLText()).collate(collation)) for side in (value, literal(part, SQLText()))
    )
    return func.strpos(lowered, sought) > 0


_ICU = ["und-x-icu", "pg_c_utf8"]
"""Collations of PostgreSQL that know the case of any script. A server has the first if it was built with ICU, as nearly
all are, and the second from version 17 on."""


def _casefold(value: object) -> str | None:
    return None if value is None else str(value).casefold()


def _counts(connection: Connection, chats: list[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """For each chat and status: how many runs, and when the first one started."""
    runs = schema.runs
    found: dict[str, dict[str, tuple[int, int]]] = {chat: {} for chat in chats}
    query = (
        select(runs.c.chat_id, runs.c.status, func.count(), func.min(runs.c.started_at))
        .where(runs.c.chat_id.in_(chats))
        .group_by(runs.c.chat_id, runs.c.status)
    )
    for chat, status, count, first in connection.execute(query) if chats else ():
        found[chat][status] = (count, first)
    return found


def _distinct(connection: Connection, column: Column[str]) -> Iterator[str]:
    """The values of an indexed column: from one to the next in the index, not through all rows."""
    name, table = column.name, column.table.name
    query = text(
        f"WITH RECURSIVE known(value) AS (SELECT min({name}) FROM {table} UNION ALL SELECT "
        f"(SELECT min({name}) FROM {table} WHERE {name} > known.value) FROM known WHERE known.value IS NOT NULL) "
        f"SELECT value FROM known WHERE value IS NOT NULL LIMIT {MOST_FACETS}"
    )
    yield from connection.scalars(query)
