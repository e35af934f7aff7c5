"""Runs by their id, for whoever has no handle: another request of the same chat, or another process.

A run that is open in this process is looked up in memory. Any other is looked up in the tables, and that blocks: in
async code, ``await asyncio.to_thread(finish_run, run_id)``. Nothing here raises but ``ValueError`` for a status that is
none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import time_ns
from typing import TYPE_CHECKING

from otel_chatdebug import lifecycle, storable
from otel_chatdebug.pipeline.live import LiveRun, Said, ScopeEvent
from otel_chatdebug.pipeline.permits import DELETED
from otel_chatdebug.pipeline.recorder import active
from otel_chatdebug.redaction import Redactor
from otel_chatdebug.settings import Settings
from otel_chatdebug.status import Outcome, Status
from otel_chatdebug.tables import beside, database

if TYPE_CHECKING:
    from sqlalchemy import Connection

FLUSH_SECONDS = 2.0
"""How long we wait for what this process has recorded already to be written, at most."""

logger = logging.getLogger("otel_chatdebug")


def touch_run(run_id: str, *, chat_id: str | None = None, database_url: str | None = None) -> Outcome:
    """Says that somebody still works on a run, so that no sweep calls it interrupted.

    Not needed for what is open in this process: that is told by itself, every few seconds. ``chat_id``: only if the run
    is of this chat. ``database_url`` defaults to the one that is recorded into.

    True (``Outcome.RECORDED``) where it was done; else ``NOT_FOUND``, ``OTHER_CHAT``, ``ALREADY_FINISHED`` (a run that
    was only swept is open again), or ``NOT_RECORDING``: recording is off, or the database cannot be used, which is told
    at debug level. Any thread.
    """
    live = _open_here(run_id)
    if live is not None:
        return _told("touching", run_id, _belongs(live, chat_id))

    def touch(connection: Connection) -> Outcome:
        from otel_chatdebug.tables import by_id

        return by_id.touch(connection, run_id, chat_id)

    return _told("touching", run_id, _in_the_tables(touch, database_url))


def finish_run(
    run_id: str,
    status: Status | str = Status.COMPLETED,
    *,
    chat_id: str | None = None,
    error: str | None = None,
    database_url: str | None = None,
) -> Outcome:
    """Says that a run has ended, now. ``error`` is its message, where ``status`` is ``error``.

    It merges as all else does: where the run's own process tells a higher status later, that counts. Returns what
    `touch_run` returns; ``ALREADY_FINISHED`` where the run has ended with this status or a higher one.
    """
    said = Status(status)
    if said is Status.IN_PROGRESS:
        raise ValueError("a run that is in progress has not finished: see touch_run")
    recorder = active()
    redactor = recorder.redactor if recorder is not None else Redactor()
    told = {"type": "_OTHER", "message": redactor.text(error or "")} if said is Status.ERROR else None
    live = _open_here(run_id)
    if live is not None:
        outcome = _belongs(live, chat_id)
        if outcome:
            if said.priority < live.status.priority:
                outcome = Outcome.ALREADY_FINISHED
            end = Said(said, error=told, response=None, usage=None, metadata=None, ends=True)
            live.recorder.inbox.emit(live, ScopeEvent.SAID, time_ns(), end)
            live.recorder.inbox.settle()
        return _told("finishing", run_id, outcome)

    def finish(connection: Connection) -> Outcome:
        from otel_chatdebug.tables import by_id

        return by_id.finish(connection, run_id, said, chat_id=chat_id, error=told)

    return _told("finishing", run_id, _in_the_tables(finish, database_url))


def _open_here(run_id: str) -> LiveRun | None:
    recorder = active()
    if recorder is None or recorder.closed:
        return None
    recorder.inbox.settle()
    return recorder.open_runs.get(run_id)


def _belongs(live: LiveRun, chat_id: str | None) -> Outcome:
    if live.permit is DELETED:
        return Outcome.NOT_FOUND
    if live.permit.allowed is False:
        return Outcome.NOT_RECORDING
    return (
        Outcome.OTHER_CHAT if chat_id is not None and live.chat_id != storable.name(str(chat_id)) else Outcome.RECORDED
    )


def _in_the_tables(act: Callable[[Connection], Outcome], database_url: str | None) -> Outcome:
    recorder = active()
    settings = recorder.settings if recorder is not None else Settings.load(database_url=database_url)
    if not settings.recording:
        return Outcome.NOT_RECORDING
    url = database_url or settings.database_url
    try:
        path = database.sqlite_path(database.parse(url))
        if path is not None and not path.exists():
            return Outcome.NOT_FOUND
        with beside.opened(url) as engine:
            from otel_chatdebug.tables import queries

            # What this process has told of the run already is written first, so that it is not taken for open.
            lifecycle.flush(FLUSH_SECONDS)
            queries.check(engine)
            with engine.begin() as connection:
                return act(connection)
    except database.NoDatabase:
        return Outcome.NOT_FOUND
    except Exception as exc:
        logger.debug("otel_chatdebug: the tables could not be used: %s", database.diagnose(exc)[1])
        return Outcome.NOT_RECORDING


def _told(what: str, run_id: str, outcome: Outcome) -> Outcome:
    if not outcome:
        logger.debug("otel_chatdebug: %s the run %s: %s", what, run_id, outcome)
    return outcome
