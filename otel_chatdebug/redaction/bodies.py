"""Bodies of requests and responses as texts without secrets, cut to a limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

from otel_chatdebug.blobs import MAX_DEPTH
from otel_chatdebug.redaction.formats import REDACTED, keys_out
from otel_chatdebug.redaction.names import MAX_NAME, Kind, Names
from otel_chatdebug.redaction.values import NO_JSON, ValueRedactor, dumps, parse

_FRAGMENTS = frozenset({"delta", "choices", "logprobs", "candidates", "message", "content", "step"})
"""Where the events of a stream have pieces of texts: Anthropic, Bedrock, Gemini's interactions and OpenAI's responses,
its chats and completions, Gemini, Ollama, Mistral's conversations, the beginning of an interaction's step."""

_FRAGMENT_TEXTS = frozenset({"response", "arguments"})
"""The same where the value is a text: Ollama's completions, calls in Mistral's conversations. OpenAI's response under
the first name is whole."""

_NO_FRAGMENTS = frozenset(
    {"type", "role", "id", "name", "finish_reason", "finishReason", "stop_reason", "stopReason", "model", "toolUseId"}
)
"""Names of texts beside them that come in one piece."""

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
_BETWEEN_TEXTS = re.compile(r"[,:{}\[\]]").search
"""One of these stands between any two texts of a JSON. What holds one, and was found by `_NAMES`, may be no name, but
have hidden one that begins with a colon."""

_FEW_NAMES = 8
"""Names that are no harmless ones: with more than these, lines are looked at one by one."""

_SPECIAL_NAMES = frozenset({"name", "value", "properties"})
"""Names that may change how their neighbours are redacted."""

_NOTHING: Mapping[str, Any] = {}

_LINES_AT_ONCE = 8
"""Times the limit that is looked at of a body of lines: redaction may make long lines short."""

_TEXTUAL = ("text/", "application/xml", "application/javascript", "application/graphql", "application/problem")


class Redactor(ValueRedactor):
    """Redacts by the lists of `names` and the user's additions. Immutable; any thread. Nothing in it raises."""

    def __init__(
        self, allow_headers: Iterable[str] = (), allow_query: Iterable[str] = (), secret_keys: Iterable[str] = ()
    ) -> None:
        super().__init__(allow_headers, allow_query, secret_keys)
        are_harmless = partial(_are_harmless, self.names)
        self._are_harmless: Callable[[tuple[str, ...]], bool] = lru_cache(maxsize=1024)(are_harmless)

    def body(
        self,
        data: bytes,
        content_type: str | None,
        *,
        limit: int = 50_000,
        framed: bool = False,
        complete: bool = True,
        fragments: bool = True,
        total: int | None = None,
        parsed: Mapping[str, Any] = _NOTHING,
    ) -> str | None:
        """A body as a text of at most ``limit`` bytes of UTF-8; None where there is none.

        ``framed``: it is a stream of lines (SSE, NDJSON), which are redacted one by one. ``complete``: no more will
        come; else an unfinished last line is left out for now. ``fragments``: False leaves out what the model says in
        pieces, because there is a secret in the whole, which no piece shows by itself. ``total``: how many bytes there
        were, where ``data`` is only the beginning. ``parsed``: lines that are known to be JSON, as texts, and what
        they are; those need not be parsed again.
        """
        total = max(len(data), total or 0)
        try:
            return self._body(data, content_type, limit, framed, complete, fragments, total, parsed) if data else None
        except Exception:
            return f"[REDACTED: {total} bytes]"

    def json_body(self, value: Any, *, limit: int = 50_000) -> tuple[str, bool]:
        """A parsed JSON body as `body` shows it, and whether redaction left all of it as it was.

        Where it did, nothing that is made of the body's own texts has to be redacted.
        """
        try:
            redacted = self._value(value, 0)
            return _cut(dumps(redacted), 0, limit), redacted == value
        except Exception:
            return REDACTED, False

    def _body(
        self,
        data: bytes,
        content_type: str | None,
        limit: int,
        framed: bool,
        complete: bool,
        fragments: bool,
        total: int,
        parsed: Mapping[str, Any],
    ) -> str:
        media_type = (content_type or "").partition(";")[0].strip().lower()
        start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        missing = total - len(data)
        if framed or media_type in _LINES:
            if missing and (end := data.rfind(b"\n") + 1):  # the last line goes on in what is not there
                missing, data = total - end, data[:end]
            text, unseen = self._lines(data, limit, complete, fragments, parsed)
            return _cut(text, unseen + missing, limit)
        is_json = media_type.endswith(("/json", "+json"))
        if is_json or start in (b"{", b"["):
            if not missing and (text_of_json := self._json(data)) is not None:
                return _cut(text_of_json, 0, limit)
            if is_json or start == b"{" or not media_type.startswith("text/"):
                return _no_json(total, "too long to be looked through" if missing else "no valid JSON")
        if media_type == "application/x-www-form-urlencoded":
            return _cut("&".join(self._parameter(pair) for pair in _decode(data).split("&")), missing, limit)
        if _is_text(media_type, data):
            return _cut(self._text(_decode(data)), missing, limit)
        return f"[{total} bytes of {keys_out(media_type)[:MAX_NAME]}]" if media_type else f"[{total} bytes]"

    def _json(self, data: bytes) -> str | None:
        parsed = parse(_decode(data))
        return None if parsed is NO_JSON else dumps(self._value(parsed, 0))

    def _lines(
        self, data: bytes, limit: int, complete: bool, fragments: bool, parsed: Mapping[str, Any]
    ) -> tuple[str, int]:
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
        clean = self._clean_lines(lines, limit)
        unchanged = self._unchanged(lines[:clean], parsed) if fragments and parsed else {}
        result: list[str] = []
        size = 0
        at = 0
        while at < len(lines) and size <= limit:
            end = at + 1
            if not lines[at]:  # between two events
                result.append("")
                size += 1
                at = end
                continue
            shown = unchanged.get(lines[at])
            if shown is not None and not (end < len(lines) and lines[end].startswith("data:")):
                result.append(shown)
                size += len(shown) + 1
                at = end
                continue
            if lines[at].startswith("data:"):
                while end < len(lines) and lines[end].startswith("data:"):
                    end += 1
            for line in self._group(lines[at:end], fragments, at < clean, parsed):
                result.append(line)
                size += len(line) + 1
            at = end
        unseen = ahead
        if rest := lines[at:]:
            unseen += len("\n".join(rest).encode("utf-8", "replace")) + 1
        text = "\n".join(result)
        return text + "\n" if result and (at < len(lines) or not (complete and last)) else text, unseen

    def _clean_lines(self, lines: list[str], limit: int) -> int:
        """How many of the first lines, about as many as can be shown, have nothing in their texts to take out.

        Either all of them or none: they are looked at together, for half of what they cost one by one.
        """
        size = count = 0
        while count < len(lines) and size <= limit:
            size += len(lines[count]) + 1
            count += 1
        return count if self._is_clean("\n".join(lines[:count])) else 0

    def _unchanged(self, lines: list[str], parsed: Mapping[str, Any]) -> dict[str, str]:
        """Those of ``lines``, which are clean, that redaction would leave as they are, and how they are shown: told
        from all of them at once.

        They are JSON, by ``parsed``, and have no escapes, so that each quotation mark begins or ends a text. `_NAMES`
        then finds every name, but one that begins with a colon: there it may take what stands between two texts for a
        name, and that has something in it (see `_BETWEEN_TEXTS`) which no harmless name has.
        """
        found = {}
        for line in lines:
            text = _payload(line)
            if text in parsed and self._is_ordinary(text):
                found[line] = text
        names = set(_NAMES("\n".join(found.values())))
        others = [name for name in names if not self._are_harmless((name,))]
        if len(others) > _FEW_NAMES or any(map(_BETWEEN_TEXTS, others)):
            return {}
        quoted = [f'"{name}"' for name in others]
        return {
            line: text if text is line else f"data: {text}"
            for line, text in found.items()
            if not any(name in text for name in quoted)
        }

    def _group(self, lines: list[str], fragments: bool, clean: bool, parsed: Mapping[str, Any]) -> list[str]:
        """Neighbouring ``data:`` lines are one payload, which may be one JSON or (without blank lines) several."""
        if not lines[0].startswith("data:"):
            return [self._line(lines[0], "", fragments, clean, parsed)]
        payloads = [line[5:].removeprefix(" ") for line in lines]
        if len(payloads) > 1 and any(_looks_like_json(text) and parse(text) is NO_JSON for text in payloads):
            return [self._line("\n".join(payloads), "data: ", fragments, clean, parsed)]
        return [self._line(payload, "data: ", fragments, clean, parsed) for payload in payloads]

    def _line(self, text: str, prefix: str, fragments: bool, clean: bool, parsed: Mapping[str, Any]) -> str:
        """``clean``: see `_is_clean`."""
        if not _looks_like_json(text):
            return prefix + (text if clean and '"' not in text else self._text(text))
        value = parsed[text] if text in parsed else parse(text)
        if value is NO_JSON:
            return prefix + _no_json(len(text.encode("utf-8", "replace")))
        if not fragments:
            return prefix + dumps(_without_fragments(self._value(value, 0)))
        return prefix + (text if self._is_harmless(text, clean) else dumps(self._value(value, 0)))

    def _is_harmless(self, text: str, clean: bool = False) -> bool:
        """Whether redaction would leave all of this JSON as it is, told from its text: ten times as fast as walking it.

        Nearly every event of a stream is: its names are the same as those of the last event, and it has no escapes,
        so its texts stand there as they are. A False is no statement.
        """
        return self._is_ordinary(text) and self._are_harmless(tuple(_NAMES(text))) and (clean or self._is_clean(text))

    def _is_ordinary(self, text: str) -> bool:
        """Whether the names in this JSON, and how deep it is, can be told from its text."""
        return len(text) <= _ORDINARY_EVENT and "\\" not in text and text.count("{") + text.count("[") <= MAX_DEPTH


