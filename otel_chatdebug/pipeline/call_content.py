"""Messages on spans and in events, in the format of the GenAI conventions, where the application has asked for them.

``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` asks (see `otel_chatdebug.settings`); by default there is no
content on anything that leaves the process. What is told is what the tables say: redacted, bounded, without the data of
files. On spans it is JSON text, in events it is structured.

All of this is performed by the inbox's own thread: reading and redacting messages takes too long for a call to wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry import _logs as logs
from opentelemetry import trace
from opentelemetry._logs import LoggerProvider, LogRecord
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import NonRecordingSpan, SpanContext

from otel_chatdebug import storable
from otel_chatdebug.attributes import SCHEMA_URL
from otel_chatdebug.version import __version__

EVENT_NAME: Final = "gen_ai.client.inference.operation.details"
"""By the conventions; their package has constants for attributes and metrics, none for events."""

OMITTED_MESSAGES: Final = "chatdebug.content.omitted_messages"
"""How many of the oldest messages were left out, for `MOST_CONTENT`."""

MOST_CONTENT: Final = 1024 * 1024
"""Bytes of JSON that the content of one span or event may take: receivers refuse messages of 4 MiB, for good."""

MOST_DEPTH: Final = 24
"""Levels of nesting in what is told: protobuf takes a hundred, and spends four on each."""

APART: Final = ("anthropic.", "openai.responses", "gemini", "mistral.conversations", "bedrock")
"""How the names of the formats begin that give the model its instructions apart from the history."""

Told = tuple[list[Any], list[Any], list[Any], list[Any]]
"""Instructions, input, output and tools."""


def told(request: Any, response: Any) -> Told:
    """A normalised request and response (see `otel_chatdebug.wire.shapes`) as the conventions put them.

    Takes anything: a response that the application gave to ``finish()`` may be of any shape.
    """
    request = request if isinstance(request, dict) else {}
    instructions: list[Any] = []
    messages = _list(request.get("messages"))
    if str(request.get("format")).startswith(APART):
        while messages and _role(messages[0]) == "system":
            instructions += _parts(messages.pop(0))
    return instructions, [_message(item) for item in messages], _output(response), _tools(request.get("tools"))


def attributes(request: Any, response: Any, *, structured: bool) -> dict[str, Any]:
    """The four ``gen_ai.*`` attributes with content: JSON texts, or (``structured``) lists. Empty ones are left out."""
    found: dict[str, Any] = {}
    room = MOST_CONTENT
    instructions, input_, output, tools = told(request, response)
    for name, items in (
        (gen_ai.GEN_AI_OUTPUT_MESSAGES, output),
        (gen_ai.GEN_AI_SYSTEM_INSTRUCTIONS, instructions),
        (gen_ai.GEN_AI_INPUT_MESSAGES, input_),
        (gen_ai.GEN_AI_TOOL_DEFINITIONS, tools),
    ):
        # Of a long history the newest messages say most.
        newest = name == gen_ai.GEN_AI_INPUT_MESSAGES
        kept, texts, room = _fitting(reversed(items) if newest else items, room)
        if newest:
            kept.reverse()
            texts.reverse()
            if len(kept) < len(items):
                found[OMITTED_MESSAGES] = len(items) - len(kept)
        if kept:
            found[name] = kept if structured else f"[{','.join(texts)}]"
    return found


def emit(
    provider: LoggerProvider | None,
    given: Mapping[str, Any],
    content: Mapping[str, Any],
    span_context: SpanContext | None,
    ended_ns: int,
) -> None:
    """Emits the event of one call to ``provider``, default the global one. User code: never while folding."""
    logger = logs.get_logger("otel_chatdebug", __version__, provider, SCHEMA_URL)
    context = None if span_context is None else trace.set_span_in_context(NonRecordingSpan(span_context))
    told = {name: value for name, value in given.items() if not name.startswith("chatdebug.")}
    logger.emit(LogRecord(timestamp=ended_ns, context=context, event_name=EVENT_NAME, attributes={**told, **content}))


def _fitting(items: Iterable[Any], room: int) -> tuple[list[Any], list[str], int]:
    """The first of ``items`` that have room, as they are and as JSON texts, and what room is left."""
    kept: list[Any] = []
    texts: list[str] = []
    for item in items:
        item = storable.json_value(item, MOST_DEPTH)
        text = storable.json_text(item)
        room -= len(text.encode()) + 1
        if room < 0:
            return kept, texts, 0
        kept.append(item)
        texts.append(text)
    return kept, texts, room


def _output(response: Any) -> list[Any]:
    if isinstance(response, dict) and isinstance(response.get("messages"), list):
        return [_message(item) for item in response["messages"]]
    if response is None:
        return []
    part = {"type": "text", "content": response} if isinstance(response, str) else {"type": "json", "content": response}
    return [{"role": "assistant", "parts": [part]}]


def _message(message: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"role": _role(message) or "unknown", "parts": _parts(message)}
    if isinstance(message, dict):
        told |= {name: message[name] for name in ("name", "finish_reason") if message.get(name) is not None}
    return told


def _role(message: Any) -> str | None:
    role = message.get("role") if isinstance(message, dict) else None
    return role if isinstance(role, str) else None


def _parts(message: Any) -> list[Any]:
    return [_part(item) for item in _list(message.get("parts") if isinstance(message, dict) else None)]


def _part(part: Any) -> dict[str, Any]:
    """Texts have ``content`` here, results of tools are responses, and files say by which way they came.

    What the conventions have no part for keeps its type and its fields, as they allow it.
    """
    if not isinstance(part, dict):
        return {"type": "unknown", "raw": part}
    kind = part.get("type")
    cut = {name: part[name] for name in ("truncated", "length") if name in part}
    if kind in ("text", "reasoning", "refusal"):
        return {"type": kind, "content": part.get("text") or "", **cut}
    if kind == "tool_call":
        named = {"id": part["id"]} if part.get("id") is not None else {}
        return {"type": kind, **named, "name": part.get("name") or "", "arguments": part.get("arguments"), **cut}
    if kind == "tool_result":
        named = {"id": part["id"]} if part.get("id") is not None else {}
        content = part.get("content")
        answer = [_part(item) for item in content] if isinstance(content, list) else content
        return {"type": "tool_call_response", **named, "response": answer, **cut}
    if kind in ("image", "file"):
        return _file(part)
    return {name: value for name, value in part.items() if value is not None}


def _file(part: Mapping[str, Any]) -> dict[str, Any]:
    media_type = part.get("media_type")
    general = str(media_type).partition("/")[0]
    modality = general if general in ("image", "video", "audio") else "image" if part["type"] == "image" else "document"
    told = {"modality": modality, "mime_type": media_type, "transcript": part.get("text"), "name": part.get("name")}
    told = {name: value for name, value in told.items() if value is not None}
    if part.get("url") is not None:
        return {"type": "uri", **told, "uri": part["url"]}
    if part.get("id") is not None:
        return {"type": "file", **told, "file_id": part["id"]}
    size = part.get("bytes")
    return {"type": "blob", **told, **({} if size is None else {"bytes": size})}  # never the data


def _tools(tools: Any) -> list[Any]:
    found: list[Any] = []
    for tool in _list(tools):
        if not isinstance(tool, dict):
            continue
        name = tool.get("name") or "unknown"
        if tool.get("type") == "function":
            description = tool.get("description")
            if isinstance(description, dict):  # it was cut
                description = description.get("text")
            more = {"description": description, "parameters": tool.get("schema")}
            found.append({"type": "function", "name": name, **{k: v for k, v in more.items() if v is not None}})
        else:
            raw = tool.get("raw")
            kind = raw.get("type") if isinstance(raw, dict) else None
            found.append({"type": kind if isinstance(kind, str) else "unknown", "name": name})
    return found


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []
