"""OpenAI chat completions, and the many that speak it: Azure, Groq, Mistral, vLLM, OpenRouter, DeepSeek, ...

A stream is ``data: {chunk}`` events without names, and ends with ``data: [DONE]``. Usage stands in the last chunk, if
it was asked for (``stream_options.include_usage``); Groq has it under ``x_groq``. Completion counts include reasoning,
prompt counts include what was cached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from otel_chatdebug.blobs import decoded_length
from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.drafts import Budgets, Draft, Text
from otel_chatdebug.wire.reading import (
    DONE,
    Parsed,
    add,
    count,
    error_from_body,
    first_count,
    items,
    mapping,
    model_in,
    name,
    request_options,
    set_finish_reason,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage, WireError


class OpenAIChat:
    """``POST .../chat/completions``; Mistral's agents have a path of their own."""

    name = "openai.chat"
    provider = "openai"
    operation = "chat"
    has_terminal = True
    lines = False
    path = re.compile(r"/(?:chat|agents)/completions/?$|/publishers/mistralai/models/[^/:]+:(?:streamR|r)awPredict$")
    # One literal to start with keeps the scan at C speed (an alternation over the whole is four times slower).
    # [DONE] needs no mark here: events that short are always read.
    markers = re.compile(rb'"(?:finish_reason":\s*"|usage":\s*\{|error"(?!\s*:\s*null))')
    repeated = b'"usage'  # by xAI, Perplexity and, on request, vLLM

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for. At Azure the path names the deployment, and the body mostly no model."""
        return RequestFacts(
            model=name(body.get("model")) or deployment(path),
            stream=body.get("stream") is True,
            options=request_options(body),
        )

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one event into ``facts``."""
        if value is DONE:
            facts.terminal = True
        else:
            self.read_json(facts, value)

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole body, or a chunk of a stream, into ``facts``."""
        if not isinstance(body, dict):
            return
        facts.model = facts.model or name(body.get("model"))
        facts.response_id = facts.response_id or name(body.get("id"))
        for choice in items(body.get("choices")):
            set_finish_reason(facts, mapping(choice).get("index", 0), mapping(choice).get("finish_reason"))
        groq = mapping(body.get("x_groq"))
        facts.usage = _usage(body.get("usage") or groq.get("usage")) or facts.usage
        facts.error = facts.error or _error(body, groq)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        choice = body.get("tool_choice", body.get("function_call"))
        return shapes.request(
            self.name,
            body,
            [_message(message, budget) for message in shapes.listed(body.get("messages"))],
            ("messages", "tools", "functions", "tool_choice", "function_call"),
            model=name(body.get("model")) or deployment(path),
            tools=[
                function_tool(tool) for tool in shapes.listed(body.get("tools")) + shapes.listed(body.get("functions"))
            ],
            tool_choice=shapes.tool_choice(choice),
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first chunk."""
        budgets = Budgets()
        facts = Facts()
        choices: dict[int, _Choice] = {}
        warnings: list[shapes.Warning] = []
        seen = False
        for _, value in events:
            chunk = mapping(value)
            given = items(chunk.get("choices"))
            if not (seen and given) or chunk.get("usage") or "x_groq" in chunk or "error" in chunk:
                self.read_json(facts, chunk)  # the others say nothing but text
            for raw in given:
                choice = mapping(raw)
                index = choice.get("index", 0)
                if reason := choice.get("finish_reason"):
                    set_finish_reason(facts, index, reason)
                if isinstance(index, int) and 0 <= index < shapes.MAX_PARTS:
                    choices.setdefault(index, _Choice(budgets)).add(choice)
            warnings += _warnings(chunk)
            seen = seen or "choices" in chunk
        if not seen:
            return None
        messages = [choices[index].message() for index in sorted(choices)]
        return shapes.response(self.name, messages, facts, warnings)

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            return None
        facts = Facts()
        self.read_json(facts, body)
        budget = shapes.Budget()
        messages = [self.choice_message(choice, budget) for choice in body["choices"]]
        return shapes.response(self.name, messages, facts, _warnings(body))

    def choice_message(self, value: Any, budget: shapes.Budget) -> shapes.Message:
        """The message of one choice of a whole response."""
        choice = mapping(value)
        message = _message(choice.get("message", value), budget)
        return {**message, "finish_reason": name(choice.get("finish_reason"))}


def deployment(path: str) -> str | None:
    """The deployment in a path of Azure OpenAI: ``/openai/deployments/NAME/chat/completions``."""
    return model_in(path, _DEPLOYMENT)


_DEPLOYMENT = re.compile(r"/deployments/([^/?]+)/")


