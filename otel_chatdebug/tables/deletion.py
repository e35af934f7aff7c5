"""Removing what belongs to a chat, or to the part of it that an edit has cut off."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, Table, and_, delete, func, select

from otel_chatdebug.records import Source
from otel_chatdebug.tables import beside, database, schema
from otel_chatdebug.tables.chores import TakingUp
from otel_chatdebug.tables.counts import Deleted
from otel_chatdebug.tables.database import Fault
from otel_chatdebug.tables.messages import After
from otel_chatdebug.tables.spool import Spool

logger = logging.getLogger("otel_chatdebug")

IDS_PER_TRANSACTION = 200
"""Runs (or steps) that one transaction removes with all that belongs to them; others wait for the lock meanwhile."""

LOCK_TRIES = 5
"""How often a transaction is tried that lost against another one: SQLite's lock, a deadlock that PostgreSQL broke."""

LOCK_PAUSE = 0.05
"""Seconds between two of them."""

A = TypeVar("A")
T = TypeVar("T")


class _Part(NamedTuple):
    """A run of the chat, or a step of the chat within a run of another chat."""

    table: Table
    id: str
    run_id: str
    started_at: int
    messages: list[str | None]
    """Ids that it names, in their order."""


class Deletion:
    """One deletion, which may be performed repeatedly: what was found once is removed again where it came back.

    That matters for a turn that is still running while its chat is edited. What it writes later (another step, the end
    of an attempt with the stubs of its parents, contents) need not name the messages by which it was found, and a stub
    may look as if it had started after the cut-off.
    """

    def __init__(self, chat_id: str, *, message_id: str | None = None, started_before: int | None = None) -> None:
        self.chat_id = schema.stored_name(chat_id)
        self.message_id = None if message_id is None else schema.stored_name(message_id)
        """Only what belongs to later messages than this one; None: all."""
        self.started_before = started_before
        """Only what belongs to runs that started before it (microseconds since 1970); None: all."""
        self.runs: set[str] = set()
        self.steps: dict[str, str] = {}
        """Those of the chat within runs of other chats; each with the id of its run."""
        self.unknown_message = False
        """The chat has rows, and none of them tells where in the chat ``message_id`` is."""

    def find(self, engine: Engine) -> None:
        """Adds what is to be removed now to what was found before. Only reads."""
        with engine.connect() as connection:
            parts = _parts(connection, self.chat_id)
        is_cut = self._filter(parts)
        for part in parts:
            if (self.started_before is None or part.started_at < self.started_before) and is_cut(part):
                if part.table is schema.runs:
                    self.runs.add(part.id)
                else:
                    self.steps[part.id] = part.run_id

    def _filter(self, parts: list[_Part]) -> Callable[[_Part], bool]:
        if self.message_id is None:
            return lambda part: True
        after = After(self.message_id, chain.from_iterable(part.messages for part in parts))
        self.unknown_message = bool(parts) and not after.known
        return lambda part: any(map(after, part.messages))

    def count(self, engine: Engine) -> Deleted:
        """What `apply` would remove now. Only reads."""
        with engine.connect() as connection:
            total = Deleted()
            for ids in _pieces(self.runs):
                total = total.plus(count_runs(connection, ids))
            for ids in _pieces(self.steps):
                attempts = select(func.count()).where(schema.attempts.c.step_id.in_(ids))
                total = total.plus(Deleted(steps=len(ids), attempts=connection.execute(attempts).scalar_one()))
        return total

    def apply(self, engine: Engine) -> Deleted:
        """Removes what was found, in several transactions. Raises what the database raises; what was removed stays
        removed then, and the rest is found the next time."""
        total = Deleted()
        for ids in _pieces(self.runs):
            total = total.plus(in_turn(engine, remove_runs, ids))
        for ids in _pieces(self.steps):
            total = total.plus(in_turn(engine, self._remove_steps, ids))
        return total

    def _remove_steps(self, connection: Connection, ids: list[str]) -> Deleted:
        removed = []
        for table, column in ((schema.steps, "id"), (schema.attempts, "step_id"), (schema.step_contents, "step_id")):
            removed.append(connection.execute(delete(table).where(table.c[column].in_(ids))).rowcount)
        contents = schema.attempt_contents  # found by their run: there is no index on the step
        runs = sorted({self.steps[id] for id in ids})
        connection.execute(delete(contents).where(and_(contents.c.run_id.in_(runs), contents.c.step_id.in_(ids))))
        return Deleted(steps=removed[0], attempts=removed[1])


