"""What is repeated in the background: one thread for all of it, there only while something is pending.

`lifecycle.disarm` ends it: what is pending is tried once more, as far as the time allows, and given up then.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time

logger = logging.getLogger("otel_chatdebug")

THREAD_NAME = "otel-chatdebug-cleanup"


class Repeated:
    """Something that is performed ``tries`` times, with pauses of ``delay`` seconds that double."""

    def __init__(self, tries: int, delay: float) -> None:
        self._tries_left = tries
        self._delay = delay
        self._ended = threading.Event()
        self._pid = os.getpid()
        self._failure: Exception | None = None
        self._succeeded = False

    @property
    def done(self) -> bool:
        """Nothing more will be tried."""
        return self._ended.is_set() or os.getpid() != self._pid

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until nothing more will be tried. True where the last try succeeded; False where it failed, where it
        was given up by a shutdown, and after ``timeout`` seconds (default: no bound). Any thread.

        In a forked child it is False at once: the parent does the work.
        """
        if os.getpid() != self._pid:
            return False
        return self._ended.wait(timeout) and self._succeeded

    @property
    def error(self) -> Exception | None:
        """What the last try raised; None where it succeeded."""
        return self._failure

    def perform(self) -> None:
        """One try. May raise. Called by the background thread."""
        raise NotImplementedError

    def failed(self, exc: Exception | None) -> None:
        """It is over, without success; ``exc`` is what the last try raised, None where a shutdown left no time for
        any. Called by the background thread, or by the one that shuts down."""

    # The background's thread.

    def step(self, *, last: bool = False) -> float | None:
        """One try; returns in how many seconds the next one is due, None after the last one."""
        self._tries_left -= 1
        try:
            self.perform()
            self._failure = None
        except Exception as exc:
            logger.debug("otel_chatdebug: a try failed", exc_info=True)
            self._failure = exc
        if last or self._tries_left <= 0:
            self.end(succeeded=self._failure is None)
            return None
        delay, self._delay = self._delay, 2 * self._delay
        return delay

    def end(self, *, succeeded: bool) -> None:
        if not self._ended.is_set():
            self._succeeded = succeeded
            if not succeeded:
                self.failed(self._failure)
            self._ended.set()


class Repeater:
    """The thread, and what it has to do. Any thread may call its methods."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pending: list[tuple[float, int, Repeated]] = []
        """A heap: when it is due (monotonic seconds), and in which order it came."""
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._closing = False

    def add(self, task: Repeated) -> None:
        """Performs it for the first time at once."""
        with self._changed:
            heapq.heappush(self._pending, (time.monotonic(), next(self._numbers), task))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout: float) -> bool:
        """Tries what is pending once more, and gives up what was not done in ``timeout`` seconds: False then.

        Can be repeated; `add` starts anew.
        """
        with self._changed:
            thread = self._thread
            if thread is None or thread is threading.current_thread():
                return True
            self._closing = True
            self._changed.notify_all()
        thread.join(timeout)
        with self._changed:
            pending, self._pending = self._pending, []
            self._closing = False
        for _, _, task in pending:
            task.end(succeeded=False)
        return not thread.is_alive() and not pending

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            task, last = taken
            delay = task.step(last=last)
            with self._changed:
                self._pending = [item for item in self._pending if item[2] is not task]
                heapq.heapify(self._pending)
                if delay is not None and not task.done:
                    heapq.heappush(self._pending, (time.monotonic() + delay, next(self._numbers), task))

    def _next(self) -> tuple[Repeated, bool] | None:
        """The next task, when it is due, and whether that is its last try; None when there is none. It stays pending
        while it is performed, so that a shutdown can give it up."""
        with self._changed:
            while self._pending:
                due, _, task = self._pending[0]
                wait = due - time.monotonic()
                if wait <= 0 or self._closing:
                    return task, self._closing
                self._changed.wait(wait)
            self._thread = None
            return None


repeater = Repeater()


def _after_fork_in_child() -> None:
    global repeater
    repeater = Repeater()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
