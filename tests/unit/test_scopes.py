"""`run`, `step` and `reuse_step`: what an application says, and what becomes of it. A model in this process answers."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import httpx
import httpx2
import openai
import pytest
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

import otel_chatdebug as chatdebug
from otel_chatdebug import Outcome, Status, lifecycle
from otel_chatdebug.pipeline.opening import RUN, STEP
from otel_chatdebug.records import AttemptRank
from tests.support.recording import BODY, URL, Model, Recording, answer, recording, stream


@pytest.fixture
def record() -> Iterator[Recording]:
    with recording() as found:
        yield found


@pytest.fixture
def model() -> Model:
    return Model()


def current() -> tuple[object, object, int]:
    """What of ours is current: run, step, span."""
    return (
        trace.context_api.get_value(RUN),
        trace.context_api.get_value(STEP),
        trace.get_current_span().get_span_context().span_id,
    )


NOTHING = (None, None, 0)


def fail() -> None:
    raise ValueError("v")


def tracer(record: Recording) -> trace.Tracer:
    """The application's own, of the provider that is recorded."""
    provider = record.recorder.tracer
    assert provider is not None
    return lifecycle._armed.provider.get_tracer("the application")  # type: ignore[union-attr]


class Pause(Exception):
    """Control flow of an application."""


# -- the forms


SCOPES = [
    pytest.param(lambda: chatdebug.run(chat_id="c"), id="run"),
    pytest.param(lambda: chatdebug.step(model="gpt-5"), id="step"),
]


@pytest.mark.parametrize("make", SCOPES)
def test_a_with_block_is_current_inside_and_gone_outside(make: Callable[[], Any], record: Recording) -> None:
    with make() as scope:
        assert trace.get_current_span().get_span_context().is_valid
        assert scope.status is Status.IN_PROGRESS
    assert current() == NOTHING
    assert scope.status is Status.COMPLETED
    assert record.get(scope.id).status is Status.COMPLETED


@pytest.mark.parametrize("make", SCOPES)
def test_an_async_with_block_does_the_same(make: Callable[[], Any], record: Recording) -> None:
    async def main() -> Any:
        async with make() as scope:
            assert trace.get_current_span().get_span_context().is_valid
        assert current() == NOTHING
        return scope

    assert record.get(asyncio.run(main()).id).status is Status.COMPLETED


@pytest.mark.parametrize("make", SCOPES)
def test_each_call_of_a_decorated_function_is_a_scope_of_its_own(make: Callable[[], Any], record: Recording) -> None:
    @make()
    def work(number: int, *, more: int) -> int:
        """Says something."""
        assert current() != NOTHING
        return number + more

    assert [work(1, more=1), work(2, more=2)] == [2, 4]
    assert (work.__name__, work.__doc__) == ("work", "Says something.")
    assert current() == NOTHING
    assert len(record.steps or record.runs) == 2
    assert {row.status for row in (*record.runs, *record.steps)} == {Status.COMPLETED}


@pytest.mark.parametrize("make", SCOPES)
def test_a_decorated_coroutine_is_a_scope_from_its_first_step_to_its_last(
    make: Callable[[], Any], record: Recording
) -> None:
    @make()
    async def work() -> str:
        await asyncio.sleep(0)
        assert current() != NOTHING
        return "done"

    async def main() -> None:
        made = work()
        assert not record.runs  # nothing has begun
        assert await made == "done"
        assert current() == NOTHING

    asyncio.run(main())
    assert len(record.runs) == 1


@pytest.mark.parametrize("scope", [chatdebug.run, chatdebug.step], ids=["run", "step"])
def test_a_bare_decorator_needs_no_call(scope: Any, record: Recording) -> None:
    @scope
    def work() -> int:
        return 1

    @scope
    async def awork() -> int:
        return 2

    @scope
    def produce() -> Iterator[int]:
        yield 3

    @scope
    async def aproduce() -> AsyncIterator[int]:
        yield 4

    async def collect() -> list[int]:
        return [item async for item in aproduce()]

    assert (work(), asyncio.run(awork()), list(produce()), asyncio.run(collect())) == (1, 2, [3], [4])
    rows = record.steps if scope is chatdebug.step else record.runs
    assert [row.status for row in rows] == [Status.COMPLETED] * 4


def test_a_bare_run_is_a_chat_turn(record: Recording) -> None:
    chatdebug.run(lambda: None)()
    assert record.run.kind == "chat_turn"


@pytest.mark.parametrize("make", SCOPES)
def test_a_decorated_generator_is_attached_at_each_resume_and_detached_at_each_yield(
    make: Callable[[], Any], record: Recording
) -> None:
    seen = []

    @make()
    def produce() -> Generator[str, str, str]:
        seen.append(current())
        got = yield "one"
        seen.append(current())
        try:
            yield got
        except Pause as thrown:
            seen.append(current())
            yield str(thrown)
        return "returned"

    def consume() -> Generator[Any, Any, Any]:
        assert current() == NOTHING
        result = yield from produce()
        yield result

    items = consume()
    assert next(items) == "one"
    assert current() == NOTHING
    assert items.send("sent") == "sent"
    assert current() == NOTHING
    assert items.throw(Pause("thrown")) == "thrown"
    assert current() == NOTHING
    assert next(items) == "returned"
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0] != NOTHING
    (row,) = record.steps or record.runs
    assert row.status is Status.COMPLETED


@pytest.mark.parametrize("make", SCOPES)
def test_a_decorated_async_generator_does_the_same(make: Callable[[], Any], record: Recording) -> None:
    seen = []

    @make()
    async def produce() -> Any:
        seen.append(current())
        await asyncio.sleep(0)
        got = yield "one"
        seen.append(current())
        try:
            yield got
        except Pause as thrown:
            seen.append(current())
            yield str(thrown)

    async def main() -> None:
        items = produce()
        assert await items.__anext__() == "one"
        assert current() == NOTHING
        assert await items.asend("sent") == "sent"
        assert current() == NOTHING
        assert await items.athrow(Pause("thrown")) == "thrown"
        assert current() == NOTHING
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()

    asyncio.run(main())
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0] != NOTHING
    (row,) = record.steps or record.runs
    assert row.status is Status.COMPLETED


