"""One shape of messages for every provider: the same conversation looks the same, bounded, and without file data."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import ANY

import pytest

from otel_chatdebug.wire import registry, shapes, sse
from otel_chatdebug.wire.framing import events
from tests.support.shape import check_request, check_response
from tests.support.transcripts import BODIES, STREAMS, Transcript


def format(name: str) -> registry.Format:
    return next(format for format in registry.FORMATS if format.name == name)


def normalized(name: str, body: dict[str, Any]) -> dict[str, Any]:
    result = registry.normalize_request(format(name), body, "/")
    check_request(result)
    return result


def assembled(transcript: Transcript, data: bytes | None = None) -> dict[str, Any]:
    return put_together(transcript.format, events(transcript.framing, transcript.data if data is None else data))


def put_together(format: registry.Format, events: Iterable[sse.Event]) -> dict[str, Any]:
    result = registry.assemble(format, events)
    assert result is not None
    check_response(result)
    return result


def whole(format: registry.Format, body: Any) -> dict[str, Any]:
    result = registry.normalize_response(format, body)
    assert result is not None
    check_response(result)
    return result


def events_of(*chunks: Any) -> list[sse.Event]:
    return [(None, json.dumps(chunk).encode()) for chunk in chunks]


def named(name: str) -> Transcript:
    return next(transcript for transcript in STREAMS + BODIES if transcript.name == name)


UNREASONED = {"mistral.conversations"}
"""Formats that never say why a model stopped."""

HELLO = [{"type": "text", "text": "Hello, wörld!"}]
CALL = {"type": "tool_call", "name": "get_weather", "arguments": {"city": "Paris"}}


@pytest.mark.parametrize("stream", [s for s in STREAMS if ".text" in s.name], ids=str)
def test_a_streamed_text_is_put_together(stream: Transcript) -> None:
    response = assembled(stream)
    assert response["format"] == stream.format.name or stream.name.startswith("bedrock_invoke")
    [message] = response["messages"]
    thought = [{"type": "reasoning", "text": "Say hello."}] if message["parts"][0]["type"] == "reasoning" else []
    kept = {"other": {"conversation_id": "conv_1"}} if stream.format.name in UNREASONED else {}
    assert message == {"role": "assistant", "parts": thought + HELLO, "finish_reason": ANY, **kept}
    assert bool(message["finish_reason"]) is (stream.format.name not in UNREASONED)


@pytest.mark.parametrize("stream", [s for s in STREAMS if ".tools" in s.name], ids=str)
def test_a_streamed_tool_call_is_put_together(stream: Transcript) -> None:
    response = assembled(stream)
    [message] = response["messages"]
    call = message["parts"][-1]
    assert {key: call[key] for key in CALL} == CALL
    assert call["id"] or stream.format.name == "gemini"
    assert bool(message["finish_reason"]) is (stream.format.name not in UNREASONED)


@pytest.mark.parametrize("body", [b for b in BODIES if not b.name.split(".")[1].isdigit()], ids=str)
def test_a_whole_body_has_the_shape_of_its_stream(body: Transcript) -> None:
    response = whole(body.format, json.loads(body.data))
    if body.format.operation == "embeddings":
        assert response["embeddings"] == {"count": 2, "dimensions": 3}
        return
    twin = body.name.removesuffix(".json")
    streamed = assembled(next(stream for stream in STREAMS if stream.name.rpartition(".")[0] == twin))
    parts = [part for part in response["messages"][0]["parts"] if part["type"] != "reasoning"]
    assert parts == [part for part in streamed["messages"][0]["parts"] if part["type"] != "reasoning"]
    assert response["messages"][0]["finish_reason"] == streamed["messages"][0]["finish_reason"]
    assert {key: response[key] for key in ("format", "model", "id", "warnings")} == {
        key: streamed[key] for key in ("format", "model", "id", "warnings")
    }


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_every_beginning_of_a_stream_can_be_shown_and_its_text_only_grows(stream: Transcript) -> None:
    text = ""
    for end in range(0, len(stream.data), 37):
        response = registry.assemble(stream.format, events(stream.framing, stream.data[:end]))
        if response is None:
            assert not text
            continue
        now = "".join(part.get("text", "") for message in response["messages"] for part in message["parts"])
        assert now.startswith(text)
        text = now


@pytest.mark.parametrize("body", [b for b in BODIES if b.name.split(".")[1].isdigit()], ids=str)
def test_an_error_body_is_no_response(body: Transcript) -> None:
    assert registry.normalize_response(body.format, json.loads(body.data)) is None


PNG = base64.b64encode(b"\x89PNG" + bytes(range(256)) * 4).decode()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "openai.chat": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at":"it"}'}},
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "A cat."},
        ],
        "tools": [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}],
        "tool_choice": "auto",
        "temperature": 0.5,
    },
    "openai.responses": {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
                ],
            },
            {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"at":"it"}'},
            {"type": "function_call_output", "call_id": "1", "output": "A cat."},
        ],
        "tools": [{"type": "function", "name": "look", "description": "Looks.", "parameters": SCHEMA}],
        "tool_choice": "auto",
        "temperature": 0.5,
    },
    "anthropic.messages": {
        "model": "m",
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                ],
            },
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "look", "input": {"at": "it"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "A cat."}]},
        ],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "temperature": 0.5,
    },
    "mistral.conversations": {
        "model": "m",
        "instructions": "Be brief.",
        "inputs": [
            {
                "type": "message.input",
                "object": "entry",
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"},
                ],
            },
            {
                "type": "function.call",
                "object": "entry",
                "tool_call_id": "1",
                "name": "look",
                "arguments": {"at": "it"},
            },
            {"type": "function.result", "object": "entry", "tool_call_id": "1", "result": "A cat."},
        ],
        "tools": [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}],
        "completion_args": {"tool_choice": "auto", "temperature": 0.5},
    },
    "gemini.interactions": {
        "model": "m",
        "system_instruction": "Be brief.",
        "input": [
            {
                "type": "user_input",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image", "mime_type": "image/png", "data": PNG},
                ],
            },
            {"type": "function_call", "id": "1", "name": "look", "arguments": {"at": "it"}},
            {"type": "function_result", "call_id": "1", "result": "A cat."},
        ],
        "tools": [{"type": "function", "name": "look", "description": "Looks.", "parameters": SCHEMA}],
        "generation_config": {"tool_choice": "auto", "temperature": 0.5},
    },
}

INPUT = {"openai.responses": "input", "gemini.interactions": "input", "mistral.conversations": "inputs"}
"""Under which name a request has its messages, where it is not ``messages``."""


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_same_conversation_looks_the_same(name: str) -> None:
    cached = {"other": {"cache_control": {"type": "ephemeral"}}} if name == "anthropic.messages" else {}
    assert normalized(name, {**CONVERSATIONS[name], "top_z": [1], "stream": True}) == {
        "format": name,
        "model": "m",
        "messages": [
            {"role": "system", "parts": [{"type": "text", "text": "Be brief.", **cached}]},
            {
                "role": "user",
                "parts": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image", "media_type": "image/png", "bytes": 1028},
                ],
            },
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "id": "1", "name": "look", "arguments": {"at": "it"}}],
            },
            {"role": "tool", "parts": [{"type": "tool_result", "id": "1", "content": "A cat."}]},
        ],
        "tools": [{"type": "function", "name": "look", "description": "Looks.", "schema": SCHEMA}],
        "tool_choice": {"mode": "auto"},
        "options": {"temperature": 0.5},
        "provider_options": {"top_z": [1], "stream": True},
        "provider_option_count": 2,
    }


FILES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "openai.chat",
        {"type": "image_url", "image_url": {"url": "https://h/cat.png"}},
        {"type": "image", "media_type": None, "bytes": None, "url": "https://h/cat.png"},
    ),
    (
        "openai.chat",
        {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
        {"type": "file", "media_type": "audio/wav", "bytes": 1028},
    ),
    (
        "openai.chat",
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"}},
        {"type": "file", "media_type": "application/pdf", "bytes": 1028, "name": "a.pdf"},
    ),
    (
        "openai.responses",
        {"type": "input_file", "file_id": "file-1"},
        {"type": "file", "media_type": None, "bytes": None, "id": "file-1"},
    ),
    (
        "anthropic.messages",
        {"type": "document", "title": "T", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}},
        {"type": "file", "media_type": "application/pdf", "bytes": 1028, "name": "T"},
    ),
    (
        "mistral.conversations",
        {"type": "tool_file", "tool": "image_generation", "file_id": "f-1", "file_name": "a.png"},
        {
            "type": "file",
            "media_type": None,
            "bytes": None,
            "id": "f-1",
            "name": "a.png",
            "other": {"tool": "image_generation"},
        },
    ),
    (
        "gemini.interactions",
        {"type": "document", "mime_type": "application/pdf", "data": PNG},
        {"type": "file", "media_type": "application/pdf", "bytes": 1028},
    ),
]


@pytest.mark.parametrize(("name", "part", "expected"), FILES)
def test_of_a_file_only_its_type_and_length_are_kept(name: str, part: dict[str, Any], expected: dict[str, Any]) -> None:
    key = INPUT.get(name, "messages")
    result = normalized(name, {key: [{"role": "user", "content": [part]}]})
    assert result["messages"][0]["parts"] == [expected]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("unknown", [{"type": "hologram", "of": "x", "data": PNG}, 7, None, "a", ["a"]])
def test_what_is_not_known_is_kept_raw_and_without_data(name: str, unknown: Any) -> None:
    key = INPUT.get(name, "messages")
    for messages in ([{"role": "user", "content": [unknown]}], [unknown]):
        result = normalized(name, {key: messages})
        [part] = result["messages"][0]["parts"]
        assert part["type"] == "unknown"
        assert PNG not in json.dumps(result)
        if isinstance(unknown, dict):
            assert part["raw"]["of"] == "x"
        else:
            assert part["raw"] == unknown


def test_a_long_part_is_cut_and_says_so() -> None:
    text = "a" * (shapes.MAX_PART + 5)
    body = {
        "messages": [
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": json.dumps([text])}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": text},
            {"role": "user", "content": [{"type": "new", "x": text}]},
        ],
        "metadata": {"x": text},
    }
    result = normalized("openai.chat", body)
    parts = [message["parts"][0] for message in result["messages"]]
    for part, key in zip(parts, ("text", "arguments", "content", "raw"), strict=True):
        assert part["truncated"] is True
        assert part["length"] >= len(text)
        assert len(part[key]) == shapes.MAX_PART
    assert result["provider_options"]["metadata"]["truncated"] is True
    exact = normalized("openai.chat", {"messages": [{"role": "user", "content": text[:-5]}]})
    assert exact["messages"][0]["parts"] == [{"type": "text", "text": text[:-5]}]


STREAMED_TEXT: dict[str, Callable[[str], dict[str, Any]]] = {
    "openai.chat": lambda text: {"choices": [{"index": 0, "delta": {"content": text}}]},
    "openai.responses": lambda text: {"type": "response.output_text.delta", "output_index": 0, "delta": text},
    "anthropic.messages": lambda text: {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": text},
    },
    "mistral.conversations": lambda text: {"type": "message.output.delta", "output_index": 0, "content": text},
    "gemini.interactions": lambda text: {
        "event_type": "step.delta",
        "index": 0,
        "delta": {"type": "text", "text": text},
    },
}


@pytest.mark.parametrize("name", STREAMED_TEXT)
def test_a_long_stream_is_cut_and_says_how_long_it_was(name: str) -> None:
    events = [(None, json.dumps(STREAMED_TEXT[name]("b" * 1000)).encode())] * 60
    response = put_together(format(name), events)
    assert response["messages"][0]["parts"] == [
        {"type": "text", "text": "b" * shapes.MAX_STREAMED, "truncated": True, "length": 60_000},
    ]


def test_choices_are_messages_of_their_own_in_their_order() -> None:
    chunks = [
        {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]},
        {"choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]},
    ]
    response = put_together(format("openai.chat"), events_of(*chunks))
    texts = ["".join(part["text"] for part in message["parts"]) for message in response["messages"]]
    assert texts == ["aA", "b"]
    assert [message["finish_reason"] for message in response["messages"]] == ["stop", "length"]


def test_reasoning_and_refusals_are_told_apart_from_text() -> None:
    chunks = [
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"content": "no"}}]},
        {"choices": [{"delta": {"refusal": "I cannot"}}]},
    ]
    response = put_together(format("openai.chat"), events_of(*chunks))
    assert response["messages"][0]["parts"] == [
        {"type": "reasoning", "text": "hm"},
        {"type": "text", "text": "no"},
        {"type": "refusal", "text": "I cannot"},
    ]


def test_tool_calls_that_are_not_numbered_are_told_apart_by_their_ids() -> None:
    def call(id: str | None, arguments: str) -> dict[str, Any]:
        return {"choices": [{"delta": {"tool_calls": [{"id": id, "function": {"name": "f", "arguments": arguments}}]}}]}

    chunks = [call("1", "{}"), call("2", '{"a":'), call(None, "1}")]
    response = put_together(format("openai.chat"), events_of(*chunks))
    assert [(part["id"], part["arguments"]) for part in response["messages"][0]["parts"]] == [
        ("1", {}),
        ("2", {"a": 1}),
    ]


def test_arguments_that_broke_off_stay_as_they_are() -> None:
    stream = named("openai_chat.tools.sse")
    cut = stream.data[: stream.data.index(b"Paris")]
    [part] = assembled(stream, cut)["messages"][0]["parts"]
    assert part == {"type": "tool_call", "id": "call_1", "name": "get_weather", "arguments": '{"city":'}


def test_text_completions_and_embeddings() -> None:
    completions, embeddings = format("openai.completions"), format("openai.embeddings")
    body = {"choices": [{"text": "b", "index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
    assert whole(completions, body) == {
        "format": "openai.completions",
        "messages": [{"role": "assistant", "parts": [{"type": "text", "text": "b"}], "finish_reason": "stop"}],
        "model": None,
        "id": None,
        "usage": {"input_tokens": 1},
        "warnings": [],
    }
    streamed = put_together(completions, events_of({"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}))
    assert streamed["messages"][0]["parts"] == [{"type": "text", "text": "ab"}]
    request = normalized("openai.embeddings", {"model": "m", "input": ["a", "b"]})
    assert [message["parts"][0]["text"] for message in request["messages"]] == ["a", "b"]
    response = whole(embeddings, {"model": "m", "data": [{"embedding": [0.1] * 8}, {"embedding": [0.2] * 8}]})
    assert response["embeddings"] == {"count": 2, "dimensions": 8}
    assert "0.1" not in json.dumps(response)


@pytest.mark.parametrize(
    ("name", "choice", "expected"),
    [
        ("openai.chat", "required", {"mode": "required"}),
        ("openai.chat", "any", {"mode": "required"}),  # Mistral
        (
            "openai.chat",
            {"type": "function", "function": {"name": "look"}},
            {"mode": "required", "tools": ["look"]},
        ),
        ("openai.responses", {"type": "function", "name": "look"}, {"mode": "required", "tools": ["look"]}),
        ("anthropic.messages", {"type": "tool", "name": "look"}, {"mode": "required", "tools": ["look"]}),
        (
            "anthropic.messages",
            {"type": "any", "disable_parallel_tool_use": True},
            {"mode": "required", "other": {"disable_parallel_tool_use": True}},
        ),
        ("anthropic.messages", {"type": "none"}, {"mode": "none"}),
        ("openai.chat", {"type": "odd"}, {"mode": "unknown", "raw": {"type": "odd"}}),
        ("openai.chat", 7, {"mode": "unknown", "raw": 7}),
        ("openai.chat", None, None),
    ],
)
def test_a_tool_choice_is_said_in_one_way(name: str, choice: Any, expected: Any) -> None:
    assert normalized(name, {"messages": [], "tool_choice": choice})["tool_choice"] == expected


@pytest.mark.parametrize("body", [[1, {"a": "b"}], "text", 7, ["x" * 20_000]])
def test_a_body_of_no_known_shape_is_kept_raw_and_marked(body: Any) -> None:
    request = registry.normalize_request(registry.generic, body, "/")
    check_request(request)
    response = registry.normalize_response(registry.generic, body)
    check_response(response)
    assert response is not None
    for made in (request, response):
        assert made["format"] == "unknown"
        [message] = made["messages"]
        [part] = message["parts"]
        assert (message["role"], part["type"]) == ("unknown", "unknown")
        assert part["raw"] == body or (part["truncated"] and part["length"] > 20_000)


def test_a_stream_of_no_known_shape_is_kept_raw_and_marked() -> None:
    response = put_together(registry.generic, events_of({"token": "a"}, {"token": "b"}))
    assert response["messages"][0]["parts"] == [{"type": "unknown", "raw": [{"token": "a"}, {"token": "b"}]}]
    assert registry.assemble(registry.generic, []) is None


def test_a_model_that_thinks_at_length_is_not_left_without_its_answer() -> None:
    thought = events_of({"choices": [{"delta": {"reasoning": "r" * 2 * shapes.MAX_STREAMED}}]})
    said = events_of({"choices": [{"delta": {"content": "42"}}]})
    parts = put_together(format("openai.chat"), thought + said)["messages"][0]["parts"]
    assert parts[0]["length"] == 2 * shapes.MAX_STREAMED
    assert parts[1] == {"type": "text", "text": "42"}


def test_what_is_said_beside_text_is_put_together_too() -> None:
    chunks = [
        {"choices": [{"delta": {"audio": {"id": "a", "data": PNG}}}]},
        {"choices": [{"delta": {"audio": {"transcript": "Hel", "data": PNG}}}]},
        {"choices": [{"delta": {"audio": {"transcript": "lo"}}}]},
        {"choices": [{"delta": {"images": [{"type": "image_url", "image_url": {"url": "https://h/cat.png"}}]}}]},
        {"choices": [{"delta": {"mood": "hap"}}]},
        {"choices": [{"delta": {"mood": "py", "sources": [{"url": "u"}]}}]},
    ]
    [message] = put_together(format("openai.chat"), events_of(*chunks))["messages"]
    assert message["parts"] == [
        {"type": "image", "media_type": None, "bytes": None, "url": "https://h/cat.png"},
        {"type": "file", "media_type": "audio", "bytes": 2056, "text": "Hello"},
    ]
    assert message["other"] == {"mood": "happy", "sources": [[{"url": "u"}]]}


def test_what_a_filter_has_found_is_a_warning() -> None:
    """As Azure tells it, of the prompt and of the answer."""
    filtered = {"hate": {"filtered": True, "severity": "high"}, "violence": {"filtered": False, "severity": "safe"}}
    chunks = [
        {"choices": [], "prompt_filter_results": [{"content_filter_results": {"jailbreak": {"detected": True}}}]},
        {"choices": [{"delta": {}, "finish_reason": "content_filter", "content_filter_results": filtered}]},
    ]
    assert put_together(format("openai.chat"), events_of(*chunks))["warnings"] == [
        {"type": "content_filter", "message": 'prompt: jailbreak {"detected":true}'},
        {"type": "content_filter", "message": 'answer: hate {"filtered":true,"severity":"high"}'},
    ]


def test_tools_that_the_provider_brings_are_kept_raw() -> None:
    web_search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    [tool] = normalized("anthropic.messages", {"messages": [], "tools": [web_search]})["tools"]
    assert tool == {"name": "web_search", "type": "unknown", "raw": web_search}
    plain = {"type": "function", "function": {"name": "now"}}
    assert normalized("openai.chat", {"tools": [plain]})["tools"][0]["type"] == "function"
