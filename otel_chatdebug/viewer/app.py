"""The application: the routes of all pages, what goes around them, and what is said where something is wrong."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from otel_chatdebug.settings import Settings
from otel_chatdebug.tables import queries
from otel_chatdebug.viewer import (
    auth,
    content,
    deletion,
    export,
    lists,
    live,
    login,
    run_page,
    snapshot,
    static_files,
    threads,
)
from otel_chatdebug.viewer.auth import Access, Allow, Hosts, Shield, TokenRequired
from otel_chatdebug.viewer.message_counts import CountMessages
from otel_chatdebug.viewer.rendering import page, problem, wants_html
from otel_chatdebug.viewer.snapshot import Authorize, Snapshots
from otel_chatdebug.viewer.store import Store, Unavailable, sentence

logger = logging.getLogger("otel_chatdebug")


def chatdebug_app(
    database_url: str | None = None,
    *,
    token: str | None = None,
    allow: Allow | None = None,
    allowed_hosts: Iterable[str] | None = None,
    authorize: Authorize | None = None,
    count_messages: CountMessages | None = None,
    public_url: str | None = None,
) -> Starlette:
    """The pages as an ASGI application, to be mounted in yours (FastAPI, Starlette) or served by itself.

    Args:
        database_url: Where the tables are; by default ``OTEL_CHATDEBUG_DATABASE_URL``.
        token: Opens the pages: once as ``?token=...`` in a link, which sets a cookie, or as ``Authorization: Bearer``.
            By default ``OTEL_CHATDEBUG_TOKEN``. Where neither that nor ``allow`` is given, one is made and logged.
        allow: A function of the request (it may be asynchronous, else it is called in a thread) that says whether it
            may see the pages, without a token: for applications that know their users. It opens all pages, deletion
            too, but not the snapshot. What takes longer than five seconds, or raises, opens nothing.
        allowed_hosts: The names under which the pages answer, besides IP addresses and this machine's. By default any:
            the application around them has its own rule.
        authorize: A function of the request and a chat's id (it may be asynchronous) that says whether the snapshot of
            that chat may be seen. By default the token opens it, and nothing else does.
        count_messages: A function of a chat's id (it may be asynchronous) that tells how many messages the chat has:
            ``{"by_role": {role: count}, "deleted": count}``, or None. By default ``OTEL_CHATDEBUG_MESSAGES_TABLE``.
        public_url: Where other processes reach this application, its path included
            (``http://10.0.0.7:8000/debug``). They hand snapshots of the chats that this process runs on to it.

    Nothing is opened before the first request. Any number of applications may share a process.
    """
    settings = Settings.load(database_url=database_url, viewer_token=token)
    given = settings.viewer_token or None
    if given is None and allow is None:
        given = auth.new_token()
        logger.warning(
            "The debug pages have no token of yours, so they made one: open them with ?token=%s. "
            "chatdebug_app(token=...) or OTEL_CHATDEBUG_TOKEN sets one that stays.",
            given,
        )
    hosts = None if allowed_hosts is None else Hosts.of("0.0.0.0", allowed_hosts)
    snapshots = Snapshots(authorize, count_messages, public_url)
    snapshots.register()
    return make_app(settings, Access(given, allow), hosts, snapshots)


def make_app(settings: Settings, access: Access, hosts: Hosts | None, snapshots: Snapshots | None = None) -> Starlette:
    """The application; what ``serve`` and `chatdebug_app` have in common."""
    store = Store(settings.database_url)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        store.close()

    opened: list[BaseRoute] = [
        *lists.ROUTES,
        *run_page.ROUTES,
        *deletion.ROUTES,
        *export.ROUTES,  # before the bodies, whose paths look alike
        *content.ROUTES,
        *live.ROUTES,
    ]
    opened = [_in_own_threads(route) if isinstance(route, Route) else route for route in opened]
    app = Starlette(
        routes=[
            *login.ROUTES,
            *static_files.ROUTES,
            *snapshot.ROUTES,  # with its own rule about who may see it
            Mount("", routes=opened, middleware=[Middleware(TokenRequired, access=access, ask=login.ask_for_token)]),
        ],
        middleware=[Middleware(Shield, hosts=hosts)],
        exception_handlers={
            HTTPException: refused,
            Unavailable: unavailable,
            SQLAlchemyError: database_error,
            queries.NotFound: not_found,
            queries.BadCursor: bad_cursor,
        },
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.access = access
    app.state.store = store
    app.state.snapshots = snapshots or Snapshots()
    app.state.feed = live.Feed(store)
    return app


def _in_own_threads(route: Route) -> Route:
    if inspect.iscoroutinefunction(route.endpoint):
        return route
    return Route(route.path, threads.endpoint(route.endpoint), methods=list(route.methods or ()), name=route.name)


async def refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 404:
        return problem(request, 404, "Not found", "There is no such page.")
    return problem(request, exc.status_code, exc.detail, exc.detail)


async def not_found(request: Request, exc: Exception) -> Response:
    return problem(request, 404, "Not found", f"{exc} It may have been deleted, or its time was over.")


async def bad_cursor(request: Request, exc: Exception) -> Response:
    return problem(request, 400, "No such page", str(exc))


async def unavailable(request: Request, exc: Exception) -> Response:
    """No database yet is no error: it is what every newcomer sees first."""
    assert isinstance(exc, Unavailable)
    if exc.empty and wants_html(request):
        return page(request, "empty.html", said=str(exc))
    return problem(request, 503, "The database cannot be read", str(exc), reload=True)


async def database_error(request: Request, exc: Exception) -> Response:
    logger.debug("a page could not be read", exc_info=exc)
    return problem(request, 503, "The database cannot be read", sentence(exc), reload=True)
