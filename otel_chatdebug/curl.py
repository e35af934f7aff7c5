"""A recorded request as a curl command that one can run again.

Secrets were never recorded; their places are taken by environment variables. All else is quoted for a POSIX shell,
whatever it holds: recorded content is somebody else's, and the command is made to be pasted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otel_chatdebug.redaction import REDACTED

KEYS = {
    "anthropic": "ANTHROPIC_API_KEY",
    "cohere": "COHERE_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "gcp.gemini": "GEMINI_API_KEY",
    "groq": "GROQ_API_KEY",
    "mistral_ai": "MISTRAL_API_KEY",
    "openai": "OPENAI_API_KEY",
    "perplexity": "PERPLEXITY_API_KEY",
    "x_ai": "XAI_API_KEY",
}
"""The variable that a provider's own SDK reads; by ``gen_ai.provider.name``."""

TOKENS = {"ANTHROPIC_API_KEY": "ANTHROPIC_AUTH_TOKEN", "GEMINI_API_KEY": "GOOGLE_ACCESS_TOKEN"}
"""The variable of what goes into ``authorization``, where the provider's key goes elsewhere."""

KEY_HEADERS = {"x-api-key": "", "api-key": "AZURE_OPENAI_API_KEY", "x-goog-api-key": "GEMINI_API_KEY"}
"""Headers that hold nothing but the provider's key, and its variable where that does not go by the provider."""

