"""``run()``, ``step()`` and ``reuse_step()``: what an application says about its model calls.

A scope is a context manager (sync and async), a decorator (of functions, coroutines, generators and async generators)
and a handle with ``id``, ``status``, ``attach()`` and ``finish()``. It starts when it is entered, attached, or asked
for its id. Everything that it knows of the current run and step lies in the OpenTelemetry Context.

Nothing here raises into the application but wrong arguments. Where nothing is recorded, a scope costs next to nothing;
it still has an id. A handle belongs to the process in which it started: in a forked child it is inert.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from contextvars import Token
from time import time_ns
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast, overload

from opentelemetry import trace
from opentelemetry.context import Context, attach, get_current

from otel_chatdebug import said, storable
from otel_chatdebug.capture.calls import shared_step
from otel_chatdebug.decorating import decorated
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline.live import NORMAL_EXIT, Exit, Hold, LiveRun, Said, ScopeEvent
from otel_chatdebug.pipeline.live_step import LiveStep
from otel_chatdebug.pipeline.opening import (
    CALL,
    REUSE,
    RUN,
    STEP,
    Reuse,
    StepScope,
    run_of_call,
    start_run,
    start_step,
    with_values,
)
from otel_chatdebug.pipeline.permits import DELETED
from otel_chatdebug.pipeline.recorder import Recorder, active
from otel_chatdebug.status import Outcome, RunKind, Status

logger = logging.getLogger("otel_chatdebug")

F = TypeVar("F", bound=Callable[..., Any])
L = TypeVar("L", LiveRun, LiveStep)


class _Entered:
    """What an entered scope has to undo."""

    __slots__ = ("inner", "token")

    def __init__(self, inner: Context) -> None:
        self.inner = inner
        self.token: Token[Context] = attach(inner)

    def undo(self, key: str) -> None:
        """Makes what was current before current again, in whatever context this is."""
        token = self.token
        try:
            if token.var.get() is self.inner:
                token.var.reset(token)
                return
        except (ValueError, RuntimeError):
            pass  # another context than it was entered in: see below
        # Left elsewhere (a generator that a thread pool drives). What is ours in this context, if anything, goes.
        current = get_current()
        ours = self.inner.get(key)
        if ours is not None and current.get(key) is ours:
            before = token.old_value
            attach(before if isinstance(before, Context) else Context())


class _Scope(Generic[L]):
    """What `Run` and `Step` share."""

    _key: str
    _id_bits: int

    def __init__(self) -> None:
        self._started = False
        self._hold: Hold | None = None
        self._context: Context | None = None
        self._entered: list[_Entered] = []
        self._scoped = False
        self._spare_id: str | None = None

    # -- starting

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        recorder = active()
        if recorder is None or recorder.closed:
            return
        try:
            self._open(recorder, get_current(), time_ns())
            recorder.ensure_running()
            recorder.inbox.settle()
        except Exception:
            fault(f"starting a {type(self).__name__.lower()}")

    def _open(self, recorder: Recorder, context: Context, now: int) -> None:
        raise NotImplementedError

    def _again(self) -> Self:
        """A scope of the same arguments that has not started: one for each call of what is decorated."""
        raise NotImplementedError

    @property
    def _live(self) -> L | None:
        hold = self._hold
        if hold is None or hold.live.recorder.closed:
            return None
        return cast("L", hold.live)

    # -- the handle

    @property
    def id(self) -> str:
        """32 hex digits of a run, 16 of a step; where nothing is recorded, random ones."""
        self._start()
        if self._hold is not None:
            return self._hold.live.id
        if self._spare_id is None:
            self._spare_id = f"{random.getrandbits(self._id_bits):0{self._id_bits // 4}x}"
        return self._spare_id

    @property
    def status(self) -> Status:
        """As far as it has got. Waits for what other threads are telling just now, a few seconds at most."""
        hold = self._hold
        if hold is None:
            return Status.IN_PROGRESS
        live = self._live
        if live is not None:
            live.recorder.inbox.settle(wait=True)
        return hold.live.status

    def attach(self) -> _Attached:
        """A context manager that makes this scope current, without ending it: for other threads, and for generators."""
        self._start()
        return _Attached(self)

    def finish(
        self,
        status: Status | str | None = None,
        *,
        response: Any = None,
        usage: Any = None,
        error: BaseException | dict[str, Any] | str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Outcome:
        """Says how it ended. Callable repeatedly: a lower status is ignored, an equal one updates, completed clears the
        error.

        ``status`` defaults to ``completed``, or to what ``error`` is classified as; ``in_progress`` is lower than all
        and ends nothing. ``response`` is kept as the step's response (a dict, text, or an SDK's object), ``usage``
        overrides token counts (``{"input_tokens": 7, ...}``, or a provider's ``usage``, as a dict or the SDK's object),
        ``metadata``, a dict, is added. Inside of its ``with`` block the scope goes on until the block
        is left. A status that is none is a ``ValueError``.

        Returns an `Outcome`, which is true where it was recorded. Else it says why not: ``ALREADY_FINISHED`` with a
        higher status (only the status is ignored then), ``NOT_FOUND`` (its rows were deleted meanwhile), or
        ``NOT_RECORDING`` (nothing is, or the handle belongs to another process, or to before ``shutdown()``).
        """
        said_status = None if status is None else Status(status)
        self._start()
        live = self._live
        if live is None or live.permit.allowed is False:
            deleted = live is not None and live.permit is DELETED
            return self._told(Outcome.NOT_FOUND if deleted else Outcome.NOT_RECORDING)
        try:
            recorder = live.recorder
            told = self._tell_error(recorder, error)
            if said_status is None:
                said_status = Status.COMPLETED if error is None else Status.ERROR
                if isinstance(error, BaseException):
                    said_status = recorder.classify(error)
            noted = said.metadata(metadata)
            word = Said(
                said_status,
                error=told or ({"type": "_OTHER", "message": ""} if said_status is Status.ERROR else None),
                response=said.plain(response),
                usage=said.usage(usage),
                metadata=None if noted is None else recorder.redactor.json_value(noted),
                ends=not self._scoped and said_status is not Status.IN_PROGRESS,
            )
            ignored = said_status.priority < live.status.priority
            recorder.inbox.emit(live, ScopeEvent.SAID, time_ns(), word)
            recorder.inbox.settle()
        except Exception:
            fault("finish")
            return self._told(Outcome.NOT_RECORDING)
        return self._told(Outcome.ALREADY_FINISHED if ignored else Outcome.RECORDED)

    def _told(self, outcome: Outcome) -> Outcome:
        if not outcome:
            logger.debug("otel_chatdebug: finish() of the %s %s: %s", type(self).__name__.lower(), self.id, outcome)
        return outcome

    @staticmethod
    def _tell_error(recorder: Recorder, error: BaseException | dict[str, Any] | str | None) -> dict[str, Any] | None:
        if error is None:
            return None
        if isinstance(error, BaseException):
            return recorder.describe(error)
        if isinstance(error, dict):
            return {"type": "_OTHER", "message": "", **recorder.redactor.json_value(error)}
        return {"type": "_OTHER", "message": recorder.redactor.text(str(error))}

    # -- the context manager

    def __enter__(self) -> Self:
        self._start()
        self._enter()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(exc)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(exc)

    def _enter(self) -> None:
        if self._context is not None and self._live is not None:
            self._scoped = True
            self._entered.append(_Entered(self._context))

    def _exit(self, exc: BaseException | None) -> None:
        if not self._entered:
            return
        try:
            self._entered.pop().undo(self._key)
            if self._entered:  # entered twice: the outermost block ends it
                return
            live = self._live
            if live is None:
                return
            recorder = live.recorder
            run = live.run if isinstance(live, LiveStep) else live
            exit_ = _exit_by(exc, recorder, run)
            recorder.inbox.emit(live, ScopeEvent.LEFT, time_ns(), exit_)
            if isinstance(exc, GeneratorExit):  # perhaps the garbage collector is at work
                recorder.inbox.wake()
            else:
                recorder.inbox.settle()
        except Exception:
            fault("leaving a scope")

    # -- the decorator

    def __call__(self, function: F) -> F:
        """Decorates a function, a coroutine, a generator or an async generator: each call is a scope of its own."""
        return decorated(function, self._again, lambda: _Resumptions(self))


def _exit_by(exc: BaseException | None, recorder: Recorder, run: LiveRun) -> Exit:
    """How a scope within ``run``, or the run itself, was left."""
    if exc is None or isinstance(exc, run.completed_on):
        return NORMAL_EXIT
    status = recorder.classify(exc)
    return Exit(status, recorder.describe(exc) if status is Status.ERROR else None)


class _Attached:
    """Makes a scope current for a while; any number of times, in any thread or task."""

    def __init__(self, scope: _Scope[Any]) -> None:
        self._scope = scope
        self._entered: list[_Entered] = []

    def __enter__(self) -> None:
        context = self._scope._context
        if context is not None and self._scope._live is not None:
            current = get_current()
            key = self._scope._key
            values = {name: context.get(name) for name in (RUN, STEP, CALL)}
            if key == STEP and context.get(RUN) is None:
                del values[RUN]
            self._entered.append(_Entered(with_values(current, values, trace.get_current_span(context))))

    def __exit__(self, *_: object) -> None:
        if self._entered:
            self._entered.pop().undo(self._scope._key)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


class _Resumptions:
    """A scope around a generator: current while the generator runs, and not while it is suspended."""

    def __init__(self, scope: _Scope[Any]) -> None:
        self._scope = scope._again()
        self._scope._start()
        self._scope._scoped = True

    def __enter__(self) -> None:
        self._attached = self._scope.attach()
        self._attached.__enter__()

    def __exit__(self, *_: object) -> None:
        self._attached.__exit__()

    def left(self, exc: BaseException | None) -> None:
        """The generator has ended."""
        scope = self._scope
        if scope._context is not None:
            scope._enter()
            scope._exit(exc)


class Run(_Scope[LiveRun]):
    """One piece of work on a chat; made by `run`."""

    _key = RUN
    _id_bits = 128

    def __init__(self, kind: str, given: dict[str, Any], completed_on: tuple[type[BaseException], ...]) -> None:
        super().__init__()
        self._kind = kind
        self._given = given
        self._completed_on = completed_on

    def _again(self) -> Run:
        return Run(self._kind, self._given, self._completed_on)

    def _open(self, recorder: Recorder, context: Context, now: int) -> None:
        given = dict(self._given)
        first_message = given.pop("first_message", None)
        hold, self._context = start_run(recorder, context, self._kind, now, given)
        self._hold = hold
        live = cast("LiveRun", hold.live)
        live.completed_on = self._completed_on
        if first_message is not None:
            live.first_message = str(first_message)
        recorder.mark(live)


class Step(_Scope[LiveStep]):
    """One logical model call; made by `step`."""

    _key = STEP
    _id_bits = 64

    def __init__(self, operation_name: str, given: dict[str, Any], capture: str) -> None:
        super().__init__()
        self._operation_name = operation_name
        self._given = given
        self._capture = capture
        self._shared = False

    def _again(self) -> Step:
        return Step(self._operation_name, self._given, self._capture)

    def _open(self, recorder: Recorder, context: Context, now: int) -> None:
        given = dict(self._given)
        noted = said.metadata(given["metadata"])
        given["metadata"] = None if noted is None else recorder.redactor.json_value(noted)
        reuse = context.get(REUSE)
        if isinstance(reuse, Reuse):
            self._hold, _ = shared_step(recorder, reuse, context, operation_name=self._operation_name, **given)
            live = cast("LiveStep", self._hold.live)
            self._shared = True
        else:
            run, parent = run_of_call(recorder, context, now)
            live = start_step(recorder, run, parent, now, explicit=True, operation_name=self._operation_name, **given)
            self._hold = Hold(live)
        values: dict[str, object] = {STEP: StepScope(self._hold, self._capture), CALL: None}
        self._context = with_values(context, values, live.span)
        recorder.mark(live)

    def _exit(self, exc: BaseException | None) -> None:
        if self._shared:  # the step goes on until reuse_step() is left; its last attempt tells how it went
            if self._entered:
                self._entered.pop().undo(self._key)
            return
        super()._exit(exc)


class ReuseStep:
    """Stands around an application's retry loop; made by `reuse_step`."""

    def __init__(self) -> None:
        self._reuse = Reuse()
        self._entered: list[_Entered] = []

    def __enter__(self) -> None:
        if active() is not None:
            self._entered.append(_Entered(with_values(get_current(), {REUSE: self._reuse, STEP: None})))

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._entered:
            return
        try:
            self._entered.pop().undo(REUSE)
            if self._entered:
                return
            for hold in self._reuse.steps.values():
                recorder = hold.live.recorder
                if recorder.closed:
                    continue
                step = cast("LiveStep", hold.live)
                recorder.inbox.emit(step, ScopeEvent.LEFT, time_ns(), _exit_by(exc, recorder, step.run))
                if isinstance(exc, GeneratorExit):
                    recorder.inbox.wake()
                else:
                    recorder.inbox.settle()
            self._reuse.steps.clear()
        except Exception:
            fault("leaving reuse_step")

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)


