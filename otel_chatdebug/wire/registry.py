"""The provider formats by URL path, and the reader that follows a stream.

A format is one module. To add one: write it, and name it in `FORMATS`.
"""

from __future__ import annotations

import re
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.anthropic import AnthropicMessages
from otel_chatdebug.wire.bedrock import BedrockConverse
from otel_chatdebug.wire.event_stream import AWS_EVENT_STREAM
from otel_chatdebug.wire.framing import JSON_ARRAY, NDJSON, SSE, Framing, events
from otel_chatdebug.wire.gemini import Gemini
from otel_chatdebug.wire.gemini_embeddings import GeminiEmbeddings
from otel_chatdebug.wire.gemini_interactions import GeminiInteractions
from otel_chatdebug.wire.guessing import BedrockInvoke, Guess, Speaker
from otel_chatdebug.wire.mistral_conversations import MistralConversations
from otel_chatdebug.wire.ollama import OllamaChat, OllamaEmbeddings, OllamaGenerate
from otel_chatdebug.wire.openai_chat import OpenAIChat
from otel_chatdebug.wire.openai_completions import OpenAICompletions
from otel_chatdebug.wire.openai_embeddings import OpenAIEmbeddings
from otel_chatdebug.wire.openai_responses import OpenAIResponses
from otel_chatdebug.wire.reading import DONE, Parsed, error_from_body, value_of
from otel_chatdebug.wire.sse import CR, Event, parse_block
from otel_chatdebug.wire.sse import Framer as SSEFramer
from otel_chatdebug.wire.types import Facts, RequestFacts

__all__ = [
    "FORMATS",
    "FRAMINGS",
    "Format",
    "StreamReader",
    "assemble",
    "error_from_body",
    "find",
    "framing",
    "framing_by_start",
    "generic",
    "normalize_request",
    "normalize_response",
    "response_so_far",
]


class Format(Protocol):
    """How one provider API puts requests and responses on the wire. Stateless; any thread.

    Takes anything, garbage included, and never raises. Texts in what it returns are bounded, and not redacted yet.
    """

    @property
    def name(self) -> str:
        """``openai.chat``, ``anthropic.messages``, ..."""

    @property
    def provider(self) -> str:
        """The default for ``gen_ai.provider.name``; a relative that speaks this format has another."""

    @property
    def operation(self) -> str:
        """``gen_ai.operation.name``."""

    @property
    def has_terminal(self) -> bool:
        """Whether a whole stream ends with an event that says so."""

    @property
    def lines(self) -> bool:
        """Whether its streams are lines of JSON, so that they are known by their first byte, whatever their type."""

    @property
    def path(self) -> re.Pattern[str]:
        """Searched in the path of a URL, without its query."""

    @property
    def markers(self) -> re.Pattern[bytes]:
        """An SSE event is read for facts only when this is found in its bytes.

        May find too much, never too little; but the first events, short ones and those named ``error`` are read
        anyway. It looks at every byte of a stream, so it should begin with one literal.
        """

    @property
    def repeated(self) -> bytes | None:
        """How a marker begins that many events have: usage, which the next event with some replaces. Of the events with
        this marker and no other only the last is read, and when somebody asks."""

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What a request asks for. Some APIs name the model in the path, and not in the body."""

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one event of a stream into ``facts``; ``value`` is what its data is, see `reading.Parsed`."""

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a body that is not streamed, or an error body, into ``facts``."""

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the shape of `otel_chatdebug.wire.shapes`."""

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """All events so far, put together to a response in the shape of `otel_chatdebug.wire.shapes`."""

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A body that is not streamed in the shape of `otel_chatdebug.wire.shapes`."""


FORMATS: tuple[Format, ...] = (
    OpenAIChat(),
    OpenAIResponses(),
    AnthropicMessages(),
    Gemini(),
    GeminiEmbeddings(),
    GeminiInteractions(),
    MistralConversations(),
    OllamaChat(),
    OllamaGenerate(),
    OllamaEmbeddings(),
    BedrockConverse(),
    BedrockInvoke(),
    OpenAIEmbeddings(),
    OpenAICompletions(),
)
"""The first whose path fits is taken."""

KNOWN_PATHS = 256
"""Paths whose format is remembered: an application calls few different ones, thousands of times."""

generic: Format = Guess()
"""For paths that `find` does not know."""


@lru_cache(maxsize=KNOWN_PATHS)
def find(path: str) -> Format | None:
    """The format that is spoken at a URL path (a query behind it is ignored); None where none is known."""
    path = path.partition("?")[0]
    return next((format for format in FORMATS if format.path.search(path)), None)


def normalize_request(format: Format, body: Any, path: str) -> dict[str, Any]:
    """A parsed request body in the shape of `otel_chatdebug.wire.shapes`; one that nobody knows is kept raw."""
    return format.normalize_request(body, path) or shapes.unknown_request(body)


def normalize_response(format: Format, body: Any) -> dict[str, Any] | None:
    """A parsed response body likewise; None for an error body, which the attempt's error tells."""
    made = format.normalize_response(body)
    if made is None:
        facts = Facts()
        format.read_json(facts, body)
        made = None if facts.error or error_from_body(body) else shapes.unknown_response(body)
    return made


