"""Deleting a run or a chat: the only thing that the pages change.

A page asks first. Its form carries a token that is in a cookie, too, which no other site can read or have sent along
(`auth.is_own_form`).
"""

from __future__ import annotations

from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from otel_chatdebug import words
from otel_chatdebug.tables import database, queries
from otel_chatdebug.tables.counts import Deleted
from otel_chatdebug.tables.deletion import Deletion, count_runs, in_turn, remove_runs, take_up_spooled
from otel_chatdebug.viewer import auth, threads
from otel_chatdebug.viewer.rendering import link, page, problem


async def delete_run(request: Request) -> Response:
    """GET asks, POST deletes and goes to the chat's runs."""
    return await _delete(request, request.path_params["run"], None)


async def delete_chat(request: Request) -> Response:
    """GET asks, POST deletes and goes to the chats."""
    return await _delete(request, None, request.query_params.get("chat", ""))


async def _delete(request: Request, run: str | None, chat: str | None) -> Response:
    if request.method != "POST":
        return await threads.call(lambda: _ask(request, run, chat))
    form = await auth.read_form(request)
    if not auth.is_own_form(request, form):
        return problem(
            request,
            403,
            "Nothing was deleted",
            "This was not sent by the page that asks whether to delete. Open it anew.",
        )
    return await threads.call(lambda: _perform(request, run, chat))


def _ask(request: Request, run: str | None, chat: str | None) -> Response:
    engine: Engine = request.app.state.store.engine
    token = auth.form_token(request)
    found = None
    if run is not None:
        found = queries.load_run(engine, run, content=False)
        with engine.connect() as connection:
            count = count_runs(connection, [run])
        back = link(request, "runs", run)
    else:
        take_up_spooled(request.app.state.settings.database_url)
        deletion = Deletion(chat or "")
        deletion.find(engine)
        count = deletion.count(engine)
        back = link(request, "", chat=chat)
    response = page(
        request,
        "delete.html",
        run=found,
        chat=chat,
        what=_counts(count),
        nothing=not any(count),
        back=back,
        token=token,
    )
    return auth.set_form_token(request, response, token)


def _perform(request: Request, run: str | None, chat: str | None) -> Response:
    state = request.app.state
    _ = state.store.engine  # is there, and of this version
    back = link(request, "chats")
    engine = database.open_engine(state.settings.database_url)
    try:
        if run is not None:
            of = queries.load_run(engine, run, content=False)["chat_id"]
            back = link(request, "", chat=of)
            in_turn(engine, remove_runs, [run])
        else:
            take_up_spooled(state.settings.database_url)
            deletion = Deletion(chat or "")
            deletion.find(engine)
            deletion.apply(engine)
    finally:
        engine.dispose()
    return RedirectResponse(back, status_code=303)


def _counts(count: Deleted) -> str:
    named = zip(count, ("run", "step", "attempt"), strict=True)
    return ", ".join(words.plural(number, noun) for number, noun in named if number)


ROUTES = [
    Route("/runs/{run}/delete", delete_run, methods=["GET", "POST"]),
    Route("/delete", delete_chat, methods=["GET", "POST"]),
]