@overload
def run(kind: F) -> F: ...
@overload
def run(
    kind: RunKind | str = ...,
    *,
    chat_id: str | None = ...,
    trigger_message_id: str | None = ...,
    history_tip_message_id: str | None = ...,
    root_chat_id: str | None = ...,
    parent_chat_id: str | None = ...,
    owner_id: str | None = ...,
    model_config_id: str | None = ...,
    first_message: str | None = ...,
    completed_on: type[BaseException] | Iterable[type[BaseException]] = ...,
) -> Run: ...
def run(
    kind: Any = RunKind.CHAT_TURN,
    *,
    chat_id: str | None = None,
    trigger_message_id: str | None = None,
    history_tip_message_id: str | None = None,
    root_chat_id: str | None = None,
    parent_chat_id: str | None = None,
    owner_id: str | None = None,
    model_config_id: str | None = None,
    first_message: str | None = None,
    completed_on: type[BaseException] | Iterable[type[BaseException]] = (),
) -> Any:
    """A run: one piece of work on a chat, and all model calls in it.

    ``with run("chat_turn", chat_id="c1"):``, or ``@run("chat_turn")``, or ``@run``. Left by an exception it is an
    error, by a cancellation interrupted, and the exception goes on; left normally it is completed. Exceptions named in
    ``completed_on`` are control flow: what they leave, the run or a step of it, is left normally. Ids may be of any
    type and are kept as text; one that is longer than 300 characters (`storable.LONGEST_NAME`) as its beginning and a
    hash, and is found by the whole id all the same. ``first_message`` is shown in lists; by default it is the last user
    message of the first request.
    """
    given = {
        "chat_id": chat_id,
        "trigger_message_id": trigger_message_id,
        "history_tip_message_id": history_tip_message_id,
        "root_chat_id": root_chat_id,
        "parent_chat_id": parent_chat_id,
        "owner_id": owner_id,
        "model_config_id": model_config_id,
    }
    completes = (completed_on,) if isinstance(completed_on, type) else tuple(completed_on)
    names = {name: None if value is None else storable.name(str(value)) for name, value in given.items()}
    names["first_message"] = None if first_message is None else str(first_message)
    if callable(kind):
        return Run(RunKind.CHAT_TURN.value, names, completes)(kind)
    return Run(kind.value if isinstance(kind, RunKind) else storable.name(str(kind)), names, completes)


