"""Bodies whose format no path tells: of unknown hosts, and of the many models that Bedrock invokes.

Most APIs of models speak as one of the large ones does. Which one is told by what is peculiar to each of them, not by
likeness: what shows none of it is kept raw.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from otel_chatdebug.wire import bedrock, shapes
from otel_chatdebug.wire.anthropic import AnthropicMessages
from otel_chatdebug.wire.gemini import Gemini
from otel_chatdebug.wire.gemini_interactions import GeminiInteractions
from otel_chatdebug.wire.mistral_conversations import MistralConversations
from otel_chatdebug.wire.ollama import OllamaChat, OllamaGenerate
from otel_chatdebug.wire.openai_chat import OpenAIChat
from otel_chatdebug.wire.openai_completions import OpenAICompletions
from otel_chatdebug.wire.openai_embeddings import OpenAIEmbeddings
from otel_chatdebug.wire.openai_responses import OpenAIResponses
from otel_chatdebug.wire.reading import (
    DONE,
    Parsed,
    add,
    count,
    error_from_body,
    items,
    mapping,
    model_in,
    name,
    request_options,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage


class Speaker(Protocol):
    """The part of a `registry.Format` that reads a body which is known to be its own."""

    @property
    def has_terminal(self) -> bool: ...
    @property
    def markers(self) -> re.Pattern[bytes]: ...
    @property
    def repeated(self) -> bytes | None: ...
    def read_event(self, facts: Facts, event: str | None, value: Any) -> None: ...
    def read_json(self, facts: Facts, body: Any) -> None: ...
    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None: ...
    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None: ...
    def normalize_response(self, body: Any) -> dict[str, Any] | None: ...


_CHAT = OpenAIChat()
_COMPLETIONS = OpenAICompletions()
_EMBEDDINGS = OpenAIEmbeddings()
_RESPONSES = OpenAIResponses()
_ANTHROPIC = AnthropicMessages()
_GEMINI = Gemini()
_INTERACTIONS = GeminiInteractions()
_CONVERSATIONS = MistralConversations()
_OLLAMA = OllamaChat()
_OLLAMA_GENERATE = OllamaGenerate()
_CONVERSE = bedrock.BedrockConverse()

_ANTHROPIC_EVENT = re.compile(r"(?:message|content_block)_(?:start|delta|stop)")

_METRICS = "amazon-bedrock-invocationMetrics"
"""In the last event of every stream that Bedrock sends, whichever the model."""


def answering(body: Any) -> Speaker | None:
    """Who says such a body, or such an event of a stream; None where nothing tells."""
    given = mapping(body)
    if isinstance(choices := given.get("choices"), list):
        first = mapping(choices[0]) if choices else {}
        return _COMPLETIONS if "text" in first and not {"delta", "message"} & first.keys() else _CHAT
    kind = given.get("type")
    if isinstance(kind, str):
        if kind.startswith("response."):
            return _RESPONSES
        if kind.startswith("conversation.response."):
            return _CONVERSATIONS
        if _ANTHROPIC_EVENT.fullmatch(kind) or (kind == "message" and isinstance(given.get("content"), list)):
            return _ANTHROPIC
    if given.get("object") == "response" and "output" in given:
        return _RESPONSES
    if given.get("object") == "conversation.response":
        return _CONVERSATIONS
    if given.get("object") == "interaction" or str(given.get("event_type")).startswith("interaction."):
        return _INTERACTIONS
    if "candidates" in given or "usageMetadata" in given or "promptFeedback" in given:
        return _GEMINI
    if isinstance(body, list) and body and answering(body[0]) is _GEMINI:
        return _GEMINI
    if "done" in given and ("message" in given or "response" in given):
        return _OLLAMA if "message" in given else _OLLAMA_GENERATE
    if "message" in mapping(given.get("output")) or (len(given) <= 2 and not bedrock.EVENTS.isdisjoint(given)):
        return _CONVERSE
    if isinstance(data := given.get("data"), list) and data and "embedding" in mapping(data[0]):
        return _EMBEDDINGS
    return None


def asking(body: Any, path: str = "") -> Speaker | None:
    """Who is asked by such a body; None where nothing tells."""
    given = mapping(body)
    if "contents" in given:
        return _GEMINI
    if messages := items(given.get("messages")):
        if "inferenceConfig" in given or any(_is_converse(message) for message in messages):
            return _CONVERSE
        tools = [mapping(tool) for tool in items(given.get("tools"))]
        anthropic = "anthropic_version" in given or any("input_schema" in tool for tool in tools)
        return _ANTHROPIC if anthropic else _CHAT
    if "input" in given:
        return _EMBEDDINGS if "embed" in path else _RESPONSES
    return _COMPLETIONS if isinstance(given.get("prompt"), str | list) else None


def _is_converse(message: Any) -> bool:
    """Its parts have no type."""
    parts = [mapping(part) for part in items(mapping(message).get("content"))]
    return any("text" in part and "type" not in part for part in parts)


class Guess:
    """A model call at a path that no format knows: read as whoever it speaks like, else only its errors are seen."""

    name = "generic"
    provider = "unknown"
    operation = "chat"
    has_terminal = False
    lines = False
    path = re.compile("")
    markers = re.compile(rb'"error"(?!\s*:\s*null)')
    repeated = None

    def speaker(self, value: Any) -> Speaker | None:
        """Who says this event of a stream, which is then read in its format."""
        return answering(value)

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """The model, and whether a stream is asked for: nearly all APIs call them so."""
        return RequestFacts(
            model=name(body.get("model")),
            stream=body.get("stream") is True,
            options=request_options(body) if asking(body, path) else {},
        )

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """An event that nobody is known to say: looks for an error, and for the end as OpenAI and its kin have it."""
        facts.terminal = facts.terminal or value is DONE
        self.read_json(facts, value)

    def read_json(self, facts: Facts, body: Any) -> None:
        """``detail`` may mean anything in a body that is not known to be an error."""
        if speaker := answering(body):
            speaker.read_json(facts, body)
        elif isinstance(body, dict) and "detail" not in body:
            facts.error = facts.error or error_from_body(body)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """As whoever is asked in such words; None where nobody is."""
        speaker = asking(body, path)
        return speaker.normalize_request(body, path) if speaker else None

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """As whoever says the first event that tells; None where none does."""
        events = iter(events)
        before: list[Parsed] = []
        for event in events:
            before.append(event)
            if speaker := self.speaker(event[1]):
                return speaker.assemble(_chained(before, events))
            if len(before) >= _LOOKED_AT:
                break
        for _ in events:
            pass
        return None

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """As whoever says such a body; None where nobody does."""
        speaker = answering(body)
        return speaker.normalize_response(body) if speaker else None


_LOOKED_AT = 8
"""Events in search of who says them."""


def _chained(before: list[Parsed], events: Iterable[Parsed]) -> Iterable[Parsed]:
    yield from before
    yield from events


class BedrockInvoke(Guess):
    """``POST /model/MODEL/invoke`` and ``/invoke-with-response-stream``: each model speaks as its maker has it."""

    name = "bedrock.invoke"
    provider = "aws.bedrock"
    has_terminal = True
    path = re.compile(r"/model/.+/invoke(?:-with-response-stream)?/?$")
    markers = re.compile(rb'"(?:error"|amazon-bedrock-invocationMetrics")')

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """The model and whether a stream is wanted stand in the path."""
        return RequestFacts(
            model=model_in(path, bedrock.MODEL_IN_PATH),
            stream=path.rstrip("/").endswith("-stream"),
            options=request_options(body, "inferenceConfig", "textGenerationConfig"),
        )

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """As whoever is asked in such words, with the model in the path."""
        made = super().normalize_request(body, path) or shapes.unknown_request(body)
        made["model"] = made["model"] or model_in(path, bedrock.MODEL_IN_PATH)
        return made

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """An event of a model that nobody is known to be: Bedrock's own counts, which end the stream."""
        body = mapping(value)
        if metrics := mapping(body.get(_METRICS)):
            facts.terminal = True
            facts.usage = _metrics(metrics)
        if event == "error" or "error" in body:
            facts.error = facts.error or error_from_body(body)

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole body into ``facts``. Bedrock's own errors are ``{"message": "..."}``."""
        super().read_json(facts, body)
        if facts.error is None and set(mapping(body)) <= {"message", "__type"} and mapping(body):
            bedrock.BedrockConverse().read_json(facts, body)


def _metrics(metrics: Mapping[str, Any]) -> Usage:
    read = count(metrics.get("cacheReadInputTokenCount"))
    written = count(metrics.get("cacheWriteInputTokenCount"))
    input_tokens = add(count(metrics.get("inputTokenCount")), read, written)
    output_tokens = count(metrics.get("outputTokenCount"))
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total(None, input_tokens, output_tokens),
        cache_read_tokens=read,
        cache_creation_tokens=written,
    )
