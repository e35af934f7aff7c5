"""Headers and bodies of an attempt: fetched when somebody opens it, always as plain text."""

from __future__ import annotations

import json
from typing import Any, Literal

from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from otel_chatdebug import words
from otel_chatdebug.tables import queries
from otel_chatdebug.viewer.rendering import page
from otel_chatdebug.viewer.run_page import end_words

MOST = 500_000
"""Characters of a body that a page shows. By default fewer are recorded."""

SANDBOX = {"content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'none'"}
"""Of a body that is opened by itself: even a browser that takes it for a page does nothing with it."""

Which = Literal["request_body", "response_body"]

BODIES: dict[str, Which] = {"request": "request_body", "response": "response_body"}


def attempt(request: Request) -> Response:
    """The inside of an attempt: headers, and where its bodies are."""
    engine = request.app.state.store.engine
    run = queries.load_run(engine, request.path_params["run"], content=False)
    found = _attempt(run, request.path_params["attempt"])
    content: Any = queries.load_attempt_content(engine, found["id"]) or {}
    return page(
        request,
        "attempt.html",
        run=run,
        attempt=found,
        end_words=end_words,
        after=_after,
        sides=[
            (side, _headers(content.get(f"{side}_headers")), len(content.get(f"{side}_body") or ""))
            for side in ("request", "response")
        ],
        kept=bool(content),
    )


def body(request: Request) -> Response:
    """``?form=pretty`` is JSON for people where it is JSON; else it is as it was kept."""
    which = BODIES.get(request.path_params["side"])
    if which is None:
        raise HTTPException(404)
    text = _load(request.app.state.store.engine, request.path_params["attempt"], which)
    if request.query_params.get("form") == "pretty":
        text = prettier(text)
    return PlainTextResponse(text, headers=SANDBOX)


def prettier(text: str) -> str:
    """JSON, indented; of an event stream or lines of JSON each event's. What is none stays as it is."""
    whole = _indented(text)
    if whole is not None:
        return whole
    lines = []
    for line in text.splitlines():
        field, separator, data = ("data:", " ", line[5:]) if line.startswith("data:") else ("", "", line)
        pretty = _indented(data) if data.lstrip().startswith(("{", "[")) else None
        lines.append(line if pretty is None else f"{field}{separator}{pretty}")
    return "\n".join(lines)


def _indented(text: str) -> str | None:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return None


def _after(attempt: dict[str, Any], name: str) -> str:
    """How long after the attempt's start something came."""
    start, then = words.moment(attempt["started_at"]), words.moment(attempt[name])
    return words.duration((then - start).total_seconds()) if start and then else ""


def _load(engine: Engine, id: str, which: Which) -> str:
    piece = queries.load_body(engine, id, which, length=MOST)
    if piece is None:
        raise HTTPException(404)
    cut = piece.next
    return piece.text if cut is None else f"{piece.text}\n… ({piece.total - cut:,} more characters are in the export)"


def _attempt(run: dict[str, Any], id: str) -> dict[str, Any]:
    for step in run["steps"]:
        for attempt in step["attempts"]:
            if attempt["id"] == id:
                found: dict[str, Any] = attempt
                return found
    raise HTTPException(404)


def _headers(value: Any) -> list[tuple[str, str]]:
    """Pairs, whatever shape they have."""
    if isinstance(value, dict):
        value = list(value.items())
    found = []
    for pair in value if isinstance(value, list) else []:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            found.append((str(pair[0]), str(pair[1])))
        else:
            found.append(("", str(pair)))
    return found


ROUTES = [
    Route("/runs/{run}/attempts/{attempt}", attempt),
    Route("/runs/{run}/attempts/{attempt}/{side}", body),
]
