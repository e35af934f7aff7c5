"""Keeps a thread's database closed while some thread of the process forks.

SQLite keeps its locks by process and file: a child that inherits an open connection, even unused, believes that it
holds the parent's locks, and loses what it writes when the parent closes
(https://www.sqlite.org/howtocorrupt.html, 2.6). On a socket to PostgreSQL the goodbye of a child would end the parent's
session. Nor is a child to be forked in the middle of an import: that module's lock has an owner which is not there, and
whoever imports it in the child, the application too, waits for ever.

So a fork waits for the database to be closed, a bounded time, and the thread waits for the fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from otel_chatdebug.tables.backlog import Backlog, Pause
from otel_chatdebug.tables.opened import OpenDatabase

logger = logging.getLogger("otel_chatdebug")

FORK_SECONDS: Final = 4.0
"""How long a fork waits for the connection to be closed before it: longer than the thread may wait for another
process's locks, a second in the database and as long in the spool. A child that has inherited a connection may lose
what it writes."""

LOADING_FORK_SECONDS: Final = 20.0
"""The same while the thread loads SQLAlchemy and Alembic, which takes half a second, and more on a busy machine."""

BURST_SECONDS: Final = 0.1
"""How long the database stays closed after a fork, for the next one, where nobody waits for what is written."""

RESUME_SECONDS: Final = 5.0
"""How long the thread waits for a fork that does not say that it is over."""


class Forks:
    """The forks that are going on in this process, as the thread that works with ``database`` sees them.

    ``hurry`` ends what the thread waits for. ``load`` imports what it works with.
    """

    def __init__(
        self, backlog: Backlog, hurry: threading.Event, database: OpenDatabase, load: Callable[[], None]
    ) -> None:
        self._backlog = backlog
        self._hurry = hurry
        self._database = database
        self._load = load
        self._going_on: list[None] = []
        """One for each fork. Changed by append and pop alone, which are atomic."""
        self._over = threading.Event()
        self.loaded = False
        """All that the thread imports is imported. Written by the thread."""

    # Any thread.

    def begin(self) -> None:
        """A fork begins."""
        self._going_on.append(None)
        self._over.clear()

    def wait_until_closed(self, stopped: threading.Event) -> None:
        """Waits for the thread to stand aside: `FORK_SECONDS` at most, or `LOADING_FORK_SECONDS` where it may be
        importing, and not at all where it has ``stopped``."""
        token = Pause()
        self._backlog.tell(token)
        self._hurry.set()
        patience = FORK_SECONDS if self.loaded else LOADING_FORK_SECONDS
        if not stopped.is_set() and not token.done.wait(patience):
            logger.debug("otel_chatdebug: a fork did not wait any longer for the database to be closed")

    def end(self) -> None:
        """A fork is over, in the parent."""
        with contextlib.suppress(IndexError):  # we were made between the two hooks
            self._going_on.pop()
        if not self._going_on:
            self._over.set()

    # The thread.

    def stand_aside(self) -> None:
        """Has the database closed while some thread forks, and for a moment after it: whoever forks several children,
        as pools and servers do, would have to wait for the connection that is being opened."""
        backlog = self._backlog
        while backlog.pauses:
            self._database.close()
            if not self.loaded:
                self._load()  # else each child would have to, and those that live for a moment have no time for it
            backlog.stand_aside()
            self._over.wait(RESUME_SECONDS)
            # What the pause itself has set is of no meaning any more. Cleared before it is looked who waits.
            self._hurry.clear()
            backlog.drain()
            if not backlog.called:
                self._hurry.wait(BURST_SECONDS)
                self._hurry.clear()
                backlog.drain()


class Pausing(Protocol):
    """Whoever is to know of forks."""

    def pause(self) -> None:
        """Before a fork."""

    def resume(self) -> None:
        """After it, in the parent. In the child their owner calls what they need, in its own order."""


pausing: weakref.WeakSet[Pausing] = weakref.WeakSet()
"""Those who are told of each fork of this process."""


def _before_fork() -> None:
    for each in list(pausing):
        each.pause()


def _after_fork_in_parent() -> None:
    for each in list(pausing):
        each.resume()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
