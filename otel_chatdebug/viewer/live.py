"""What changed, told to open pages: as server-sent events, or to those who ask from time to time.

A page is told *that* something of its own changed, and fetches itself again: there is one way to make HTML. What other
processes write is seen as what this one does, by looking at the tables; nobody looks where no page is open.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import anyio
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from otel_chatdebug.tables.queries import Changes, Follower
from otel_chatdebug.viewer import threads
from otel_chatdebug.viewer.store import Store, Unavailable

LOOK = 0.5
"""Seconds between two looks at the tables, however many pages are open."""

KEEP_ALIVE = 10.0
"""Seconds of silence after which a comment is sent, so that nobody on the way ends the connection."""

LONGEST = 600.0
"""Seconds after which a stream ends, and the browser opens another: a lost one does not stay for ever."""

RETRY = 1000
"""Milliseconds that a browser waits before it connects again."""

MOST_STREAMS = 50
"""Streams at once; the next page is refused one, and asks from time to time instead."""

KEPT = 200
"""Looks whose changes are kept for streams that have not asked yet."""


@dataclass(frozen=True, slots=True)
class News:
    """What one look has seen."""

    number: int
    runs: frozenset[str]
    chats: frozenset[str | None]
    everything: bool = False
    """What changed before is not known: the database has just been found, or found again."""

    def concern(self, chat: str | None, run: str | None) -> bool:
        """Whether a page about that chat, or that run, or about everything, has to know."""
        if self.everything or (run is None and chat is None):
            return True
        return run in self.runs if run is not None else chat in self.chats


class Feed:
    """Looks at the tables for all streams of an application: whoever asks first looks, the others are told.

    Any thread.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._follower: Follower | None = None
        self._looked = 0.0
        self._number = 0
        self._news: deque[News] = deque(maxlen=KEPT)
        self.streams = 0
        """How many are open. Only changed by the event loop."""

    def now(self) -> int:
        """The number of the newest look: what is news from here on."""
        with self._lock:
            self._look()
            return self._number

    def since(self, number: int, chat: str | None, run: str | None) -> tuple[int, bool]:
        """``(the newest number, whether something that concerns the page changed after number)``."""
        with self._lock:
            self._look()
            # What is no longer kept may have concerned it.
            missed = bool(self._news) and self._news[0].number > number + 1
            changed = any(news.number > number and news.concern(chat, run) for news in self._news)
            return self._number, missed or changed

    def _look(self) -> None:
        if time.monotonic() < self._looked + LOOK * 0.9:
            return
        if self._looked and time.monotonic() > self._looked + 10 * LOOK:
            self._follower = None  # nobody was here for a while: what was missed is fetched with the page
        try:
            engine = self._store.engine
            begins = self._follower is None or self._follower.engine is not engine
            if self._follower is None or begins:
                self._follower = Follower(engine)
            changes = self._follower.poll()
        except (Unavailable, SQLAlchemyError, OSError):
            self._follower = None
            # Whoever sees the page sees what is wrong, and it may be over a moment later.
            self._looked = time.monotonic()
            return
        self._looked = time.monotonic()
        if changes or begins:
            self._number += 1
            self._news.append(News(self._number, _runs(changes), _chats(changes), everything=begins))


def _runs(changes: Changes) -> frozenset[str]:
    return frozenset(
        {run["id"] for run in changes.runs}
        | {step["run_id"] for step in changes.steps}
        | {attempt["run_id"] for attempt in changes.attempts}
    )


def _chats(changes: Changes) -> frozenset[str | None]:
    return frozenset(row["chat_id"] for rows in (changes.runs, changes.steps, changes.attempts) for row in rows)


async def live(request: Request) -> Response:
    """``text/event-stream``: ``hello`` when it listens, then ``change`` whenever something of the page changed."""
    feed: Feed = request.app.state.feed
    if feed.streams >= MOST_STREAMS:
        return JSONResponse({"error": "Too many live views are open."}, 503)
    chat, run = request.query_params.get("chat"), request.query_params.get("run")
    return StreamingResponse(
        _events(feed, chat, run),
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},  # nginx would hold the events back
    )


async def _events(feed: Feed, chat: str | None, run: str | None) -> AsyncIterator[str]:
    feed.streams += 1
    try:
        number = await threads.call(feed.now)
        yield f"retry: {RETRY}\nevent: hello\ndata: {{}}\n\n"
        begun = spoken = time.monotonic()
        while not server_leaves() and time.monotonic() < begun + LONGEST:
            await anyio.sleep(LOOK)
            number, changed = await threads.call(partial(feed.since, number, chat, run))
            if changed:
                yield f"event: change\ndata: {json.dumps({'number': number})}\n\n"
            elif time.monotonic() > spoken + KEEP_ALIVE:
                yield ": still here\n\n"
            else:
                continue
            spoken = time.monotonic()
    finally:
        feed.streams -= 1


def changes(request: Request) -> Response:
    """For those whom events do not reach: whether something of the page changed since ``cursor``, and the next one."""
    query = request.query_params
    try:
        engine = request.app.state.store.engine
    except Unavailable as exc:
        if not exc.empty:
            raise
        return JSONResponse({"cursor": query.get("cursor"), "changed": False})
    follower = Follower(engine, query.get("chat"), query.get("run"), query.get("cursor") or None)
    found = follower.poll()
    return JSONResponse({"cursor": found.cursor, "changed": bool(found)})


def server_leaves() -> bool:
    """Whether the uvicorn that serves us has been asked to stop: it waits for open streams, which end for nothing else.

    The handler of its signals is a method of the server (there is no other way to it for an application that is
    mounted). With another server a stream ends with `LONGEST`, or with its connection.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True


ROUTES = [Route("/live", live), Route("/changes", changes)]
