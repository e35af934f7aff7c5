"""A run: its waterfall, its steps, and the inside of a step, which is fetched when somebody opens it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from otel_chatdebug import words
from otel_chatdebug.tables import queries
from otel_chatdebug.trace_links import trace_url
from otel_chatdebug.viewer import transcript
from otel_chatdebug.viewer.lists import WHERE, open_runs
from otel_chatdebug.viewer.rendering import page
from otel_chatdebug.viewer.timeline import timeline

MOST_STEPS = 200
"""Steps of a run that are shown at once: the last ones. ``?steps=all`` shows the rest too."""

IDENTITY = (
    "trace_id",
    "span_id",
    "owner_id",
    "model_config_id",
    "trigger_message_id",
    "history_tip_message_id",
    "parent_chat_id",
    "root_chat_id",
    "replica_id",
)
"""Columns of a run that are told below "Details"."""


def run(request: Request) -> Response:
    """The page of a run. ``?step=ID`` opens that step; else the one that tells most is open."""
    engine = request.app.state.store.engine
    found = queries.load_run(engine, request.path_params["run"], content=False)
    now = datetime.now(UTC)
    hidden = max(0, len(found["steps"]) - MOST_STEPS) if request.query_params.get("steps") != "all" else 0
    found["steps"] = found["steps"][hidden:]
    chosen = _chosen(found["steps"], request.query_params.get("step"))
    settings = request.app.state.settings
    is_open = found["status"] == "in_progress"
    waiting = queries.list_waiting(engine, run_id=found["id"], stale_after=settings.stale_after) if is_open else []
    return page(
        request,
        "run.html",
        run=found,
        summary=found["summary"] or {},
        tokens=words.usage_text(_totals(found["summary"] or {})),
        timeline=timeline(found, now),
        hidden=hidden,
        chosen=chosen and chosen["id"],
        inside=_inside(engine, chosen) if chosen else None,
        version_of=_version,
        end_words=end_words,
        identity=[(name, found[name]) for name in IDENTITY if found[name] is not None],
        waiting=waiting,
        where=WHERE,
        trace_url=trace_url(settings.trace_url, found),
        open_runs=open_runs(engine),
    )


def step(request: Request) -> Response:
    """The inside of a step, by itself."""
    engine = request.app.state.store.engine
    run, step = _find(engine, request)
    return page(
        request,
        "step.html",
        run=run,
        step=step,
        inside=_inside(engine, step),
        end_words=end_words,
        version_of=_version,
    )


def messages(request: Request) -> Response:
    """Messages of a step's request that stand before those which are shown, ``?before=PLACE``."""
    engine = request.app.state.store.engine
    run, step = _find(engine, request)
    before = _number(request, "before", 10**9)
    found = queries.load_messages(engine, step["id"], "request", offset=0, limit=before)
    if found is None:
        raise HTTPException(404)
    end = min(before, found.total)
    shown = transcript.piece(list(found.messages), end - transcript.PIECE, end)
    return page(request, "messages.html", run=run, step=step, shown=shown, side="request")


def part(request: Request) -> Response:
    """All that is kept of one part of a message, as text."""
    engine = request.app.state.store.engine
    side: Literal["request", "response"] = "response" if request.query_params.get("side") == "response" else "request"
    at = _number(request, "message", 0)
    found = queries.load_messages(engine, request.path_params["step"], side, offset=at, limit=1)
    text = None if found is None else transcript.whole(found.messages, 0, _number(request, "part", 0))
    if text is None:
        raise HTTPException(404)
    return PlainTextResponse(text)


def tools(request: Request) -> Response:
    """The tools that a step declared, with their schema."""
    engine = request.app.state.store.engine
    run, step = _find(engine, request)
    content = queries.load_step_content(engine, step["id"])
    found = transcript.tools(content["normalized_request"]) if content else []
    return page(request, "tools.html", run=run, step=step, tools=found)


def end_words(attempt: dict[str, Any]) -> str:
    """How an attempt ended, in words."""
    reason = attempt["end_reason"]
    return words.END_REASONS.get(reason, words.one_line(reason)) if reason else ""


def _totals(summary: dict[str, Any]) -> dict[str, Any]:
    """What the run's steps used together. A sum of nothing is no count: zeros mean that no provider has said any."""
    return {name.removeprefix("total_"): count or None for name, count in summary.items() if name.startswith("total_")}


def _inside(engine: Engine, step: dict[str, Any]) -> dict[str, Any]:
    content = queries.load_step_content(engine, step["id"])
    return {
        "sent": transcript.sent(content["normalized_request"]) if content else None,
        "answer": transcript.answer(content["normalized_response"]) if content else None,
    }


def _find(engine: Engine, request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    run = queries.load_run(engine, request.path_params["run"], content=False)
    for step in run["steps"]:
        if step["id"] == request.path_params["step"]:
            return run, step
    raise HTTPException(404)


def _chosen(steps: list[dict[str, Any]], wanted: str | None) -> dict[str, Any] | None:
    """The step that was asked for; else the one in progress, the first that failed, or the last."""
    if not steps:
        return None
    by_status = [[step for step in steps if step["status"] == status] for status in ("in_progress", "error")]
    asked = [step for step in steps if step["id"] == wanted]
    return next(found[0] for found in (asked, *by_status, [steps[-1]]) if found)


def _version(step: dict[str, Any]) -> str:
    """Changes whenever the inside of a step does."""
    return max(str(row["changed_at"] or row["updated_at"]) for row in (step, *step["attempts"]))


def _number(request: Request, name: str, default: int) -> int:
    try:
        return max(0, min(int(request.query_params.get(name, default)), 10**9))
    except ValueError:
        return default


ROUTES = [
    Route("/runs/{run}", run),
    Route("/runs/{run}/steps/{step}", step),
    Route("/runs/{run}/steps/{step}/messages", messages),
    Route("/runs/{run}/steps/{step}/part", part),
    Route("/runs/{run}/steps/{step}/tools", tools),
]
