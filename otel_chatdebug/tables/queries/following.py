"""What changed since: for views that live, also of what other processes write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from sqlalchemy import Connection, Engine, Table, literal, select

from otel_chatdebug.tables import schema
from otel_chatdebug.tables.queries.rows import (
    LATEST,
    Attempt,
    BadCursor,
    Run,
    Step,
    fetch_by_ids,
    now,
)

OVERLAP = 10_000_000
"""Microseconds before the cursor that are looked at again: a row gets its ``changed_at`` when it is written, and is
seen when its transaction is committed. Longer than a writer's transaction can wait for a lock; also what the database's
clock may be set back without anything being missed."""

MOST_CHANGES = 5_000
"""Rows of each table that one poll gives."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows as they are now, in the order in which they changed. A heartbeat alone is no change."""

    runs: tuple[Run, ...] = ()
    steps: tuple[Step, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    cursor: str = ""
    """Where another `Follower` can go on. It may see the changes of the last seconds again."""
    more: bool = False
    """There was more than one poll gives: poll again at once."""

    def __bool__(self) -> bool:
        return bool(self.runs or self.steps or self.attempts)


@dataclass(slots=True)
class Follower:
    """Tells with each `poll` what changed since the one before. Not to be polled by two threads at once.

    Without a cursor it begins at its first poll, which gives nothing: poll once, then list what is there, then go on
    polling, and nothing is missed. A poll reads only indexes where nothing changed; one follower can feed many views.
    Deleted rows are not told.
    """

    engine: Engine
    chat_id: str | None = None
    """Only what belongs to this chat."""
    run_id: str | None = None
    """Only this run and what is below it."""
    cursor: str | None = None
    _since: int | None = None
    _seen: dict[tuple[str, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `BadCursor`."""
        if self.cursor is not None:
            if not (self.cursor.isascii() and self.cursor.isdigit()) or int(self.cursor) > LATEST:
                raise BadCursor("This cursor is not one of a live view: begin anew without it.")
            self._since = int(self.cursor)

    def poll(self) -> Changes:
        """What changed since the last poll. Raises what the database raises; the next poll then makes up for it."""
        with self.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            time = now(connection)
            if self._since is None:
                # What was written just before is known to whoever lists after this.
                self._seen = {
                    key: at for table in schema.STATE_TABLES for key, at in self._news(connection, table, time)
                }
                changed: list[list[dict[str, Any]]] = [[], [], []]
                reached, more = time, False
            else:
                since = min(self._since, time)  # the clock may have been set back
                reached, more, changed, seen = time, False, [], dict(self._seen)
                for table in schema.STATE_TABLES:
                    news = self._news(connection, table, since)
                    if len(news) > MOST_CHANGES:
                        news = news[:MOST_CHANGES]
                        reached, more = min(reached, news[-1][1]), True
                    rows = self._load(connection, table, [id for (_, id), _ in news])
                    by_id = {row["id"]: row for row in rows}
                    changed.append([by_id[id] for (_, id), _ in news if id in by_id])
                    seen.update(news)
                self._seen = {key: at for key, at in seen.items() if at >= reached - OVERLAP}
        self._since, self.cursor = reached, str(reached)
        runs, steps, attempts = changed
        return Changes(
            cast("tuple[Run, ...]", tuple(runs)),
            cast("tuple[Step, ...]", tuple(steps)),
            cast("tuple[Attempt, ...]", tuple(attempts)),
            self.cursor,
            more,
        )

    def _news(self, connection: Connection, table: Table, since: int) -> list[tuple[tuple[str, str], int]]:
        """``((table, id), changed_at)`` of the rows that changed since then and were not told yet, in that order."""
        query = (
            select(table.c.id, table.c.changed_at)
            .where(table.c.changed_at >= literal(since - OVERLAP, schema.Time()))
            .order_by(table.c.changed_at, table.c.id)
        )
        news: list[tuple[tuple[str, str], int]] = []
        for id, at in connection.execute(query):
            if self._seen.get((table.name, id)) != at:
                news.append(((table.name, id), at))
                if len(news) > MOST_CHANGES:
                    break
        return news

    def _load(self, connection: Connection, table: Table, ids: list[str]) -> list[dict[str, Any]]:
        query = select(table)
        if self.chat_id is not None:
            query = query.where(table.c.chat_id + "" == self.chat_id)
        if self.run_id is not None:
            query = query.where((table.c.id if table is schema.runs else table.c.run_id) + "" == self.run_id)
        return fetch_by_ids(connection, query, table.c.id, ids)
