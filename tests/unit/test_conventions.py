"""Names and values that are the semantic conventions' are checked against their package, wherever they come from."""

from __future__ import annotations

import json
from typing import Any

import httpx
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
)

import otel_chatdebug as chatdebug
from otel_chatdebug.capture import calls, providers
from otel_chatdebug.demo.answers import OpenAIChat
from otel_chatdebug.wire.reading import OPTIONS
from otel_chatdebug.wire.registry import FORMATS
from tests.support.recording import URL, Chunks, Model, answer, recording

KNOWN = {
    value
    for module in (gen_ai, error_attributes, http_attributes, server_attributes, url_attributes)
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str)
}
OPERATIONS = {value.value for value in gen_ai.GenAiOperationNameValues}
PROVIDERS = {value.value for value in gen_ai.GenAiProviderNameValues}

NO_NAME = {"unknown", "ollama", "openrouter", "azure"}
"""Providers that the conventions have no name for."""

ASKED: dict[str, Any] = {
    "model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "stop": ["a"], "n": 2,
    "max_tokens": 5, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "frequency_penalty": 0.1, "presence_penalty": 0.1,
    "seed": 7, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_object"},
}  # fmt: skip
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 1},
         "completion_tokens_details": {"reasoning_tokens": 1}}  # fmt: skip


def test_every_attribute_that_a_span_may_have_is_known() -> None:
    """With all options asked, all counts told, messages on spans, an error, a retry and an unknown method."""
    whole = OpenAIChat().whole("gpt-5-mini-2026", "Hello!", usage=True)
    whole["usage"] = USAGE
    headers = {"content-type": "application/json"}
    with recording(capture_content="SPAN_AND_EVENT") as recorded:
        good = httpx.Response(200, headers=headers, stream=Chunks([json.dumps(whole).encode()]))
        model = Model(answer(429), good)
        with chatdebug.run(chat_id="c", trigger_message_id="m", parent_chat_id="p"), chatdebug.step():
            model.sync.post(URL, json=ASKED)
            model.sync.post(URL, json=ASKED)
        with chatdebug.step(capture="all"):
            model.sync.request("BREW", "https://h/pot")
        names = {name for span in recorded.spans.values() for name in span.attributes or {}}
    assert len(names) > 40
    assert {name for name in names if not name.startswith("chatdebug.")} <= KNOWN
    for option in OPTIONS.values():
        name = f"gen_ai.request.{option}"
        assert name in KNOWN, option
        assert name in names, option


def test_every_value_of_a_name_with_known_values_is_one_of_them() -> None:
    assert calls.ADOPTABLE <= OPERATIONS
    assert {form.operation for form in FORMATS} <= OPERATIONS
    assert {*providers.BY_HOST.values(), *dict(providers.BY_END_OF_HOST).values()} <= PROVIDERS
    assert set(providers.BY_CLIENT.values()) <= PROVIDERS
    assert {form.provider for form in FORMATS} - NO_NAME <= PROVIDERS
