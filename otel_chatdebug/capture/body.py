"""The response's byte stream, wrapped: two thin twins that tell one observer, the `Attempt`, what they see.

A wrapped stream forwards chunks untouched and at once, passes every exception on, can be iterated more than once (the
async openai client drains a body with a second iteration), keeps no context attached between chunks, and is part of no
reference cycle: it refers to the attempt and to the stream that it wraps, and neither refers back.

The classes are made for each library when it is patched, as subclasses of its own ``SyncByteStream`` and
``AsyncByteStream``, since both libraries check with ``isinstance``. Nothing is imported for that.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from functools import cache
from types import ModuleType
from typing import Any

from otel_chatdebug.capture.attempt import Attempt
from otel_chatdebug.capture.states import Event
from otel_chatdebug.pipeline.whereabouts import here


class _Body:
    """What the twins share: all but the awaits."""

    _stream: Any
    _attempt: Attempt

    def __init__(self, stream: Any, attempt: Attempt) -> None:
        self._stream = stream
        self._attempt = attempt
        # A weak reference with a callback is what weakref.finalize does, without its registry and its exit handler.
        attempt.watch = weakref.ref(self, attempt.collected)

    @property
    def elapsed(self) -> Any:
        """httpx2's ``Response.elapsed`` reads it from the stream; an ``AttributeError`` here is its "not yet"."""
        return self._stream.elapsed

    def __getattr__(self, name: str) -> Any:
        # Somebody may look for an attribute of the stream that we wrap (the anthropic SDK's `stream_observer`).
        if name in ("_stream", "_attempt"):
            raise AttributeError(name)
        return getattr(self._stream, name)


def tell(attempt: Attempt, event: Event, exc: BaseException | None = None) -> None:
    """Tells the attempt what was seen. Our faults stay ours; and it may be a finalizer that calls, so none is logged
    here."""
    try:
        if event is Event.CLOSING:  # what follows is told in a moment
            attempt.emit(event)
        else:
            attempt.tell(event, None if exc is None else attempt.describe(exc))
    except Exception:
        attempt.recorder.inbox.fault(f"telling {event.name}")


def read_failed(attempt: Attempt, exc: BaseException) -> None:
    """Reading the body was ended by ``exc``."""
    if isinstance(exc, GeneratorExit):
        tell(attempt, Event.GENERATOR_CLOSED)
    elif isinstance(exc, Exception):
        tell(attempt, Event.READ_ERROR, exc)
    else:
        tell(attempt, Event.CANCELLED)


def close_failed(attempt: Attempt, exc: BaseException) -> None:
    """Closing the body was ended by ``exc``. A close that is cancelled has closed what it could."""
    if isinstance(exc, Exception):
        tell(attempt, Event.CLOSE_FAILED, exc)
    else:
        tell(attempt, Event.CLOSED)


class SyncBody(_Body):
    """The sync twin."""

    def __iter__(self) -> Iterator[bytes]:
        attempt = self._attempt
        attempt.begun = True
        attempt.where = here()
        see = attempt.chunk if attempt.gaps_ns is None else attempt.timed_chunk
        try:
            for chunk in self._stream:
                try:
                    see(chunk)
                except Exception:
                    attempt.recorder.inbox.fault("Attempt.chunk")
                yield chunk
        except BaseException as exc:
            read_failed(attempt, exc)
            raise
        tell(attempt, Event.END_OF_BODY)

    def close(self) -> None:
        tell(self._attempt, Event.CLOSING)
        try:
            self._stream.close()
        except BaseException as exc:
            close_failed(self._attempt, exc)
            raise
        tell(self._attempt, Event.CLOSED)


class AsyncBody(_Body):
    """The async twin."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        attempt = self._attempt
        attempt.begun = True
        attempt.where = here()
        see = attempt.chunk if attempt.gaps_ns is None else attempt.timed_chunk
        chunks = self._stream.__aiter__()
        try:
            async for chunk in chunks:
                try:
                    see(chunk)
                except Exception:
                    attempt.recorder.inbox.fault("Attempt.chunk")
                yield chunk
        except BaseException as exc:
            read_failed(attempt, exc)
            # Without us the reader's `aclose` would have reached this generator; it must not be left to the loop.
            if isinstance(exc, GeneratorExit) and isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
            raise
        tell(attempt, Event.END_OF_BODY)

    async def aclose(self) -> None:
        tell(self._attempt, Event.CLOSING)
        try:
            await self._stream.aclose()
        except BaseException as exc:
            close_failed(self._attempt, exc)
            raise
        tell(self._attempt, Event.CLOSED)


@cache
def body_classes(library: ModuleType) -> tuple[type[SyncBody], type[AsyncBody]]:
    """The twins as streams of ``library`` (httpx or httpx2)."""
    sync = type("ObservedSyncBody", (SyncBody, library.SyncByteStream), {})
    async_ = type("ObservedAsyncBody", (AsyncBody, library.AsyncByteStream), {})
    return sync, async_