def take_up_spooled(url: str) -> None:
    """Writes what is spooled on this machine for the database, so that a deletion finds it. It would come back later
    else, when some process takes it up. What cannot be written stays spooled; raises nothing.
    """
    spool = Spool(url)
    try:
        if not spool.kept().records:
            return
        taking_up = TakingUp(spool)
        with beside.reading(url):
            pass  # the database is there, and has our tables
        with beside.opened(url) as engine:
            while taking_up.next(engine):
                pass
    except Exception:
        logger.debug("otel_chatdebug: what is spooled could not be written before a deletion", exc_info=True)


def remove_runs(connection: Connection, ids: Collection[str]) -> Deleted:
    """Removes these runs with all that belongs to them, also where the run itself is not there (any more).

    Parents first, as `merge.write` writes them: two transactions that meet then wait, and seldom deadlock.
    """
    if not ids:
        return Deleted()
    ids = sorted(ids)
    removed = [connection.execute(delete(schema.runs).where(schema.runs.c.id.in_(ids))).rowcount]
    for table in (schema.steps, schema.attempts, schema.step_contents, schema.attempt_contents):
        removed.append(connection.execute(delete(table).where(table.c.run_id.in_(ids))).rowcount)
    return Deleted(*removed[:3])


def told_runs(connection: Connection, ids: Collection[str]) -> set[str]:
    """Those of the runs that have a row of their own. A stub is none: only a child has told of it.

    By this a process knows that somebody has deleted a run which is open in it, also where it has written a child of
    the run since.
    """
    found: set[str] = set()
    for some in _pieces(ids):
        own = select(schema.runs.c.id).where(schema.runs.c.id.in_(some), schema.runs.c.source > Source.STUB)
        found.update(connection.scalars(own))
    return found


def count_runs(connection: Connection, ids: Collection[str]) -> Deleted:
    """What `remove_runs` would remove."""
    counts = []
    for table, column in ((schema.runs, "id"), (schema.steps, "run_id"), (schema.attempts, "run_id")):
        query = select(func.count()).select_from(table).where(table.c[column].in_(ids))
        counts.append(connection.execute(query).scalar_one())
    return Deleted(*counts)


def in_turn(engine: Engine, action: Callable[[Connection, A], T], argument: A) -> T:
    """Performs ``action`` with ``argument`` in a transaction, again where another one was in its way."""
    for last in (*[False] * (LOCK_TRIES - 1), True):
        try:
            with engine.begin() as connection:
                return action(connection, argument)
        except Exception as exc:
            if last or database.diagnose(exc)[0] is not Fault.LOCKED:
                raise
        time.sleep(LOCK_PAUSE)
    raise AssertionError  # the last one returns or raises


def _parts(connection: Connection, chat_id: str) -> list[_Part]:
    """All that belongs to the chat, in the order of its start."""
    runs, steps = schema.runs, schema.steps
    parts = {
        row.id: _Part(runs, row.id, row.id, row.started_at, [row.trigger_message_id, row.history_tip_message_id])
        for row in connection.execute(
            select(runs.c.id, runs.c.started_at, runs.c.trigger_message_id, runs.c.history_tip_message_id)
            .where(runs.c.chat_id == chat_id)
            .order_by(runs.c.started_at, runs.c.id)
        )
    }
    found = select(
        steps.c.id,
        steps.c.run_id,
        steps.c.started_at,
        steps.c.history_tip_message_id,
        steps.c.assistant_message_id,
        runs.c.started_at.label("run_started_at"),
    ).outerjoin(runs, runs.c.id == steps.c.run_id)
    for row in connection.execute(
        found.where(steps.c.chat_id == chat_id).order_by(steps.c.step_number, steps.c.started_at, steps.c.id)
    ):
        part = parts.get(row.run_id)
        if part is None:  # of a run of another chat
            started_at = row.started_at if row.run_started_at is None else row.run_started_at
            part = parts[row.id] = _Part(steps, row.id, row.run_id, started_at, [])
        part.messages.extend((row.history_tip_message_id, row.assistant_message_id))
    return sorted(parts.values(), key=lambda part: part.started_at)


def _pieces(ids: Collection[str]) -> Iterator[list[str]]:
    ordered = sorted(ids)
    for start in range(0, len(ordered), IDS_PER_TRANSACTION):
        yield ordered[start : start + IDS_PER_TRANSACTION]