@pytest.mark.parametrize("make", SCOPES)
def test_closing_a_decorated_generator_runs_its_finally_inside_the_scope_and_interrupts_it(
    make: Callable[[], Any], record: Recording
) -> None:
    seen = []

    @make()
    def produce() -> Iterator[int]:
        try:
            yield 1
        finally:
            seen.append(current())

    @make()
    async def aproduce() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append(current())

    async def leave() -> None:
        items = aproduce()
        await items.__anext__()
        await items.aclose()  # type: ignore[attr-defined]

    items = produce()
    next(items)
    items.close()  # type: ignore[attr-defined]
    asyncio.run(leave())

    assert NOTHING not in seen
    assert len(seen) == 2
    assert [row.status for row in (record.steps or record.runs)] == [Status.INTERRUPTED] * 2


@pytest.mark.parametrize("make", SCOPES)
def test_an_exception_of_a_decorated_generator_goes_on_and_is_the_scopes_error(
    make: Callable[[], Any], record: Recording
) -> None:
    @make()
    def produce() -> Iterator[int]:
        yield 1
        raise LookupError("of the generator")

    @make()
    async def aproduce() -> AsyncIterator[int]:
        yield 1
        raise LookupError("of the generator")

    async def collect() -> None:
        async for _ in aproduce():
            pass

    with pytest.raises(LookupError, match="of the generator"):
        list(produce())
    with pytest.raises(LookupError, match="of the generator"):
        asyncio.run(collect())
    rows = record.steps or record.runs
    assert [(row.status, row.error) for row in rows] == [
        (Status.ERROR, {"type": "LookupError", "message": "of the generator"})
    ] * 2


def test_a_generator_that_ignores_its_close_fails_as_without_us(record: Recording) -> None:
    @chatdebug.run()
    def produce() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    items = produce()
    next(items)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        items.close()  # type: ignore[attr-defined]
    assert record.run.status is Status.ERROR


def test_a_decorated_generator_resumed_in_other_threads_stays_one_run(record: Recording, model: Model) -> None:
    """As Starlette's thread pool does it: each item is fetched in another thread and another context."""

    @chatdebug.run(chat_id="c")
    def produce() -> Iterator[int]:
        for _ in range(3):
            yield model.call().status_code

    items = produce()
    got: list[int] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: got.append(next(items)))
        thread.start()
        thread.join()
    assert list(items) == []
    assert got == [200] * 3
    assert len(record.of_run(record.run)) == 3


def test_an_async_generator_that_is_dropped_while_the_loop_runs_is_interrupted(record: Recording) -> None:
    """asyncio closes it in a task of its own, that is in another context; nothing is logged about that."""

    @chatdebug.run()
    async def produce() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def main() -> None:
        async for _ in produce():
            break
        await asyncio.sleep(0)

    asyncio.run(main())
    assert record.run.status is Status.INTERRUPTED


