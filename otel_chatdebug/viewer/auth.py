"""Who may see the pages, and what a browser may do with them.

The pages show what people wrote to models, so they are closed but for a token. As Jupyter does it, one link with
``?token=...`` sets a cookie, and the token is gone from the address at once; programs send ``Authorization: Bearer``.
Everything that is compared is compared in constant time.

Two middlewares, both plain ASGI: `Shield` goes around everything (the Host, the Origin, the headers of each response),
`TokenRequired` around what the token opens. The snapshot has a rule of its own, stands outside of it and asks `Access`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from otel_chatdebug.viewer import threads

logger = logging.getLogger("otel_chatdebug")

Allow: TypeAlias = Callable[[Request], bool | Awaitable[bool]]

TOKEN_BYTES = 24
"""Of chance in a token that we make; Jupyter's have as many."""

MAX_FORM = 64 * 1024
"""Bytes of a form that are read; ours are some hundred."""

PREFIX = "chatdebug.prefix"
"""Key of the scope: the path below which the application is mounted."""

ADDED = "chatdebug.headers"
"""Key of the scope: headers that the response gets besides `HEADERS`, whoever makes it."""

TOKEN: Final = "token"
"""The parameter of a link that opens the pages. It is for us alone: in no further address, and not handed on."""

ON_THE_WIRE: Final = "".join(map(chr, range(0x21, 0x7F)))
"""What a path or a query may hold as it is; `quote` escapes the rest, and leaves what is escaped already."""

