"""The lists: runs with their filters, chats, and what is in progress."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from otel_chatdebug import durations
from otel_chatdebug.status import Status
from otel_chatdebug.tables import queries
from otel_chatdebug.tables.queries import RunFilter
from otel_chatdebug.viewer.rendering import link, page

MOST_SCANNED = 50_000
"""Runs that one page of a search looks at; where that was not enough, the page says "search on"."""

IDLE = 30.0
"""Seconds without anything new after which something in progress counts as hanging; as ``otel-chatdebug stuck``."""

SPANS = {"1h": "last hour", "24h": "last 24 hours", "7d": "last 7 days", "30d": "last 30 days"}
"""What the filter for time offers."""

WHERE = {
    queries.Where.HEADERS: "waiting for the answer's headers",
    queries.Where.BODY: "headers came, waiting for the body",
    queries.Where.STREAMING: "streaming",
    queries.Where.UNCLOSED: "answer complete, not closed by the application",
    queries.Where.BEFORE_ATTEMPT: "step begun, no request sent yet",
    queries.Where.BETWEEN_ATTEMPTS: "between attempts",
    queries.Where.BEFORE_STEP: "no model call yet",
    queries.Where.BETWEEN_STEPS: "between steps: the application works",
}
"""Where something in progress stands, in words."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list was asked for, as it stands in the address."""

    text: str | None
    chat: str | None
    status: str | None
    kind: str | None
    model: str | None
    since: str | None
    until: str | None
    error: str | None

    @classmethod
    def of(cls, request: Request) -> Filters:
        """From the query; an empty field is none."""
        given = request.query_params

        def value(name: str) -> str | None:
            return given.get(name) or None

        return cls(
            (given.get("q") or "").strip() or None,
            # The empty text is a chat's id like any other.
            given.get("chat"),
            value("status"),
            value("kind"),
            value("model"),
            value("since"),
            value("until"),
            value("error"),
        )

    def query(self) -> dict[str, str | None]:
        """As parameters of a link."""
        return {
            "q": self.text,
            "chat": self.chat,
            "status": self.status,
            "kind": self.kind,
            "model": self.model,
            "since": self.since,
            "until": self.until,
            "error": self.error,
        }

    @property
    def any(self) -> bool:
        """Whether anything besides the chat is asked for."""
        return any(value is not None for name, value in self.query().items() if name != "chat")

    def runs(self, now: datetime) -> RunFilter:
        """For the query. Raises `ValueError` for a time that is none."""
        return RunFilter(
            chat_id=self.chat,
            kind=self.kind,
            status=self.status,
            model=self.model,
            since=moment(self.since, now),
            until=moment(self.until, now),
            text=self.text,
            # "any" is what the form says; the empty text is what it means.
            error="" if self.error == "any" else self.error,
        )


def moment(text: str | None, now: datetime) -> datetime | None:
    """``2h`` (ago), or an ISO time, in UTC where it names no zone. Raises `ValueError` with a sentence."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return now - timedelta(seconds=durations.parse(text))
    try:
        then = datetime.fromisoformat(text.strip())
        return then if then.tzinfo else then.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: write 30m, 2h or 7d for so long ago, or 2026-01-31T12:00 (UTC)."
        ) from None


def runs(request: Request) -> Response:
    """All runs, or those of a chat, the newest first."""
    engine = request.app.state.store.engine
    filters = Filters.of(request)
    try:
        which = filters.runs(datetime.now(UTC))
        trouble = None
    except ValueError as exc:
        which, trouble = RunFilter(chat_id=filters.chat), str(exc)
    found = queries.list_runs(
        engine, which, cursor=request.query_params.get("cursor") or None, most_scanned=MOST_SCANNED
    )
    return page(
        request,
        "runs.html",
        here="runs",
        runs=found,
        filters=filters,
        trouble=trouble,
        facets=queries.facets(engine),
        statuses=[str(status) for status in Status],
        spans=SPANS,
        older=_turn(request, filters, found.older),
        newer=_turn(request, filters, found.newer),
        open_runs=open_runs(engine),
    )


def chats(request: Request) -> Response:
    """All chats, by their newest run."""
    engine = request.app.state.store.engine
    text = (request.query_params.get("q") or "").strip() or None
    cursor = request.query_params.get("cursor") or None
    found = queries.list_chats(engine, text=text, cursor=cursor, most_scanned=MOST_SCANNED)
    return page(
        request,
        "chats.html",
        here="chats",
        chats=found,
        text=text,
        older=found.older and link(request, "chats", q=text, cursor=found.older),
        newer=found.newer and link(request, "chats", q=text, cursor=found.newer),
        open_runs=open_runs(engine),
    )


def progress(request: Request) -> Response:
    """What runs now, what hangs and since when: what has been silent longest comes first."""
    engine = request.app.state.store.engine
    stale_after = request.app.state.settings.stale_after
    waiting = queries.list_waiting(engine, stale_after=stale_after)
    return page(
        request,
        "progress.html",
        here="progress",
        waiting=waiting,
        idle=IDLE,
        stale_after=stale_after,
        where=WHERE,
        open_runs=len({one["run_id"] for one in waiting}),
    )


def open_runs(engine: Any) -> int:
    """How many runs are in progress."""
    return queries.count_open(engine)


def _turn(request: Request, filters: Filters, cursor: str | None) -> str | None:
    return None if cursor is None else link(request, "", **filters.query(), cursor=cursor)


ROUTES = [Route("/", runs), Route("/chats", chats), Route("/progress", progress)]