class _Choice:
    """The message of one choice, as its deltas come in."""

    __slots__ = ("_audio", "_calls", "_draft", "_spoken")

    def __init__(self, budgets: Budgets) -> None:
        self._draft = Draft(budgets)
        self._calls: list[int] = []
        self._audio = 0
        self._spoken = Text(budgets.said)

    def add(self, choice: Mapping[str, Any]) -> None:
        draft = self._draft
        delta = choice.get("delta")
        if isinstance(delta, dict) and len(delta) == 1 and isinstance(said := delta.get("content"), str):
            draft.text(said)  # what nearly every event is
            draft.finish_reason = name(choice.get("finish_reason")) or draft.finish_reason
            return
        draft.text(choice.get("text"))  # the older completions have no delta
        draft.finish_reason = name(choice.get("finish_reason")) or draft.finish_reason
        delta = mapping(delta)
        draft.role = draft.role or name(delta.get("role"))
        # Two names for the same: DeepSeek and vLLM say reasoning_content, Groq and OpenRouter reasoning.
        draft.reasoning(delta.get("reasoning_content") or delta.get("reasoning"))
        self._add_content(delta.get("content"))
        if delta.keys() <= _TEXT_DELTA:
            return
        draft.refusal(delta.get("refusal"))
        for call in items(delta.get("tool_calls")):
            self._add_call(mapping(call))
        if legacy := mapping(delta.get("function_call")):
            self._add_call({"index": 0, "function": legacy})
        for image in items(delta.get("images")):  # OpenRouter
            draft.part(part_of(image, draft.budget()))
        if audio := mapping(delta.get("audio")):
            data = audio.get("data")
            self._audio += decoded_length(data) if isinstance(data, str) else 0
            self._spoken.add(audio.get("transcript"))
        for detail in items(delta.get("reasoning_details")):  # OpenRouter; what can be read stands in `reasoning`, too
            if mapping(detail).get("type") == "reasoning.encrypted":
                draft.part(shapes.encrypted_reasoning_part())
        for key, value in delta.items():
            if key not in _KNOWN_DELTA and value not in (None, "", [], {}):
                draft.also(key, value)

    def message(self) -> shapes.Message:
        message = self._draft.message()
        if self._audio or self._spoken.length:
            part = shapes.data_part("file", media_type="audio")
            part["bytes"] = self._audio or None
            message["parts"].append(self._spoken.into(part) if self._spoken.length else part)
        return message

    def _add_content(self, content: Any) -> None:
        self._draft.text(content)
        for value in items(content):  # Mistral: a list of typed chunks
            chunk = mapping(value)
            if chunk.get("type") == "text":
                self._draft.text(chunk.get("text"))
            elif chunk.get("type") == "thinking":
                self._draft.reasoning(thoughts(chunk.get("thinking")))
            else:
                self._draft.part(part_of(value, self._draft.budget()))

    def _add_call(self, call: Mapping[str, Any]) -> None:
        index = call.get("index")
        if not isinstance(index, int):  # some gateways number nothing and send calls whole
            index = len(self._calls) if call.get("id") or not self._calls else self._calls[-1]
        if index not in self._calls:
            if len(self._calls) >= shapes.MAX_PARTS:
                return
            self._calls.append(index)
        function = mapping(call.get("function")) or mapping(call.get("custom"))
        arguments = function.get("arguments", function.get("input"))
        self._draft.call(index, call.get("id"), function.get("name"), arguments)


