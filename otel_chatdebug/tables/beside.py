"""Connections beside the writer's: opened for one task by whatever thread has it, and closed at its end.

None is open while some thread forks. SQLite keeps its locks by process and file: a child that inherits an open
connection, even unused, believes that it holds its parent's locks (https://www.sqlite.org/howtocorrupt.html, 2.6). So a
fork waits until they are closed, a bounded time, and new ones wait for the fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_chatdebug.tables import database
from otel_chatdebug.tables.forks import FORK_SECONDS, LOADING_FORK_SECONDS, RESUME_SECONDS

if TYPE_CHECKING:
    from sqlalchemy import Engine


class _Door:
    """Counts who is inside, and keeps others out while somebody forks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forks = 0
        self.loaded = False
        """SQLAlchemy and the driver are imported: whoever has had an engine has done it."""

    def enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forks, RESUME_SECONDS)
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._forks += 1
            patience = FORK_SECONDS if self.loaded else LOADING_FORK_SECONDS
            self._changed.wait_for(lambda: not self._inside, patience)

    def after_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()


_door = _Door()


@contextmanager
def opened(url: str, *, busy_seconds: float = database.BUSY_SECONDS) -> Iterator[Engine]:
    """An engine as `database.open_engine` makes it, for the block. Any thread; what it sends is not instrumented."""
    with _inside() as door:
        engine = database.open_engine(url, busy_seconds=busy_seconds)
        door.loaded = True
        try:
            yield engine
        finally:
            engine.dispose()


@contextmanager
def reading(url: str) -> Iterator[Engine]:
    """The same with `queries.open_for_reading`, which creates nothing; raises what that does."""
    with _inside() as door:
        from otel_chatdebug.tables import queries

        engine = queries.open_for_reading(url)
        door.loaded = True
        try:
            yield engine
        finally:
            engine.dispose()


@contextmanager
def _inside() -> Iterator[_Door]:
    door = _door  # a child that is forked within the block has another one
    door.enter()
    try:
        with suppress_instrumentation():
            yield door
    finally:
        door.leave()


def _new_door() -> None:
    global _door
    _door = _Door()  # its lock may have been held by a thread that is not there


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _door.before_fork(), after_in_parent=lambda: _door.after_fork(), after_in_child=_new_door
    )
