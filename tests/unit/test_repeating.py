"""What is repeated in the background, and how it ends. The database plays no part here."""

from __future__ import annotations

import os
import threading

import pytest

from otel_chatdebug import repeating
from otel_chatdebug.repeating import Repeated, Repeater


class Task(Repeated):
    """Counts its tries; waits in each until it is let go on, and raises what it is told to."""

    def __init__(self, tries: int = 5, delay: float = 0.0, *, fails: int = 0, held: bool = False) -> None:
        super().__init__(tries, delay)
        self.tries = 0
        self.told: list[Exception | None] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self._fails = fails
        if not held:
            self.go_on.set()

    def perform(self) -> None:
        self.tries += 1
        self.begun.set()
        assert self.go_on.wait(30)
        if self.tries <= self._fails:
            raise LookupError(str(self.tries))

    def failed(self, exc: Exception | None) -> None:
        self.told.append(exc)


@pytest.fixture
def repeater() -> Repeater:
    return Repeater()


def test_all_tries_are_made_and_the_thread_ends(repeater: Repeater, no_leaks: None) -> None:
    task = Task(tries=5)
    repeater.add(task)
    assert task.wait(30) is True
    assert (task.tries, task.done, task.error, task.told) == (5, True, None, [])
    assert repeater.close(30) is True


@pytest.mark.parametrize(("fails", "succeeds"), [(4, True), (5, False)])
def test_the_last_try_counts(fails: int, succeeds: bool, repeater: Repeater) -> None:
    task = Task(tries=5, fails=fails)
    repeater.add(task)
    assert task.wait(30) is succeeds
    assert task.tries == 5
    assert [str(exc) for exc in task.told] == ([] if succeeds else ["5"])
    assert (task.error is None) is succeeds


def test_one_that_waits_does_not_hold_up_another(repeater: Repeater) -> None:
    later, now = Task(tries=2, delay=3600), Task(tries=3)
    repeater.add(later)
    assert later.begun.wait(30)
    repeater.add(now)
    assert now.wait(30) is True
    assert not later.done
    assert repeater.close(30) is True
    assert later.wait(0) is True
    assert later.tries == 2  # the second by the shutdown


def test_what_is_under_way_at_a_shutdown_is_given_up_when_it_takes_too_long(repeater: Repeater) -> None:
    stuck, behind = Task(held=True), Task()
    repeater.add(stuck)
    assert stuck.begun.wait(30)
    repeater.add(behind)
    assert repeater.close(0.05) is False
    assert [(task.done, task.wait(0), task.told) for task in (stuck, behind)] == [(True, False, [None])] * 2
    stuck.go_on.set()
    assert repeater.close(30) is True
    assert (stuck.tries, behind.tries) == (1, 0)
    assert stuck.wait(0) is False  # what was told stands
    again = Task(tries=1)
    repeater.add(again)
    assert again.wait(30) is True


def test_a_forked_child_has_none_of_it_and_waits_for_nothing() -> None:
    task = Task(held=True)
    repeating.repeater.add(task)
    assert task.begun.wait(30)
    read, send = os.pipe()
    child = os.fork()
    if not child:
        os.write(send, f"{task.done} {task.wait()} {repeating.repeater.close(30)}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100).decode() == "True False True"
    os.close(read)
    os.close(send)
    task.go_on.set()
    assert repeating.repeater.close(30) is True
