"""Who is recorded: whether the rows of a run are written, which may take a moment to find out.

A run has a `Permit` from its start. While that is undecided nobody waits: the run goes on, and what is to be written is
kept. What is refused makes its spans all the same, and no rows.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

from otel_chatdebug.faults import fault

LOOKUP_SECONDS: Final = 1.0
"""How long an answer may take. A run that has none by then is not recorded."""

CACHE_SECONDS: Final = 5.0
"""How long an answer holds for further runs of the same chat and owner."""

MOST_CACHED: Final = 10_000
"""Answers that are remembered; beyond it all are forgotten."""

MOST_PENDING: Final = 1_000
"""Runs that wait for an answer at most; beyond it further ones are not recorded. An application that starts more of
them in a second than its database answers is overloaded."""

THREAD_NAME: Final = "otel-chatdebug-permits"

Key: TypeAlias = tuple[str | None, str | None]
"""The chat's and the owner's id."""
Ask: TypeAlias = Callable[[str | None, str | None], bool]
"""Says whether a run of this chat and this owner is recorded. May block, and may raise."""


class Permit:
    """Whether something is recorded: ``allowed`` is True, False, or None while that is not decided. Any thread.

    Decided once. Takes no lock, so it may be asked in the middle of anybody's locked section.
    """

    __slots__ = ("_expires", "_put", "_undecided", "_waiting", "allowed")

    def __init__(self, allowed: bool | None, put: Callable[[Any], None] | None = None) -> None:
        self.allowed = allowed
        self._undecided: list[None] = [None] if allowed is None else []
        """Who takes it decides. ``list.pop`` is atomic."""
        self._put = put
        self._expires = time.monotonic() + LOOKUP_SECONDS
        self._waiting: deque[Any] = deque()
        """What is to be written, once each (``queued`` is set)."""

    def admits(self, source: Any) -> bool:
        """Whether ``source`` may be put into the writer's queue now. Keeps it where that is not decided."""
        if self.expire():
            return bool(self.allowed)
        source.queued = True
        self._waiting.append(source)
        if self.allowed is not None:  # meanwhile, and perhaps nobody has seen what was just kept
            self._release()
        return False

    def expire(self) -> bool:
        """Refuses what nobody has decided in time. True where it is decided."""
        if self.allowed is None and time.monotonic() >= self._expires:
            self.decide(False)
        return self.allowed is not None

    def decide(self, allowed: bool) -> None:
        """The first decision counts."""
        try:
            self._undecided.pop()
        except IndexError:
            return
        self.allowed = allowed
        self._release()

    def _release(self) -> None:
        put = self._put if self.allowed else None
        while self._waiting:
            try:
                source = self._waiting.popleft()
            except IndexError:  # another thread was quicker
                return
            if put is None:
                source.queued = False
            else:
                put(source)


ALLOWED: Final = Permit(True)
REFUSED: Final = Permit(False)
DELETED: Final = Permit(False)
"""It was recorded, and its rows were deleted."""


class Gate:
    """Finds out in a thread of its own, and remembers for a few seconds. All methods may be called by any thread.

    ``put`` takes what was kept for a run that is allowed then. The thread starts at the first question.
    """

    def __init__(self, ask: Ask, put: Callable[[Any], None]) -> None:
        self._ask = ask
        self._put = put
        self._answers: dict[Key, tuple[bool, float]] = {}
        """Each with when it ends to hold (monotonic seconds)."""
        self._questions: SimpleQueue[tuple[Key, Permit] | threading.Event | None] = SimpleQueue()
        self._pending: deque[Permit] = deque()
        """In the order in which they expire; decided ones are taken out by `expire`."""
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def permit(self, chat_id: str | None, owner_id: str | None) -> Permit:
        """For a run that starts. Returns at once."""
        key = (chat_id, owner_id)
        known = self._known(key)
        if known is not None:
            return ALLOWED if known else REFUSED
        self.expire()
        if self._closed or self._questions.qsize() >= MOST_PENDING:
            return REFUSED
        permit = Permit(None, self._put)
        self._pending.append(permit)
        self._questions.put((key, permit))
        self._start()
        return permit

    def expire(self) -> None:
        """Refuses what was not answered in time. Called now and then, so that what is kept stays bounded."""
        pending = self._pending
        while pending:
            try:
                if not pending[0].expire():
                    return
                pending.popleft()
            except IndexError:  # another thread was quicker
                return

    def flush(self, timeout: float) -> bool:
        """Waits until all that was asked is answered, or refused. False where that takes longer than ``timeout``
        seconds."""
        if self._thread is None:
            return True
        token = threading.Event()
        self._questions.put(token)
        answered = token.wait(min(timeout, LOOKUP_SECONDS))
        self.expire()
        return answered or not self._pending

    def close(self, timeout: float) -> bool:
        """Like `flush`; afterwards all that is undecided is refused, and the thread has ended. False where it still
        waits for an answer."""
        self._closed = True
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is None:
            return True
        self._questions.put(None)
        thread.join(timeout)
        for permit in list(self._pending):
            permit.decide(False)
        return not thread.is_alive()

    def _known(self, key: Key) -> bool | None:
        found = self._answers.get(key)
        return found[0] if found is not None and time.monotonic() < found[1] else None

    def _start(self) -> None:
        if self._thread is None:
            with self._starting:
                if self._thread is None and not self._closed:
                    self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while (item := self._questions.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            key, permit = item
            if not permit.expire():
                permit.decide(self._answer(key))

    def _answer(self, key: Key) -> bool:
        known = self._known(key)
        if known is not None:
            return known
        try:
            answer = self._ask(*key)
        except Exception:
            fault("asking who is recorded")
            answer = False
        if len(self._answers) >= MOST_CACHED:
            self._answers.clear()
        # Also what could not be found out: a database that is slow is not asked for every run.
        self._answers[key] = (answer, time.monotonic() + CACHE_SECONDS)
        return answer


def checked(hook: Callable[[str | None, str | None], object]) -> Ask:
    """A user's ``is_enabled`` as an `Ask`: only what says yes is a yes. A coroutine, which nobody awaits, says nothing.

    Raises ``TypeError`` for one that is no function, or an async one.
    """
    if not callable(hook) or inspect.iscoroutinefunction(hook):
        raise TypeError("is_enabled is a plain function of (chat_id, owner_id) that returns True or False")

    def ask(chat_id: str | None, owner_id: str | None) -> bool:
        answer = hook(chat_id, owner_id)
        if inspect.iscoroutine(answer):
            answer.close()
            raise TypeError("is_enabled returned a coroutine; it is to return True or False")
        return bool(answer)

    return ask
