"""How a method of somebody else's class is wrapped: sync and async twins around one opening and one leaving.

With plain functions: they are on the path of every request, and a call through wrapt's proxy costs more than all that
the wrapper itself does for a request that is none of ours.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from opentelemetry.context import Context, attach

from otel_chatdebug.capture.calls import Call
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline.opening import CALL, with_values

Arguments: TypeAlias = tuple[Any, ...]
Opener: TypeAlias = Callable[[Any, Arguments, dict[str, Any]], Call | None]
"""Takes ``self`` and the other arguments of the wrapped method; None: this call is none of ours."""
Wrapper: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes the new method from the original one."""

FunctionOpener: TypeAlias = Callable[[Arguments, dict[str, Any]], Call | None]
"""The same for a function, which has no ``self``."""

_installed: dict[tuple[Any, str], tuple[Any, Any]] = {}
"""The wrapper and the original, by class (or module) and method. Told by identity: ``functools.wraps`` copies any other
mark."""


def install(owner: Any, method: str, wrapper: Wrapper) -> None:
    """Wraps ``owner.method``, once; ``owner`` is a class or a module."""
    original = owner.__dict__[method]
    if not is_installed(owner, method):
        wrapped = functools.wraps(original)(wrapper(original))
        _installed[owner, method] = wrapped, original
        setattr(owner, method, wrapped)


def is_installed(owner: Any, method: str) -> bool:
    """Whether ``owner.method`` is our wrapper."""
    known = _installed.get((owner, method))
    return known is not None and owner.__dict__.get(method) is known[0]


def remove(owner: Any, method: str) -> None:
    """Takes our wrapper off. Where somebody else has wrapped ours since, it stays (and is inert)."""
    if is_installed(owner, method):
        setattr(owner, method, _installed.pop((owner, method))[1])


def detach(token: Any) -> None:
    """Detaches in whatever context this is.

    A coroutine or generator may be closed in another context than it ran in; what was attached is gone with its context
    then. `opentelemetry.context.detach` would log a traceback about it.
    """
    try:
        token.var.reset(token)
    except (AttributeError, ValueError, RuntimeError):
        return


def around_call(opener: Opener, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """A sync method that is a call (of an SDK, or a ``send``)."""

    def call_method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = _open(opener, self, args, kwargs)
        if call is None:
            return wrapped(self, *args, **kwargs)
        token = attach(with_values(call.context, {CALL: call}))
        try:
            result = wrapped(self, *args, **kwargs)
        except BaseException as exc:
            detach(token)
            leave(call, exc)
            raise
        detach(token)
        leave(call, None)
        return result

    return call_method


def around_async_call(opener: Opener, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """Its async twin. Nothing begins before the coroutine is awaited."""

    async def call_method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = _open(opener, self, args, kwargs)
        if call is None:
            return await wrapped(self, *args, **kwargs)
        token = attach(with_values(call.context, {CALL: call}))
        try:
            result = await wrapped(self, *args, **kwargs)
        except BaseException as exc:
            detach(token)
            leave(call, exc)
            raise
        detach(token)
        leave(call, None)
        return result

    return call_method


def around_either_call(opener: Opener, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is a call, sync, or async in any of two ways: a coroutine function, or a function that returns a
    coroutine (a decorator of the SDK's that checks the arguments, and raises at once)."""
    if inspect.iscoroutinefunction(wrapped):
        return around_async_call(opener, wrapped)

    def call_method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = _open(opener, self, args, kwargs)
        if call is None:
            return wrapped(self, *args, **kwargs)
        context = with_values(call.context, {CALL: call})
        token = attach(context)
        try:
            result = wrapped(self, *args, **kwargs)
        except BaseException as exc:
            detach(token)
            leave(call, exc)
            raise
        detach(token)
        if inspect.iscoroutine(result):
            return _awaited(call, context, result)
        leave(call, None)
        return result

    return call_method


def around_function(opener: FunctionOpener, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a module that is a call, sync or async."""
    around = around_either_call(
        lambda _, args, kwargs: opener(args, kwargs),
        _without_self_async(wrapped) if inspect.iscoroutinefunction(wrapped) else _without_self(wrapped),
    )
    if inspect.iscoroutinefunction(wrapped):

        async def call_async_function(*args: Any, **kwargs: Any) -> Any:
            return await around(None, *args, **kwargs)

        return call_async_function

    def call_function(*args: Any, **kwargs: Any) -> Any:
        return around(None, *args, **kwargs)

    return call_function


def _without_self(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, /, *args, **kwargs: function(*args, **kwargs)


def _without_self_async(function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(_: None, /, *args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return call


async def _awaited(call: Call, context: Context, coroutine: Coroutine[Any, Any, Any]) -> Any:
    token = attach(context)
    try:
        result = await coroutine
    except BaseException as exc:
        detach(token)
        leave(call, exc)
        raise
    detach(token)
    leave(call, None)
    return result


def _open(opener: Opener, owner: Any, args: Arguments, kwargs: dict[str, Any]) -> Call | None:
    try:
        return opener(owner, args, kwargs)
    except Exception:
        fault("opening a call")
        return None


def leave(call: Call, exc: BaseException | None) -> None:
    """The call returned, or raised ``exc``."""
    try:
        call.left(exc)
    except Exception:
        fault("leaving a call")
