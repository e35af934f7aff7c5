"""Handing a request on to the process that owns a chat, and its answer back as it is.

Only to the URL that this process has registered itself, in its row; without a redirect, a proxy or the asker's
credentials. The token that goes with it is the owner's own, from the same row: who may read the tables may ask. The
header that carries it marks the request as handed on, and such a one is always answered where it arrives, so that
requests never go in circles.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

FORWARDED: Final = "x-chatdebug-forwarded"
"""The header that marks a request as handed on; its value is the owner's token."""

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

TIMEOUT: Final = 5.0
"""Seconds for the connection, and for each read: an owner that hangs must not have its askers hang."""

MAX_ANSWER: Final = 32 * 1024 * 1024
"""Bytes of an answer that are passed on."""


UNUSABLE: Final = "Its registered URL is none that can be asked."


class Unreachable(Exception):
    """The owner cannot be asked, or gives no answer; the message is a sentence."""


class Answer(NamedTuple):
    status: int
    content_type: str | None
    body: bytes


def forward(url: str, token: str, method: str, path: str, headers: Mapping[str, str]) -> Answer:
    """Asks the process at ``url`` for ``path`` (raw, with its query, below that URL). Blocks. Raises `Unreachable`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Unreachable(UNUSABLE) from None
    connections = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    connection_type = connections.get(parts.scheme)
    if connection_type is None or parts.hostname is None:
        raise Unreachable(UNUSABLE)
    sent = {name: headers[name] for name in ALLOWED_HEADERS if name in headers} | {FORWARDED: token}
    try:
        connection = connection_type(parts.hostname, parts.port, timeout=TIMEOUT)
        try:
            connection.request(method, parts.path.rstrip("/") + path, headers=sent)
            response = connection.getresponse()
            body = response.read(MAX_ANSWER + 1)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise Unreachable(f"It did not answer ({type(exc).__name__}).") from exc
    if len(body) > MAX_ANSWER:
        raise Unreachable("Its answer is too long.")
    return Answer(response.status, response.getheader("content-type"), body)
