"""Threads of our own for what blocks: pages, the snapshot, and the hooks of the application that it asks.

Not those that an application's own endpoints share (40 for each event loop, by Starlette's default): an application
whose chats hang in them has none left, and that is when somebody asks us.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from starlette.requests import Request
from starlette.responses import Response

T = TypeVar("T")

THREADS: Final = 16
"""For each event loop: pages, and the application's hooks."""

HANDING_ON: Final = 16
"""For each event loop, besides: requests that are handed on to other processes. Those may take long to answer, and
whoever waits for them must not hold up the pages."""

HOOK_SECONDS: Final = 5.0
"""How long a hook may take: whoever asks about a chat that hangs must not hang with it."""

HOOKS_AT_ONCE: Final = 16
"""Threads in which hooks may be under way, those included that were given up on and have not come back."""

_pages: RunVar[anyio.CapacityLimiter] = RunVar("otel_chatdebug.viewer.threads")
_handing_on: RunVar[anyio.CapacityLimiter] = RunVar("otel_chatdebug.viewer.threads.handing_on")
_free = threading.BoundedSemaphore(HOOKS_AT_ONCE)


async def call(function: Callable[[], T], *, give_up: bool = False) -> T:
    """What ``function`` returns, called in a thread. With ``give_up`` a cancellation does not wait for its end."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=give_up, limiter=_limiter(_pages, THREADS))


async def hand_on(function: Callable[[], T]) -> T:
    """As `call`, in the threads for what is handed on. A cancellation does not wait for its end."""
    limiter = _limiter(_handing_on, HANDING_ON)
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=limiter)


def _limiter(of: RunVar[anyio.CapacityLimiter], threads: int) -> anyio.CapacityLimiter:
    try:
        return of.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(threads)
        of.set(limiter)
        return limiter


async def pieces(of: Iterator[T]) -> AsyncIterator[T]:
    """What an iterator that blocks gives, each fetched in a thread."""
    end = object()
    while (piece := await call(lambda: next(of, end))) is not end:
        yield piece  # type: ignore[misc]


def endpoint(function: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    """A page that blocks, as one that does not."""

    @wraps(function)
    async def answer(request: Request) -> Response:
        return await call(lambda: function(request))

    return answer


async def ask(hook: Callable[..., Any], *arguments: Any) -> Any:
    """What a hook says. One that is not asynchronous is called in a thread.

    Raises ``TimeoutError`` after `HOOK_SECONDS`, and what the hook raises.
    """
    with anyio.fail_after(HOOK_SECONDS):
        if inspect.iscoroutinefunction(hook):
            return await hook(*arguments)
        said = await call(lambda: _bounded(hook, arguments), give_up=True)
        return await said if inspect.isawaitable(said) else said


def _bounded(hook: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if not _free.acquire(blocking=False):
        raise TimeoutError("too many calls of hooks have not come back")
    try:
        return hook(*arguments)
    finally:
        _free.release()
