"""From rows to HTML: the templates' environment, and the words they use.

What was recorded is somebody else's text. Everything that a template prints is escaped, and control characters become
visible signs, whatever the template's author thought of; nothing is ever marked as safe.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from otel_chatdebug import words
from otel_chatdebug.version import __version__
from otel_chatdebug.viewer.auth import PREFIX

STATUS_WORDS = {"in_progress": "in progress"}


def _finalize(value: Any) -> Any:
    """What is printed in place of a value: text without control characters."""
    if isinstance(value, Markup):
        return value
    return "" if value is None else words.clean(value)


def pretty(value: Any) -> str:
    """JSON for people; text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def compact(value: Any) -> str:
    """JSON in one line; text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def utc(value: str | None) -> str:
    """A time for those without a script, which makes it local."""
    return "" if value is None else f"{value[:10]} {value[11:19]} UTC"


environment = Environment(
    loader=PackageLoader("otel_chatdebug.viewer"),
    autoescape=True,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.filters |= {
    "pretty": pretty,
    "compact": compact,
    "utc": utc,
    "duration": words.duration,
    "size": words.size,
    "short_count": words.short_count,
    "one_line": words.one_line,
    "usage": words.usage_text,
    "error_text": words.error_text,
    "sign": lambda status: words.STATUS_SIGNS.get(status, "?"),
    "status_words": lambda status: STATUS_WORDS.get(status, str(status)),
}
environment.globals |= {"plural": words.plural, "lasted": words.lasted}


def link(request: Request, *path: str, **query: str | int | None) -> str:
    """A path within the application: the parts of ``path`` are quoted, and so are the values that are not None."""
    where = "/".join(quote(part, safe="") for part in path)
    given = {name: value for name, value in query.items() if value is not None}
    return f"{request.scope[PREFIX]}/{where}" + (f"?{urlencode(given)}" if given else "")


def page(request: Request, template: str, status_code: int = 200, **context: Any) -> HTMLResponse:
    """A page, or a part of one, with what all templates use."""
    html = environment.get_template(template).render(
        request=request,
        link=lambda *path, **query: link(request, *path, **query),
        version=__version__,
        now=datetime.now(UTC),
        **{"here": "", "open_runs": 0, **context},
    )
    return HTMLResponse(html, status_code)


def problem(request: Request, status_code: int, title: str, said: str, *, reload: bool = False) -> Response:
    """A page, or for a program JSON, that says what is wrong. ``reload``: it may be gone a moment later."""
    if not wants_html(request):
        return JSONResponse({"error": said}, status_code)
    return page(request, "problem.html", status_code, title=title, said=said, reload=reload)


def wants_html(request: Request) -> bool:
    """Whether a browser asks, and no program."""
    return "text/html" in request.headers.get("accept", "")