def test_a_with_block_in_a_generator_that_is_driven_from_other_contexts_logs_no_traceback(
    record: Recording, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """What `with run()` inside of an undecorated generator meets in a thread pool."""

    def produce() -> Iterator[int]:
        with chatdebug.run(chat_id="c"):
            yield model.call().status_code
            yield model.call().status_code

    items = produce()
    caplog.set_level(logging.DEBUG)
    while contextvars.copy_context().run(next, items, None) is not None:
        pass
    assert [entry.getMessage() for entry in caplog.records if entry.name.startswith("o")] == []
    assert all(run.status is Status.COMPLETED for run in record.runs)
    assert len(record.steps) == 2


def test_a_scope_left_in_another_context_leaves_nothing_of_it_current(record: Recording) -> None:
    """The block is entered in one context and left in another that has inherited it."""
    run = chatdebug.run()
    run.__enter__()
    inherited = contextvars.copy_context()
    inherited.run(run.__exit__, None, None, None)
    assert inherited.run(current) == NOTHING
    run_value = trace.context_api.get_value(RUN)
    assert run_value is not None  # this context still has it, as nobody could reset it from there
    attach(Context())


def test_attach_makes_a_scope_current_in_other_threads_and_ends_nothing(record: Recording, model: Model) -> None:
    with chatdebug.run(chat_id="c") as run, chatdebug.step(model="gpt-5") as step:

        def work() -> None:
            model.call()
            assert current() == NOTHING
            with run.attach():
                model.call()
            with step.attach():
                model.call()
            assert current() == NOTHING

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert run.status is Status.IN_PROGRESS
    assert sorted(len(record.of_step(row)) for row in record.of_run(run)) == [1, 1]
    assert [row.step_id for row in record.attempts if row.run_id == run.id][-1] == step.id
    assert len(record.runs) == 2  # the thread's first call had none of these


def test_attach_can_be_entered_in_many_threads_at_once(record: Recording, model: Model) -> None:
    run = chatdebug.run()
    together = threading.Barrier(4)

    def work() -> None:
        with run.attach():
            together.wait()
            model.call()
            together.wait()
        assert current() == NOTHING

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.finish() is Outcome.RECORDED
    assert len(record.of_run(run)) == 4
    assert record.run.status is Status.COMPLETED


# -- the status


class Panic(BaseException):
    """Such as trio's Cancelled: no `Exception`."""


LEFT_BY = [
    pytest.param(ValueError("v"), Status.ERROR, id="exception"),
    pytest.param(TimeoutError(), Status.ERROR, id="timeout"),
    pytest.param(asyncio.CancelledError(), Status.INTERRUPTED, id="cancelled"),
    pytest.param(KeyboardInterrupt(), Status.INTERRUPTED, id="keyboard"),
    pytest.param(Panic(), Status.INTERRUPTED, id="panic"),
    pytest.param(SystemExit(), Status.INTERRUPTED, id="exit"),
    pytest.param(SystemExit(0), Status.INTERRUPTED, id="exit-0"),
    pytest.param(SystemExit(3), Status.ERROR, id="exit-3"),
    pytest.param(SystemExit("no"), Status.ERROR, id="exit-text"),
]


@pytest.mark.parametrize(("exc", "status"), LEFT_BY)
@pytest.mark.parametrize("make", SCOPES)
def test_an_exception_is_classified_recorded_and_raised_on(
    make: Callable[[], Any], exc: BaseException, status: Status, record: Recording
) -> None:
    assert chatdebug.classify_error(exc) is status
    with pytest.raises(type(exc)) as raised, make() as scope:
        raise exc
    assert raised.value is exc
    row = record.get(scope.id)
    assert (scope.status, row.status) == (status, status)
    assert (row.error is not None) is (status is Status.ERROR)
    span = record.spans[row.span_id or ""]
    assert span.attributes is not None
    assert span.attributes["chatdebug.status"] == status
    assert (span.status.status_code is StatusCode.ERROR) is (status is Status.ERROR)
    assert ("error.type" in span.attributes) is (status is Status.ERROR)


def test_no_exception_is_completed() -> None:
    assert chatdebug.classify_error(None) is Status.COMPLETED


def test_the_application_may_classify_by_itself() -> None:
    def classify(exc: BaseException | None) -> Status:
        return Status.INTERRUPTED if isinstance(exc, Pause) else chatdebug.classify_error(exc)

    with recording(classify=classify) as record:
        with pytest.raises(Pause), chatdebug.run() as paused:
            raise Pause
        with pytest.raises(ValueError, match="v"), chatdebug.run() as failed:
            raise ValueError("v")
        assert record.get(paused.id).status is Status.INTERRUPTED
        assert record.get(failed.id).status is Status.ERROR


@pytest.mark.parametrize("bad", [lambda exc: 1 / 0, lambda exc: "nonsense"])
def test_a_classifier_that_fails_is_replaced_by_ours(bad: Any) -> None:
    with recording(classify=bad) as record:
        with pytest.raises(ValueError, match="v"), chatdebug.run():
            raise ValueError("v")
        assert record.run.status is Status.ERROR
        assert record.run.error == {"type": "ValueError", "message": "v"}


@pytest.mark.parametrize("named", [Pause, (Pause,), [LookupError, Pause]])
def test_an_exception_that_is_named_control_flow_completes_the_run_and_goes_on(named: Any, record: Recording) -> None:
    with pytest.raises(Pause), chatdebug.run(completed_on=named):
        raise Pause
    assert record.run.status is Status.COMPLETED
    with pytest.raises(ValueError, match="v"), chatdebug.run(completed_on=named) as failed:
        raise ValueError("v")
    assert record.get(failed.id).status is Status.ERROR


@pytest.mark.parametrize("scope", [chatdebug.step, chatdebug.reuse_step])
def test_control_flow_of_a_run_is_no_error_of_its_steps(scope: Callable[[], Any], record: Recording) -> None:
    with suppress(Pause), chatdebug.run(completed_on=Pause), scope():
        Model().call()
        raise Pause
    assert record.step.status is Status.COMPLETED
    assert record.run.summary["has_error"] is False
    with suppress(Pause), chatdebug.run(completed_on=Pause), chatdebug.run(), scope():
        Model().call()
        raise Pause  # of the outer run, not of this one
    assert record.steps[-1].status is Status.ERROR


def test_control_flow_of_a_decorated_generator_completes_its_run(record: Recording) -> None:
    @chatdebug.run(completed_on=Pause)
    def produce() -> Iterator[int]:
        yield 1
        raise Pause

    with pytest.raises(Pause):
        list(produce())
    assert record.run.status is Status.COMPLETED


def test_a_run_that_ends_below_another_one_does_not_take_it_away(record: Recording, model: Model) -> None:
    """Scopes that overlap: what was entered last is current until it is left itself."""
    first, second = chatdebug.run("first"), chatdebug.run("second")

    def overlap() -> None:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        model.call()
        second.__exit__(None, None, None)

    contextvars.copy_context().run(
        overlap
    )  # what was current before the second one stays so: as with OpenTelemetry's own spans
    assert record.step.run_id == second.id


FINISHES = [
    pytest.param([("completed", None)], Status.COMPLETED, None, id="completed"),
    pytest.param([("interrupted", None), ("error", "e"), ("completed", None)], Status.COMPLETED, None, id="rising"),
    pytest.param([("completed", None), ("error", "late")], Status.COMPLETED, None, id="lower-ignored"),
    pytest.param([("error", "e"), ("interrupted", None)], Status.ERROR, "e", id="lower-keeps-error"),
    pytest.param([("error", "one"), ("error", "two")], Status.ERROR, "two", id="equal-updates"),
    pytest.param([("error", "one"), ("completed", None)], Status.COMPLETED, None, id="completed-clears"),
    pytest.param([(None, ValueError("v"))], Status.ERROR, "v", id="exception"),
    pytest.param([(None, asyncio.CancelledError())], Status.INTERRUPTED, None, id="cancellation"),
    pytest.param([(None, None)], Status.COMPLETED, None, id="nothing-said"),
    pytest.param([(Status.ERROR, {"type": "busy", "message": "m"})], Status.ERROR, "m", id="dict"),
    pytest.param([("error", None)], Status.ERROR, "", id="error-without-one"),
]


@pytest.mark.parametrize("inside", [True, False], ids=["in-its-block", "as-a-handle"])
@pytest.mark.parametrize(("said", "status", "message"), FINISHES)
@pytest.mark.parametrize("make", SCOPES)
def test_finish_can_be_called_repeatedly(
    make: Callable[[], Any],
    said: list[tuple[Any, Any]],
    status: Status,
    message: str | None,
    inside: bool,
    record: Recording,
) -> None:
    """A lower status is ignored, an equal one updates, completed clears the error."""
    scope = make()
    with scope if inside else nullcontext():
        for what, error in said:
            lower = what is not None and Status(what).priority < scope.status.priority
            assert scope.finish(what, error=error) is (Outcome.ALREADY_FINISHED if lower else Outcome.RECORDED)
    row = record.get(scope.id)
    assert (scope.status, row.status) == (status, status)
    assert (None if row.error is None else row.error["message"]) == message


@pytest.mark.parametrize("make", SCOPES)
def test_what_finish_said_goes_before_the_exception(make: Callable[[], Any], record: Recording) -> None:
    with suppress(ValueError), make() as scope:
        scope.finish("completed")
        fail()
    assert record.get(scope.id).status is Status.COMPLETED


@pytest.mark.parametrize("make", SCOPES)
def test_a_finished_scope_can_be_corrected_upwards_after_its_block(make: Callable[[], Any], record: Recording) -> None:
    with pytest.raises(ValueError, match="v"), make() as scope:
        raise ValueError("v")
    assert scope.status is Status.ERROR
    assert scope.finish("interrupted") is Outcome.ALREADY_FINISHED
    assert record.get(scope.id).status is Status.ERROR
    assert scope.finish("completed") is Outcome.RECORDED
    row = record.get(scope.id)
    assert (row.status, row.error, scope.status) == (Status.COMPLETED, None, Status.COMPLETED)


@pytest.mark.parametrize("make", SCOPES)
def test_a_status_that_is_none_is_refused(make: Callable[[], Any], record: Recording) -> None:
    with make() as scope, pytest.raises(ValueError, match="splendid"):
        scope.finish("splendid")


@pytest.mark.parametrize("make", SCOPES)
def test_in_progress_is_lower_than_all_and_ends_nothing(make: Callable[[], Any], record: Recording) -> None:
    scope = make()
    scope.finish("in_progress", metadata={"phase": 1})
    assert record.get(scope.id).status is Status.IN_PROGRESS
    assert record.get(scope.id).finished_at is None
    scope.finish("completed")
    scope.finish("in_progress")
    assert record.get(scope.id).status is Status.COMPLETED
    with make() as other:
        other.finish("in_progress")
    assert record.get(other.id).status is Status.COMPLETED


def test_finish_tells_a_steps_response_usage_and_metadata(record: Recording, model: Model) -> None:
    with chatdebug.step(metadata={"a": 1}) as step:
        model.call()
        step.finish(usage={"input_tokens": 7}, metadata={"b": 2}, response={"text": "Hi"})
        step.finish(metadata={"c": 3})
    row = record.step
    assert row.usage["input_tokens"] == 7
    assert row.usage["output_tokens"] == 84
    assert {name: row.metadata[name] for name in "abc"} == {"a": 1, "b": 2, "c": 3}
    (run,) = record.runs
    assert run.summary["total_input_tokens"] == 7


def test_usage_that_finish_told_outlives_a_stream_that_ends_later(record: Recording, model: Model) -> None:
    with chatdebug.step() as step:
        body = model.open()
        step.finish(usage={"input_tokens": 7})
        step.finish()
        body.read()
    assert record.step.usage["input_tokens"] == 7
    assert record.step.usage["output_tokens"] == 84


def test_a_steps_status_is_what_finish_said_else_its_exception_else_its_last_attempt_else_completed(
    record: Recording,
) -> None:
    model = Model(answer(500), answer(), answer(500), answer(500), answer(500))
    with chatdebug.run() as run:
        with chatdebug.step():  # its last attempt: completed
            model.call()
            model.call()
        with chatdebug.step():  # its last attempt: an error, which nobody raised
            model.call()
        with suppress(ValueError), chatdebug.step():  # its exception, with what the provider said
            model.call()
            fail()
        with chatdebug.step() as said:
            model.call()
            said.finish("completed")
        with chatdebug.step():
            pass
    steps = record.of_run(run)
    assert [step.status for step in steps] == ["completed", "error", "error", "completed", "completed"]
    assert [step.step_number for step in steps] == [1, 2, 3, 4, 5]
    assert steps[1].error["status_code"] == 500
    assert steps[2].error["exception"] == "ValueError"
    assert steps[2].error["status_code"] == 500
    assert record.run.status is Status.COMPLETED  # left normally: the application has dealt with it
    assert record.run.summary["has_error"] is True
    assert record.run.summary["step_count"] == 5


def test_a_step_that_was_interrupted_is_no_error_of_its_run(record: Recording) -> None:
    model = Model(asyncio.CancelledError())
    with chatdebug.run(), pytest.raises(asyncio.CancelledError):
        model.call()
    assert (record.step.status, record.attempt.end_reason) == (Status.INTERRUPTED, "cancelled")
    assert record.run.summary["has_error"] is False
    assert record.run.status is Status.COMPLETED


# -- bodies and the end of a run


def test_a_body_that_nobody_has_begun_to_read_keeps_the_run_open(record: Recording, model: Model) -> None:
    with chatdebug.run() as run:
        body = model.open()
    assert run.status is Status.IN_PROGRESS
    assert record.run.finished_at is None
    assert run.id in record.recorder.open_runs
    body.read()
    assert record.attempt.end_reason == "sse_eof"
    assert (record.step.status, record.run.status, run.status) == ("completed",) * 3
    assert record.run.finished_at >= record.step.finished_at
    assert record.recorder.open_runs == {}


def test_a_run_that_was_left_normally_is_completed_whatever_becomes_of_the_body_that_outlived_it(
    record: Recording,
) -> None:
    model = Model()
    with chatdebug.run() as run:
        body = model.open()
    assert run.status is Status.IN_PROGRESS
    body.close()
    assert record.step.status is Status.INTERRUPTED
    assert run.status is Status.COMPLETED


def test_a_body_that_its_run_left_half_read_was_left_by_the_run_and_not_by_the_end_of_the_process(
    record: Recording, model: Model
) -> None:
    with chatdebug.run():
        body = model.open()
        pieces = body.iter_raw()
        next(pieces)
    assert (record.attempt.status, record.attempt.end_reason) == ("interrupted", "run_end")
    chatdebug.shutdown()
    assert (record.attempt.status, record.attempt.end_reason) == ("interrupted", "run_end")


def test_a_step_that_reuse_step_shares_ends_with_its_run(record: Recording) -> None:
    with chatdebug.reuse_step():
        with chatdebug.run() as run:
            Model().call()
        assert (run.status, record.step.status) == ("completed", "completed")


def test_an_auto_run_whose_step_cannot_be_started_does_not_stay_open(
    record: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = record.recorder.start_span

    def start_span(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("chat"):
            raise RuntimeError("a sampler of the user's")
        return started(name, *args, **kwargs)

    monkeypatch.setattr(record.recorder, "start_span", start_span)
    Model().call()
    gc.collect()
    record.recorder.inbox.flush()
    assert record.recorder.open_runs == {}


def test_a_body_that_is_read_in_pieces_after_its_run_belongs_to_it(record: Recording, model: Model) -> None:
    with chatdebug.run() as run:
        body = model.open()
    pieces = body.iter_raw()
    next(pieces)
    assert run.status is Status.IN_PROGRESS
    for _ in pieces:
        pass
    assert (run.status, record.attempt.status) == ("completed", "completed")


def test_a_run_left_by_an_exception_is_over_at_once_whatever_is_unread(record: Recording, model: Model) -> None:
    with suppress(ValueError), chatdebug.run() as run:
        body = model.open()
        fail()
    assert run.status is Status.ERROR
    assert (record.attempt.status, record.attempt.end_reason) == ("interrupted", "run_end")
    assert record.attempt.rank == AttemptRank.LEFT
    body.read()  # it goes on after all: the rows are corrected
    assert (record.attempt.status, record.attempt.end_reason) == ("completed", "sse_eof")
    assert record.step.status is Status.COMPLETED
    assert record.run.status is Status.ERROR


@pytest.mark.parametrize("error", [False, True], ids=["so-far-so-good", "error-event"])
def test_a_body_that_is_left_half_read_was_left_by_the_run(error: bool, record: Recording) -> None:
    model = Model(stream(error=error))
    with chatdebug.run() as run:
        response = model.sync.send(model.sync.build_request("POST", URL, json={**BODY, "stream": True}), stream=True)
        pieces = response.iter_raw(chunk_size=None)
        for _ in range(4):
            next(pieces)
    expected = Status.ERROR if error else Status.INTERRUPTED
    assert (record.attempt.status, record.attempt.end_reason) == (expected, "run_end")
    assert record.step.status is expected
    assert run.status is Status.COMPLETED
    assert record.run.finished_at is not None
    assert record.recorder.open_runs == {}

    for _ in pieces:  # after all
        pass
    assert record.attempt.status is (Status.ERROR if error else Status.COMPLETED)
    assert record.attempt.end_reason == "sse_eof"
    assert record.attempt.rank == AttemptRank.FINAL
    assert record.step.status is (Status.ERROR if error else Status.COMPLETED)
    assert record.run.summary["total_output_tokens"] == 84


def test_a_body_that_is_dropped_unread_after_its_run_is_interrupted_and_the_run_is_over(
    record: Recording, model: Model
) -> None:
    with chatdebug.run() as run:
        body = model.open()
    del body
    gc.collect()  # the library's response is part of a cycle
    assert (record.attempt.status, record.attempt.end_reason) == ("interrupted", "abandoned")
    assert run.status is Status.COMPLETED


def test_a_stream_of_an_sdk_can_be_read_after_its_run(record: Recording) -> None:
    client = openai_client(Model(stream()))
    with chatdebug.run() as run:
        chunks = client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "?"}], stream=True)
    assert run.status is Status.IN_PROGRESS
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "abc"
    assert (run.status, record.step.status, record.attempt.status) == ("completed",) * 3


