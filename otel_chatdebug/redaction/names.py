"""What the names of headers, query parameters and JSON keys say of the values behind them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import lru_cache

from otel_chatdebug.redaction.formats import keys_out

ALLOWED_HEADERS = (
    "accept*",
    "age",
    "alt-svc",
    "anthropic-beta",
    "cache-control",
    "cf-cache-status",
    "cf-ray",
    "connection",
    "content-*",
    "date",
    "etag",
    "expires",
    "host",
    "idempotency-key",
    "keep-alive",
    "last-modified",
    "openai-beta",
    "openai-model",
    "prefer",
    "server",
    "server-timing",
    "traceparent",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "x-envoy-upstream-service-time",
    "x-goog-api-client",
    "x-should-retry",
    "x-stainless-*",
    "*processing-ms",
    "*ratelimit*",
    "*request-id*",
    "*-version",
    "retry-after*",
)
"""Names whose values say how a request went, not who sent it. ``baggage`` and organisation ids are not among them."""

URL_HEADERS = frozenset({"location", "content-location", "referer"})
"""Headers whose value is a URL: kept, as `Redactor.url` leaves it."""

ALLOWED_QUERY = frozenset({"alt", "api-version", "beta"})
"""Query parameters that only choose a format or a version."""

MAX_NAME = 64
"""Characters of a header's or a key's name that is looked up by its pattern and cached."""

_SECRET_ENDINGS = (
    "apikey",
    "accesskey",
    "secretkey",
    "privatekey",
    "signingkey",
    "encryptionkey",
    "subscriptionkey",
    "accountkey",
    "masterkey",
    "authkey",
    "sharedkey",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "authorization",
    "credential",
    "cookie",
    "jwt",
    "connectionstring",
)
"""How the name of a secret ends, in small letters and without separators: ``OPENAI_API_KEY``, ``clientSecret``."""

_SECRET_NAMES = frozenset({"auth", "oauth", "pwd", "pass", "bearer", "secretaccesskey", "proxyauth", "basicauth"})

_HARMLESS_NAMES = frozenset({"stoptoken", "eostoken", "bostoken", "padtoken", "unktoken", "masktoken", "septoken"})
"""Names of a tokenizer's special tokens."""

_HEADERS_NAMES = frozenset(
    {"headers", "extraheaders", "httpheaders", "requestheaders", "defaultheaders", "metadataheaders"}
)
_BLOB_NAMES = frozenset({"data", "filedata", "b64json", "partialimageb64", "base64", "encryptedcontent", "bytes"})
_SEPARATORS = str.maketrans("", "", "-_. ")


class Kind(IntEnum):
    """What the name of a JSON key says of its value."""

    OTHER = 0
    SECRET = 1
    TOKEN = 2
    """A secret, or what a model reads and writes: the value and its neighbours tell."""
    HEADERS = 3
    BLOB = 4


class Names:
    """The lists above and the user's additions. Immutable; any thread; remembers what it was asked, bounded.

    ``allow_headers`` and ``secret_keys`` may have ``*`` for any text; ``allow_query`` names are taken as they are. Case
    does not matter, nor do ``-``, ``_``, ``.`` and spaces in ``secret_keys``.
    """

    def __init__(
        self, allow_headers: Iterable[str] = (), allow_query: Iterable[str] = (), secret_keys: Iterable[str] = ()
    ) -> None:
        allowed = _any_of([*ALLOWED_HEADERS, *(name.lower() for name in allow_headers)])
        secret = _any_of([name.lower().translate(_SEPARATORS) for name in secret_keys])
        self.allowed_query = ALLOWED_QUERY | {name.lower() for name in allow_query}
        self.allows_header: Callable[[str], bool] = lru_cache(maxsize=1024)(allowed)
        """Whether the value of a header may be shown; the name in small letters."""
        self.has_secret_keys = secret is not _nothing
        """Whether the user has named any."""

        def look_up(name: str) -> tuple[Kind, str]:
            plain = name[-MAX_NAME:].lower().translate(_SEPARATORS)
            stem = plain.rstrip("0123456789").removesuffix("s")  # "password2", "api_keys"
            own = plain if "." not in name else name[-MAX_NAME:].rpartition(".")[2].lower().translate(_SEPARATORS)
            if secret(plain) or secret(stem) or secret(own):  # "options.auth": the option "auth" of the options
                kind = Kind.SECRET
            elif plain in _HARMLESS_NAMES:
                kind = Kind.OTHER
            elif stem.endswith("token"):
                kind = Kind.TOKEN
            elif own in _SECRET_NAMES or stem.endswith(_SECRET_ENDINGS):
                kind = Kind.SECRET
            elif own in _HEADERS_NAMES:
                kind = Kind.HEADERS
            else:
                kind = Kind.BLOB if own in _BLOB_NAMES else Kind.OTHER
            return kind, keys_out(name)

        remembered = lru_cache(maxsize=4096)(look_up)

        def key(name: str) -> tuple[Kind, str]:
            return remembered(name) if len(name) <= MAX_NAME else look_up(name)  # they come from the wire

        self.key = key
        """What a JSON key's name says of its value, and the name as it may be shown."""


def _any_of(patterns: list[str]) -> Callable[[str], bool]:
    if not patterns:
        return _nothing
    matches = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match
    return lambda name: matches(name) is not None


def _nothing(name: str) -> bool:
    return False
