"""Texts, URLs and headers without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable

from otel_chatdebug.blobs import MIN_BLOB, without_blobs_text
from otel_chatdebug.redaction.formats import (
    CAMEL,
    CREDENTIAL,
    HAS_DIGIT,
    KEY_FORMATS,
    PRIVATE_KEY,
    REDACTED,
    keys_out,
    replace_key,
)
from otel_chatdebug.redaction.names import MAX_NAME, URL_HEADERS, Kind, Names

_SHORTEST = 6
"""Characters of the shortest text with a secret that any pattern finds: ``?key=1``."""

# In the order and by the rules of `formats`.
_IN_TEXTS = (
    # Behind a scheme stands a credential, but "basic" and "bearer" are words, too.
    *(
        rf"{letter}(?:(?i:earer)\s{{1,4}}(?:{HAS_DIGIT}{CREDENTIAL}{{6,}}+|{CREDENTIAL}{{20,}}+)"
        rf"|(?i:asic)\s{{1,4}}(?:{HAS_DIGIT}|{CAMEL})(?:[A-Za-z0-9+/]{{4}}){{2,}}+[A-Za-z0-9+/=]{{0,3}})(?P<scheme_{letter}>)"
        for letter in "Bb"
    ),
    # A header in a text: curl -H "x-api-key: ..."
    rf":(?:(?<=(?i:authorization):)\s{{0,4}}(?i:basic|bearer|token|apikey)\s{{1,4}}{CREDENTIAL}{{4,}}+"
    rf"|(?:(?<=(?i:api-key):)|(?<=(?i:authorization):))\s{{0,4}}(?:{HAS_DIGIT}{CREDENTIAL}{{6,}}+|{CREDENTIAL}{{16,}}+))"
    r"(?P<header>)",
    # The rest of a URL behind its scheme, as `Redactor.url` leaves it.
    r"://(?P<url>[^\s\"'<>\\`|^{}]{1,4096})",
    # A query without a URL before it ("GET /v1/models?key=..."), and a shell's assignment ("OPENAI_API_KEY=...").
    *(
        rf"{mark}(?i:[a-z_-]{{0,20}}(?:key|token|secret|password|signature|credential|sig|auth))=[^\s\"'<>\\&#]{{1,4096}}"
        rf"(?P<query_{name}>)"
        for mark, name in ((r"\?", "first"), ("&", "next"))
    ),
    r"=(?:(?<=(?i:api_key)=)|(?<=(?i:apikey)=)|(?<=(?i:access_key)=)|(?<=(?i:secret)=)|(?<=(?i:password)=)|(?<=(?i:token)=))"
    rf"[\"']?{HAS_DIGIT}{CREDENTIAL}{{6,}}+(?P<assignment>)",
)
_TEXT = re.compile("|".join(KEY_FORMATS + _IN_TEXTS))

_SECRET_WORDS = ("key", "token", "secret", "passw", "passphrase", "authorization", "cookie", "credential")
# "password": "..." in the middle of a text, also with the quotes escaped once. Begins at the closing quote of the
# name, and looks at the name that ends there.
_QUOTED = re.compile(
    r"(?P<open>[\"'])(?P<name>[A-Za-z0-9_.-]{2,64}+)(?P<between>\\?[\"']\s{0,8}:\s{0,8}\\?[\"'])"
    r"(?P<value>[^\"'\\]++(?:\\[^\"'][^\"'\\]*+)*+)"
)

_USER_INFO = re.compile(r"://[^\s/?#]{0,1024}@")


class TextRedactor:
    """What is done to a text, a URL and a header. Immutable; any thread. Nothing in it raises."""

    def __init__(
        self, allow_headers: Iterable[str] = (), allow_query: Iterable[str] = (), secret_keys: Iterable[str] = ()
    ) -> None:
        self.names = Names(allow_headers, allow_query, secret_keys)

    def headers(self, pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
        """``[[name, value], ...]`` in the same order; values of unknown names are `REDACTED`, names never are."""
        return [[name, self._header(name, value)] for name, value in pairs]

    def url(self, url: str) -> str:
        """The URL without user info, query values that are not known to be harmless, and the fragment's text."""
        try:
            scheme, separator, rest = url.partition("://")
            return keys_out(scheme) + separator + self._behind_scheme(rest) if separator else self._path(url)
        except Exception:  # whatever it is: rather nothing than a secret
            return REDACTED

    def text(self, text: str) -> str:
        """Free text: known formats of keys out, URLs as `url` leaves them, long base64 by its length."""
        try:
            return self._text(text)
        except Exception:
            return REDACTED

    # --- headers and URLs

    def _header(self, name: str, value: str) -> str:
        try:
            lower = name.lower()
            if lower in URL_HEADERS:
                return self.url(value)
            return self._text(value) if len(lower) <= MAX_NAME and self.names.allows_header(lower) else REDACTED
        except Exception:
            return REDACTED

    def _behind_scheme(self, rest: str) -> str:
        end = min((index for mark in "/?#" if (index := rest.find(mark)) >= 0), default=len(rest))
        user_info, _, host = rest[:end].rpartition("@")
        return f"{REDACTED + '@' if user_info else ''}{keys_out(host)}{self._path(rest[end:])}"

    def _path(self, rest: str) -> str:
        rest, hash_mark, fragment = rest.partition("#")
        path, question_mark, query = rest.partition("?")
        path = keys_out(_USER_INFO.sub(f"://{REDACTED}@", path))  # a proxy's path may be a whole URL
        if query:
            path += question_mark + "&".join(self._parameter(pair) for pair in query.split("&"))
        return path + (hash_mark + REDACTED if fragment else "")

    def _parameter(self, pair: str) -> str:
        name, equals, value = pair.partition("=")
        if name.lower() in self.names.allowed_query:
            return name + equals + keys_out(value)
        if not value:  # "?flag=" says nothing, "?abcdef" may be a secret by itself
            return keys_out(name) + equals if equals or not name else REDACTED
        return f"{keys_out(name)}={REDACTED}"

    # --- texts

    def _text(self, text: str) -> str:
        if len(text) < _SHORTEST:
            return text
        if len(text) >= MIN_BLOB or "data:" in text:
            text = without_blobs_text(text)
        if "PRIVATE KEY-----" in text:
            text = PRIVATE_KEY.sub(REDACTED, text)
        text = _TEXT.sub(self._replace, text)
        if ('":' in text or "':" in text or '" :' in text) and self._names_secrets(text):
            text = _QUOTED.sub(self._replace_quoted, text)
        return text

    def _is_clean(self, text: str) -> bool:
        """Whether `_text` would leave lines of JSON with harmless names as they are. A False is no statement.

        Names are looked at by the caller, so that ``"password": "..."`` is of interest in other quotation marks only.
        """
        if "PRIVATE KEY-----" in text or ("'" in text and ("':" in text or "' :" in text)):
            return False
        if "\\" in text and '\\"' in text:
            return False
        return _TEXT.search(text) is None and without_blobs_text(text) is text

    def _replace(self, match: re.Match[str]) -> str:
        kind = match.lastgroup
        if kind is None:
            return replace_key(match)
        if kind == "url":
            return "://" + self._behind_scheme(match["url"])
        found = match[0]
        if kind.startswith("scheme"):
            return f"{found.split(None, 1)[0]} {REDACTED}"
        if kind == "header":
            return f": {REDACTED}"
        return found[: found.index("=") + 1] + REDACTED

    def _replace_quoted(self, match: re.Match[str]) -> str:
        if self.names.key(match["name"])[0] not in (Kind.SECRET, Kind.TOKEN):
            return match[0]
        return f"{match['open']}{match['name']}{match['between']}{REDACTED}"

    def _names_secrets(self, text: str) -> bool:
        if self.names.has_secret_keys:
            return True
        lower = text.lower()
        return any(word in lower for word in _SECRET_WORDS)