# -- SDK calls


def openai_client(model: Model, **options: Any) -> openai.OpenAI:
    def handle(request: httpx2.Request) -> httpx2.Response:
        response = model._handle(request)  # type: ignore[arg-type]
        return httpx2.Response(
            response.status_code, headers=response.headers.multi_items(), content=response.iter_raw()
        )

    options.setdefault("api_key", "sk-test")
    return openai.OpenAI(http_client=httpx2.Client(transport=httpx2.MockTransport(handle)), **options)


def ask(client: openai.OpenAI) -> Any:
    return client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hello?"}])


SOON = {"retry-after-ms": "1"}


def test_an_sdks_retries_are_the_attempts_of_one_step(record: Recording) -> None:
    client = openai_client(Model(answer(429, **SOON), answer(500, **SOON), answer()))
    with chatdebug.run() as run:
        ask(client)
    (step,) = record.of_run(run)
    assert [(row.number, row.status, row.response_status) for row in record.of_step(step)] == [
        (1, "error", 429),
        (2, "error", 500),
        (3, "completed", 200),
    ]
    assert (step.status, step.error) == ("completed", None)


def test_the_requested_model_and_the_one_that_answered_are_told_apart(record: Recording) -> None:
    ask(openai_client(Model()))
    assert record.step.model == "gpt-5"
    assert record.step.metadata["response_model"] == "gpt-5-mini-2026"


