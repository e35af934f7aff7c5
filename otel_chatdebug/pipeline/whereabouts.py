"""Where a piece of work is under way: which thread, which asyncio task, and the frames it stands in.

`here` is cheap enough for every call: it keeps two weak references. The stack is taken only when somebody asks, by
`Whereabouts.stack`, which holds one lock for all askers: frames are borrowed from running threads for a moment, and
are let go of before it returns.
"""

from __future__ import annotations

import gc
import linecache
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final, TypedDict

MOST_FRAMES: Final = 50
"""Frames of a stack that are told: the innermost ones, where it hangs."""

MOST_AWAITED: Final = 1_000
"""Coroutines that await one another which are followed; a cycle of them must not keep us."""

_AWAITED: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)

_taking = threading.Lock()


class Frame(TypedDict):
    """One line of a stack."""

    file: str
    line: int
    function: str
    code: str
    """The line's text; empty where the source is not there."""


class Stack(TypedDict):
    """Where something stands. The innermost frame is the last one."""

    kind: str
    """``task`` or ``thread``."""
    name: str
    state: str
    """``running``, ``suspended`` (a task that awaits something), or ``gone``: it has ended, the frames are empty."""
    frames: list[Frame]


class Whereabouts:
    """The thread, and the asyncio task where there is one, in which something began. Holds neither alive."""

    __slots__ = ("_task", "_thread")

    def __init__(self, thread: threading.Thread, task: Any) -> None:
        self._thread = weakref.ref(thread)
        self._task = None if task is None else weakref.ref(task)

    def is_where(self, other: Whereabouts) -> bool:
        """Whether both are the same task, or the same thread."""
        return self._task == other._task and self._thread == other._thread

    def stack(self, clean: Callable[[str], str]) -> Stack:
        """The frames now. Any thread but one that holds a lock of ours.

        ``clean`` redacts a line of source, and the name of a thread or task: an application may make it of anything.
        """
        with _taking:
            thread = self._thread()
            if self._task is None:
                name = "" if thread is None else clean(thread.name)
                if thread is None or not thread.is_alive():
                    return Stack(kind="thread", name=name, state="gone", frames=[])
                return Stack(kind="thread", name=name, state="running", frames=_told(_of_thread(thread), clean))
            task = self._task()
            name = "" if task is None else clean(task.get_name())
            if task is None or task.done():
                return Stack(kind="task", name=name, state="gone", frames=[])
            coroutine = task.get_coro()
            if getattr(coroutine, "cr_running", False) and thread is not None:
                return Stack(kind="task", name=name, state="running", frames=_told(_of_thread(thread), clean))
            frames = [frame for awaited in _chain(coroutine) if (frame := _frame(awaited)) is not None]
            return Stack(kind="task", name=name, state="suspended", frames=_told(frames, clean))


def here() -> Whereabouts:
    """Where this is called. asyncio is not imported for it."""
    task = None
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        loop = asyncio._get_running_loop()
        if loop is not None:
            task = asyncio.current_task(loop)
    return Whereabouts(threading.current_thread(), task)


def _of_thread(thread: threading.Thread) -> list[FrameType]:
    frame = sys._current_frames().get(thread.ident or 0)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def _chain(awaited: Any) -> Iterator[Any]:
    """A coroutine, what it awaits, what that awaits, and so on.

    ``Task.get_stack`` tells only the first of them.
    """
    for _ in range(MOST_AWAITED):
        if awaited is None:
            return
        yield awaited
        following = next(
            (found for name in ("cr_await", "gi_yieldfrom", "ag_await") if (found := getattr(awaited, name, None))),
            None,
        )
        if following is not None and not isinstance(following, _AWAITED):
            # What `async for` awaits, and `__await__` of a coroutine, refer to what they stand for, and do not say so.
            inner = next((one for one in gc.get_referents(following) if isinstance(one, _AWAITED)), None)
            following = inner if inner is not None else following
        awaited = following


def _frame(awaited: Any) -> FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame: FrameType | None = getattr(awaited, name, None)
        if frame is not None:
            return frame
    return None


def _told(frames: list[FrameType], clean: Callable[[str], str]) -> list[Frame]:
    return [
        Frame(
            file=frame.f_code.co_filename,
            line=frame.f_lineno or 0,
            function=frame.f_code.co_qualname,
            code=clean(linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0).strip()),
        )
        for frame in frames[-MOST_FRAMES:]
    ]