_TEXT_DELTA = frozenset({"role", "content", "reasoning_content", "reasoning"})
_KNOWN_DELTA = _TEXT_DELTA | {"refusal", "tool_calls", "function_call", "images", "audio", "reasoning_details"}
_KNOWN_MESSAGE = _KNOWN_DELTA | {"tool_call_id", "name"}


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt = mapping(usage.get("prompt_tokens_details"))
    input_tokens = count(usage.get("prompt_tokens"))
    output_tokens = count(usage.get("completion_tokens"))
    reasoning = count(mapping(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    given = count(usage.get("total_tokens"))
    if reasoning and given is not None and given == add(input_tokens, output_tokens, reasoning):
        output_tokens = add(output_tokens, reasoning)  # xAI counts them beside each other, as its total shows
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total(given, input_tokens, output_tokens),
        reasoning_tokens=reasoning,
        cache_read_tokens=first_count(
            prompt.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"), usage.get("cached_tokens")
        ),
        cache_creation_tokens=count(prompt.get("cache_write_tokens")),
    )


def _error(body: Mapping[str, Any], groq: Mapping[str, Any]) -> WireError | None:
    if error := groq.get("error"):  # Groq: why a stream was stopped early
        return error_from_body({"error": error})
    return error_from_body(body) if not body.get("choices") or body.get("error") else None


def _warnings(body: Mapping[str, Any]) -> list[shapes.Warning]:
    """What a filter has found (Azure), and what a gateway warns of."""
    if body.keys() <= _PLAIN_CHUNK and not any(
        "content_filter_results" in mapping(c) for c in items(body.get("choices"))
    ):
        return []
    found = shapes.warnings_of(body)
    for result in items(body.get("prompt_filter_results")):
        found += _filtered("prompt", mapping(result).get("content_filter_results"))
    for choice in items(body.get("choices")):
        found += _filtered("answer", mapping(choice).get("content_filter_results"))
    return found


_PLAIN_CHUNK = frozenset({"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"})


def _filtered(what: str, results: Any) -> list[shapes.Warning]:
    return [
        shapes.warning("content_filter", f"{what}: {category} {shapes.dumps(result)}")
        for category, result in mapping(results).items()
        if mapping(result).get("filtered") is True or mapping(result).get("detected") is True
    ]


def _message(value: Any, budget: shapes.Budget) -> shapes.Message:
    if not isinstance(value, dict):
        return shapes.unknown_message(value, budget)
    role = name(value.get("role")) or "assistant"
    content = value.get("content")
    if role in ("tool", "function"):
        id = value.get("tool_call_id")
        result = shapes.tool_result_part(id, _result(content, budget), budget, tool=value.get("name"))
        return shapes.message("tool", [result], given=value, known={"content", "tool_call_id", "name"})
    parts = []
    if isinstance(reasoning := value.get("reasoning_content") or value.get("reasoning"), str) and reasoning:
        parts.append(shapes.reasoning_part(reasoning, budget))
    parts += content_parts(content, budget)
    if isinstance(refusal := value.get("refusal"), str) and refusal:
        parts.append(shapes.refusal_part(refusal, budget))
    for call in shapes.listed(value.get("tool_calls")):
        parts.append(_tool_call(call, budget))
    if legacy := mapping(value.get("function_call")):
        parts.append(shapes.tool_call_part(None, legacy.get("name"), legacy.get("arguments"), budget))
    parts += [part_of(image, budget) for image in items(value.get("images"))]
    if audio := mapping(value.get("audio")):
        part = shapes.data_part("file", media_type="audio", data=audio.get("data"), id=audio.get("id"))
        spoken = audio.get("transcript")
        parts.append(shapes.cut(part, "text", spoken, budget) if isinstance(spoken, str) else part)
    if not parts and "content" not in value:
        return shapes.unknown_message(value, budget)
    return shapes.message(role, parts, given=value, known=_KNOWN_MESSAGE)


def content_parts(content: Any, budget: shapes.Budget) -> list[shapes.Part]:
    """The parts of what a message says: a text, or a list of typed parts."""
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [shapes.text_part(content, budget)]
    if isinstance(content, list):
        return [part_of(part, budget) for part in content]
    return [shapes.unknown_part(content, budget)]


def _result(content: Any, budget: shapes.Budget) -> str | list[shapes.Part]:
    return content if isinstance(content, str) else content_parts(content, budget)


def part_of(value: Any, budget: shapes.Budget) -> shapes.Part:
    """One typed part."""
    part = mapping(value)
    kind = part.get("type")
    if kind == "text" and isinstance(text := part.get("text"), str):
        return shapes.with_other(shapes.text_part(text, budget), part, {"type", "text"})
    if kind == "refusal" and isinstance(text := part.get("refusal"), str):
        return shapes.refusal_part(text, budget)
    if kind == "thinking":  # Mistral
        return shapes.reasoning_part(thoughts(part.get("thinking")), budget)
    made = None
    if kind == "image_url":
        image = part.get("image_url")
        made = shapes.data_part("image", url=mapping(image).get("url") if isinstance(image, dict) else image)
    elif kind == "input_audio":
        audio = part.get("input_audio")
        format = mapping(audio).get("format")
        data = mapping(audio).get("data") if isinstance(audio, dict) else audio
        made = shapes.data_part("file", media_type=f"audio/{format}" if format else "audio", data=data)
    elif kind in ("video_url", "audio_url", "document_url"):  # vLLM, Mistral
        source = part.get(str(kind))
        url = mapping(source).get("url") if isinstance(source, dict) else source
        made = shapes.data_part("file", url=url, name=part.get("document_name"))
    elif kind == "file" and isinstance(part.get("file"), dict):
        file = part["file"]
        made = shapes.data_part("file", data=file.get("file_data"), name=file.get("filename"), id=file.get("file_id"))
    elif kind == "file":  # Mistral
        made = shapes.data_part("file", id=part.get("file_id"))
    elif kind == "tool_file":  # Mistral: what one of its tools has made
        made = shapes.data_part("file", id=part.get("file_id"), name=part.get("file_name"))
    if made is None:
        return shapes.unknown_part(value, budget)
    return shapes.with_other(made, part, {"type", str(kind), "document_name", "file_id", "file_name"})


def thoughts(thinking: Any) -> str:
    """What stands in a part of the type ``thinking`` (Mistral)."""
    if isinstance(thinking, str):
        return thinking
    return "".join(text for thought in items(thinking) if isinstance(text := mapping(thought).get("text"), str))


def _tool_call(value: Any, budget: shapes.Budget) -> shapes.Part:
    call = mapping(value)
    for kind, arguments in (("function", "arguments"), ("custom", "input")):
        if isinstance(called := call.get(kind), dict):
            part = shapes.tool_call_part(call.get("id"), called.get("name"), called.get(arguments), budget)
            return shapes.with_other(part, call, {"id", "type", "index", kind})
    return shapes.unknown_part(value, budget)


def function_tool(value: Any) -> shapes.Tool:
    """A tool, which is a function with its declaration inside, or something of the provider's."""
    function = mapping(value).get("function", value)
    return shapes.tool(function if isinstance(function, dict) else value, "parameters")