def test_an_sdk_call_that_fails_before_any_request_is_a_step_without_attempts(record: Recording) -> None:
    def no_token() -> str:
        raise PermissionError("no token for you")

    client = openai_client(Model(), api_key=no_token)
    with pytest.raises(PermissionError):
        ask(client)
    assert record.attempts == []
    assert record.step.status is Status.ERROR
    assert record.step.error == {"type": "PermissionError", "message": "no token for you"}
    assert record.step.model == "gpt-5"
    assert record.run.status is Status.ERROR


def test_the_same_inside_of_a_step_is_that_steps_error(record: Recording) -> None:
    def no_token() -> str:
        raise PermissionError("no token for you")

    client = openai_client(Model(), api_key=no_token)
    with pytest.raises(PermissionError), chatdebug.step():
        ask(client)
    assert record.step.error == {"type": "PermissionError", "message": "no token for you"}


# -- steps


def test_model_calls_in_a_step_are_its_attempts_and_other_requests_are_none(record: Recording, model: Model) -> None:
    with chatdebug.step() as step:
        model.call()
        model.sync.get("https://tools.example/weather")
        model.call()
    assert [row.number for row in record.of_step(step)] == [1, 2]
    assert {row.path for row in record.attempts} == {"/v1/chat/completions"}


def test_a_step_captures_all_requests_where_it_is_told_so(record: Recording, model: Model) -> None:
    with chatdebug.step(capture="all"):
        model.sync.get("https://tools.example/weather")
    assert record.attempt.path == "/weather"
    with pytest.raises(ValueError, match="capture"):
        chatdebug.step(capture="some")


