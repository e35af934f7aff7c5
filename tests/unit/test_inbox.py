"""The inbox: events from any thread and any finalizer, folded by one thread at a time."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any

import pytest

from otel_chatdebug import faults
from otel_chatdebug.pipeline.inbox import THREAD_NAME, Inbox

PATIENCE = 10.0
"""Seconds that another thread may take; a deadlock is what a longer wait would be."""


class Happened(Enum):
    THIS = auto()
    THAT = auto()


class Target:
    """Remembers what it was told, and does what the test wants meanwhile."""

    def __init__(self, meanwhile: Callable[[Any], object] = lambda payload: None) -> None:
        self.told: list[Any] = []
        self.folding = threading.Lock()
        self.overlaps = 0
        self.got = threading.Event()
        self._meanwhile = meanwhile

    def apply(self, event: Enum, at: int, payload: Any) -> None:
        if not self.folding.acquire(blocking=False):
            self.overlaps += 1
            return
        try:
            self.told.append(payload)
            self._meanwhile(payload)
        finally:
            self.folding.release()
            self.got.set()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    assert made.stop(PATIENCE)
    assert THREAD_NAME not in {thread.name for thread in threading.enumerate()}


class Interrupted:
    """A lock whose owner is interrupted just after it got it, once."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._interrupts = 1

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        got = self._lock.acquire(*args, **kwargs)
        if self._interrupts:
            self._interrupts = 0
            raise KeyboardInterrupt
        return got

    def release(self) -> None:
        self._lock.release()


