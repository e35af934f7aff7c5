"""Why a request failed: what an exception of a transport comes from, and what the answer of a provider says about it.

The libraries wrap what happened (``httpx.ConnectError`` is a name that does not resolve, a certificate that has expired
and a port that is closed), so the chain of causes is looked through. Exceptions are told by the names of their classes:
httpx, httpx2, httpcore, anyio and aiohttp are never imported for that.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, Protocol


class Cause(StrEnum):
    """What a request failed of; ``error["cause"]``."""

    CONNECT_TIMEOUT = "connect_timeout"
    READ_TIMEOUT = "read_timeout"
    WRITE_TIMEOUT = "write_timeout"
    POOL_TIMEOUT = "pool_timeout"
    """No connection of the client's pool became free."""
    TIMEOUT = "timeout"
    """Of something else, a whole request say."""
    DNS = "dns"
    """The host's name could not be resolved."""
    TLS = "tls"
    """No secure connection could be made: a certificate, a protocol."""
    REFUSED = "connection_refused"
    UNREACHABLE = "unreachable"
    """No way to the host or its network."""
    PROXY = "proxy"
    CONNECT = "connect"
    """There was no connection, for another reason."""
    DISCONNECTED = "disconnected"
    """The other side closed the connection before its answer was whole."""
    RESET = "connection_reset"
    PROTOCOL = "protocol"
    """What came is not HTTP."""
    DECODING = "decoding"
    """The content coding of the answer is broken."""


class Retries(Protocol):
    """By which rules an SDK sends a failed attempt again."""

    def left(self, sent: int, request_headers: Any) -> int | None:
        """How many retries there are after an attempt, ``sent`` attempts of the same call having gone before it; None
        where their number is not limited, or not known."""

    def of_status(self, status: int, headers: Any) -> bool:
        """Whether an answer with this status and these headers is retried."""

    def of_exception(self, exc: BaseException) -> bool:
        """Whether what the transport raised is retried."""


class DecodingError(Exception):
    """Stands for the one of httpx or httpx2, in the question whether an SDK retries it."""


LONGEST_CHAIN: Final = 12
"""Exceptions of a chain of causes that are looked at; those of the libraries have five or six."""

_BY_CLASS: Final = {
    "ConnectTimeout": Cause.CONNECT_TIMEOUT,
    "ConnectionTimeoutError": Cause.CONNECT_TIMEOUT,  # aiohttp
    "ReadTimeout": Cause.READ_TIMEOUT,
    "SocketTimeoutError": Cause.READ_TIMEOUT,  # aiohttp
    "WriteTimeout": Cause.WRITE_TIMEOUT,
    "PoolTimeout": Cause.POOL_TIMEOUT,
    "ProxyError": Cause.PROXY,
    "DecodingError": Cause.DECODING,
}
"""Classes that say it all, whatever they come from."""

_BY_CLASS_ALONE: Final = {
    "ConnectError": Cause.CONNECT,
    "ReadError": Cause.DISCONNECTED,
    "WriteError": Cause.DISCONNECTED,
    "CloseError": Cause.DISCONNECTED,
    "LocalProtocolError": Cause.PROTOCOL,
    "TimeoutException": Cause.TIMEOUT,
    "TimeoutError": Cause.TIMEOUT,
}
"""Classes that say something where nothing in their chain says more."""

_BY_ERRNO: Final = {
    errno.ECONNREFUSED: Cause.REFUSED,
    errno.ECONNRESET: Cause.RESET,
    errno.EPIPE: Cause.RESET,
    errno.ENETUNREACH: Cause.UNREACHABLE,
    errno.EHOSTUNREACH: Cause.UNREACHABLE,
    errno.ETIMEDOUT: Cause.CONNECT_TIMEOUT,
}

_DISCONNECTED: Final = ("disconnected", "closed connection", "peer closed", "incomplete")
"""What a ``RemoteProtocolError`` says where the other side hung up; else it did not speak HTTP."""

REQUEST_IDS: Final = (
    "x-request-id",
    "request-id",
    "apim-request-id",
    "x-amzn-requestid",
    "mistral-correlation-id",
    "x-goog-request-id",
    "x-cloud-trace-context",
    "cf-ray",
)
"""Response headers by which a provider finds a request again, the best first."""

REQUEST_ID_LIMIT: Final = 200
"""Characters of a request id that are kept."""


def cause(exc: BaseException) -> Cause | None:
    """What ``exc``, raised by a transport, comes from; None where it is nothing that is known."""
    names = [base.__name__ for base in type(exc).__mro__]
    said = next((_BY_CLASS[name] for name in names if name in _BY_CLASS), None)
    # Bridges to aiohttp call every connection that fails a ConnectTimeout.
    if said is not None and said is not Cause.CONNECT_TIMEOUT:
        return said
    for inner in _chain(exc):
        found = _cause_of_one(inner, connecting="ConnectError" in names)
        if found is not None:
            return found
    if said is not None:
        return said
    if "RemoteProtocolError" in names:
        text = str(exc).lower()
        return Cause.DISCONNECTED if any(word in text for word in _DISCONNECTED) else Cause.PROTOCOL
    return next((_BY_CLASS_ALONE[name] for name in names if name in _BY_CLASS_ALONE), None)


def _cause_of_one(exc: BaseException, *, connecting: bool) -> Cause | None:
    if isinstance(exc, socket.gaierror) or type(exc).__name__ == "ClientConnectorDNSError":
        return Cause.DNS
    if isinstance(exc, ssl.SSLError):
        # A secure connection that ends in the middle of an answer is an SSLError, too.
        ended = isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        return Cause.DISCONNECTED if ended and not connecting else Cause.TLS
    if isinstance(exc, OSError):
        return _BY_ERRNO.get(exc.errno or 0)
    return None


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """``exc`` and what it comes from, each once, as far as that is told."""
    waiting: list[BaseException | None] = [exc]
    seen: list[int] = []
    while waiting and len(seen) < LONGEST_CHAIN:
        current = waiting.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.append(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):  # anyio has tried several addresses
            waiting.extend(current.exceptions)
        # Only httpcore hides its cause in the context; elsewhere that may be the former failure, which an SDK was
        # handling when it tried again.
        hidden = current.__context__ if type(current).__module__.startswith("httpcore") else None
        waiting += [current.__cause__ or hidden, getattr(current, "os_error", None)]  # the second is aiohttp's


def request_id(headers: Mapping[str, str] | None, body: Any) -> str | None:
    """By which the provider finds the request again: from a header, or from the body of an error (Anthropic's)."""
    for name in REQUEST_IDS:
        value = None if headers is None else headers.get(name)
        if value:
            return str(value)[:REQUEST_ID_LIMIT]
    value = body.get("request_id") if isinstance(body, dict) else None
    return value[:REQUEST_ID_LIMIT] if isinstance(value, str) else None


RETRY_AFTER_LIMIT: Final = 100
"""Characters of a ``Retry-After`` header that are kept."""


def retry_after(headers: Mapping[str, str]) -> str | None:
    """After how long the provider asks to try again: seconds, or a date; None where no header says so."""
    value = headers.get("retry-after")
    if value is not None:
        return str(value)[:RETRY_AFTER_LIMIT]
    try:
        seconds = float(headers.get("retry-after-ms") or "") / 1000  # OpenAI's and Azure's
    except ValueError:
        return None
    return f"{seconds:g}" if 0 <= seconds < math.inf else None