def test_a_step_in_a_step_is_a_step_of_its_own(record: Recording, model: Model) -> None:
    with chatdebug.run() as run, chatdebug.step(model="outer") as outer:
        model.call()
        with chatdebug.step(model="inner") as inner:
            model.call()
        model.call()
    assert [row.id for row in record.of_run(run)] == [outer.id, inner.id]
    assert (len(record.of_step(outer)), len(record.of_step(inner))) == (2, 1)
    assert record.ancestors(inner.id)[0] == outer.id


def test_what_a_step_is_told_stands_in_its_row(record: Recording) -> None:
    told = {
        "operation": "generate",
        "model": "m",
        "provider": "p",
        "chat_id": "c2",
        "history_tip_message_id": "h",
        "assistant_message_id": "a",
    }
    with chatdebug.run(chat_id="c1"), chatdebug.step(**told, metadata={"k": "v"}):
        pass
    row = record.step
    assert {name: getattr(row, name) for name in told} == told
    assert row.metadata == {"k": "v"}


def test_what_a_run_is_told_stands_in_its_row(record: Recording) -> None:
    told = {
        "chat_id": "c",
        "trigger_message_id": "t",
        "history_tip_message_id": "h",
        "root_chat_id": "r",
        "parent_chat_id": "p",
        "owner_id": "o",
        "model_config_id": "m",
    }
    with chatdebug.run(chatdebug.RunKind.COMPACTION, **told, first_message="Hello?"):
        pass
    row = record.run
    assert {name: getattr(row, name) for name in told} == told
    assert row.kind == "compaction"
    assert row.summary["first_message"] == "Hello?"


def test_ids_may_be_of_any_type(record: Recording) -> None:
    with chatdebug.run(chat_id=7, owner_id=b"x"):  # type: ignore[call-overload]
        pass
    assert (record.run.chat_id, record.run.owner_id) == ("7", "b'x'")


# -- reuse_step


def test_sdk_calls_bare_calls_and_steps_inside_of_reuse_step_share_one_step(record: Recording, model: Model) -> None:
    client = openai_client(Model(answer(), answer()))
    with chatdebug.run() as run, chatdebug.reuse_step():
        ask(client)
        model.call()
        with chatdebug.step() as step:
            model.call()
        ask(client)
    (row,) = record.of_run(run)
    assert row.id == step.id
    assert [attempt.number for attempt in record.of_step(row)] == [1, 2, 3, 4]


def test_an_applications_retry_loop_is_one_step_and_its_last_attempt_tells_how_it_went(record: Recording) -> None:
    model = Model(answer(500), httpx.ConnectError("refused"), answer())
    with chatdebug.run() as run, chatdebug.reuse_step():
        for _ in range(3):
            try:
                if model.call().status_code == 200:
                    break
            except httpx.ConnectError:
                continue
    (row,) = record.of_run(run)
    assert (row.status, row.error) == ("completed", None)
    assert [attempt.status for attempt in record.of_step(row)] == ["error", "error", "completed"]


def test_a_step_that_raises_inside_of_reuse_step_does_not_end_the_shared_one(record: Recording) -> None:
    model = Model(answer(500), answer())
    with chatdebug.run(), chatdebug.reuse_step():
        for _ in range(2):
            try:
                with chatdebug.step():
                    model.call().raise_for_status()
            except httpx.HTTPStatusError:
                continue
    assert record.step.status is Status.COMPLETED
    assert len(record.attempts) == 2


def test_reuse_step_left_by_an_exception_is_an_error(record: Recording) -> None:
    model = Model(answer(500))
    with pytest.raises(httpx.HTTPStatusError), chatdebug.run(), chatdebug.reuse_step():
        model.call().raise_for_status()
    assert record.step.status is Status.ERROR
    assert record.run.status is Status.ERROR


def test_reuse_step_around_two_runs_gives_two_steps(record: Recording, model: Model) -> None:
    with chatdebug.reuse_step():
        with chatdebug.run() as one:
            model.call()
            model.call()
        with chatdebug.run() as two:
            model.call()
    assert [len(record.of_run(run)) for run in (one, two)] == [1, 1]
    assert [row.status for row in record.runs] == ["completed", "completed"]
    assert record.of_run(one)[0].status is Status.COMPLETED


def test_a_run_inside_of_reuse_step_is_left_normally_also_where_its_attempts_failed(record: Recording) -> None:
    model = Model(answer(500))
    with chatdebug.reuse_step(), chatdebug.run():
        model.call()
    assert record.step.status is Status.ERROR
    assert record.run.status is Status.COMPLETED
    assert record.run.summary["has_error"] is True


def test_reuse_step_works_without_a_run_and_in_async_code(record: Recording, model: Model) -> None:
    async def main() -> None:
        async with chatdebug.reuse_step():
            await model.acall()
            await model.acall()

    with tracer(record).start_as_current_span("request"):
        asyncio.run(main())
    assert len(record.steps) == 1
    assert len(record.attempts) == 2


def test_reuse_step_without_a_run_and_without_a_span_gives_one_step(record: Recording, model: Model) -> None:
    with chatdebug.reuse_step():
        model.call()
        model.call()
    assert len(record.steps) == 1
    assert len(record.of_step(record.step)) == 2


# -- runs