def assemble(
    format: Format | Speaker, events: Iterable[Event], parsed: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """A stream so far likewise; None while nothing has come, and for one that is nothing but an error.

    ``parsed`` gets the data of its first events, as text, with the JSON that it is: see `PARSED`.
    """
    first: list[Any] = []
    whole = format.assemble(_parsed(events, first, parsed))
    if whole is not None or not first or error_from_body(first[0]):
        return whole
    return shapes.unknown_response(first)


def response_so_far(
    reader: StreamReader, kept: Iterable[bytes], parsed: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """The normalised response of what ``reader`` has seen, whose beginning is ``kept``. Another thread may read on.

    ``parsed``: as of `assemble`.
    """
    made = assemble(reader.format, events(reader.framing, *kept), parsed)
    if made is None:
        return None
    facts = reader.facts
    if facts.usage is not None:  # the end of a long stream is known to the reader only
        made["usage"] = facts.usage.as_dict()
    for message, reason in zip(made["messages"], facts.finish_reasons, strict=False):
        message["finish_reason"] = message.get("finish_reason") or reason or None
    if reader.oversized:
        told = f"{reader.oversized} of {reader.events} events were too large to be read"
        made["warnings"].append(shapes.warning("oversized_event", told))
    return made


PARSED = 64 * 1024
"""Bytes of events whose values `assemble` hands on. What is shown of a stream is less: it is parsed once, and not once
more where it is redacted."""


def _parsed(events: Iterable[Event], first: list[Any], parsed: dict[str, Any] | None) -> Iterator[Parsed]:
    """All ``events``, parsed; those at the beginning are put into ``first`` and ``parsed``, too."""
    size = 0
    for name, data in events:
        text = data.decode("utf-8", "replace")
        value = value_of(text)
        if size < PARSED:
            if size < shapes.MAX_PART:
                first.append(text if value is None or value is DONE else value)
            if parsed is not None and isinstance(value, dict | list):
                parsed[text] = value
            size += len(data)
        yield name, value


FRAMINGS = (SSE, NDJSON, AWS_EVENT_STREAM, JSON_ARRAY)

_BY_TYPE = {media_type: framing for framing in FRAMINGS for media_type in framing.media_types}


def framing(content_type: str | None) -> Framing | None:
    """How a body of this type is cut into events; None for one that is none by its type."""
    return _BY_TYPE.get(content_type.partition(";")[0].strip().lower()) if content_type else None


def framing_by_start(format: Format, first_bytes: bytes) -> Framing | None:
    """The same by the first bytes of a body, whatever its type: for where a stream was asked for.

    That helps with servers that stream under a wrong type, and with JSON arrays, which have none of their own.
    """
    start = first_bytes.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if format.lines and start.startswith(b"{"):
        return NDJSON
    return next((framing for framing in FRAMINGS if framing.starts(start)), None)


_UNREAD = 4
"""Events with repeated usage that are kept to be read: the last is, or one before it where that is damaged."""

_SHORT = 40
"""Bytes of data up to which an event is always read: ``[DONE]`` has nothing that marks it but its shortness."""

_MANY = 10_000
"""Events after which a short one is read only if it can end the stream: no model says so much in so little, and a bomb
of them would take minutes."""

_DONE = b"[DONE]"

_ORDINARY = re.compile(rb"(?:(?!data|event: ?error).*\n)*data:.{%d,}" % _SHORT).fullmatch
"""A block with one long line of data and not named ``error``: read only when it holds a marker."""

_ONE_ORDINARY = re.compile(rb"(?:event:(?! ?error).*\n)?data:.{%d,}\n\n" % _SHORT).fullmatch
"""The same with its blank line, and nothing behind it."""


def _is_small_talk(block: bytes) -> bool:
    """A short event that cannot end the stream."""
    return len(block) <= _SHORT and block.startswith(b"data:") and _DONE not in block


class StreamReader:
    """Follows a stream and keeps `Facts` of it, at any split of its bytes, in bounded memory.

    It runs in the process that is watched, so most events only pass a search for the format's markers. Never raises:
    a fault of a format is counted, and its last traceback kept as text for whoever may log it. Not for several
    threads at once; takes no lock, so that a finalizer may call it.
    """

    __slots__ = (
        "_facts",
        "_find_marker",
        "_framer",
        "_last",
        "_repeated",
        "_unread",
        "events",
        "faults",
        "format",
        "framing",
        "has_terminal",
        "last_fault",
    )

    FIRST = 8
    """So many events at most are read in search of model and id, which stand in the first one, or, at Azure, the
    second; and of who speaks, where the path does not tell."""

    def __init__(self, format: Format, framing: Framing = SSE, *, has_terminal: bool | None = None) -> None:
        self.format: Format | Speaker = format
        self.framing = framing
        self.has_terminal = format.has_terminal if has_terminal is None else has_terminal
        """Whether a stream that ends without its terminal event is incomplete."""
        self._facts = Facts()
        self._last: deque[bytes] = deque(maxlen=_UNREAD)
        """The blocks with repeated usage since it was read last."""
        self.events = 0
        """Events with data so far."""
        self.faults = 0
        self.last_fault: str | None = None
        self._framer = framing.framer()
        self._find_marker = format.markers.search
        self._repeated = format.repeated
        self._unread = self.FIRST

    @property
    def facts(self) -> Facts:
        """What is known so far. Not to be changed; while a stream goes on, mostly a new object each time."""
        for block in reversed(list(self._last)):
            event = self.framing.event(block)
            last = Facts()
            if event is not None:
                self._read_event(last, event[0], value_of(event[1]))
            if last.usage is not None:
                return replace(self._facts, usage=last.usage)
        return self._facts

    @property
    def oversized(self) -> int:
        """Events that were longer than `sse.MAX_EVENT`: their content is not known."""
        return self._framer.oversized

    @property
    def may_have_ended(self) -> bool:
        """Whether the stream may have ended as it should: an event that was too large to be read may have said so."""
        return self._facts.terminal or not self.has_terminal or (self.oversized > 0 and not self._framer.skipping)

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the body, decoded, split anywhere. Many events at once are cheapest."""
        framer = self._framer
        if not isinstance(framer, SSEFramer):
            for block in framer.feed(data):
                self._see(block)
            return
        if not self._unread and CR not in data and _ONE_ORDINARY(data) and framer.idle:
            # What nearly all of a stream is: one event in one piece, with nothing in it for us.
            marker = self._find_marker(data)
            if marker is None:
                self.events += 1
            elif not self._passes_over(data, data, marker):
                self._read(data[:-2])
            return
        for block in framer.feed(data):
            marker = self._find_marker(block)
            ordinary = _ORDINARY(block)
            if marker is None and not self._unread and (ordinary or (self.events > _MANY and _is_small_talk(block))):
                self.events += 1
            elif marker is None or not ordinary or not self._passes_over(block, block, marker):
                self._read(block)

    def finish(self) -> None:
        """The end of the body. A last event that was not ended is none, as SSE has it; but if it is a terminal event
        or an error, it counts all the same: SDKs that stop there have seen it, too."""
        try:
            event = self.framing.last(self._framer.rest())
        except Exception:
            self._fault()
            return
        if event is None:
            return
        name, value = event[0], value_of(event[1])
        trial = Facts()
        self._read_event(trial, name, value)
        if trial.terminal or trial.error:
            self.events += 1
            self._fold(name, value)

    def _see(self, block: bytes) -> None:
        """A block of any framing but SSE."""
        try:
            event = self.framing.event(block)
        except Exception:
            self._fault()
            return
        if event is None:
            return
        name, data = event
        marker = self._find_marker(data)
        if self._unread or (name is not None and self._find_marker(name.encode())):
            self._read_whole(name, data)
        elif marker is None:
            self.events += 1
        elif not self._passes_over(block, data, marker):
            self._read_whole(name, data)

    def _passes_over(self, block: bytes, data: bytes, marker: re.Match[bytes] | None) -> bool:
        """Keeps an event with ``marker`` for later, where it has nothing but repeated usage."""
        if self._unread or self._repeated is None:
            return False
        while marker is not None:
            if not marker[0].startswith(self._repeated):
                return False
            marker = self._find_marker(data, marker.end())
        self.events += 1
        self._last.append(block)
        return True

    def _read(self, block: bytes) -> None:
        event = parse_block(block)
        if event is not None:
            self._read_whole(*event)

    def _read_whole(self, event: str | None, data: bytes) -> None:
        self.events += 1
        value = value_of(data)
        if isinstance(self.format, Guess) and self._unread:
            self._ask_who_speaks(self.format, value)
        self._fold(event, value)
        if self._unread:
            known = self._facts.model is not None and self._facts.response_id is not None
            self._unread = 0 if known else self._unread - 1

    def _fold(self, event: str | None, value: Any) -> None:
        usage = self._facts.usage
        self._read_event(self._facts, event, value)
        if self._facts.usage is not usage:
            self._last.clear()

    def _ask_who_speaks(self, guess: Guess, value: Any) -> None:
        speaker = guess.speaker(value)
        if speaker is not None:
            self.format = speaker
            self.has_terminal = speaker.has_terminal
            self._find_marker = speaker.markers.search
            self._repeated = speaker.repeated

    def _read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        try:
            self.format.read_event(facts, event, value)
        except Exception:  # ours, not the user's: the stream must go on; told through `faults`
            self._fault()

    def _fault(self) -> None:
        self.faults += 1
        self.last_fault = traceback.format_exc(limit=-5)
