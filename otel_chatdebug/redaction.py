"""Secrets out, facts in: what is recorded of headers, URLs, texts and bodies.

- **Headers and query parameters** by an allow-list of names that are known to be harmless: an unknown name may carry
  anything, so its value becomes `REDACTED`. Users add names of their own.
- **JSON** by the names of its keys, at any depth, also inside SSE data, NDJSON, and texts that are JSON themselves
  (arguments of tool calls). Token *counts* are never touched.
- **Free text** by the known formats of keys, user info and query values of URLs, and ``"password": "..."`` where it
  stands in the text. Messages, ids and numbers stay.
- **Binary data** (files, images, base64) by its length.
- What should be JSON and cannot be parsed is replaced whole: a secret in it could not be found.

Nothing here raises; what fails on its own is redacted whole. Every pattern takes linear time, whatever the text. All
functions are pure; any thread. What cannot be found: a secret of no known format in the middle of a message, and one
that a model says in several chunks of a stream whose format is not known.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from otel_chatdebug.blobs import MAX_DEPTH, MIN_BLOB, TOO_DEEP, decoded_length, without_blobs_text

REDACTED = "[REDACTED]"

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

_SHORTEST = 6
"""Characters of the shortest text with a secret that any pattern finds: ``?key=1``."""

_MAX_NAME = 64
"""Characters of a header's or a key's name that is looked up by its pattern and cached."""

# --- Texts -----------------------------------------------------------------------------------------------------------
#
# Linear and fast: each alternative begins with one character that is rare in prose, so that the scan skips all others
# at C speed, and looks back from there for its prefix (which is why the prefix stays: "sk-[REDACTED]" tells which kind
# of key it was). Behind that, runs are bounded or possessive, and an unbounded run that may fail in the end starts
# only where no other run could have started: no character is looked at more than a constant number of times.

_WORD = "[A-Za-z0-9_-]"
_CREDENTIAL = "[A-Za-z0-9._~+/=-]"
_HAS_DIGIT = "(?=[A-Za-z._~+/-]{0,80}[0-9])"
_CAMEL = "(?=[A-Za-z]{0,80}[a-z][A-Z])"  # as base64 of a text looks, and a word does not

_HYPHEN = "|".join(
    (
        # OpenAI and Anthropic. Their kin say less, so there must be a digit, or it is long: "sk-estimator-checks"
        # is no key, nor is "risk-assessment-2024".
        rf"(?<=sk-)(?:ant-(?:api|admin|oat|sid)|proj-|svcacct-){_WORD}{{4,}}+",
        rf"(?<=sk-)(?<![A-Za-z0-9]sk-)(?:(?:ant|or|live|test|lf|admin)-{_WORD}{{6,}}+"
        rf"|{_HAS_DIGIT}{_WORD}{{8,}}+|{_WORD}{{20,}}+|[A-Za-z]{{16,}}+{_WORD}*+)",
        rf"(?<=xai-)(?<![A-Za-z0-9]xai-)(?:{_HAS_DIGIT}|(?=[A-Za-z]{{16}})){_WORD}{{8,}}+",
        rf"(?<=pplx-){_WORD}{{16,}}+",  # Perplexity
        rf"(?<=glpat-){_WORD}{{8,}}+",  # GitLab
        rf"(?<=xox[abeoprs]-){_WORD}{{8,}}+",  # Slack
    )
)
_UNDERSCORE = "|".join(
    (
        rf"(?<=gsk_){_WORD}{{8,}}+",  # Groq
        r"(?<=gh[opsru]_)[A-Za-z0-9]{8,}+",  # GitHub
        rf"(?<=github_pat_){_WORD}{{8,}}+",
        r"(?<=hf_)(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{12,}+",  # Hugging Face
        rf"(?<=[rs]k_)(?:live|test)_{_WORD}{{8,}}+",  # Stripe
    )
)
_KEY_FORMATS = (
    f"-(?:{_HYPHEN})",
    f"_(?:{_UNDERSCORE})",
    r"A(?:KIA|SIA)[A-Z0-9]{12,}+",  # AWS
    rf"AIza{_WORD}{{20,}}+",  # Google
    rf"9(?<=ya29)\.{_WORD}{{8,}}+",  # Google, OAuth
    rf"J(?<=eyJ)(?<!{_WORD}eyJ){_WORD}{{6,}}+(?:\.{_WORD}++){{1,4}}",  # JWT, signed or encrypted
)
_IN_TEXTS = (
    # Behind a scheme stands a credential, but "basic" and "bearer" are words, too.
    *(
        rf"{letter}(?:(?i:earer)\s{{1,4}}(?:{_HAS_DIGIT}{_CREDENTIAL}{{6,}}+|{_CREDENTIAL}{{20,}}+)"
        rf"|(?i:asic)\s{{1,4}}(?:{_HAS_DIGIT}|{_CAMEL})(?:[A-Za-z0-9+/]{{4}}){{2,}}+[A-Za-z0-9+/=]{{0,3}})(?P<scheme_{letter}>)"
        for letter in "Bb"
    ),
    # A header in a text: curl -H "x-api-key: ..."
    rf":(?:(?<=(?i:authorization):)\s{{0,4}}(?i:basic|bearer|token|apikey)\s{{1,4}}{_CREDENTIAL}{{4,}}+"
    rf"|(?:(?<=(?i:api-key):)|(?<=(?i:authorization):))\s{{0,4}}(?:{_HAS_DIGIT}{_CREDENTIAL}{{6,}}+|{_CREDENTIAL}{{16,}}+))"
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
    rf"[\"']?{_HAS_DIGIT}{_CREDENTIAL}{{6,}}+(?P<assignment>)",
)
_KEYS = re.compile("|".join(_KEY_FORMATS))
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]*+(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?")
_TEXT = re.compile("|".join(_KEY_FORMATS + _IN_TEXTS))

_SECRET_WORDS = ("key", "token", "secret", "passw", "passphrase", "authorization", "cookie", "credential")
# "password": "..." in the middle of a text, also with the quotes escaped once. Begins at the closing quote of the
# name, and looks at the name that ends there.
_QUOTED = re.compile(
    r"(?P<open>[\"'])(?P<name>[A-Za-z0-9_.-]{2,64}+)(?P<between>\\?[\"']\s{0,8}:\s{0,8}\\?[\"'])"
    r"(?P<value>[^\"'\\]++(?:\\[^\"'][^\"'\\]*+)*+)"
)

_USER_INFO = re.compile(r"://[^\s/?#]{0,1024}@")

# --- Keys of JSON ----------------------------------------------------------------------------------------------------

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
_MIN_NAMED_BLOB = 64
"""Characters from which a base64 text counts as data under a name that says so."""

_NAMED_BLOB = re.compile(r"[A-Za-z0-9+/_-]+={0,2}").fullmatch
_SCHEMA_MARKS = frozenset({"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "description"})
_SCHEMA_VALUES = frozenset({"default", "const", "example", "examples", "enum"})

_FRAGMENTS = frozenset({"delta", "choices", "logprobs"})
"""Where the events of a stream have pieces of texts: Anthropic and OpenAI's responses, its chats and completions."""