def test_a_run_in_a_run_is_linked_both_ways_and_the_outer_one_is_current_again(record: Recording, model: Model) -> None:
    with chatdebug.run(chat_id="c") as outer:
        with chatdebug.run("title_generation", chat_id="c") as inner:
            model.call()
        model.call()
    assert [len(record.of_run(run)) for run in (outer, inner)] == [1, 1]
    above, below = (record.spans[record.get(run.id).span_id or ""] for run in (outer, inner))
    assert above.context is not None
    assert below.context is not None
    assert above.parent is None
    assert below.parent is None
    assert above.context.trace_id != below.context.trace_id
    assert [link.context.span_id for link in above.links] == [below.context.span_id]
    assert [link.context.span_id for link in below.links] == [above.context.span_id]


def test_a_run_is_a_trace_of_its_own_linked_with_the_span_around_it(record: Recording) -> None:
    with tracer(record).start_as_current_span("POST /chat") as request:
        with chatdebug.run() as run:
            pass
        assert trace.get_current_span() is request
    span = record.spans[record.run.span_id or ""]
    assert span.parent is None
    assert run.id == record.run.trace_id == f"{span.context.trace_id:032x}"  # type: ignore[union-attr]
    assert [link.context.span_id for link in span.links] == [request.get_span_context().span_id]


def test_a_run_can_be_a_child_of_the_span_around_it() -> None:
    with recording(run_parent="child") as record:
        with tracer(record).start_as_current_span("POST /chat") as request:
            with chatdebug.run() as one:
                Model().call()
            with chatdebug.run() as two:
                pass
        outside = chatdebug.run()
        outside.finish()
        around = request.get_span_context()
        rows = [record.get(run.id) for run in (one, two)]
        assert one.id != two.id
        assert len(one.id) == 32
        assert {row.trace_id for row in rows} == {f"{around.trace_id:032x}"}
        assert around.trace_id not in {int(one.id, 16), int(two.id, 16)}
        assert [record.ancestors(row.span_id or "") for row in rows] == [[f"{around.span_id:016x}"]] * 2
        (step,) = record.of_run(one)
        assert step.trace_id == rows[0].trace_id
        assert outside.id == record.get(outside.id).trace_id


def test_ids_open_the_trace(record: Recording, model: Model) -> None:
    """Run: its trace id. Step and attempt: their span ids. Each span is the child of the one above."""
    with chatdebug.run() as run:
        model.call()
    step, attempt = record.step, record.attempt
    assert run.id == record.run.trace_id == step.trace_id == attempt.trace_id
    assert (step.id, attempt.id) == (step.span_id, attempt.span_id)
    assert record.ancestors(attempt.id) == [step.id, record.run.span_id]
    spans = record.spans
    assert [spans[id].name for id in (record.run.span_id or "", step.id, attempt.id)] == [
        "chat_turn",
        "chat gpt-5-mini",
        "POST",
    ]
    assert [spans[id].kind for id in (record.run.span_id or "", step.id, attempt.id)] == [
        SpanKind.INTERNAL,
        SpanKind.CLIENT,
        SpanKind.CLIENT,
    ]
    for id in (record.run.span_id or "", step.id, attempt.id):
        attributes = spans[id].attributes
        assert attributes is not None
        assert attributes["chatdebug.status"] == "completed"
        assert "error.type" not in attributes
        assert attributes["chatdebug.run.id"] == run.id


def test_a_span_of_the_application_in_a_step_stays_between_step_and_attempt(record: Recording, model: Model) -> None:
    with chatdebug.step() as step, tracer(record).start_as_current_span("between") as between:
        model.call()
    assert record.attempt.step_id == step.id
    assert record.ancestors(record.attempt.id)[:2] == [f"{between.get_span_context().span_id:016x}", step.id]


def test_a_call_under_a_finished_run_gets_an_auto_run_of_its_own_linked_to_it(record: Recording, model: Model) -> None:
    """A background task that has inherited the run's context."""
    with chatdebug.run() as run:
        inherited = contextvars.copy_context()
    inherited.run(model.call)
    inherited.run(model.call)
    first, *autos = record.runs
    assert first.id == run.id
    assert record.of_run(run) == []
    assert [row.kind for row in autos] == ["auto", "auto"]
    for row in autos:
        assert row.id == row.trace_id != run.id
        span = record.spans[row.span_id or ""]
        assert span.parent is None
        assert [f"{link.context.trace_id:032x}" for link in span.links] == [run.id]
        (step,) = record.of_run(row)
        assert record.ancestors(step.id) == [row.span_id]


def test_a_step_under_a_finished_run_gets_an_auto_run_too(record: Recording, model: Model) -> None:
    with chatdebug.run() as run:
        inherited = contextvars.copy_context()

    def work() -> None:
        with chatdebug.step():
            model.call()
            model.call()

    inherited.run(work)
    assert record.of_run(run) == []
    assert len(record.steps) == 1
    assert len(record.attempts) == 2


# -- auto runs


def remote(trace_id: int = 0xABC, span_id: int = 0xDEF) -> Context:
    parent = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


def test_calls_below_a_local_root_share_its_auto_run_which_adds_no_span(record: Recording, model: Model) -> None:
    with tracer(record).start_as_current_span("job") as root:
        model.call()
        with tracer(record).start_as_current_span("inner"):
            model.call()
        assert record.run.status is Status.IN_PROGRESS
    around = root.get_span_context()
    assert record.run.id == f"{around.trace_id:032x}"
    assert record.run.span_id == f"{around.span_id:016x}"
    assert (record.run.kind, record.run.status) == ("auto", "completed")
    assert len(record.of_run(record.run)) == 2
    assert len(record.spans) == 2 + 2 * 2
    assert record.recorder.open_runs == {}


def test_below_a_remote_parent_the_id_is_hashed_from_the_trace_and_the_local_root(
    record: Recording, model: Model
) -> None:
    """An application and its gateway share a trace and must not share a run."""
    with tracer(record).start_as_current_span("gateway", context=remote()) as root:
        model.call()
    around = root.get_span_context()
    digest = hashlib.sha256(f"{around.trace_id:032x}{around.span_id:016x}".encode()).hexdigest()
    assert record.run.id == digest[:32]
    assert record.run.trace_id == f"{0xABC:032x}"