@overload
def step(function: F, /) -> F: ...
@overload
def step(
    *,
    operation: str | None = ...,
    model: str | None = ...,
    provider: str | None = ...,
    chat_id: str | None = ...,
    history_tip_message_id: str | None = ...,
    assistant_message_id: str | None = ...,
    metadata: dict[str, Any] | None = ...,
    capture: str = ...,
) -> Step: ...
def step(
    function: Any = None,
    /,
    *,
    operation: str | None = None,
    model: str | None = None,
    provider: str | None = None,
    chat_id: str | None = None,
    history_tip_message_id: str | None = None,
    assistant_message_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    capture: str = "model",
) -> Any:
    """A step: one logical model call, and all requests in it are its attempts.

    ``with step(model="gpt-5"):``, or ``@step()``, or ``@step``. With ``capture="model"`` (the default) those that an
    SDK makes for a model call, or that go to a model's path; with ``"all"`` every request. Its status is what
    ``finish`` said, else its exception, else its last attempt's, else completed. What is not given here is learned from
    the first request.
    """
    if capture not in ("model", "all"):
        raise ValueError(f"capture is 'model' or 'all', not {capture!r}")
    names = {
        "operation": operation,
        "model": model,
        "provider": provider,
        "chat_id": chat_id,
        "history_tip_message_id": history_tip_message_id,
        "assistant_message_id": assistant_message_id,
    }
    given: dict[str, Any] = {
        name: None if value is None else storable.name(str(value)) for name, value in names.items()
    }
    given["metadata"] = metadata
    made = Step("chat", given, capture)
    return made if function is None else made(function)


def reuse_step() -> ReuseStep:
    """Stands around an application's own retry loop: ``with reuse_step():``.

    SDK calls, bare calls and ``step()`` inside share one step for each run. It ends when the block is left.
    """
    return ReuseStep()
