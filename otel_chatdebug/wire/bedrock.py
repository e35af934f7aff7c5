"""AWS Bedrock's Converse: one shape for the models of many makers. (InvokeModel, which has theirs, is in `guessing`.)

The model and whether a stream is wanted stand in the path. A stream is made of AWS's binary frames, whose events are
``messageStart``, content blocks by index (start, deltas, stop), ``messageStop`` and ``metadata`` with the usage.
``inputTokens`` leaves out what was cached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from otel_chatdebug.blobs import without_blobs
from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.drafts import Budgets, Draft
from otel_chatdebug.wire.reading import (
    Parsed,
    add,
    count,
    error_from_body,
    first_count,
    mapping,
    model_in,
    name,
    request_options,
    set_finish_reason,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage, WireError

MODEL_IN_PATH = re.compile(r"/model/(.+)/(?:invoke|converse)[a-z-]*$")
"""The model in ``/model/MODEL/converse``; that of an inference profile has slashes in it."""

EVENTS = frozenset(
    {"messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"}
)
"""Of a stream: by the name of the frame, or, where Amazon's own models are invoked, as the only key of the event."""


class BedrockConverse:
    """``POST /model/MODEL/converse`` and ``/converse-stream``."""

    name = "bedrock.converse"
    provider = "aws.bedrock"
    operation = "chat"
    has_terminal = True
    lines = False
    path = re.compile(r"/model/.+/converse(?:-stream)?/?$")
    markers = re.compile(rb"messageSt|metadata|error")
    repeated = None

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for."""
        return RequestFacts(
            model=model_in(path, MODEL_IN_PATH) or name(body.get("modelId")),
            stream=path.rstrip("/").endswith("-stream"),
            options=request_options(body, "inferenceConfig"),
        )

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one event into ``facts``."""
        kind, body = _event(event, value)
        if kind == "messageStop":
            facts.terminal = True
            set_finish_reason(facts, 0, body.get("stopReason"))
        elif kind == "metadata":
            facts.usage = _usage(body.get("usage")) or facts.usage
        elif kind == "error":
            facts.error = facts.error or error_from_body(body) or WireError(type="error")

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole response or an error body into ``facts``."""
        if not isinstance(body, dict):
            return
        if "output" not in body:
            facts.error = facts.error or _error(body)
        set_finish_reason(facts, 0, body.get("stopReason"))
        facts.usage = _usage(body.get("usage")) or facts.usage

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        messages = []
        if system := body.get("system"):
            messages.append(shapes.message("system", _content(system, budget)))
        messages += [_message(message, budget) for message in shapes.listed(body.get("messages"))]
        config = mapping(body.get("toolConfig"))
        return shapes.request(
            self.name,
            body,
            messages,
            ("system", "messages", "toolConfig", "modelId"),
            model=model_in(path, MODEL_IN_PATH),
            tools=[_tool(tool) for tool in shapes.listed(config.get("tools"))],
            tool_choice=_tool_choice(config.get("toolChoice")),
            nested=("inferenceConfig",),
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first block or message."""
        facts = Facts()
        draft = Draft(Budgets())
        trace: Any = None
        seen = False
        for event, value in events:
            self.read_event(facts, event, value)
            kind, body = _event(event, value)
            seen = seen or kind in EVENTS
            at = body.get("contentBlockIndex")
            if kind == "messageStart":
                draft.role = name(body.get("role"))
            elif kind == "contentBlockStart":
                _start(draft, at, mapping(body.get("start")))
            elif kind == "contentBlockDelta":
                _delta(draft, at, mapping(body.get("delta")))
            elif kind == "metadata":
                trace = body.get("trace")
        if not seen:
            return None
        draft.finish_reason = facts.finish_reasons[0] if facts.finish_reasons else None
        return shapes.response(self.name, [draft.message()], facts, _warnings(trace))

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        message = mapping(mapping(mapping(body).get("output")).get("message"))
        if "content" not in message:
            return None
        facts = Facts()
        self.read_json(facts, body)
        parts = _content(message["content"], shapes.Budget())
        made = shapes.answer(message.get("role"), parts, body.get("stopReason"))
        return shapes.response(self.name, [made], facts, _warnings(body.get("trace")))


def _event(event: str | None, value: Any) -> tuple[str | None, Mapping[str, Any]]:
    """What kind of event it is, and its body."""
    body = mapping(value)
    if event is None and len(body) <= 2:  # Amazon's own models, when they are invoked
        for key in body:
            if key in EVENTS:
                return key, mapping(body[key])
    return event, body


def _start(draft: Draft, at: Any, start: Mapping[str, Any]) -> None:
    if tool := mapping(start.get("toolUse")):
        draft.call(_place(at), tool.get("toolUseId"), tool.get("name"))
    elif start and "image" not in start:
        draft.part(shapes.unknown_part(start, draft.budget()))