_NO_FRAGMENTS = frozenset({"type", "role", "id", "name", "finish_reason", "stop_reason", "model"})
"""Names of texts beside them that come in one piece."""

_OTHER, _SECRET, _TOKEN, _HEADERS, _BLOB = range(5)


_SEPARATORS = str.maketrans("", "", "-_. ")


@lru_cache(maxsize=4096)
def _look_up(name: str) -> tuple[int, str]:
    """What a key's name says of its value, and the name as it may be shown."""
    plain = name[-_MAX_NAME:].lower().translate(_SEPARATORS)
    stem = plain.rstrip("0123456789").removesuffix("s")  # "password2", "api_keys"
    if plain in _HARMLESS_NAMES:
        kind = _OTHER
    elif stem.endswith("token"):
        kind = _TOKEN
    elif plain in _SECRET_NAMES or stem.endswith(_SECRET_ENDINGS):
        kind = _SECRET
    elif plain in _HEADERS_NAMES:
        kind = _HEADERS
    else:
        kind = _BLOB if plain in _BLOB_NAMES else _OTHER
    return kind, _keys_out(name)


def _key(name: str) -> tuple[int, str]:
    """`_look_up`, which remembers only short names: they come from the wire."""
    return _look_up(name) if len(name) <= _MAX_NAME else _look_up.__wrapped__(name)


class Redactor:
    """Redacts by the allow-lists above and the user's additions. Immutable; any thread. Nothing in it raises.

    ``allow_headers`` may have ``*`` for any text; ``allow_query`` names are taken as they are. Case does not matter.
    """

    def __init__(self, allow_headers: Iterable[str] = (), allow_query: Iterable[str] = ()) -> None:
        patterns = [*ALLOWED_HEADERS, *(name.lower() for name in allow_headers)]
        allowed = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match
        self._allows_header: Callable[[str], bool] = lru_cache(maxsize=1024)(lambda name: allowed(name) is not None)
        self._allowed_query = ALLOWED_QUERY | {name.lower() for name in allow_query}

    def headers(self, pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
        """``[[name, value], ...]`` in the same order; values of unknown names are `REDACTED`, names never are."""
        return [[name, self._header(name, value)] for name, value in pairs]

    def url(self, url: str) -> str:
        """The URL without user info, query values that are not known to be harmless, and the fragment's text."""
        try:
            scheme, separator, rest = url.partition("://")
            return _keys_out(scheme) + separator + self._behind_scheme(rest) if separator else self._path(url)
        except Exception:  # whatever it is: rather nothing than a secret
            return REDACTED

    def text(self, text: str) -> str:
        """Free text: known formats of keys out, URLs as `url` leaves them, long base64 by its length."""
        try:
            return self._text(text)
        except Exception:
            return REDACTED

    def json_value(self, value: Any) -> Any:
        """A JSON value of new lists and dicts, redacted at every depth; what is nested too deeply is left out."""
        try:
            return self._value(value, 0)
        except Exception:  # RecursionError where the caller's own stack is nearly full
            return REDACTED

    def body(
        self,
        data: bytes,
        content_type: str | None,
        *,
        limit: int = 50_000,
        framed: bool = False,
        complete: bool = True,
        fragments: bool = True,
    ) -> str | None:
        """A body as a text of at most ``limit`` bytes of UTF-8; None where there is none.

        ``framed``: it is a stream of lines (SSE, NDJSON), which are redacted one by one. ``complete``: no more will
        come; else an unfinished last line is left out for now. ``fragments``: False leaves out what the model says in
        pieces, because there is a secret in the whole, which no piece shows by itself.
        """
        try:
            return self._body(data, content_type, limit, framed, complete, fragments) if data else None
        except Exception:
            return f"[REDACTED: {len(data)} bytes]"

    def json_body(self, value: Any, *, limit: int = 50_000) -> tuple[str, bool]:
        """A parsed JSON body as `body` shows it, and whether redaction left all of it as it was.

        Where it did, nothing that is made of the body's own texts has to be redacted.
        """
        try:
            redacted = self._value(value, 0)
            return _cut(_dumps(redacted), 0, limit), redacted == value
        except Exception:
            return REDACTED, False

    # --- headers and URLs

    def _header(self, name: str, value: str) -> str:
        try:
            lower = name.lower()
            if lower in URL_HEADERS:
                return self.url(value)
            return self._text(value) if len(lower) <= _MAX_NAME and self._allows_header(lower) else REDACTED
        except Exception:
            return REDACTED

    def _behind_scheme(self, rest: str) -> str:
        end = min((index for mark in "/?#" if (index := rest.find(mark)) >= 0), default=len(rest))
        user_info, _, host = rest[:end].rpartition("@")
        return f"{REDACTED + '@' if user_info else ''}{_keys_out(host)}{self._path(rest[end:])}"

    def _path(self, rest: str) -> str:
        rest, hash_mark, fragment = rest.partition("#")
        path, question_mark, query = rest.partition("?")
        path = _keys_out(_USER_INFO.sub(f"://{REDACTED}@", path))  # a proxy's path may be a whole URL
        if query:
            path += question_mark + "&".join(self._parameter(pair) for pair in query.split("&"))
        return path + (hash_mark + REDACTED if fragment else "")

    def _parameter(self, pair: str) -> str:
        name, equals, value = pair.partition("=")
        if name.lower() in self._allowed_query:
            return name + equals + _keys_out(value)
        if not value:  # "?flag=" says nothing, "?abcdef" may be a secret by itself
            return _keys_out(name) + equals if equals or not name else REDACTED
        return f"{_keys_out(name)}={REDACTED}"

    # --- texts

    def _text(self, text: str) -> str:
        if len(text) < _SHORTEST:
            return text
        if len(text) >= MIN_BLOB or "data:" in text:
            text = without_blobs_text(text)
        if "PRIVATE KEY-----" in text:
            text = _PRIVATE_KEY.sub(REDACTED, text)
        text = _TEXT.sub(self._replace, text)
        if ('":' in text or "':" in text or '" :' in text) and _names_secrets(text):
            text = _QUOTED.sub(_replace_quoted, text)
        return text

    def _replace(self, match: re.Match[str]) -> str:
        kind = match.lastgroup
        if kind is None:
            return _replace_key(match)
        if kind == "url":
            return "://" + self._behind_scheme(match["url"])
        found = match[0]
        if kind.startswith("scheme"):
            return f"{found.split(None, 1)[0]} {REDACTED}"
        if kind == "header":
            return f": {REDACTED}"
        return found[: found.index("=") + 1] + REDACTED

    # --- JSON

    def _value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._string(value, depth)
        if value is None or isinstance(value, bool | int | float):
            return value
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        if isinstance(value, Mapping):
            return self._object(value, depth)
        if isinstance(value, list | tuple):
            return [self._value(item, depth + 1) for item in value]
        return self._text(str(value))

    def _object(self, value: Mapping[Any, Any], depth: int, *, properties: bool = False) -> dict[str, Any]:
        """``properties``: the object maps names to JSON schemas, as in the declaration of a tool."""
        result: dict[str, Any] = {}
        named = _names_a_secret(value)
        for key, item in value.items():
            key = key if isinstance(key, str) else str(key)
            kind, shown = _key(key)
            if named and key == "value":
                result[shown] = _hidden(item)
            elif kind == _OTHER:
                if key == "properties" and isinstance(item, Mapping) and depth < MAX_DEPTH:
                    result[shown] = self._object(item, depth + 1, properties=True)
                else:
                    result[shown] = self._value(item, depth + 1)
            elif kind == _HEADERS:
                result[shown] = self._headers_value(item, depth)
            elif kind == _BLOB:
                blob = isinstance(item, str) and len(item) >= _MIN_NAMED_BLOB and _NAMED_BLOB(item)
                result[shown] = f"[{decoded_length(item)} bytes]" if blob else self._value(item, depth + 1)
            elif properties and isinstance(item, Mapping) and not _SCHEMA_MARKS.isdisjoint(item):
                schema = {name: _hidden(part) if name in _SCHEMA_VALUES else part for name, part in item.items()}
                result[shown] = self._value(schema, depth + 1)
            elif kind == _TOKEN and _is_about_tokens(value, item):
                result[shown] = self._value(item, depth + 1)
            elif kind == _TOKEN and isinstance(item, Mapping):
                result[shown] = _texts_hidden(self._value(item, depth + 1))
            else:
                result[shown] = _hidden(item)
        return result

    def _string(self, text: str, depth: int) -> str:
        if len(text) > 2 and text[0] in "{[" and depth < MAX_DEPTH and (parsed := _parse(text)) is not _NO_JSON:
            redacted = self._value(parsed, depth + 1)
            # As it was where nothing had to be changed: white space may mean something to whoever reads it.
            return text if redacted == parsed else _dumps(redacted)
        return self._text(text)

    def _headers_value(self, value: Any, depth: int) -> Any:
        """Headers that are handed on (to an MCP server, say), as an object or as a list of pairs."""
        if isinstance(value, Mapping):
            return {
                _keys_out(str(name)): self._header(str(name), item) if isinstance(item, str) else _hidden(item)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._header_pair(pair, depth) for pair in value]
        return _hidden(value)

    def _header_pair(self, pair: Any, depth: int) -> Any:
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            return [_keys_out(pair[0]), self._header(pair[0], pair[1])]
        if isinstance(pair, Mapping) and isinstance(pair.get("name"), str) and isinstance(pair.get("value"), str):
            return {**self._object(pair, depth + 1), "value": self._header(pair["name"], pair["value"])}
        return _hidden(pair)

    # --- bodies

    def _body(
        self, data: bytes, content_type: str | None, limit: int, framed: bool, complete: bool, fragments: bool
    ) -> str:
        media_type = (content_type or "").partition(";")[0].strip().lower()
        start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if framed or media_type in _LINES:
            return _cut(*self._lines(data, limit, complete, fragments), limit)
        is_json = media_type.endswith(("/json", "+json"))
        if is_json or start in (b"{", b"["):
            if (text := self._json(data)) is not None:
                return _cut(text, 0, limit)
            if is_json or start == b"{" or not media_type.startswith("text/"):
                return _no_json(data)
        if media_type == "application/x-www-form-urlencoded":
            return _cut("&".join(self._parameter(pair) for pair in _decode(data).split("&")), 0, limit)
        if _is_text(media_type, data):
            return _cut(self._text(_decode(data)), 0, limit)
        return f"[{len(data)} bytes of {_keys_out(media_type)[:_MAX_NAME]}]" if media_type else f"[{len(data)} bytes]"

    def _json(self, data: bytes) -> str | None:
        parsed = _parse(_decode(data))
        return None if parsed is _NO_JSON else _dumps(self._value(parsed, 0))

    def _lines(self, data: bytes, limit: int, complete: bool, fragments: bool) -> tuple[str, int]:
        """The lines, redacted, until they are longer than ``limit``; and how many bytes were not looked at."""
        if data.lstrip()[:1] in (b"{", b"[") and (text := self._json(data)) is not None:
            return text, 0  # an error body where a stream was expected, or a stream of one line
        ahead = len(data)
        if ahead > _LINES_AT_ONCE * limit and (end := data.rfind(b"\n", 0, _LINES_AT_ONCE * limit) + 1):
            data = data[:end]  # more than can be shown; a line that is longer than that is taken whole
        ahead -= len(data)
        lines = _decode(data).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        last = lines.pop()
        if complete and last:
            lines.append(last)
        result: list[str] = []
        size = 0
        at = 0
        while at < len(lines) and size <= limit:
            end = at + 1
            if lines[at].startswith("data:"):
                while end < len(lines) and lines[end].startswith("data:"):
                    end += 1
            for line in self._group(lines[at:end], fragments):
                result.append(line)
                size += len(line) + 1
            at = end
        unseen = ahead + sum(len(line.encode("utf-8", "replace")) + 1 for line in lines[at:])
        text = "\n".join(result)
        return text + "\n" if result and (at < len(lines) or not (complete and last)) else text, unseen

    def _group(self, lines: list[str], fragments: bool) -> list[str]:
        """Neighbouring ``data:`` lines are one payload, which may be one JSON or (without blank lines) several."""
        if not lines[0].startswith("data:"):
            return [self._line(lines[0], "", fragments)]
        payloads = [line[5:].removeprefix(" ") for line in lines]
        if len(payloads) > 1 and any(_looks_like_json(text) and _parse(text) is _NO_JSON for text in payloads):
            return [self._line("\n".join(payloads), "data: ", fragments)]
        return [self._line(payload, "data: ", fragments) for payload in payloads]

    def _line(self, text: str, prefix: str, fragments: bool) -> str:
        if not _looks_like_json(text):
            return prefix + self._text(text)
        parsed = _parse(text)
        if parsed is _NO_JSON:
            return prefix + _no_json(text.encode("utf-8", "replace"))
        if not fragments:
            return prefix + _dumps(_without_fragments(self._value(parsed, 0)))
        return prefix + (text if self._is_harmless(text) else _dumps(self._value(parsed, 0)))

    def _is_harmless(self, text: str) -> bool:
        """Whether redaction would leave all of this JSON as it is, told from its text: ten times as fast as walking it.

        Nearly every event of a stream is: its names are the same as those of the last event, and it has no escapes,
        so its texts stand there as they are. A False is no statement.
        """
        if len(text) > _ORDINARY_EVENT or "\\" in text or text.count("{") + text.count("[") > MAX_DEPTH:
            return False
        return _are_harmless(tuple(_NAMES(text))) and self._text(text) == text


_LINES = frozenset(
    {
        "text/event-stream",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
    }
)

_ORDINARY_EVENT = 8 * 1024
"""Characters up to which an event is looked at for being harmless; its names are remembered, so they are bounded."""

_NAMES = re.compile(r'"([^"]*+)"\s*+:').findall
"""The names in a JSON text without escapes, at any depth. What stands in a value may be taken for a name, too."""
_SPECIAL_NAMES = frozenset({"name", "value", "properties"})
"""Names that may change how their neighbours are redacted."""


@lru_cache(maxsize=1024)
def _are_harmless(names: tuple[str, ...]) -> bool:
    """Whether these names say nothing about the values behind them. The events of a stream have the same ones."""
    return all(name not in _SPECIAL_NAMES and _key(name) == (_OTHER, name) for name in names)


_LINES_AT_ONCE = 8
"""Times the limit that is looked at of a body of lines: redaction may make long lines short."""

_TEXTUAL = ("text/", "application/xml", "application/javascript", "application/graphql", "application/problem")

_NO_JSON = object()
_decode_json = json.JSONDecoder(parse_constant=str).decode


def _parse(text: str) -> Any:
    """The JSON value, or `_NO_JSON`."""
    try:
        return _decode_json(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return _NO_JSON


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _looks_like_json(text: str) -> bool:
    """``[DONE]`` begins like a list and is none."""
    text = text.lstrip()
    return text[:1] == "{" or (text[:1] == "[" and text.rstrip() != "[DONE]")


def _no_json(data: bytes) -> str:
    return f"[REDACTED: {len(data)} bytes that are no valid JSON]"


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _is_text(media_type: str, data: bytes) -> bool:
    if media_type:
        return media_type.startswith(_TEXTUAL) or media_type.endswith("+xml")
    try:
        sample = data[:4096]
        return b"\0" not in sample and bool(sample.decode("utf-8", "strict" if len(data) <= 4096 else "ignore"))
    except UnicodeDecodeError:
        return False


def _cut(text: str, unseen: int, limit: int) -> str:
    """``text`` within ``limit`` bytes, with a marker that says how many bytes are missing."""
    if not unseen and len(text) * 4 <= limit:
        return text
    encoded = text.encode("utf-8", "replace")
    if not unseen and len(encoded) <= limit:
        return text
    room = max(0, limit - len(_cut_marker(len(encoded) + unseen)))
    kept = encoded[:room].decode("utf-8", "ignore")  # a character that was cut in two goes, too
    return kept + _cut_marker(len(encoded) - len(kept.encode()) + unseen)


def _cut_marker(missing: int) -> str:
    return f" [cut: {missing} more bytes]"


def _keys_out(text: str) -> str:
    """Without the known formats of keys, and nothing else: for names, paths and parts of URLs."""
    return _KEYS.sub(_replace_key, text)


def _replace_key(match: re.Match[str]) -> str:
    """What stands before the match belongs to the key's prefix, and so does its first character."""
    first = match[0][0]
    return REDACTED if first == "A" else first + REDACTED


def _names_secrets(text: str) -> bool:
    lower = text.lower()
    return any(word in lower for word in _SECRET_WORDS)


def _replace_quoted(match: re.Match[str]) -> str:
    if _key(match["name"])[0] not in (_SECRET, _TOKEN):
        return match[0]
    return f"{match['open']}{match['name']}{match['between']}{REDACTED}"


def _hidden(value: Any) -> Any:
    """What stands for a secret: that there is none (null, false, an empty text) may be said."""
    return value if value is None or value == "" or isinstance(value, bool) else REDACTED


def _texts_hidden(value: Any) -> Any:
    """Details of a token: their counts stay, at any depth, and no text."""
    if isinstance(value, dict):
        return {name: _texts_hidden(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_texts_hidden(item) for item in value]
    return _hidden(value) if isinstance(value, str) else value


def _is_about_tokens(siblings: Mapping[Any, Any], value: Any) -> bool:
    """Whether a value under a name like ``max_tokens`` is no secret: a count, or a model's token with its probability
    beside it."""
    if isinstance(value, int | float) or "logprob" in siblings or "token_logprobs" in siblings:
        return True
    if isinstance(value, Mapping):
        return "logprob" in value
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)


def _without_fragments(value: Any, within: bool = False) -> Any:
    """A redacted event without the pieces of texts in it; what kind of event it is, and of what, stays."""
    if isinstance(value, dict):
        return {
            name: item
            if name in _NO_FRAGMENTS and not isinstance(item, dict | list)
            else _without_fragments(item, within or name in _FRAGMENTS)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_without_fragments(item, within) for item in value]
    return REDACTED if within and isinstance(value, str) and value else value


def _names_a_secret(value: Mapping[Any, Any]) -> bool:
    """``{"name": "API_KEY", "value": "..."}``: the name of the secret is a value itself."""
    if "value" not in value:
        return False
    names = (value.get("name"), value.get("key"), value.get("field"), value.get("id"))
    return any(isinstance(name, str) and _key(name)[0] in (_SECRET, _TOKEN) for name in names)
