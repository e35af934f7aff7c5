"""What is said to those who have not shown the token, and the form that takes it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from otel_chatdebug.viewer import auth
from otel_chatdebug.viewer.auth import Access
from otel_chatdebug.viewer.rendering import page, wants_html


def ask_for_token(request: Request) -> Response:
    """What is answered without a token: a form to a browser, a sentence to a program."""
    return _ask(request, wrong=auth.TOKEN in request.query_params, next=auth.without_token(request))


async def login(request: Request) -> Response:
    """Takes a token from the form that `ask_for_token` shows."""
    form = await auth.read_form(request)
    access: Access = request.app.state.access
    if auth.same_site_post(request) and access.is_token(form.get("token", "").strip()):
        return access.let_in(request, auth.own_path(request, form.get("next", "")))
    return _ask(request, wrong=True, next=form.get("next", ""))


def _ask(request: Request, *, wrong: bool, next: str) -> Response:
    has_token = request.app.state.access.token is not None
    if not wants_html(request):
        said = "This token is not the right one." if wrong else "A token is needed: Authorization: Bearer TOKEN."
        if not has_token:
            said = "The application that these pages are part of does not let you see this."
        return JSONResponse({"error": said}, 401, {"www-authenticate": "Bearer"})
    return page(request, "login.html", 401, has_token=has_token, wrong=wrong, next=auth.own_path(request, next))


ROUTES = [Route("/login", login, methods=["POST"])]