HEADERS = {
    # Nothing but our own files, no inline script or style, no string becomes script or HTML, nobody frames us.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # A run's address is nobody else's business. (With "no-referrer" our own forms would come from the Origin "null".)
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every response, unless it says something else itself."""


def new_token() -> str:
    """A token that cannot be guessed, fit for a URL."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def is_loopback(host: str) -> bool:
    """Whether a host, as one writes it, can only be reached from this machine."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Hosts:
    """Which names in the header ``Host`` are answered. Immutable; any thread.

    A page elsewhere can have its own name point to this machine and read us as its own site (DNS rebinding); under a
    name that nobody has told us there is no answer.
    """

    names: frozenset[str]
    addresses: bool
    """Whether any IP address is fine: nobody can rebind one."""

    @classmethod
    def of(cls, host: str, more: Iterable[str] = ()) -> Hosts:
        """For a server that listens on ``host``."""
        return cls(frozenset(name.strip("[]").lower() for name in (host, *more)), addresses=not is_loopback(host))

    def allow(self, header: str) -> bool:
        """Whether a ``Host`` header of that text is answered."""
        name = _hostname(header)
        if name is None:
            return False
        return name in self.names or is_loopback(name) or (self.addresses and _is_address(name))


@dataclass(frozen=True, slots=True)
class Access:
    """What opens the pages. Immutable; any thread."""

    token: str | None = None
    """None: no token opens them."""
    allow: Allow | None = None
    """Opens them to requests for which it says so, besides the token. May be asynchronous; else it is called in a
    thread. It opens nothing where it raises, or says nothing within `threads.HOOK_SECONDS`."""
    open: bool = False
    """Whoever reaches them may see them."""

    async def permits(self, request: Request) -> bool:
        """Whether this request may see the pages: by the token, or by ``allow``.

        Raises ``HTTPException`` where ``allow`` does: it is how an application says no in its own words.
        """
        if self.has_token(request):
            return True
        if self.allow is None:
            return False
        try:
            return bool(await threads.ask(self.allow, request))
        except HTTPException:
            raise
        except Exception as exc:
            logger.warning("allow raised %s; the debug pages are not shown.", type(exc).__name__)
            logger.debug("allow", exc_info=exc)
            return False

    def has_token(self, request: Request) -> bool:
        """Whether the request shows the token: by cookie, or by ``Authorization: Bearer``. Always, where none is
        needed."""
        if self.open:
            return True
        if self.token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and self.is_token(given.strip()):
                return True
            if _same(request.cookies.get(cookie_name(request), ""), self._session()):
                return True
        return False

    def is_token(self, given: str) -> bool:
        """Whether this is the token. Compared in constant time."""
        return self.token is not None and _same(given, self.token)

    def by_link(self, request: Request) -> Response | None:
        """Where the address has the token: lets the browser in, and has it go on without the token. Else None."""
        given = request.query_params.get(TOKEN)
        if given is None or request.method != "GET" or not self.is_token(given):
            return None
        return self.let_in(request, without_token(request))

    def let_in(self, request: Request, path: str) -> Response:
        """Sends the browser on to ``path`` with a cookie that `permits` knows."""
        response = RedirectResponse(path, status_code=303)
        response.set_cookie(
            cookie_name(request),
            self._session(),
            path=request.scope[PREFIX] or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            # A link in a chat or in Jaeger leads to a run's page; whatever changes something wants more than a cookie.
            samesite="lax",
        )
        return response

    def _session(self) -> str:
        """The cookie's value: not the token, so that who reads the one has not the other."""
        assert self.token is not None
        return hmac.new(self.token.encode(), b"otel-chatdebug session", hashlib.sha256).hexdigest()


class Shield:
    """Around everything: refuses foreign Hosts and Origins, and gives each response its headers.

    ``hosts`` None answers to any name: an application that mounts us has its own rules for that.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix = scope.setdefault(PREFIX, scope.get("root_path", "").rstrip("/"))
        is_static = scope["path"].startswith(f"{prefix}/static/")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if is_static:
                    headers.setdefault("cache-control", "no-cache")  # may be kept, is asked for each time
                for name, value in (*scope.get(ADDED, {}).items(), *HEADERS.items()):
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(HTTPConnection(scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: HTTPConnection) -> Response | None:
        host = request.headers.get("host", "")
        if _hostname(host) is None:
            return PlainTextResponse("There is no host in this request.\n", status_code=400)
        if self._hosts is not None and not self._hosts.allow(host):
            return PlainTextResponse(
                "This server does not answer under that name. Open it by its address, or name the host when you start "
                "it: otel-chatdebug serve --allow-host NAME, or chatdebug_app(allowed_hosts=[...]).\n",
                status_code=421,
            )
        origin = request.headers.get("origin")
        if origin is not None and not _is_origin_of(origin, host):
            return PlainTextResponse("This request comes from another site.\n", status_code=403)
        site, mode = (request.headers.get(f"sec-fetch-{name}") for name in ("site", "mode"))
        if site in ("cross-site", "same-site") and mode != "navigate":
            return PlainTextResponse("This request comes from another site.\n", status_code=403)
        return None


class TokenRequired:
    """Around what the token opens. ``ask`` makes the answer for those who have none: a form, or a sentence."""

    def __init__(self, app: ASGIApp, access: Access, ask: Callable[[Request], Response]) -> None:
        self._app = app
        self._access = access
        self._ask = ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer: ASGIApp | None = self._access.by_link(request)
        if answer is None:
            answer = self._app if await self._access.permits(request) else self._ask(request)
        await answer(scope, receive, send)


def same_site_post(request: Request) -> bool:
    """Whether a browser says that one of our own pages sent this.

    `Shield` has refused every foreign Origin already; here one must be there, or the browser's word for it.
    """
    return "origin" in request.headers or request.headers.get("sec-fetch-site") == "same-origin"


def form_token(request: Request) -> str:
    """The token that a form must carry against cross-site requests: what the cookie beside it says, else a new one."""
    found = request.cookies.get(form_cookie(request), "")
    return found if len(found) == 2 * TOKEN_BYTES and found.isalnum() else secrets.token_hex(TOKEN_BYTES)


def set_form_token(request: Request, response: Response, token: str) -> Response:
    """Sets the cookie of `form_token`; no other site can read it, or have it sent along."""
    response.set_cookie(
        form_cookie(request),
        token,
        path=request.scope[PREFIX] or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


def is_own_form(request: Request, form: dict[str, str]) -> bool:
    """Whether a form was made by a page of ours, for this browser."""
    cookie = request.cookies.get(form_cookie(request), "")
    return same_site_post(request) and bool(cookie) and _same(form.get("form_token", ""), cookie)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form. What is longer than `MAX_FORM`, or is none of ours, has none."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            return {}
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}


def own_path(request: Request, path: str) -> str:
    """``path``, where it lies within this application, else the first page: no link that somebody sends leads away."""
    prefix = request.scope[PREFIX]
    inside = path.startswith(f"{prefix}/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if inside else f"{prefix}/"


def without_token(request: Request) -> str:
    """The path and query of this request without the token. The path as it came: ``a%2Fb`` is no ``a/b``."""
    path = quote(request.scope.get("raw_path", b"").partition(b"?")[0], safe=ON_THE_WIRE)
    if not path.startswith(f"{request.scope[PREFIX]}/"):  # a server that tells none, or what is below the prefix only
        path = quote(request.scope["path"])
    query = [(name, value) for name, value in request.query_params.multi_items() if name != TOKEN]
    return own_path(request, path) + (f"?{urlencode(query)}" if query else "")


def cookie_name(request: HTTPConnection) -> str:
    """One for each port: browsers send a cookie to all servers of a host."""
    return f"chatdebug-{_port(request)}"


def form_cookie(request: HTTPConnection) -> str:
    """As `cookie_name`, for `form_token`."""
    return f"chatdebug-form-{_port(request)}"


def _port(request: HTTPConnection) -> int:
    return request.url.port or {"https": 443}.get(request.url.scheme, 80)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


def _hostname(header: str) -> str | None:
    """The name or address in a ``Host`` header, None where there is none."""
    try:
        parts = urlsplit(f"//{header}")
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return None
        _ = parts.port  # raises where it is no number
        return parts.hostname.rstrip(".") if parts.hostname else None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_origin_of(origin: str, host: str) -> bool:
    """Whether an ``Origin`` is that of the ``Host``. The scheme may differ: TLS may end before us."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = {"http": ":80", "https": ":443"}.get(parts.scheme)
    if default is None:
        return False
    return parts.netloc.lower().removesuffix(default) == host.lower().removesuffix(default)
