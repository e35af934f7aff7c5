"""Touching and finishing a run in the tables, for whoever has its id and no more."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, select

from otel_chatdebug.records import RunRecord, Source
from otel_chatdebug.status import Outcome, Status
from otel_chatdebug.tables import liveness, merge, schema


def touch(connection: Connection, run_id: str, chat_id: str | None = None) -> Outcome:
    """Gives the run a heartbeat, within the caller's transaction. ``chat_id``: only if it is of this chat."""
    row = _row(connection, run_id)
    outcome = _look(row, chat_id)
    if outcome:
        outcome = liveness.heartbeat(connection, runs=[run_id]).get(run_id, Outcome.RECORDED)
    return outcome


def finish(
    connection: Connection, run_id: str, status: Status, *, chat_id: str | None = None, error: Any = None
) -> Outcome:
    """Merges that the run has ended now, within the caller's transaction. By the one rule, so that a higher status of
    its own process goes before it, and after it."""
    row = _row(connection, run_id)
    outcome = _look(row, chat_id)
    if not outcome or row is None:
        return outcome
    if row["finished_at"] is not None and status.priority <= row["rank"]:
        return Outcome.ALREADY_FINISHED
    known = {field.name: row[field.name] for field in fields(RunRecord)}
    known |= {
        "status": status,
        "rank": status.priority,
        "source": Source.LIVE,
        "updated_at": max(time.time_ns() // 1000, row["updated_at"] + 1),
        "finished_at": schema.now(connection),
        "error": error if status is Status.ERROR else None,
    }
    merge.write(connection, [RunRecord(**known)])
    return Outcome.RECORDED


def _row(connection: Connection, run_id: str) -> dict[str, Any] | None:
    # Locked: what is told is what was there. (On SQLite the transaction has the write lock.)
    query = select(schema.runs).where(schema.runs.c.id == run_id).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else dict(row)


def _look(row: dict[str, Any] | None, chat_id: str | None) -> Outcome:
    if row is None:
        return Outcome.NOT_FOUND
    if chat_id is not None and row["chat_id"] != schema.stored_name(chat_id):
        return Outcome.OTHER_CHAT
    return Outcome.RECORDED