def _delta(draft: Draft, at: Any, delta: Mapping[str, Any]) -> None:
    place = _place(at)
    draft.text(delta.get("text"), place)
    if tool := mapping(delta.get("toolUse")):
        draft.call(place, arguments=tool.get("input"))
    if thought := mapping(delta.get("reasoningContent")):
        draft.reasoning(thought.get("text"), place)
        if thought.get("redactedContent"):
            draft.part(shapes.encrypted_reasoning_part())
    for key, value in delta.items():
        if key == "image":
            draft.part(_part({"image": value}, draft.budget()))
        elif key not in ("text", "toolUse", "reasoningContent"):
            draft.also(key, value)


def _place(at: Any) -> int | None:
    return at if isinstance(at, int) else None


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    # With "Count" behind them in the streams of Amazon's own models, when they are invoked.
    read = first_count(usage.get("cacheReadInputTokens"), usage.get("cacheReadInputTokenCount"))
    written = first_count(usage.get("cacheWriteInputTokens"), usage.get("cacheWriteInputTokenCount"))
    input_tokens = add(count(usage.get("inputTokens")), read, written)
    output_tokens = count(usage.get("outputTokens"))
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total(usage.get("totalTokens"), input_tokens, output_tokens),
        cache_read_tokens=read,
        cache_creation_tokens=written,
    )


def _error(body: Mapping[str, Any]) -> WireError | None:
    """``{"message": "..."}``: the type stands in a header, or as ``__type``."""
    message = body.get("message", body.get("Message"))
    if isinstance(message, str):
        return error_from_body({"error": {"message": message, "type": body.get("__type")}})
    return error_from_body(body)


def _warnings(trace: Any) -> list[shapes.Warning]:
    """What a guardrail did, where its trace was asked for."""
    given = mapping(trace).get("guardrail")
    return [shapes.warning("guardrail", given)] if given else []


def _message(value: Any, budget: shapes.Budget) -> shapes.Message:
    message = mapping(value)
    if "content" not in message:
        return shapes.unknown_message(value, budget)
    return shapes.message(message.get("role"), _content(message["content"], budget), given=message, known={"content"})


def _content(content: Any, budget: shapes.Budget) -> list[shapes.Part]:
    if isinstance(content, str):
        return [shapes.text_part(content, budget)]
    return [_part(part, budget) for part in shapes.listed(content)]


def _part(value: Any, budget: shapes.Budget) -> shapes.Part:
    part = mapping(value)
    if isinstance(text := part.get("text"), str):
        return shapes.with_other(shapes.text_part(text, budget), part, {"text"})
    if "reasoningContent" in part:
        thought = mapping(part["reasoningContent"])
        text = mapping(thought.get("reasoningText")).get("text")
        if isinstance(text, str):
            return shapes.reasoning_part(text, budget)
        if "redactedContent" in thought:
            return shapes.encrypted_reasoning_part()
    if call := mapping(part.get("toolUse")):
        made = shapes.tool_call_part(call.get("toolUseId"), call.get("name"), call.get("input"), budget)
        return shapes.with_other(made, call, {"toolUseId", "name", "input"})
    if result := mapping(part.get("toolResult")):
        content = _content(result.get("content"), budget)
        texts = [part["text"] for part in content if part["type"] == "text"]
        made_of: Any = texts[0] if len(texts) == len(content) == 1 and "truncated" not in content[0] else content
        failed = result.get("status") == "error"
        made = shapes.tool_result_part(result.get("toolUseId"), made_of, budget, error=failed)
        return shapes.with_other(made, result, {"toolUseId", "content", "status"})
    if "json" in part and len(part) == 1:
        return shapes.text_part(shapes.dumps(without_blobs(part["json"])), budget)
    for kind in ("image", "document", "video", "audio"):
        if file := mapping(part.get(kind)):
            return _data_part(kind, file, budget)
    return shapes.unknown_part(value, budget)


_MEDIA = {"image": "image", "video": "video", "audio": "audio", "document": "application"}


def _data_part(kind: str, file: Mapping[str, Any], budget: shapes.Budget) -> shapes.Part:
    source = mapping(file.get("source"))
    if isinstance(text := source.get("text"), str):
        return shapes.text_part(text, budget)
    format = name(file.get("format"))
    return shapes.data_part(
        "image" if kind == "image" else "file",
        media_type=f"{_MEDIA[kind]}/{format}" if format else None,
        data=source.get("bytes"),
        url=mapping(source.get("s3Location")).get("uri"),
        name=file.get("name"),
    )


def _tool(value: Any) -> shapes.Tool:
    spec = mapping(value).get("toolSpec")
    if not isinstance(spec, dict):
        return shapes.tool(value, "")
    schema = spec.get("inputSchema")
    flat = schema["json"] if isinstance(schema, dict) and "json" in schema else schema
    return shapes.tool({**spec, "inputSchema": flat}, "inputSchema")


def _tool_choice(value: Any) -> shapes.ToolChoice | None:
    if value is None:
        return None
    choice = mapping(value)
    if called := mapping(choice.get("tool")).get("name"):
        return shapes.chosen("required", [called])
    mode = next((key for key in ("auto", "any") if key in choice), None)
    return shapes.chosen(mode) if mode else shapes.raw({"mode": shapes.UNKNOWN}, "raw", value, shapes.Budget())