def _are_harmless(known: Names, names: tuple[str, ...]) -> bool:
    """Whether these names say nothing about the values behind them. The events of a stream have the same ones."""
    return all(
        name not in _SPECIAL_NAMES and known.key(name) == (Kind.OTHER, name) and not _BETWEEN_TEXTS(name)
        for name in names
    )


def _payload(line: str) -> str:
    """What a line says, which has ``data:`` before it in SSE."""
    return line[5:].removeprefix(" ") if line.startswith("data:") else line


def _without_fragments(value: Any, within: bool = False) -> Any:
    """A redacted event without the pieces of texts in it; what kind of event it is, and of what, stays."""
    if isinstance(value, dict):
        return {
            name: item
            if name in _NO_FRAGMENTS and not isinstance(item, dict | list)
            else _without_fragments(
                item, within or name in _FRAGMENTS or (name in _FRAGMENT_TEXTS and isinstance(item, str))
            )
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_without_fragments(item, within) for item in value]
    return REDACTED if within and isinstance(value, str) and value else value


def _looks_like_json(text: str) -> bool:
    """``[DONE]`` begins like a list and is none."""
    text = text.lstrip()
    return text[:1] == "{" or (text[:1] == "[" and text.rstrip() != "[DONE]")


def _no_json(size: int, why: str = "no valid JSON") -> str:
    return f"[REDACTED: {size} bytes that are {why}]"


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
