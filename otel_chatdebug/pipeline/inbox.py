"""The inbox: everything that happens is an event, and one thread at a time folds the events into what is open.

Whoever sees something (a chunk's end, a close, a scope that is left, a finalizer that the garbage collector runs in the
middle of somebody's locked section) only *emits* an event: one ``SimpleQueue.put``, which takes no lock that Python
code could hold, and returns. The events are folded in the order in which they came, by whoever *settles* the inbox: the
thread that left a scope, the inbox's own thread, or a thread that asks for a status. So the live runs, steps and
attempts need no locks of their own, and there is no lock order to get wrong.

What user code may be behind (ending a span, a metric, a log line) is not done while the turn is held: folding only
*defers* it, and it is performed after the turn was given back.

This code assumes: ``SimpleQueue.put`` and ``deque`` operations are atomic and reentrant (they are in CPython; the
documentation of ``SimpleQueue`` promises it for finalizers).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import Any, Protocol

from otel_chatdebug.faults import fault

ANSWER_TIMEOUT = 5.0
"""Seconds that a thread that needs an answer (a status, a flush) waits for its turn before it takes what is known."""

FLUSH_POLL = 0.0005
"""Seconds between two looks of a flush at what other threads are performing. Flushes are rare, signals would not be."""

THREAD_NAME = "otel-chatdebug-events"


class Target(Protocol):
    """What events are for: a live run, step or attempt."""

    def apply(self, event: Enum, at: int, payload: Any) -> None:
        """Folds one event in. Called by the thread that has the turn; must not block, and must not call user code."""


class Inbox:
    """Events on their way to the live runs, steps and attempts. All methods may be called by any thread.

    ``background``: what is deferred may take long (a redactor of the application's, messages on spans), so the inbox's
    own thread performs it, and no thread of the application.
    """

    def __init__(self, *, background: bool = False) -> None:
        self._background = background
        self._events: SimpleQueue[tuple[Target, Enum, int, Any]] = SimpleQueue()
        self._deferred: deque[Callable[[], None]] = deque()
        # It knows its owner: a thread that is interrupted (KeyboardInterrupt) just after it got the turn does not know
        # that it has it, and gives it back all the same. Between the interrupt and that there is no call.
        self._turn = threading.RLock()
        self._owner = 0
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._performing: set[int] = set()

    def emit(self, target: Target, event: Enum, at: int, payload: Any = None) -> None:
        """Tells ``target`` that ``event`` happened ``at`` (nanoseconds since the epoch).

        Safe in finalizers and in ``on_end`` of a span processor. The event waits until somebody settles the inbox.
        """
        self._events.put((target, event, at, payload))

    def wake(self) -> None:
        """Has the inbox's own thread settle soon. For those who must not settle themselves. Safe in finalizers."""
        self._wake.put(True)

    def defer(self, action: Callable[[], None]) -> None:
        """Puts off ``action`` until the turn is given back. Called while folding."""
        self._deferred.append(action)

    def fault(self, where: str) -> None:
        """Like `otel_chatdebug.faults.fault`, for those who must not log: it is told when the turn is given back.

        Called from an ``except`` block. Safe in finalizers, in a locked section and while folding.
        """
        self._deferred.append(_fault_teller(where))
        self.wake()

    def settle(self, *, wait: bool = False) -> None:
        """Folds what has come, unless another thread is at it (which then folds ours, too).

        With ``wait`` all that this thread emitted before is folded on return (or `ANSWER_TIMEOUT` has passed). Must
        not be called by a finalizer: it performs what was deferred, and that is user code.
        """
        me = get_ident()
        while not self._events.empty() or self._deferred or (wait and self._owner):
            if self._owner == me or me in self._performing:  # called back by what we fold or perform
                return
            try:
                if not self._turn.acquire(blocking=wait, timeout=ANSWER_TIMEOUT if wait else -1):
                    return
                self._owner = me
                self._fold()
            finally:
                if self._owner == me:
                    self._owner = 0
                try:  # noqa: SIM105  # a call more before it
                    self._turn.release()
                except RuntimeError:  # another thread has it
                    pass
            if self._background and self._thread not in (None, threading.current_thread()):
                self.wake()
                return
            self._perform()
            wait = False

    def fold(self, timeout: float = 0.0) -> None:
        """Folds what has come, and leaves what is deferred to the inbox's own thread.

        For those that user code must not hold up: the writer's thread, and a shutdown. Waits up to ``timeout`` seconds
        for a thread that is at it.
        """
        me = get_ident()
        if self._owner == me:
            return
        try:
            if not self._turn.acquire(timeout=timeout):
                return
            self._owner = me
            self._fold()
        finally:
            if self._owner == me:
                self._owner = 0
            try:  # noqa: SIM105
                self._turn.release()
            except RuntimeError:  # another thread has it
                pass
        if self._deferred or not self._events.empty():
            self.wake()

    def flush(self, timeout: float = ANSWER_TIMEOUT) -> bool:
        """Like ``settle(wait=True)``, and waits for what other threads are performing. False when that takes longer."""
        self.settle(wait=True)
        deadline = time.monotonic() + timeout
        me = get_ident()
        while (self._background and self._deferred and me not in self._performing) or self._performing - {me}:
            if time.monotonic() > deadline:
                return False
            time.sleep(FLUSH_POLL)
        return True

    def reading(self, read: Callable[[], Any]) -> Any:
        """Calls ``read`` while nobody folds, for a consistent look at live state. Must not be called by a finalizer.

        ``read`` must be short and must not call user code.
        """
        me = get_ident()
        if self._owner == me:
            return read()
        try:
            if self._turn.acquire(timeout=ANSWER_TIMEOUT):
                self._owner = me
            return read()
        finally:
            if self._owner == me:
                self._owner = 0
            try:  # noqa: SIM105
                self._turn.release()
            except RuntimeError:  # another thread has it
                pass
            if not self._events.empty():
                self.wake()  # somebody who settled meanwhile did not get the turn, and went on

    def _fold(self) -> None:
        get = self._events.get_nowait
        while True:
            try:
                target, event, at, payload = get()
            except Empty:
                return
            try:
                target.apply(event, at, payload)
            except Exception:
                self.fault(f"{type(target).__name__}.apply({event.name})")

    def _perform(self) -> None:
        me = get_ident()
        if me in self._performing:  # called back by what we perform: it is performed after that
            return
        self._performing.add(me)
        try:
            deferred = self._deferred
            while deferred:
                try:
                    action = deferred.popleft()
                except IndexError:  # another thread was quicker
                    return
                try:
                    action()
                except Exception:
                    fault("performing what was deferred")
        finally:
            self._performing.discard(me)

    def start(self) -> None:
        """Starts the inbox's own thread, once. Must not be called by a finalizer."""
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while self._wake.get():
            while True:  # one settling is enough for all the wake-ups that came meanwhile
                try:
                    if not self._wake.get_nowait():
                        self.settle(wait=True)
                        return
                except Empty:
                    break
            self.settle(wait=True)
        self.settle(wait=True)

    def stop(self, timeout: float) -> bool:
        """Folds what is left and ends the inbox's own thread, which performs what is deferred. Idempotent.

        False when that took longer than ``timeout`` seconds.
        """
        thread, self._thread = self._thread, None
        if thread is None or thread is threading.current_thread() or not thread.is_alive():
            self.settle(wait=True)
            return True
        self._wake.put(False)
        thread.join(timeout)
        return not thread.is_alive()


def _fault_teller(where: str) -> Callable[[], None]:
    exc = sys.exc_info()[1]

    def tell() -> None:
        try:
            if exc is not None:
                raise exc
        except Exception:
            fault(where)

    return tell
