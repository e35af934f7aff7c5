"""How a scope goes around what it decorates: a function, a coroutine, a generator or an async generator.

A generator's scope is current while the generator runs, and not while it is suspended: what its consumer does meanwhile
is none of its business, and nothing of ours stays attached in the consumer's context.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class Around(Protocol):
    """A scope that was started for one generator: entered for each time that it runs on."""

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...

    def left(self, exc: BaseException | None) -> None:
        """The generator has ended, by ``exc`` or by itself."""


def decorated(function: F, enter: Callable[[], AbstractContextManager[Any]], begin: Callable[[], Around]) -> F:
    """``function`` with a scope around each call: that of ``enter``, or of ``begin`` where it is a generator."""
    if inspect.isasyncgenfunction(function):
        wrapper: Any = _async_generator(begin, function)
    elif inspect.isgeneratorfunction(function):
        wrapper = _generator(begin, function)
    elif inspect.iscoroutinefunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with enter():
                return await function(*args, **kwargs)
    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with enter():
                return function(*args, **kwargs)

    return cast("F", functools.wraps(function)(wrapper))


def _generator(begin: Callable[[], Around], function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        around = begin()
        generator = function(*args, **kwargs)
        resume: Callable[[], Any] = functools.partial(next, generator)
        while True:
            try:
                with around:
                    item = resume()
            except StopIteration as stop:
                around.left(None)
                return stop.value
            except BaseException as exc:
                around.left(exc)
                raise
            try:
                sent = yield item
                resume = functools.partial(generator.send, sent)
            except GeneratorExit as closed:
                try:
                    with around:
                        generator.close()
                except BaseException as exc:
                    around.left(exc)
                    raise
                around.left(closed)
                raise
            except BaseException as thrown:
                resume = functools.partial(generator.throw, thrown)

    return wrapper


def _async_generator(
    begin: Callable[[], Around], function: Callable[..., AsyncGenerator[Any, Any]]
) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        around = begin()
        generator = function(*args, **kwargs)
        resume: Callable[[], Any] = generator.__anext__
        while True:
            try:
                with around:
                    item = await resume()
            except StopAsyncIteration:
                around.left(None)
                return
            except BaseException as exc:
                around.left(exc)
                raise
            try:
                sent = yield item
                resume = functools.partial(generator.asend, sent)
            except GeneratorExit as closed:
                try:
                    with around:
                        await generator.aclose()
                except BaseException as exc:
                    around.left(exc)
                    raise
                around.left(closed)
                raise
            except BaseException as thrown:
                resume = functools.partial(generator.athrow, thrown)

    return wrapper
