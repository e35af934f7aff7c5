"""Handing a request on to the process that owns a chat, and its answer back as it is.

Only to the URL that this process has registered itself, in its row; no redirect is followed, no proxy asked, and the
asker's credentials do not go with it. The token that does is the owner's own, from the same row: who may read the
tables may ask. The header that carries it marks the request as handed on, and such a one is always answered where it
arrives, so that requests never go in circles.

Whoever accepts the token says so in a header of its answer (`ANSWERED_BY`). By that an answer of the owner, which is
passed on whatever its status, is told from that of something else at the same URL: a load balancer, another process
behind the same port, the sign-in of an application. Such a one is no answer about the chat.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote_plus, urlsplit

import anyio

from otel_chatdebug.viewer import threads
from otel_chatdebug.viewer.auth import TOKEN

FORWARDED: Final = "x-chatdebug-forwarded"
"""The header that marks a request as handed on; its value is the owner's token."""

ANSWERED_BY: Final = "x-chatdebug-answered-by"
"""The header of an answer by a process that accepts that token; its value is its ``replica_id``."""

ALLOWED_HEADERS: Final = (
    "accept",
    "accept-language",
    "user-agent",
    "x-request-id",
    "traceparent",
    "tracestate",
    "baggage",
)
"""Headers of the asker that are handed on. No cookie and no authorization: whoever hands on has asked for them."""

CONNECT_SECONDS: Final = 3.0
"""For the connection, to each address of the host."""

SECONDS: Final = 15.0
"""For all of it, however slowly the answer comes: an owner that hangs must not have its askers hang. An owner that
answers may wait for the application's hook, `threads.HOOK_SECONDS`, and for the database."""

MAX_ANSWER: Final = 32 * 1024 * 1024
"""Bytes of an answer that are passed on."""


UNUSABLE: Final = "Its registered URL is none that can be asked."


class Unreachable(Exception):
    """The owner cannot be asked, or gives no answer; the message is a sentence."""


class Answer(NamedTuple):
    """What the owner has answered, to be passed on."""

    status: int
    content_type: str | None
    body: bytes


async def forward(url: str, token: str, method: str, path: str, headers: Mapping[str, str]) -> Answer:
    """Asks the process at ``url`` for ``path`` (raw, with its query, below that URL). Raises `Unreachable`."""
    request = _Request(url, token, method, path, headers)
    try:
        with anyio.fail_after(SECONDS):
            return await threads.hand_on(request.answer)
    except TimeoutError:
        raise Unreachable(f"It gave no whole answer within {SECONDS:g} seconds.") from None
    finally:
        request.end()  # whoever has given up: the thread comes back, too


def without_credentials(query: str) -> str:
    """A query string without the token that opened this application to the asker. The rest is as it was."""
    return "&".join(pair for pair in query.split("&") if unquote_plus(pair.partition("=")[0]) != TOKEN)


class _Request:
    """One request; `answer` blocks, and `end` may be called in another thread meanwhile."""

    def __init__(self, url: str, token: str, method: str, path: str, headers: Mapping[str, str]) -> None:
        self._parts = _usable(url)
        self._method = method
        self._path = self._parts.path.rstrip("/") + path
        self._headers = {name: headers[name] for name in ALLOWED_HEADERS if name in headers} | {FORWARDED: token}
        self._socket: socket.socket | None = None
        self._ended = False

    def answer(self) -> Answer:
        """Asks. Raises `Unreachable`."""
        assert self._parts.hostname is not None
        connection_type = _CONNECTIONS[self._parts.scheme]
        try:
            connection = connection_type(self._parts.hostname, self._parts.port, timeout=CONNECT_SECONDS)
            try:
                connection.connect()
                # The connection lets go of it when the headers say that it is the last answer; the body still comes.
                self._socket = connection.sock
                if self._ended:
                    raise Unreachable("Nobody waits for it any more.")
                connection.sock.settimeout(SECONDS)
                connection.request(self._method, self._path, headers=self._headers)
                response = connection.getresponse()
                body = response.read(MAX_ANSWER + 1)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise Unreachable(f"It did not answer ({type(exc).__name__}).") from exc
        if response.getheader(ANSWERED_BY) is None:
            raise Unreachable(
                f"What answers at its public_url (with status {response.status}) is another process, or refuses its "
                "token."
            )
        if len(body) > MAX_ANSWER:
            raise Unreachable("Its answer is too long.")
        return Answer(response.status, response.getheader("content-type"), body)

    def end(self) -> None:
        """Has a thread that is in `answer` come back soon."""
        self._ended = True
        if self._socket is not None:
            with suppress(OSError):  # it has ended
                self._socket.shutdown(socket.SHUT_RDWR)


_CONNECTIONS: Final = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


def _usable(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        raise Unreachable(UNUSABLE) from None
    if parts.scheme not in _CONNECTIONS or parts.hostname is None:
        raise Unreachable(UNUSABLE)
    return parts
