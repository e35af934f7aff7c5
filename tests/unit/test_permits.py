"""Who is recorded: nobody waits for the answer, nothing is lost meanwhile, and nothing is kept for ever."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug import lifecycle
from otel_chatdebug.pipeline import permits
from otel_chatdebug.pipeline.permits import ALLOWED, REFUSED, Gate, Permit
from tests.support.recording import Model, recording


class Source:
    queued = False


class Clock:
    """In place of `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(permits, "time", clock)
    return clock


class Answers:
    """A hook that is asked, and answers when it may."""

    def __init__(self, answer: Any = True, *, held: bool = False) -> None:
        self.answer = answer
        self.asked: list[tuple[str | None, str | None]] = []
        self.go_on = threading.Event()
        if not held:
            self.go_on.set()

    def __call__(self, chat_id: str | None, owner_id: str | None) -> bool:
        self.asked.append((chat_id, owner_id))
        assert self.go_on.wait(30)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


@pytest.fixture
def answers() -> Iterator[Answers]:
    answers = Answers(held=True)
    yield answers
    answers.go_on.set()


# -- a permit


@pytest.mark.parametrize("allowed", [True, False])
def test_what_comes_before_the_decision_is_kept_once_and_then_put_or_dropped(allowed: bool) -> None:
    put: list[Any] = []
    permit, source, later = Permit(None, put.append), Source(), Source()
    assert permit.admits(source) is False
    assert source.queued is True
    permit.decide(allowed)
    permit.decide(not allowed)  # the first one counts
    assert permit.admits(later) is allowed
    assert put == ([source] if allowed else [])
    assert source.queued is allowed


def test_what_nobody_decides_in_time_is_refused(clock: Clock) -> None:
    put: list[Any] = []
    permit, source = Permit(None, put.append), Source()
    assert permit.admits(source) is False
    clock.now += permits.LOOKUP_SECONDS
    assert permit.admits(Source()) is False
    permit.decide(True)
    assert (permit.allowed, put, source.queued) == (False, [], False)


def test_a_decision_in_the_middle_of_asking_loses_nothing() -> None:
    """It comes after somebody has seen that there is none, and before what is to be written is kept."""
    put: list[Any] = []
    permit, source = Permit(None, put.append), Source()

    class Waiting(deque[Any]):
        def append(self, item: Any) -> None:
            permit.decide(True)
            super().append(item)

    permit._waiting = Waiting()
    assert permit.admits(source) is False
    assert put == [source]
    assert source.queued is True


# -- the gate


def test_an_answer_holds_for_some_seconds(clock: Clock) -> None:
    ask = Answers()
    gate = Gate(ask, lambda source: None)
    first = gate.permit("c", "o")
    assert gate.flush(30)
    assert first.allowed is True
    assert gate.permit("c", "o") is ALLOWED
    assert gate.permit("c", "p").allowed is None
    assert gate.flush(30)
    clock.now += permits.CACHE_SECONDS
    ask.answer = False
    again = gate.permit("c", "o")
    assert gate.flush(30)
    assert again.allowed is False
    assert gate.permit("c", "o") is REFUSED
    assert ask.asked == [("c", "o"), ("c", "p"), ("c", "o")]
    assert gate.close(30)


def test_one_question_answers_all_that_came_meanwhile(answers: Answers) -> None:
    gate = Gate(answers, lambda source: None)
    found = [gate.permit("c", "o") for _ in range(10)]
    answers.go_on.set()
    assert gate.flush(30)
    assert [permit.allowed for permit in found] == [True] * 10
    assert len(answers.asked) == 1
    assert gate.close(30)


def test_an_answer_that_fails_is_a_no_and_is_remembered(clock: Clock) -> None:
    ask = Answers(RuntimeError("the database is away"))
    gate = Gate(ask, lambda source: None)
    permit = gate.permit("c", "o")
    assert gate.flush(30)
    assert permit.allowed is False
    assert gate.permit("c", "o") is REFUSED
    assert len(ask.asked) == 1
    assert gate.close(30)


def test_while_nobody_answers_runs_are_refused_one_by_one_and_nothing_grows(
    clock: Clock, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permits, "MOST_PENDING", 10)
    gate = Gate(answers, lambda source: None)
    first, source = gate.permit("c", "0"), Source()
    assert not first.admits(source)
    clock.now += permits.LOOKUP_SECONDS
    found = [gate.permit("c", str(number)) for number in range(1, 100)]
    assert first.allowed is False  # by the next run; nobody had to ask
    assert source.queued is False
    assert sum(permit is REFUSED for permit in found) >= 88
    assert len(gate._pending) <= 11
    clock.now += permits.LOOKUP_SECONDS
    gate.expire()
    assert len(gate._pending) == 0
    answers.go_on.set()
    assert gate.close(30)
    assert not any(permit.allowed for permit in found)


def test_a_close_refuses_what_is_undecided_and_leaves_no_thread(no_leaks: None, clock: Clock) -> None:
    answers = Answers(held=True)
    gate = Gate(answers, lambda source: None)
    permit = gate.permit("c", "o")
    assert gate.close(0.01) is False  # it still waits for its answer
    assert permit.allowed is False
    assert gate.permit("c", "p") is REFUSED
    answers.go_on.set()


@pytest.mark.parametrize("answer", [True, 1, "yes"])
def test_a_hook_says_yes_by_what_is_true(answer: Any) -> None:
    assert permits.checked(lambda chat, owner: answer)("c", "o") is True


@pytest.mark.parametrize("answer", [False, None, 0])
def test_all_else_is_a_no(answer: Any) -> None:
    assert permits.checked(lambda chat, owner: answer)("c", "o") is False


def test_a_hook_that_is_async_is_told_so_and_never_taken_for_a_yes() -> None:
    async def hook(chat_id: str | None, owner_id: str | None) -> bool:
        return True

    with pytest.raises(TypeError, match="plain function"):
        chatdebug.configure(is_enabled=hook)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coroutine"):
        permits.checked(lambda chat, owner: hook(chat, owner))("c", "o")


# -- a run that is not recorded


def kinds(record: Any) -> list[str]:
    return sorted(span.attributes["chatdebug.record"] for span in record.spans.values())


@pytest.mark.parametrize("allowed", [True, False])
def test_a_run_that_is_refused_makes_its_spans_and_no_rows(allowed: bool) -> None:
    ask = Answers(allowed)
    with recording(is_enabled=ask) as record:
        model = Model()
        with chatdebug.run(chat_id="c", owner_id="o"), chatdebug.step():
            model.call()
            body = model.open()
            assert len(list(body.iter_raw())) > 1
        assert kinds(record) == ["attempt", "attempt", "run", "step"]
        attempts = [span for span in record.spans.values() if span.attributes["chatdebug.record"] == "attempt"]
        assert all(span.attributes["chatdebug.status"] == "completed" for span in attempts)
        (step,) = [span for span in record.spans.values() if span.attributes["chatdebug.record"] == "step"]
        assert step.attributes["gen_ai.usage.input_tokens"] > 0
        assert len(record._sink.rows) == (5 if allowed else 0)
        assert ask.asked == [("c", "o")]


def test_nothing_is_asked_a_second_time_for_a_run(answers: Answers) -> None:
    """Not by its steps, and not by its attempts; and what came before the answer is written then."""
    with recording(is_enabled=answers) as record:
        with chatdebug.run(chat_id="c") as run:
            Model().call()
            answers.go_on.set()
            Model().call()
        assert record.run.id == run.id
        assert len(record.attempts) == 2
        assert answers.asked == [("c", None)]


def test_an_auto_run_has_no_owner_and_the_hook_may_allow_it() -> None:
    ask = Answers()
    with recording(is_enabled=ask) as record:
        Model().call()
        assert len(record.runs) == 1
        assert ask.asked == [(None, None)]


def test_without_a_hook_opting_in_takes_an_owner() -> None:
    with recording(enabled="opt_in") as record:
        Model().call()
        with chatdebug.run(chat_id="c"):
            Model().call()
        assert record._sink.rows == {}
        assert kinds(record) == ["attempt", "attempt", "run", "run", "step", "step"]


def test_the_body_of_a_stream_that_is_not_recorded_is_not_kept() -> None:
    with recording(is_enabled=Answers(False)) as record:
        lifecycle.flush()
        with chatdebug.run(chat_id="c"):
            assert lifecycle.flush()  # it is decided
            body = Model().open()
            list(body.iter_raw())
            (attempt,) = record.recorder.open_attempts.values()
            attempt.digest(wait=True)  # type: ignore[attr-defined]
            assert attempt.kept().size == 0  # type: ignore[attr-defined]
            body.close()


def test_a_misspelt_word_in_code_is_an_error_and_not_everybody() -> None:
    with pytest.raises(ValueError, match="opt_in"):
        chatdebug.configure(enabled="optin")