@pytest.mark.parametrize("way", ["settle", "fold", "reading"])
def test_an_interrupt_just_after_the_turn_was_got_gives_it_back(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, target = Inbox(), Target()
    monkeypatch.setattr(inbox, "_turn", Interrupted())
    inbox.emit(target, Happened.THIS, 1, "told")
    with pytest.raises(KeyboardInterrupt):
        inbox.reading(lambda: None) if way == "reading" else getattr(inbox, way)()
    other = in_thread(inbox.settle)
    other.join(PATIENCE)
    assert target.told == ["told"]


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> None:
    thread.join(PATIENCE)
    assert not thread.is_alive(), "deadlock"


def test_an_event_waits_until_somebody_settles(inbox: Inbox) -> None:
    target = Target()
    inbox.emit(target, Happened.THIS, 1, "payload")
    assert target.told == []
    inbox.settle()
    assert target.told == ["payload"]


def test_events_are_folded_in_the_order_in_which_they_came(inbox: Inbox) -> None:
    target = Target()
    for number in range(100):
        inbox.emit(target, Happened.THIS, 0, number)
    inbox.settle()
    assert target.told == list(range(100))


def test_every_event_is_folded_once_and_by_one_thread_at_a_time(inbox: Inbox) -> None:
    """Many threads that emit and settle at once, with a short switch interval."""
    target = Target()
    inbox.start()

    def work(number: int) -> None:
        for count in range(500):
            inbox.emit(target, Happened.THIS, 0, (number, count))
            inbox.wake() if count % 3 else inbox.settle(wait=count % 2 == 0)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in [in_thread(lambda number=number: work(number)) for number in range(4)]:  # type: ignore[misc]
            joined(thread)
    finally:
        sys.setswitchinterval(before)
    assert inbox.flush()
    assert target.overlaps == 0
    assert sorted(target.told) == [(number, count) for number in range(4) for count in range(500)]
    for number in range(4):
        assert [count for who, count in target.told if who == number] == list(range(500))


def test_what_is_deferred_is_performed_when_the_turn_was_given_back(inbox: Inbox) -> None:
    """It is user code: another thread may need the turn before it returns."""
    seen: list[str] = []

    def act() -> None:
        joined(in_thread(lambda: inbox.reading(lambda: seen.append("another thread read"))))
        seen.append("performed")

    target = Target(lambda payload: inbox.defer(act))
    inbox.emit(target, Happened.THIS, 0)
    inbox.settle()
    assert seen == ["another thread read", "performed"]


def test_what_the_performed_causes_is_folded_too(inbox: Inbox) -> None:
    """Ending a span calls our own span processor, which emits."""
    second = Target()

    def act() -> None:
        inbox.emit(second, Happened.THAT, 0, "caused")
        inbox.settle(wait=True)  # called back by what is performed: left to the one who performs
        assert second.told == []

    inbox.emit(Target(lambda payload: inbox.defer(act)), Happened.THIS, 0)
    inbox.settle()
    assert second.told == ["caused"]


def test_settling_while_folding_does_not_fold_within_itself(inbox: Inbox) -> None:
    depth: list[int] = []

    def meanwhile(payload: Any) -> None:
        depth.append(len(target.told))
        inbox.settle(wait=True)
        assert len(target.told) == depth[-1]

    target = Target(meanwhile)
    inbox.emit(target, Happened.THIS, 0, 1)
    inbox.emit(target, Happened.THIS, 0, 2)
    inbox.settle()
    assert (target.told, target.overlaps) == ([1, 2], 0)


def test_who_needs_an_answer_waits_for_the_thread_that_folds(inbox: Inbox) -> None:
    entered, release = threading.Event(), threading.Event()

    def meanwhile(payload: Any) -> None:
        if payload == "slow":
            entered.set()
            release.wait(PATIENCE)

    target = Target(meanwhile)
    inbox.emit(target, Happened.THIS, 0, "slow")
    folder = in_thread(inbox.settle)
    assert entered.wait(PATIENCE)
    inbox.emit(target, Happened.THIS, 0, "mine")
    inbox.settle()
    assert target.told == ["slow"]  # left to the other thread
    waiter = in_thread(lambda: inbox.settle(wait=True))
    release.set()
    joined(waiter)
    joined(folder)
    assert target.told == ["slow", "mine"]


def test_an_event_that_comes_while_somebody_reads_is_folded_soon(inbox: Inbox) -> None:
    """Its thread could not settle, and may never come again; the reader (the writer's thread) must not fold."""
    inbox.start()
    target = Target()

    def read() -> None:
        def emit_and_settle() -> None:
            inbox.emit(target, Happened.THIS, 0, "payload")
            inbox.settle()

        joined(in_thread(emit_and_settle))
        assert target.told == []

    inbox.reading(read)
    assert target.got.wait(PATIENCE)
    assert target.told == ["payload"]


def test_reading_sees_no_half_of_an_event_and_can_be_nested_in_folding(inbox: Inbox) -> None:
    found: list[str] = []
    target = Target(lambda payload: found.append(inbox.reading(lambda: "read while folding")))
    inbox.emit(target, Happened.THIS, 0)
    inbox.settle()
    assert found == ["read while folding"]
    with pytest.raises(LookupError):
        inbox.reading(lambda: {}["missing"])
    inbox.emit(target, Happened.THIS, 0)
    inbox.settle()  # the turn was given back
    assert len(found) == 2


class Cycle:
    """Garbage whose finalizer emits, as a response stream's does."""

    def __init__(self, inbox: Inbox, target: Target) -> None:
        self._self = self
        self._inbox, self._target = inbox, target

    def __del__(self) -> None:
        self._inbox.emit(self._target, Happened.THAT, 0, "finalized")
        self._inbox.wake()


@pytest.mark.parametrize("place", ["folding", "reading", "performing", "starting"])
def test_a_finalizer_may_run_in_the_middle_of_any_section(
    place: str, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector runs where something is allocated; nothing waits for a lock that its own thread holds."""
    collected = Target()

    def collect(*_: object) -> None:
        Cycle(inbox, collected)
        gc.collect()

    def work() -> None:
        if place == "starting":
            real = threading.Thread.start

            def start(thread: threading.Thread) -> None:
                collect()
                real(thread)

            monkeypatch.setattr(threading.Thread, "start", start)
            inbox.start()
            monkeypatch.undo()
        if place == "folding":
            inbox.emit(Target(collect), Happened.THIS, 0)
        if place == "performing":
            inbox.emit(Target(lambda payload: inbox.defer(collect)), Happened.THIS, 0)
        if place == "reading":
            inbox.reading(collect)
        inbox.settle(wait=True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    joined(thread)
    inbox.start()
    assert collected.got.wait(PATIENCE)
    assert collected.told == ["finalized"]


def test_wake_has_the_inboxs_own_thread_fold_and_perform(inbox: Inbox) -> None:
    names: list[str] = []
    done = threading.Event()

    def act() -> None:
        names.append(threading.current_thread().name)
        done.set()

    inbox.start()
    inbox.start()
    inbox.emit(Target(lambda payload: inbox.defer(act)), Happened.THIS, 0)
    inbox.wake()
    assert done.wait(PATIENCE)
    assert names == [THREAD_NAME]
    assert [thread.name for thread in threading.enumerate()].count(THREAD_NAME) == 1


def test_stop_folds_what_is_left_and_can_be_repeated() -> None:
    inbox = Inbox()
    inbox.start()
    target = Target()
    inbox.emit(target, Happened.THIS, 0, "late")
    assert inbox.stop(PATIENCE) is True
    assert target.told == ["late"]
    assert inbox.stop(PATIENCE) is True
    inbox.wake()  # a finalizer that comes later: nothing happens
    inbox.emit(target, Happened.THIS, 0, "too late")
    assert target.told == ["late"]


def test_stop_does_not_wait_longer_than_it_may() -> None:
    inbox = Inbox()
    inbox.start()
    entered, release = threading.Event(), threading.Event()

    def act() -> None:
        entered.set()
        release.wait(PATIENCE)

    inbox.emit(Target(lambda payload: inbox.defer(act)), Happened.THIS, 0)
    inbox.wake()
    assert entered.wait(PATIENCE)
    thread = inbox._thread
    assert thread is not None
    assert inbox.stop(0.0) is False
    assert inbox.flush(0.0) is False
    release.set()
    joined(thread)
    assert inbox.flush() is True


def test_an_event_or_an_action_that_fails_is_counted_and_the_others_go_on(inbox: Inbox) -> None:
    def explode(payload: Any) -> None:
        if payload == "bad":
            inbox.defer(lambda: 1 / 0)
            inbox.defer(lambda: performed.append("after"))
            raise LookupError("while folding")

    performed: list[str] = []
    target = Target(explode)
    before = faults.counts()
    inbox.emit(target, Happened.THIS, 0, "bad")
    inbox.emit(target, Happened.THIS, 0, "good")
    inbox.settle()
    assert (target.told, performed) == (["bad", "good"], ["after"])
    counted = {place: count - before.get(place, 0) for place, count in faults.counts().items()}
    assert counted["Target.apply(THIS)"] == 1
    assert counted["performing what was deferred"] == 1
