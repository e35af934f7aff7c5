"""Taking something along: a run or a chat as a file, a request as a curl command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from otel_chatdebug.curl import NotRepeatable, curl
from otel_chatdebug.tables import queries
from otel_chatdebug.tables.transfer import export_chat, export_runs
from otel_chatdebug.viewer import threads


def run(request: Request) -> Response:
    """A run, as ``otel-chatdebug export`` writes it."""
    engine = request.app.state.store.engine
    id = queries.load_run(engine, request.path_params["run"], content=False)["id"]
    return _file(export_runs(engine, [id]), f"run-{id}")


def chat(request: Request) -> Response:
    """All runs of a chat."""
    id = request.query_params.get("chat", "")
    return _file(export_chat(request.app.state.store.engine, id), f"chat-{id}")


def command(request: Request) -> Response:
    """An attempt's request as a curl command; secrets are variables in it."""
    engine = request.app.state.store.engine
    id = request.path_params["attempt"]
    found = queries.load_run(engine, request.path_params["run"], content=False)
    for step in found["steps"]:
        for attempt in step["attempts"]:
            if attempt["id"] == id:
                content: Any = queries.load_attempt_content(engine, id) or {}
                try:
                    return PlainTextResponse(f"{curl({**attempt, **content}, provider=step['provider'])}\n")
                except NotRepeatable as exc:
                    return PlainTextResponse(f"# {exc}\n")
    raise HTTPException(404)


def _file(pieces: Iterator[str], name: str) -> Response:
    """Piece by piece: a chat may be larger than the memory that one wants to spend on it."""
    # The first piece before the headers are sent: a database that cannot be read is then an error that is seen.
    first = next(pieces, "")

    def whole() -> Iterator[str]:
        yield first
        try:
            yield from pieces
        except SQLAlchemyError:
            # The head of the answer is out: cut off in the middle, no reader takes it for a whole file.
            yield "\n... the database could not be read any further\n"

    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:80].strip("-")
    headers = {"content-disposition": f'attachment; filename="chatdebug-{safe}.json"'}
    return StreamingResponse(threads.pieces(whole()), media_type="application/json", headers=headers)


ROUTES = [
    Route("/runs/{run}/export", run),
    Route("/export", chat),
    Route("/runs/{run}/attempts/{attempt}/curl", command),
]