_OF_THE_CONNECTION = ("connection", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
_OF_THE_TRACE = ("traceparent", "tracestate", "baggage")
NOT_SENT = frozenset((*_OF_THE_CONNECTION, *_OF_THE_TRACE, "content-length"))
"""Headers that curl makes itself, or that belong to one connection or one trace only."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""What may be a header's name. Anything else might be an option for curl (``@file``)."""

_CUT = re.compile(r" \[cut: \d+ more bytes\]\Z")
_REPLACED = re.compile(r"\[REDACTED[^\]]*\]|data:[^,\s]{0,200},\[\d+ bytes\]|\[base64: \d+ characters\]")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class NotRepeatable(ValueError):
    """There is no request to repeat; the message says why."""


@dataclass(frozen=True, slots=True)
class Curl:
    """A command, and what to know before one runs it."""

    command: str
    """For sh, on several lines. Where the request holds control characters, for bash and zsh (``$'...'``)."""
    variables: tuple[str, ...]
    """Environment variables in it, for what was a secret."""
    notes: tuple[str, ...]
    """Sentences: in what it differs from the request that was sent."""

    def __str__(self) -> str:
        """The command below its notes, which are comments for the shell."""
        return "\n".join([*(f"# {note}" for note in self.notes), self.command])


def curl(attempt: Mapping[str, Any], *, provider: str | None = None) -> Curl:
    """The request of an attempt, a row with its content (`queries.load_run`), as a command.

    ``provider`` is the step's; it names the key's variable. Raises `NotRepeatable` where the URL is none of HTTP.
    """
    return _Command(attempt, provider).build()


class _Command:
    def __init__(self, attempt: Mapping[str, Any], provider: str | None) -> None:
        self._attempt = attempt
        self._key = KEYS.get(provider or "", "API_KEY")
        self._variables: dict[str, None] = {}
        self._notes: list[str] = []

    def build(self) -> Curl:
        url = str(self._attempt.get("url") or "")
        if not re.match(r"https?://[^\s]", url, re.I):
            raise NotRepeatable("Of this attempt no URL of HTTP was recorded, so there is nothing to repeat.")
        headers, body = self._headers(), self._attempt.get("request_body")
        parts = [f"curl {self._url(url)}"]
        method = str(self._attempt.get("method") or "GET").upper()
        if method == "HEAD":
            parts.append("--head")
        elif method != ("POST" if body else "GET"):
            parts.append(f"--request {quoted(method)}")
        if any(sign in url for sign in "[]{}"):
            parts.append("--globoff")
        parts += headers
        if self._is_stream():
            parts.append("--no-buffer")
        if body:
            if not self._has("content-type"):
                parts.append("--header 'content-type:'")  # else curl says it is a form
            parts.append(f"--data-raw {quoted(self._body(str(body)))}")
        elif method in ("POST", "PUT", "PATCH"):
            self._notes.append("No body was recorded (any more): the command sends none.")
            if method == "POST":
                parts.append("--request POST")
        if self._variables:
            self._notes.insert(0, f"Set {', '.join(self._variables)}: secrets are not recorded.")
        return Curl(" \\\n  ".join(parts), tuple(self._variables), tuple(self._notes))

    def _url(self, url: str) -> str:
        """With a variable for each value that was redacted; a fragment is never sent."""
        url = url.partition("#")[0]
        scheme, separator, rest = url.partition("://")
        if rest.startswith(f"{REDACTED}@"):
            url = scheme + separator + rest.removeprefix(f"{REDACTED}@")
            self._notes.append("The URL had a user and a password, which are not recorded: add --user NAME:PASSWORD.")
        pieces, last = [], 0
        for match in re.finditer(rf"([?&])([^=&?]*)={re.escape(REDACTED)}", url):
            pieces.append(self._with_variable(url[last : match.end(2)] + "=", _variable_name(match[2])))
            last = match.end()
        return "".join([*pieces, quoted(url[last:]) if url[last:] or not pieces else ""])

    def _headers(self) -> list[str]:
        found: list[str] = []
        for name, value in self._pairs():
            lower = name.lower()
            if lower in NOT_SENT:
                continue
            if lower == "accept-encoding":
                found.append("--compressed")
            elif not _TOKEN.fullmatch(name):
                self._notes.append("A header with an impossible name is left out.")
            elif lower == "authorization" and value == REDACTED:
                found.append(f"--header {self._with_variable(f'{name}: Bearer ', TOKENS.get(self._key, self._key))}")
            elif value == REDACTED:
                variable = KEY_HEADERS.get(lower) or (self._key if lower in KEY_HEADERS else _variable_name(name))
                found.append(f"--header {self._with_variable(f'{name}: ', variable)}")
            elif value == "":
                found.append(f"--header {quoted(name + ';')}")  # how curl sends an empty one
            else:
                found.append(f"--header {quoted(f'{name}: {value}')}")
        return list(dict.fromkeys(found))

    def _pairs(self) -> list[tuple[str, str]]:
        headers = self._attempt.get("request_headers")
        pairs = [pair for pair in headers if isinstance(pair, list | tuple) and len(pair) == 2] if headers else []
        # Neither line breaks nor NUL can have been sent, and they would be a header more.
        return [(str(name), re.sub(r"[\r\n\0]+", " ", str(value))) for name, value in pairs]

    def _has(self, name: str) -> bool:
        return any(known.lower() == name for known, _ in self._pairs())

    def _is_stream(self) -> bool:
        answered = self._attempt.get("response_headers") or ()
        return any(str(name).lower() == "content-type" and "event-stream" in str(value) for name, value in answered)

    def _body(self, body: str) -> str:
        if _CUT.search(body):
            self._notes.append("The body was too long to be recorded whole: its end is missing.")
        if _REPLACED.search(body):
            self._notes.append("Secrets and data in the body were replaced when it was recorded; look for [REDACTED.")
        return body

    def _with_variable(self, text: str, variable: str) -> str:
        """One word for the shell: the text as it is, and the variable's value behind it."""
        self._variables[variable] = None
        if re.fullmatch(r"[\w :/.?&=-]+", text, re.ASCII):
            return f'"{text}${variable}"'
        return f'{quoted(text)}"${variable}"'


def quoted(text: str) -> str:
    """One word for the shell. With control characters, which a terminal must not see, as ``$'...'``."""
    if not _UNPRINTABLE.search(text):
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    # As octal bytes of UTF-8: of a fixed width, so that no digit behind belongs to it, and the same in any locale.
    escaped = _UNPRINTABLE.sub(lambda match: "".join(f"\\{byte:03o}" for byte in match[0].encode()), plain)
    return f"$'{escaped}'"


def _variable_name(name: str) -> str:
    """``X-Api-Key``: ``X_API_KEY``."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").upper()[:40].lstrip("0123456789_") or "SECRET"
