"""Ollama's own API: chats, completions and embeddings.

A stream is the default; it is one JSON object on each line, and ends with one that says ``"done": true`` and has the
counts. There are no ids. ``prompt_eval_count`` and ``eval_count`` leave nothing out; what was cached is not told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.drafts import Budgets, Draft
from otel_chatdebug.wire.openai_completions import user_messages
from otel_chatdebug.wire.openai_embeddings import OpenAIEmbeddings
from otel_chatdebug.wire.reading import (
    Parsed,
    count,
    error_from_body,
    items,
    mapping,
    name,
    request_options,
    set_finish_reason,
    total,
)
from otel_chatdebug.wire.types import Facts, RequestFacts, Usage


class OllamaChat:
    """``POST /api/chat``."""

    name = "ollama.chat"
    provider = "ollama"
    operation = "chat"
    has_terminal = True
    lines = True
    path = re.compile(r"/api/chat/?$")
    markers = re.compile(rb'"(?:done":\s*true|error"(?!\s*:\s*null))')
    repeated = None

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for."""
        return RequestFacts(
            model=name(body.get("model")),
            stream=body.get("stream") is not False,
            options=request_options(body, "options"),
        )

    def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
        """Folds one line into ``facts``."""
        self.read_json(facts, value)
        facts.terminal = facts.terminal or mapping(value).get("done") is True

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole response, a line of a stream or an error body into ``facts``."""
        if not isinstance(body, dict):
            return
        facts.model = facts.model or name(body.get("model"))
        set_finish_reason(facts, 0, body.get("done_reason"))
        facts.usage = _usage(body) or facts.usage
        facts.error = facts.error or (error_from_body(body) if "error" in body else None)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The request in the common shape; None for what is no request."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        return shapes.request(
            self.name,
            body,
            [_message(message, budget) for message in shapes.listed(body.get("messages"))],
            ("messages", "tools"),
            tools=[_tool(tool) for tool in shapes.listed(body.get("tools"))],
            nested=("options",),
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """What the stream said so far; None before its first line."""
        return self._put_together((mapping(value) for _, value in events), Budgets())

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """A whole response in the common shape; None for what is none (an error body)."""
        return self._put_together([mapping(body)], Budgets.whole())

    def _put_together(self, lines: Iterable[Mapping[str, Any]], budgets: Budgets) -> dict[str, Any] | None:
        facts = Facts()
        draft = Draft(budgets)
        warnings: list[shapes.Warning] = []
        seen = False
        for line in lines:
            self.read_json(facts, line)
            seen = self.add(draft, line) or seen
            if "warnings" in line or "warning" in line:
                warnings += shapes.warnings_of(line)
        if not seen:
            return None
        draft.finish_reason = facts.finish_reasons[0] if facts.finish_reasons else None
        return shapes.response(self.name, [draft.message()], facts, warnings)

    def add(self, draft: Draft, line: Mapping[str, Any]) -> bool:
        """Adds what a line says to ``draft``; False for a line that is none of a response."""
        if not isinstance(line.get("message"), dict):
            return "done" in line
        message = line["message"]
        draft.role = draft.role or name(message.get("role"))
        draft.reasoning(message.get("thinking"))
        draft.text(message.get("content"))
        for call in items(message.get("tool_calls")):
            draft.part(_tool_call(call, draft.budget()))
        for image in items(message.get("images")):
            draft.part(shapes.data_part("image", data=image))
        for key, value in message.items():
            if key not in _KNOWN_MESSAGE and value not in (None, "", [], {}):
                draft.also(key, value)
        return True


class OllamaGenerate(OllamaChat):
    """``POST /api/generate``: a prompt instead of messages."""

    name = "ollama.generate"
    operation = "text_completion"
    path = re.compile(r"/api/generate/?$")

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """The prompt as a user's message, with its images."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        messages = []
        if isinstance(system := body.get("system"), str) and system:
            messages.append(shapes.message("system", [shapes.text_part(system, budget)]))
        prompt = user_messages(body.get("prompt", ""))
        prompt[0]["parts"] += [shapes.data_part("image", data=image) for image in items(body.get("images"))]
        known = ("system", "prompt", "images", "context")  # the context is numbers of tokens, of a whole chat
        return shapes.request(self.name, body, messages + prompt, known, nested=("options",))

    def add(self, draft: Draft, line: Mapping[str, Any]) -> bool:
        """Adds what a line says to ``draft``; False for a line that is none of a response."""
        draft.reasoning(line.get("thinking"))
        draft.text(line.get("response"))
        if isinstance(image := line.get("image"), str) and image:
            draft.part(shapes.data_part("image", data=image))
        return "response" in line or "done" in line


