"""How a method of somebody else's class is wrapped: sync and async twins around one opening and one leaving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import wrapt
from opentelemetry.context import attach

from otel_chatdebug.capture.calls import Call
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline.opening import CALL, with_values

Arguments: TypeAlias = tuple[Any, ...]
Opener: TypeAlias = Callable[[Arguments, dict[str, Any]], Call | None]
"""Takes the arguments of the wrapped method; None: this call is none of ours."""


class Hook(wrapt.FunctionWrapper[..., Any]):
    """Our wrapper, told from everybody else's by its class."""


def install(owner: type, method: str, wrapper: Any) -> None:
    """Wraps ``owner.method``, once."""
    original = owner.__dict__[method]
    if not isinstance(original, Hook):
        setattr(owner, method, Hook(original, wrapper))


def remove(owner: type, method: str) -> None:
    """Takes our wrapper off. Where somebody else has wrapped ours since, it stays (and is inert)."""
    current = owner.__dict__.get(method)
    if isinstance(current, Hook):
        setattr(owner, method, current.__wrapped__)


def detach(token: Any) -> None:
    """Detaches in whatever context this is.

    A coroutine or generator may be closed in another context than it ran in; what was attached is gone with its context
    then. `opentelemetry.context.detach` would log a traceback about it.
    """
    try:
        token.var.reset(token)
    except (AttributeError, ValueError, RuntimeError):
        return


def around_call(opener: Opener) -> Any:
    """A wrapper of a sync method that is a call (of an SDK, or a ``send``)."""

    def call_method(wrapped: Any, instance: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
        call = _open(opener, args, kwargs)
        if call is None:
            return wrapped(*args, **kwargs)
        token = attach(with_values(call.context, {CALL: call}))
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as exc:
            detach(token)
            leave(call, exc)
            raise
        detach(token)
        leave(call, None)
        return result

    return call_method


def around_async_call(opener: Opener) -> Any:
    """Its async twin. Nothing begins before the coroutine is awaited."""

    async def call_method(wrapped: Any, instance: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
        call = _open(opener, args, kwargs)
        if call is None:
            return await wrapped(*args, **kwargs)
        token = attach(with_values(call.context, {CALL: call}))
        try:
            result = await wrapped(*args, **kwargs)
        except BaseException as exc:
            detach(token)
            leave(call, exc)
            raise
        detach(token)
        leave(call, None)
        return result

    return call_method


def _open(opener: Opener, args: Arguments, kwargs: dict[str, Any]) -> Call | None:
    try:
        return opener(args, kwargs)
    except Exception:
        fault("opening a call")
        return None


def leave(call: Call, exc: BaseException | None) -> None:
    """The call returned, or raised ``exc``."""
    try:
        call.left(exc)
    except Exception:
        fault("leaving a call")