def test_right_below_a_remote_parent_a_call_makes_one_span_for_its_run(record: Recording, model: Model) -> None:
    token = attach(remote())
    try:
        model.call()
    finally:
        detach(token)
    run = record.run
    digest = hashlib.sha256(f"{0xABC:032x}{run.span_id}".encode()).hexdigest()
    assert run.id == digest[:32]
    assert record.ancestors(record.attempt.id)[:3] == [record.step.id, run.span_id, f"{0xDEF:016x}"]


def test_where_no_span_is_current_each_call_makes_a_run_with_one_span_of_its_own(
    record: Recording, model: Model
) -> None:
    model.call()
    model.call()
    assert len(record.runs) == 2
    for run in record.runs:
        assert (run.kind, run.status, run.id) == ("auto", "completed", run.trace_id)
        span = record.spans[run.span_id or ""]
        assert (span.name, span.parent) == ("auto", None)
    assert len(record.spans) == 6


def test_an_auto_run_tells_how_its_calls_went(record: Recording) -> None:
    Model(answer(500)).call()
    assert record.run.status is Status.ERROR
    assert record.run.error["status_code"] == 500


def test_an_auto_run_whose_root_span_failed_is_an_error(record: Recording, model: Model) -> None:
    with suppress(ValueError), tracer(record).start_as_current_span("job"):
        model.call()
        fail()
    assert record.step.status is Status.COMPLETED
    assert record.run.status is Status.ERROR


def test_a_call_after_the_root_span_has_ended_gets_a_run_of_its_own(record: Recording, model: Model) -> None:
    with tracer(record).start_as_current_span("job"):
        model.call()
        inherited = contextvars.copy_context()
    assert record.run.status is Status.COMPLETED
    inherited.run(model.call)
    assert len(record.runs) == 2
    assert all(row.status is Status.COMPLETED for row in record.runs)


def test_a_stream_that_outlives_its_root_span_keeps_the_auto_run_open(record: Recording, model: Model) -> None:
    with tracer(record).start_as_current_span("request"):
        body = model.open()
    assert record.run.status is Status.IN_PROGRESS
    body.read()
    assert (record.run.status, record.step.status) == ("completed", "completed")


# -- nothing, or little, of an SDK


def test_what_the_sampler_drops_has_its_rows_all_the_same() -> None:
    with recording(sampler=ALWAYS_OFF) as record:
        model = Model()
        with chatdebug.run(chat_id="c") as run, chatdebug.step():
            model.call()
        model.call()
        with tracer(record).start_as_current_span("dropped"):
            model.call()
        assert record.spans == {}
        assert record.get(run.id).trace_id == run.id
        assert [row.status for row in record.runs] == ["completed"] * 3
        assert len(record.steps) == len(record.attempts) == 3
        assert len({row.id for row in (*record.steps, *record.attempts)}) == 6
        for row in record.attempts:
            assert record.get(row.step_id).trace_id == row.trace_id
        assert record.of_run(run)[0].trace_id == run.id


def test_without_an_sdk_there_are_rows_with_ids_of_our_own() -> None:
    """Only the API is there: its provider is the proxy, and the instrumentors were switched on alone."""
    with recording(sdk=False) as record:
        model = Model()
        with chatdebug.run(chat_id="c") as run:
            model.call()
        model.call()
        token = attach(remote())
        model.call()
        detach(token)
        assert len(record.runs) == len(record.steps) == len(record.attempts) == 3
        assert len({row.id for row in (*record.runs, *record.steps, *record.attempts)}) == 9
        assert all(row.status is Status.COMPLETED for row in (*record.runs, *record.steps, *record.attempts))
        for row in record.runs:
            (step,) = record.of_run(row)
            (attempt,) = record.of_step(step)
            assert row.trace_id == step.trace_id == attempt.trace_id
        assert record.get(run.id).trace_id == run.id
        assert record.runs[2].trace_id == f"{0xABC:032x}"


def test_a_provider_that_comes_later_is_followed() -> None:
    """`opentelemetry.trace` hands out proxies before it; the tracer that we got is one."""
    with recording() as record:
        other = TracerProvider(shutdown_on_exit=False)
        with other.get_tracer("else").start_as_current_span("of another provider") as root:
            Model().call()
        assert len(record.runs) == 1
        assert record.run.trace_id == f"{root.get_span_context().trace_id:032x}"
        assert record.run.status is Status.COMPLETED


@pytest.mark.parametrize("make", SCOPES)
def test_where_nothing_is_recorded_a_scope_does_nothing_but_has_an_id(make: Callable[[], Any]) -> None:
    lifecycle.disarm()
    scope = make()
    with scope:
        assert current() == NOTHING
        assert scope.finish("completed") is Outcome.NOT_RECORDING
    assert scope.id == scope.id
    assert len(scope.id) in (16, 32)
    assert make().id != scope.id
    with scope.attach():
        pass
    with chatdebug.reuse_step():
        pass
    assert scope.status is Status.IN_PROGRESS


@pytest.mark.parametrize("make", SCOPES)
def test_a_handle_from_before_a_shutdown_is_inert_after_it(make: Callable[[], Any]) -> None:
    with recording() as record:
        scope = make()
        with scope:
            lifecycle.disarm()
            assert scope.finish("completed") is Outcome.NOT_RECORDING
            Model().call()
        assert record.get(scope.id).status is Status.INTERRUPTED
        assert current() == NOTHING
    with recording() as record:
        with scope.attach():
            Model().call()
        assert len(record.runs) == 1
        assert record.runs[0].kind == "auto"


def test_runs_that_are_never_finished_leave_no_growth(record: Recording) -> None:
    """Whoever drops the last handle of a run has abandoned it."""
    for _ in range(1000):
        run = chatdebug.run(chat_id="c")
        assert run.id
    del run
    assert [row.status for row in record.runs].count(Status.INTERRUPTED) == 1000
    assert (record.recorder.open_runs, record.recorder.open_steps, record.recorder.open_attempts) == ({}, {}, {})
