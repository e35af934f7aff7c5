"""One shape of messages for every provider: the same conversation looks the same, bounded, and without file data."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from otel_chatdebug.wire import registry, shapes
from otel_chatdebug.wire.sse import SSEDecoder
from tests.support.transcripts import BODIES, STREAMS, Transcript


def format(name: str) -> registry.Format:
    return next(format for format in registry.FORMATS if format.name == name)


def normalized(name: str, body: dict[str, Any]) -> dict[str, Any]:
    result = format(name).normalize_request(body)
    assert result is not None
    json.dumps(result)
    return result


def assembled(transcript: Transcript, data: bytes | None = None) -> dict[str, Any]:
    events = SSEDecoder().feed(transcript.data if data is None else data)
    result = transcript.format.assemble(events)
    assert result is not None
    return result


def named(name: str) -> Transcript:
    return next(transcript for transcript in STREAMS + BODIES if transcript.name == name)


HELLO = [{"type": "text", "text": "Hello, wörld!"}]
CALL = {"type": "tool_call", "name": "get_weather", "arguments": {"city": "Paris"}}


@pytest.mark.parametrize("stream", [s for s in STREAMS if ".text" in s.name], ids=str)
def test_a_streamed_text_is_put_together(stream: Transcript) -> None:
    assert assembled(stream)["messages"] == [{"role": "assistant", "parts": HELLO}]


@pytest.mark.parametrize("stream", [s for s in STREAMS if ".tools" in s.name], ids=str)
def test_a_streamed_tool_call_is_put_together(stream: Transcript) -> None:
    response = assembled(stream)
    [message] = response["messages"]
    call = message["parts"][-1]
    assert {key: call[key] for key in CALL} == CALL
    assert call["id"]
    assert response["finish_reasons"]


@pytest.mark.parametrize("body", [b for b in BODIES if not b.name.split(".")[1].isdigit()], ids=str)
def test_a_whole_body_has_the_shape_of_its_stream(body: Transcript) -> None:
    response = body.format.normalize_response(json.loads(body.data))
    assert response is not None
    streamed = assembled(named(body.name.replace(".json", ".sse")))
    parts = [part for part in response["messages"][0]["parts"] if part["type"] != "reasoning"]
    assert parts == [part for part in streamed["messages"][0]["parts"] if part["type"] != "reasoning"]
    assert {key: response[key] for key in ("finish_reasons", "model", "id")} == {
        key: streamed[key] for key in ("finish_reasons", "model", "id")
    }


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_every_beginning_of_a_stream_can_be_shown_and_its_text_only_grows(stream: Transcript) -> None:
    text = ""
    for end in range(0, len(stream.data), 37):
        response = stream.format.assemble(SSEDecoder().feed(stream.data[:end]))
        if response is None:
            assert not text
            continue
        now = "".join(part.get("text", "") for message in response["messages"] for part in message["parts"])
        assert now.startswith(text)
        text = now


@pytest.mark.parametrize("body", [b for b in BODIES if b.name.split(".")[1].isdigit()], ids=str)
def test_an_error_body_is_no_response(body: Transcript) -> None:
    assert body.format.normalize_response(json.loads(body.data)) is None


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
            {"role": "tool", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "A cat."}]},
        ],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": SCHEMA}],
        "tool_choice": "auto",
        "temperature": 0.5,
    },
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_same_conversation_looks_the_same(name: str) -> None:
    assert normalized(name, CONVERSATIONS[name]) == {
        "messages": [
            {"role": "system", "parts": [{"type": "text", "text": "Be brief."}]},
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
        "tools": [{"name": "look", "description": "Looks.", "schema": SCHEMA}],
        "options": {"model": "m", "temperature": 0.5},
        "tool_choice": "auto",
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
]


@pytest.mark.parametrize(("name", "part", "expected"), FILES)
def test_of_a_file_only_its_type_and_length_are_kept(name: str, part: dict[str, Any], expected: dict[str, Any]) -> None:
    key = "input" if name == "openai.responses" else "messages"
    result = normalized(name, {key: [{"role": "user", "content": [part]}]})
    assert result["messages"][0]["parts"] == [expected]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("unknown", [{"type": "hologram", "of": "x", "data": PNG}, 7, None, "a", ["a"]])
def test_what_is_not_known_is_kept_raw_and_without_data(name: str, unknown: Any) -> None:
    key = "input" if name == "openai.responses" else "messages"
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
    assert result["options"]["metadata"]["truncated"] is True
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
}


@pytest.mark.parametrize("name", STREAMED_TEXT)
def test_a_long_stream_is_cut_and_says_how_long_it_was(name: str) -> None:
    events = [(None, json.dumps(STREAMED_TEXT[name]("b" * 1000)).encode())] * 60
    response = format(name).assemble(events)
    assert response is not None
    assert response["messages"][0]["parts"] == [
        {"type": "text", "text": "b" * shapes.MAX_STREAMED, "truncated": True, "length": 60_000},
    ]


def test_choices_are_messages_of_their_own_in_their_order() -> None:
    chunks = [
        {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]},
        {"choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]},
    ]
    response = format("openai.chat").assemble((None, json.dumps(chunk).encode()) for chunk in chunks)
    assert response is not None
    texts = ["".join(part["text"] for part in message["parts"]) for message in response["messages"]]
    assert (texts, response["finish_reasons"]) == (["aA", "b"], ["stop", "length"])


def test_reasoning_and_refusals_are_told_apart_from_text() -> None:
    chunks = [
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"content": "no"}}]},
        {"choices": [{"delta": {"refusal": "I cannot"}}]},
    ]
    response = format("openai.chat").assemble((None, json.dumps(chunk).encode()) for chunk in chunks)
    assert response is not None
    assert response["messages"][0]["parts"] == [
        {"type": "reasoning", "text": "hm"},
        {"type": "text", "text": "no"},
        {"type": "text", "refusal": True, "text": "I cannot"},
    ]


def test_tool_calls_that_are_not_numbered_are_told_apart_by_their_ids() -> None:
    def call(id: str | None, arguments: str) -> dict[str, Any]:
        return {"choices": [{"delta": {"tool_calls": [{"id": id, "function": {"name": "f", "arguments": arguments}}]}}]}

    chunks = [call("1", "{}"), call("2", '{"a":'), call(None, "1}")]
    response = format("openai.chat").assemble((None, json.dumps(chunk).encode()) for chunk in chunks)
    assert response is not None
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
    assert completions.normalize_response({"choices": [{"text": "b", "index": 0, "finish_reason": "stop"}]}) == {
        "messages": [{"role": "assistant", "parts": [{"type": "text", "text": "b"}]}],
        "finish_reasons": ["stop"],
        "model": None,
        "id": None,
    }
    streamed = completions.assemble([(None, b'{"choices":[{"text":"a"}]}'), (None, b'{"choices":[{"text":"b"}]}')])
    assert streamed is not None
    assert streamed["messages"][0]["parts"] == [{"type": "text", "text": "ab"}]
    request = normalized("openai.embeddings", {"model": "m", "input": ["a", "b"]})
    assert [message["parts"][0]["text"] for message in request["messages"]] == ["a", "b"]
    response = embeddings.normalize_response(
        {"model": "m", "data": [{"embedding": [0.1] * 8}, {"embedding": [0.2] * 8}]}
    )
    assert response is not None
    assert response["embeddings"] == {"count": 2, "dimensions": 8}
    assert "0.1" not in json.dumps(response)


def test_tools_that_the_provider_brings_are_kept_raw() -> None:
    web_search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    [tool] = normalized("anthropic.messages", {"messages": [], "tools": [web_search]})["tools"]
    assert tool == {"name": "web_search", "type": "unknown", "raw": web_search}