class OllamaEmbeddings(OllamaChat):
    """``POST /api/embed``, and the older ``/api/embeddings``, where others speak as OpenAI does. Never a stream."""

    name = "ollama.embeddings"
    operation = "embeddings"
    has_terminal = False
    lines = False
    path = re.compile(r"/api/embed(?:dings)?/?$")
    _openai = OpenAIEmbeddings()

    def request_facts(self, body: Mapping[str, Any], path: str) -> RequestFacts:
        """What the request asks for."""
        facts = super().request_facts(body, path)
        facts.stream = False
        return facts

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole response or an error body into ``facts``."""
        if isinstance(body, dict) and "data" in body:
            self._openai.read_json(facts, body)
        else:
            super().read_json(facts, body)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """Each input as a user's message."""
        if not isinstance(body, dict):
            return None
        key = "prompt" if "prompt" in body else "input"
        return shapes.request(self.name, body, user_messages(body.get(key)), (key,), nested=("options",))

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """Nothing: embeddings do not stream."""
        return self._openai.assemble(events)

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """How many vectors came, and of which size."""
        given = mapping(body)
        vectors = given.get("embeddings", [given["embedding"]] if "embedding" in given else None)
        if not isinstance(vectors, list):
            return self._openai.normalize_response(body)
        facts = Facts()
        self.read_json(facts, body)
        return shapes.embeddings(self.name, facts, vectors)


_KNOWN_MESSAGE = frozenset({"role", "content", "thinking", "tool_calls", "images", "tool_name", "tool_call_id"})


def _usage(body: Mapping[str, Any]) -> Usage | None:
    input_tokens, output_tokens = count(body.get("prompt_eval_count")), count(body.get("eval_count"))
    if input_tokens is None and output_tokens is None:
        return None
    return Usage(input_tokens, output_tokens, total(None, input_tokens, output_tokens))


def _message(value: Any, budget: shapes.Budget) -> shapes.Message:
    if not isinstance(value, dict) or not ("content" in value or "tool_calls" in value):
        return shapes.unknown_message(value, budget)
    content = value.get("content")
    if value.get("role") == "tool":
        result = "" if content is None else content
        made = shapes.tool_result_part(value.get("tool_call_id"), result, budget, tool=value.get("tool_name"))
        if isinstance(content, list):
            made["content"] = [shapes.unknown_part(part, budget) for part in content]
        return shapes.message("tool", [made], given=value, known=_KNOWN_MESSAGE)
    parts = []
    if isinstance(thought := value.get("thinking"), str) and thought:
        parts.append(shapes.reasoning_part(thought, budget))
    if isinstance(content, str):
        parts += [shapes.text_part(content, budget)] if content else []
    elif content is not None:
        parts += [shapes.unknown_part(part, budget) for part in shapes.listed(content)]
    parts += [shapes.data_part("image", data=image) for image in items(value.get("images"))]
    parts += [_tool_call(call, budget) for call in shapes.listed(value.get("tool_calls"))]
    return shapes.message(value.get("role"), parts, given=value, known=_KNOWN_MESSAGE)


def _tool_call(value: Any, budget: shapes.Budget) -> shapes.Part:
    call = mapping(value)
    function = call.get("function")
    if not isinstance(function, dict):
        return shapes.unknown_part(value, budget)
    return shapes.tool_call_part(call.get("id"), function.get("name"), function.get("arguments"), budget)


def _tool(value: Any) -> shapes.Tool:
    function = mapping(value).get("function", value)
    return shapes.tool(function if isinstance(function, dict) else value, "parameters")
