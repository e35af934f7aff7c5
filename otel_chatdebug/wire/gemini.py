"""Google's Gemini, at its own API and at Vertex AI.

The model and whether a stream is wanted stand in the path. A stream is SSE (``alt=sse``) or one JSON array, bit by bit;
each of its chunks is a whole response with the next parts, and usage so far. Nothing ends it but its end: a stream is
whole where every candidate has a finish reason. Names are in camel case; requests may have them in snake case, too.

``promptTokenCount`` includes what was cached, but not what tools of the provider read (``toolUsePromptTokenCount``);
``candidatesTokenCount`` leaves out what was thought. The total is the sum of the four, so that is how we count.
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
    items,
    mapping,
    model_in,
    name,
    request_options,
    set_finish_reason,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage, WireError

MODEL_IN_PATH = re.compile(r"/(?:models|tunedModels|endpoints)/([^/:]+):")
"""The model in ``.../models/MODEL:generateContent``."""
_UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"


class Gemini:
    """``POST .../models/MODEL:generateContent`` and ``:streamGenerateContent``."""

    name = "gemini"
    provider = "gcp.gemini"
    operation = "generate_content"
    has_terminal = True
    lines = False
    path = re.compile(r":(?:streamG|g)enerateContent/?$")
    markers = re.compile(rb'"(?:finishReason"|usageMetadata"|promptFeedback"|error"(?!\s*:\s*null))')
    repeated = b'"usageMetadata'

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for."""
        return RequestFacts(
            model=model_in(path, MODEL_IN_PATH) or name(body.get("model")),
            stream=":streamGenerateContent" in path,
            options=request_options(body, "generationConfig", "generation_config"),
        )

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one chunk into ``facts``."""
        self.read_json(facts, value)
        blocked = mapping(mapping(value).get("promptFeedback")).get("blockReason")
        reasons = facts.finish_reasons
        facts.terminal = bool(blocked) or facts.terminal or (bool(reasons) and all(reasons))
        if event == "error" and facts.error is None:
            facts.error = WireError(type="error")

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole response, a chunk of a stream or an error body into ``facts``."""
        if isinstance(body, list):  # what a stream without ``alt=sse`` is where it was read as a whole
            for chunk in body[: shapes.MAX_PARTS]:
                if isinstance(chunk, dict):
                    self.read_json(facts, chunk)
            return
        if not isinstance(body, dict):
            return
        facts.model = facts.model or name(body.get("modelVersion"))
        facts.response_id = facts.response_id or name(body.get("responseId"))
        for candidate in map(mapping, items(body.get("candidates"))):
            _finish(facts, candidate.get("index", 0), candidate.get("finishReason"))
        blocked = name(mapping(body.get("promptFeedback")).get("blockReason"))
        if blocked and not facts.finish_reasons:
            set_finish_reason(facts, 0, blocked)
        facts.usage = usage_of(body.get("usageMetadata"), _COUNTS) or facts.usage
        facts.error = facts.error or (error_from_body(body) if "error" in body else None)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        messages = []
        if system := _get(body, "systemInstruction"):
            messages.append({**content_message(system, budget), "role": "system"})
        given = body.get("contents")
        if isinstance(given, str):
            messages.append(shapes.message("user", [shapes.text_part(given, budget)]))
        else:
            messages += [content_message(content, budget) for content in shapes.listed(given)]
        return shapes.request(
            self.name,
            body,
            messages,
            ("systemInstruction", "system_instruction", "contents", "tools", "toolConfig", "tool_config"),
            model=model_in(path, MODEL_IN_PATH),
            tools=[tool for given in shapes.listed(body.get("tools")) for tool in _tools(given)],
            tool_choice=_tool_choice(_get(body, "toolConfig")),
            nested=("generationConfig", "generation_config"),
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first chunk."""
        return self._put_together(value for _, value in events)

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        chunks = body if isinstance(body, list) else [body]
        return self._put_together(chunks[: shapes.MAX_PARTS], Budgets.whole())

    def _put_together(self, chunks: Iterable[Any], budgets: Budgets | None = None) -> dict[str, Any] | None:
        budgets = budgets or Budgets()
        facts = Facts()
        candidates: dict[int, _Candidate] = {}
        warnings: list[shapes.Warning] = []
        seen = False
        usage: Any = None
        for chunk in map(mapping, chunks):
            usage = chunk.get("usageMetadata") or usage
            if not seen or facts.model is None or "error" in chunk or "promptFeedback" in chunk:
                self.read_json(facts, chunk)  # the others say nothing but text, and the usage so far
            for candidate in map(mapping, items(chunk.get("candidates"))):
                index = candidate.get("index", 0)
                if reason := candidate.get("finishReason"):
                    _finish(facts, index, reason)
                if isinstance(index, int) and 0 <= index < shapes.MAX_PARTS:
                    candidates.setdefault(index, _Candidate(budgets)).add(candidate)
                if len(warnings) < shapes.MAX_WARNINGS:
                    warnings += _candidate_warnings(candidate)
            if feedback := mapping(chunk.get("promptFeedback")):
                warnings += _feedback_warnings(feedback)
            seen = seen or "candidates" in chunk or "promptFeedback" in chunk or "usageMetadata" in chunk
        if not seen:
            return None
        facts.usage = usage_of(usage, _COUNTS) or facts.usage
        messages = [candidates[index].draft.message() for index in sorted(candidates)]
        if not messages and facts.finish_reasons:
            messages = [shapes.answer(None, [], facts.finish_reasons[0])]
        return shapes.response(self.name, messages, facts, warnings)


def _finish(facts: Facts, index: Any, reason: Any) -> None:
    if reason != _UNSPECIFIED:
        set_finish_reason(facts, index, reason)


class _Candidate:
    """One candidate, as its chunks come in. Texts that follow each other are one part."""

    __slots__ = ("_calls", "_kind", "_place", "draft")

    def __init__(self, budgets: Budgets) -> None:
        self.draft = Draft(budgets)
        self._kind = ""
        self._place = 0
        self._calls: _PartialCall | None = None

    def add(self, candidate: Mapping[str, Any]) -> None:
        draft = self.draft
        content = mapping(candidate.get("content"))
        for value in items(content.get("parts")):
            part = mapping(value)
            text = part.get("text")
            if isinstance(text, str) and part.keys() <= _TEXT:
                kind = "reasoning" if part.get("thought") is True else "text"
                self._at(kind)
                (draft.reasoning if kind == "reasoning" else draft.text)(text, self._place)
                continue
            self._at("")
            call = mapping(_get(part, "functionCall"))
            if "partialArgs" in call or "willContinue" in call or (self._calls and part and not call.get("name")):
                self._add_partial(call)
            else:
                draft.part(_part(value, draft.budget()))
        reason = name(candidate.get("finishReason"))
        if reason and reason != _UNSPECIFIED:
            draft.finish_reason = reason

    def _at(self, kind: str) -> None:
        if kind != self._kind:
            self._kind = kind
            self._place += 1

    def _add_partial(self, call: Mapping[str, Any]) -> None:
        """Vertex AI may send the arguments of a call in fragments, each with the path of what it belongs to."""
        if call.get("name") or self._calls is None:
            self._calls = _PartialCall()
            self.draft.part(self._calls.part)
        self._calls.add(call)
        if call.get("willContinue") is not True:
            self._calls = None


class _PartialCall:
    """A tool call whose arguments come by their paths."""

    def __init__(self) -> None:
        self._left = shapes.MAX_PART
        self._arguments: dict[str, Any] = {}
        self.part: shapes.Part = {"type": "tool_call", "id": None, "name": None, "arguments": self._arguments}

    def add(self, call: Mapping[str, Any]) -> None:
        self.part["id"] = self.part["id"] or name(call.get("id"))
        self.part["name"] = self.part["name"] or name(call.get("name"))
        self._arguments.update(shapes.bounded(dict(mapping(call.get("args")))) if call.get("args") else {})
        for given in map(mapping, items(call.get("partialArgs"))):
            path = name(given.get("jsonPath")) or "$"
            key = path.removeprefix("$.")
            value = next((given[kind] for kind in _VALUES if kind in given), None)
            self._left -= len(key) + (len(value) if isinstance(value, str) else 8)
            if self._left < 0:
                self.part["truncated"], self.part["length"] = True, shapes.MAX_PART - self._left
                return
            before = self._arguments.get(key)
            self._arguments[key] = before + value if isinstance(before, str) and isinstance(value, str) else value


_VALUES = ("stringValue", "numberValue", "boolValue")
_TEXT = frozenset({"text", "thought", "thoughtSignature"})
_KNOWN_PART = _TEXT | {"functionCall", "function_call", "functionResponse", "function_response"}


def _get(given: Mapping[str, Any], key: str) -> Any:
    """The value of a key in camel case, or in snake case."""
    value = given.get(key)
    return value if value is not None else given.get(_SNAKE.sub(lambda m: f"_{m[0].lower()}", key))


_SNAKE = re.compile(r"[A-Z]")


def usage_of(usage: Any, names: tuple[str, str, str, str, str, str]) -> Usage | None:
    """Google's counts, where tools and thoughts stand beside prompt and answer, under ``names``: of the prompt, of what
    tools read, of the answer, of the thoughts, of all, and of what was cached."""
    if not isinstance(usage, dict):
        return None
    prompt, tools, answered, thoughts, given, cached = (count(usage.get(name)) for name in names)
    # A model that has only thought so far, or was stopped there, sends no count of an answer.
    output_tokens = add(answered, thoughts) if answered is not None else thoughts
    input_tokens = add(prompt, tools)
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total(given, input_tokens, output_tokens),
        reasoning_tokens=thoughts,
        cache_read_tokens=cached,
    )


_COUNTS = (
    "promptTokenCount",
    "toolUsePromptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "totalTokenCount",
    "cachedContentTokenCount",
)


def _candidate_warnings(candidate: Mapping[str, Any]) -> list[shapes.Warning]:
    found = []
    if said := candidate.get("finishMessage"):
        found.append(shapes.warning(name(candidate.get("finishReason")) or "finish", said))
    return found + _blocked("answer", candidate.get("safetyRatings"))


def _feedback_warnings(feedback: Mapping[str, Any]) -> list[shapes.Warning]:
    found = _blocked("prompt", feedback.get("safetyRatings"))
    if reason := name(feedback.get("blockReason")):
        found.append(shapes.warning("prompt_blocked", feedback.get("blockReasonMessage") or reason))
    return found


def _blocked(what: str, ratings: Any) -> list[shapes.Warning]:
    return [
        shapes.warning("safety", f"{what}: {shapes.dumps(rating)}")
        for rating in items(ratings)[: shapes.MAX_WARNINGS]
        if mapping(rating).get("blocked") is True
    ]


def content_message(value: Any, budget: shapes.Budget) -> shapes.Message:
    """One content of a request as a message."""
    if isinstance(value, str):
        return shapes.message("user", [shapes.text_part(value, budget)])
    content = mapping(value)
    if not isinstance(content.get("parts"), list | dict):
        return shapes.unknown_message(value, budget)
    role = name(content.get("role")) or "user"
    parts = [_part(part, budget) for part in shapes.listed(content["parts"])]
    return shapes.message("assistant" if role == "model" else role, parts, given=content, known={"parts"})


def _part(value: Any, budget: shapes.Budget) -> shapes.Part:
    part = mapping(value)
    if isinstance(text := part.get("text"), str):
        made = shapes.reasoning_part if part.get("thought") is True else shapes.text_part
        return shapes.with_other(made(text, budget), part, _TEXT)
    if call := mapping(_get(part, "functionCall")):
        made_call = shapes.tool_call_part(call.get("id"), call.get("name"), call.get("args", {}), budget)
        return shapes.with_other(made_call, part, _KNOWN_PART)
    if result := mapping(_get(part, "functionResponse")):
        made_result = shapes.tool_result_part(
            result.get("id"), _result(result, budget), budget, tool=result.get("name")
        )
        return shapes.with_other(made_result, part, _KNOWN_PART)
    if blob := mapping(_get(part, "inlineData")):
        media_type = name(_get(blob, "mimeType"))
        kind = "image" if str(media_type).startswith("image/") else "file"
        return shapes.data_part(kind, media_type=media_type, data=blob.get("data"), name=_get(blob, "displayName"))
    if file := mapping(_get(part, "fileData")):
        media_type = name(_get(file, "mimeType"))
        kind = "image" if str(media_type).startswith("image/") else "file"
        return shapes.data_part(kind, media_type=media_type, url=_get(file, "fileUri"), name=_get(file, "displayName"))
    if code := mapping(_get(part, "executableCode")):
        given = {key: code[key] for key in ("language", "code") if key in code}
        return shapes.tool_call_part(code.get("id"), "code_execution", given, budget)
    if done := mapping(_get(part, "codeExecutionResult")):
        failed = done.get("outcome") not in (None, "OUTCOME_OK")
        output = done.get("output") or ""
        return shapes.tool_result_part(done.get("id"), output, budget, error=failed, tool="code_execution")
    return shapes.unknown_part(value, budget)


def _result(result: Mapping[str, Any], budget: shapes.Budget) -> Any:
    """What a function gave back: an object by the API, whose only ``result`` or ``output`` is what it stands for."""
    parts = items(result.get("parts"))
    if parts:
        return [*_texts(result.get("response"), budget), *(_part(part, budget) for part in parts)]
    response = result.get("response")
    if isinstance(response, dict) and len(response) == 1:
        [(key, value)] = response.items()
        if key in ("result", "output") and isinstance(value, str):
            return value
    return shapes.dumps(without_blobs(response))


def _texts(value: Any, budget: shapes.Budget) -> list[shapes.Part]:
    return [shapes.text_part(shapes.dumps(without_blobs(value)), budget)] if value else []


def _tools(value: Any) -> list[shapes.Tool]:
    """A tool of Gemini is a list of functions, or something of its own (``googleSearch``), or both."""
    given = mapping(value)
    functions = _get(given, "functionDeclarations")
    found = [_function(function) for function in shapes.listed(functions)]
    rest = {key: item for key, item in given.items() if key not in ("functionDeclarations", "function_declarations")}
    for key, item in rest.items():
        found.append({**shapes.tool({key: item}, ""), "name": name(key)})
    return found if given else [shapes.tool(value, "")]


def _function(value: Any) -> shapes.Tool:
    function = mapping(value)
    for key in ("parametersJsonSchema", "parameters_json_schema", "parameters"):
        if key in function:
            return shapes.tool(value, key)
    return shapes.tool(value, "parameters")


def _tool_choice(value: Any) -> shapes.ToolChoice | None:
    if value is None:
        return None
    config = mapping(_get(mapping(value), "functionCallingConfig"))
    if "mode" not in config:
        return shapes.raw({"mode": shapes.UNKNOWN}, "raw", value, shapes.Budget())
    made = shapes.chosen(config["mode"], _get(config, "allowedFunctionNames"))
    return shapes.with_other(made, config, {"mode", "allowedFunctionNames", "allowed_function_names"})
