"""The registry and the stream reader: facts of a stream, whatever its split, and whatever its bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_chatdebug.wire import registry, sse
from otel_chatdebug.wire.framing import JSON_ARRAY, NDJSON, SSE, Framing
from otel_chatdebug.wire.framing import events as events_in
from otel_chatdebug.wire.reading import value_of
from otel_chatdebug.wire.registry import StreamReader, error_from_body, find, framing, framing_by_start, generic
from otel_chatdebug.wire.types import Facts, Usage, WireError
from tests.support import frames
from tests.support.shape import check_request, check_response
from tests.support.transcripts import BODIES, STREAMS, Transcript

streams = pytest.mark.parametrize("stream", STREAMS, ids=str)


def read(format: registry.Format, pieces: Iterable[bytes], framing: Framing = SSE) -> StreamReader:
    reader = StreamReader(format, framing)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    assert reader.faults == 0, reader.last_fault
    return reader


def read_stream(stream: Transcript, pieces: Iterable[bytes] | None = None) -> StreamReader:
    return read(stream.format, [stream.data] if pieces is None else pieces, stream.framing)


def every(data: bytes, step: int) -> list[bytes]:
    return [data[i : i + step] for i in range(0, len(data), step)]


def known(reader: StreamReader) -> tuple[Facts, int]:
    return reader.facts, reader.events


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "openai.chat"),
        ("/openai/deployments/gpt-4o/chat/completions?api-version=2024", "openai.chat"),
        ("/openai/v1/chat/completions/", "openai.chat"),
        ("/v1/responses", "openai.responses"),
        ("/v1/messages", "anthropic.messages"),
        ("/v1/embeddings", "openai.embeddings"),
        ("/v1/completions", "openai.completions"),
        ("/v1/agents/completions", "openai.chat"),
        ("/v1/fim/completions", "openai.completions"),
        ("/openai/responses?api-version=preview", "openai.responses"),
        ("/openai/deployments/ada/embeddings", "openai.embeddings"),
        ("/v1beta/models/gemini-2.5-flash:generateContent", "gemini"),
        ("/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", "gemini"),
        ("/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:streamGenerateContent", "gemini"),
        ("/v1beta/models/gemini-embedding-001:embedContent", "gemini.embeddings"),
        ("/v1beta/models/gemini-embedding-001:batchEmbedContents", "gemini.embeddings"),
        ("/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict", "gemini.embeddings"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/c@1:streamRawPredict", "anthropic.messages"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict", None),
        ("/v1/projects/p/locations/l/publishers/mistralai/models/m:rawPredict", "openai.chat"),
        ("/api/chat", "ollama.chat"),
        ("/api/generate", "ollama.generate"),
        ("/api/embed", "ollama.embeddings"),
        ("/api/embeddings", "ollama.embeddings"),
        ("/api/chat/completions", "openai.chat"),
        ("/model/anthropic.claude-x-v1:0/converse", "bedrock.converse"),
        ("/model/arn:aws:bedrock:us-east-1:1:inference-profile/us.x/converse-stream", "bedrock.converse"),
        ("/model/anthropic.claude-x-v1:0/invoke-with-response-stream", "bedrock.invoke"),
        ("/v1beta/interactions", "gemini.interactions"),
        ("/v1beta1/projects/p/locations/l/interactions", "gemini.interactions"),
        ("/v1beta/interactions/v1_1", None),
        ("/v1beta/interactions/v1_1/cancel", None),
        ("/api/interactions", None),
        ("/v1/conversations", "mistral.conversations"),
        ("/v1/conversations/conv_1", "mistral.conversations"),
        ("/v1/conversations/conv_1/restart", "mistral.conversations"),
        ("/v1/conversations/conv_1/history", None),
        ("/v1beta/models/gemini-2.5-flash:countTokens", None),
        ("/v1/messages/count_tokens", None),
        ("/v1/messages/batches", None),
        ("/v1/responses/resp_1/input_items", None),
        ("/v1/models", None),
        ("/", None),
    ],
)
def test_a_format_is_found_by_the_path(path: str, name: str | None) -> None:
    format = find(path)
    assert (format.name if format else None) == name


def test_formats_have_names_of_their_own_and_say_what_they_do() -> None:
    assert len({format.name for format in registry.FORMATS}) == len(registry.FORMATS)
    operations = {"chat", "embeddings", "text_completion", "generate_content"}
    assert {format.operation for format in registry.FORMATS} == operations
    assert {format.provider for format in registry.FORMATS} == {
        "openai",
        "anthropic",
        "gcp.gemini",
        "mistral_ai",
        "ollama",
        "aws.bedrock",
    }


@streams
def test_whole_byte_by_byte_and_event_by_event_give_the_same_facts(stream: Transcript) -> None:
    whole = known(read_stream(stream))
    assert known(read_stream(stream, every(stream.data, 1))) == whole
    assert known(read_stream(stream, stream.pieces())) == whole


@pytest.mark.parametrize("stream", [stream for stream in STREAMS if stream.framing is SSE], ids=str)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"], ids=["CRLF", "CR"])
def test_line_ends_and_a_byte_order_mark_change_nothing(stream: Transcript, line_end: bytes) -> None:
    whole = known(read_stream(stream))
    data = b"\xef\xbb\xbf" + stream.data.replace(b"\r\n", b"\n").replace(b"\n", line_end)
    assert known(read_stream(stream, [data])) == whole
    assert known(read_stream(stream, every(data, 1))) == whole


@streams
def test_trailing_data_changes_no_fact(stream: Transcript) -> None:
    whole = known(read_stream(stream))
    trailing = [b": bye\n\n", b"data: never end"] if stream.framing is SSE else [b"\n\n", b"\0rubbish"]
    assert known(read_stream(stream, [stream.data, *trailing])) == whole


@streams
@given(cuts=st.lists(st.integers(0, 5000), max_size=12))
@settings(max_examples=25)
def test_no_split_changes_the_facts(stream: Transcript, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(stream.data)]
    pieces = [stream.data[start:end] for start, end in pairwise(places)]
    assert known(read_stream(stream, pieces)) == known(read_stream(stream))


@streams
def test_every_event_is_counted_and_the_facts_are_those_of_all_events_read(stream: Transcript) -> None:
    """What the markers pass over holds no fact."""
    reader = read_stream(stream)
    events = list(events_in(stream.framing, stream.data))
    facts = Facts()
    for event, data in events:
        reader.format.read_event(facts, event, value_of(data))
    assert known(reader) == (facts, len(events))


def eager(stream: Transcript, data: bytes) -> Facts:
    """The facts of every event, each read when it comes."""
    facts = Facts()
    reader = StreamReader(stream.format, stream.framing)
    for event, piece in events_in(stream.framing, data):
        value = value_of(piece)
        if isinstance(reader.format, type(generic)):
            reader._ask_who_speaks(reader.format, value)
        reader.format.read_event(facts, event, value)
    return facts


def gemini_chunk(number: int, **more: Any) -> dict[str, Any]:
    said = {"content": {"parts": [{"text": f"word {number} "}], "role": "model"}, "index": number % 2}
    usage = {"promptTokenCount": 12, "candidatesTokenCount": number, "totalTokenCount": 12 + number}
    return {"candidates": [said], "usageMetadata": usage, "modelVersion": "m", "responseId": "r", **more}


def xai_chunk(number: int, **more: Any) -> dict[str, Any]:
    delta = {"content": f"word {number} "}
    usage = {"prompt_tokens": 12, "completion_tokens": number, "total_tokens": 12 + number}
    return {"id": "r", "model": "m", "choices": [{"index": 0, "delta": delta}], "usage": usage, **more}


def repeating(path: str, chunk: Any, framing: Framing, end: list[dict[str, Any]]) -> Transcript:
    """A stream that has its usage in each event."""
    format = find(path)
    assert format is not None
    values = [chunk(number) for number in range(40)]
    values[20] = chunk(20, usage=None, usageMetadata=None)  # one without
    pieces = [json.dumps(value, separators=(",", ":")).encode() for value in values + end]
    data = b"[" + b"\n,\n".join(pieces) + b"]" if framing is JSON_ARRAY else b"".join(map(sse_event, pieces))
    return Transcript(f"{format.name}.{framing.name}", format, data, framing)


def sse_event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


STREAM = "/v1beta/models/m:streamGenerateContent"
BLOCKED = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}}
FAILED = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}
ENDS: list[list[dict[str, Any]]] = [
    [{"candidates": [{"finishReason": "STOP", "index": 0}, {"finishReason": "STOP", "index": 1}]}],
    [gemini_chunk(99, candidates=[{"finishReason": "STOP", "index": 0}, {"finishReason": "MAX_TOKENS", "index": 1}])],
    [BLOCKED],
    [FAILED],
]
REPEATING = [
    *(repeating(STREAM, gemini_chunk, framing, end) for framing in (SSE, JSON_ARRAY) for end in ENDS),
    repeating("/v1/chat/completions", xai_chunk, SSE, [{"choices": [{"index": 0, "finish_reason": "stop"}]}]),
]


@given(stream=st.sampled_from(REPEATING), chance=st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_usage_that_is_repeated_is_that_of_the_last_event_wherever_a_stream_is_cut(
    stream: Transcript, chance: random.Random
) -> None:
    """Of all facts nothing is missed, whoever looks at them in between, although most events are never parsed."""
    data = stream.data[: chance.randrange(len(stream.data) + 1)]
    reader = StreamReader(stream.format, stream.framing)
    at = 0
    while at < len(data):
        end = at + chance.choice([1, 7, 300, 5000])
        reader.feed(data[at:end])
        at = end
        if chance.random() < 0.1:
            assert reader.facts == eager(stream, data[:at])
    assert reader.facts == eager(stream, data)


@pytest.mark.parametrize("stream", [REPEATING[0], REPEATING[4], REPEATING[-1]], ids=str)
def test_events_that_repeat_the_usage_are_not_parsed(stream: Transcript, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr(registry, "value_of", lambda data: parsed.append(data) or value_of(data))
    reader = read_stream(stream, stream.pieces())
    assert reader.facts.usage is not None
    assert (reader.events, len(parsed)) == (41, 3)  # the first, the one that ends it, and the last with usage


def test_usage_is_kept_where_the_last_event_with_some_is_damaged() -> None:
    stream = REPEATING[0]
    events = stream.pieces()[:12]
    broken = events[11].replace(b'"responseId"', b'"responseId')
    reader = read_stream(stream, [*events[:11], broken])
    assert reader.facts == eager(stream, b"".join(events[:11]))


@streams
def test_a_stream_that_ends_as_it_should_is_terminal_and_one_that_is_cut_is_not(stream: Transcript) -> None:
    """At every event before the one that ends it."""
    ends_in_error = "errevent" in stream.name
    reader = read_stream(stream)
    assert reader.has_terminal
    assert reader.facts.terminal is not ends_in_error
    assert reader.may_have_ended is not ends_in_error
    pieces = stream.pieces()
    last = {"usage": 1, "[DONE]": 0}  # events that may come behind the end
    for end in range(1, len(pieces)):
        cut = read_stream(stream, pieces[:end])
        if cut.facts.terminal or cut.facts.error:
            assert any(word.encode() in b"".join(pieces[end - 1 :]) for word in (*last, "metadata", "]"))
            break
        assert not cut.may_have_ended
        assert cut.facts.error is None
    else:
        end = len(pieces)
    assert end >= len(pieces) - 1


@pytest.mark.parametrize("stream", [stream for stream in STREAMS if stream.framing in (SSE, NDJSON)], ids=str)
def test_a_last_event_without_its_end_counts(stream: Transcript) -> None:
    whole = read_stream(stream).facts
    data = stream.data.rstrip(b"\r\n")
    assert read_stream(stream, [data + b"\n"]).facts == whole
    assert read_stream(stream, [data]).facts == whole


def test_any_other_last_event_without_its_blank_line_does_not() -> None:
    """As the specification says."""
    reader = read(chat(), [b'data: {"id":"1","model":"m","choices":[{"finish_reason":"stop"}]}\n'])
    assert known(reader) == (Facts(), 0)


def mutated(data: bytes, seed: int) -> bytes:
    chance = random.Random(seed)
    changed = bytearray(data)
    for _ in range(chance.randint(1, 30)):
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.randrange(50)]
            case 2:
                changed[at:at] = chance.choice(
                    [b"\n", b"\n\n", b"\r", b"{", b"[", b"null", b'"', b"data:", b"\xff", b"-1"]
                )
            case _:
                changed[at:at] = changed[at // 2 : at]
        if not changed:
            return b""
    return bytes(changed)


@streams
@pytest.mark.parametrize("seeds", [range(0, 40), range(40, 80)], ids=["0-39", "40-79"])
def test_a_damaged_stream_never_raises_and_no_split_changes_what_is_read(stream: Transcript, seeds: range) -> None:
    for seed in seeds:
        data = mutated(stream.data, seed)
        whole = known(read_stream(stream, [data]))
        assert known(read_stream(stream, every(data, 7))) == whole
        made = registry.assemble(stream.format, events_in(stream.framing, data))
        if made is not None:
            check_response(made)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "error",
                    "message",
                    "code",
                    "usage",
                    "choices",
                    "delta",
                    "content",
                    "index",
                    "finish_reason",
                    "tool_calls",
                    "function",
                    "model",
                    "id",
                    "output",
                    "item",
                    "response",
                    "text",
                    "role",
                    "input",
                    "messages",
                    "tools",
                    "input_tokens",
                    "prompt_tokens",
                    "name",
                    "arguments",
                    "status",
                    "content_block",
                    "output_index",
                    "summary",
                    "source",
                    "data",
                    "url",
                    "image_url",
                    "x_groq",
                    "embedding",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@pytest.mark.parametrize("format", [*registry.FORMATS, generic], ids=lambda format: str(format.name))
@given(value=JSON_VALUES, event=st.sampled_from([None, "error", "message_start", "response.completed"]))
@settings(max_examples=75)
def test_no_json_makes_a_format_raise(format: registry.Format, value: Any, event: str | None) -> None:
    facts = Facts()
    format.read_json(facts, value)
    data = json.dumps(value).encode()
    format.read_event(facts, event, value_of(data))
    before = copy.deepcopy(value)
    if isinstance(value, dict):
        format.request_facts(value, "/v1/x")
    check_request(registry.normalize_request(format, value, "/v1/x"))
    for made in (
        registry.normalize_response(format, value),
        registry.assemble(format, [(event, data), (event, data)]),
    ):
        if made is not None:
            check_response(made)
    assert repr(value) == repr(before)


@pytest.mark.parametrize("format", [*registry.FORMATS, generic], ids=lambda format: str(format.name))
@pytest.mark.parametrize("data", [b"", b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe", b"9" * 100_000, b"null"])
def test_garbage_in_an_event_is_read_over(format: registry.Format, data: bytes) -> None:
    facts = Facts()
    format.read_event(facts, None, value_of(data))
    assert facts == Facts()


# --- what each format says


def chat() -> registry.Format:
    format = find("/v1/chat/completions")
    assert format is not None
    return format


def facts_of(name: str) -> Facts:
    stream = next(stream for stream in STREAMS if stream.name == name)
    return read_stream(stream).facts


FACTS = {
    "openai_chat.tools.sse": Facts(
        terminal=True,
        model="gpt-4.1-mini-2025-04-14",
        response_id="chatcmpl-Bx1",
        finish_reasons=["tool_calls"],
        usage=Usage(1200, 84, 1284, reasoning_tokens=64, cache_read_tokens=1024),
    ),
    "openai_chat.text_nousage.sse": Facts(
        terminal=True, model="gpt-4.1-mini-2025-04-14", response_id="chatcmpl-Bx1", finish_reasons=["stop"]
    ),
    "openai_chat.errevent.sse": Facts(
        model="gpt-4.1-mini-2025-04-14",
        response_id="chatcmpl-Bx1",
        error=WireError("server_error", "The server had an error while processing your request."),
    ),
    "groq.text.sse": Facts(
        terminal=True,
        model="llama-3.3-70b-versatile",
        response_id="chatcmpl-Bx1",
        finish_reasons=["stop"],
        usage=Usage(11, 4, 15, reasoning_tokens=2, cache_read_tokens=8),
    ),
    "mistral.tools.sse": Facts(
        terminal=True,
        model="mistral-small-latest",
        response_id="cmpl-1",
        finish_reasons=["tool_calls"],
        usage=Usage(1200, 20, 1220, cache_read_tokens=1024),
    ),
    "openai_responses.text.sse": Facts(
        terminal=True,
        model="gpt-5-mini-2025-08-07",
        response_id="resp_1",
        finish_reasons=["completed"],
        usage=Usage(1200, 84, 1284, reasoning_tokens=64, cache_read_tokens=1024, cache_creation_tokens=0),
    ),
    "openai_responses.incomplete.sse": Facts(
        terminal=True,
        model="gpt-5-mini-2025-08-07",
        response_id="resp_1",
        finish_reasons=["max_output_tokens"],
        usage=Usage(1200, 84, 1284, reasoning_tokens=64, cache_read_tokens=1024, cache_creation_tokens=0),
    ),
    "openai_responses.failed.sse": Facts(
        terminal=True,
        model="gpt-5-mini-2025-08-07",
        response_id="resp_1",
        error=WireError("server_error", "The model failed to generate a response.", "server_error"),
    ),
    "anthropic.text.sse": Facts(
        terminal=True,
        model="claude-sonnet-4-5-20250929",
        response_id="msg_01",
        finish_reasons=["end_turn"],
        usage=Usage(1200, 7, 1207, reasoning_tokens=0, cache_read_tokens=1024, cache_creation_tokens=0),
    ),
    "mistral_conversations.text.sse": Facts(
        terminal=True, model="mistral-medium-2508", response_id="msg_1", usage=Usage(1200, 20, 1220)
    ),
    "mistral_conversations.tools.sse": Facts(
        terminal=True, model="mistral-medium-2508", response_id="tool_1", usage=Usage(190, 209, 399)
    ),
    "mistral_conversations.errevent.sse": Facts(
        model="mistral-medium-2508",
        response_id="msg_1",
        error=WireError("3000", "Internal server error", "3000"),
    ),
    "gemini_interactions.text.sse": Facts(
        terminal=True,
        model="gemini-3.8-flash",
        response_id="v1_Chd1",
        finish_reasons=["completed"],
        usage=Usage(1200, 84, 1284, reasoning_tokens=64, cache_read_tokens=1024),
    ),
    "gemini_interactions.tools.sse": Facts(
        terminal=True,
        model="gemini-3.8-flash",
        response_id="v1_Chd1",
        finish_reasons=["requires_action"],
        usage=Usage(1230, 84, 1314, reasoning_tokens=64, cache_read_tokens=1024),
    ),
    "gemini_interactions.errevent.sse": Facts(
        model="gemini-3.8-flash",
        response_id="v1_Chd1",
        error=WireError("internal_error", "An internal error has occurred.", "internal_error"),
    ),
    "gemini_interactions_older.text.sse": Facts(
        terminal=True,
        model="gemini-2.5-flash",
        response_id="v1_Chd2",
        finish_reasons=["completed"],
        usage=Usage(1200, 84, 1284, reasoning_tokens=64, cache_read_tokens=1024),
    ),
    "anthropic.errevent.sse": Facts(
        model="claude-sonnet-4-5-20250929",
        response_id="msg_01",
        usage=Usage(1200, 1, 1201, cache_read_tokens=1024, cache_creation_tokens=0),
        error=WireError("overloaded_error", "Overloaded"),
    ),
}


@pytest.mark.parametrize("name", FACTS)
def test_what_is_known_of_a_stream(name: str) -> None:
    assert facts_of(name) == FACTS[name]


def twin_of(body: Transcript) -> Transcript | None:
    """The stream that says the same as a whole body."""
    name = body.name.removesuffix(".json").replace("openai.", "openai_chat.")
    return next((stream for stream in STREAMS if stream.name.rpartition(".")[0] == name), None)


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_a_whole_body_says_the_same_as_its_stream_or_tells_its_error(body: Transcript) -> None:
    facts = Facts()
    body.format.read_json(facts, json.loads(body.data))
    if body.name.split(".")[1].isdigit():
        assert facts.error is not None
        assert facts.usage is None
        return
    assert facts.error is None
    twin = twin_of(body)
    if twin is None:  # embeddings do not stream, and finish for no reason
        assert body.format.operation == "embeddings"
        return
    assert facts.usage is not None
    assert facts.finish_reasons or body.format.name == "mistral.conversations"  # which never says why it stopped
    streamed = read_stream(twin).facts
    assert (facts.model, facts.response_id, facts.finish_reasons) == (
        streamed.model,
        streamed.response_id,
        streamed.finish_reasons,
    )


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("openai.429.json", WireError("requests", "Rate limit reached", "rate_limit_exceeded")),
        ("anthropic.529.json", WireError("overloaded_error", "Overloaded")),
        ("mistral.400.json", WireError("invalid_model", "Invalid model: x", "1500")),
        ("mistral.401.json", WireError("error", "Unauthorized")),
        ("mistral.422.json", WireError("validation_error", "body.messages: Field required")),
    ],
)
def test_error_bodies_of_providers(name: str, error: WireError) -> None:
    found = error_from_body(json.loads(next(body.data for body in BODIES if body.name == name)))
    assert found is not None
    assert (found.type, found.code) == (error.type, error.code)
    assert found.message.startswith(error.message)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED"}}, ("RESOURCE_EXHAUSTED", "429")),
        ({"error": {"message": "m", "code": 502}}, ("502", "502")),
        ({"error": "m"}, ("error", None)),
        ({"type": "error", "code": "x", "message": "m"}, ("x", "x")),
        ({"error": None, "choices": []}, None),
        ({"error": {}}, None),
        ({"id": "x"}, None),
        ([], None),
        ("error", None),
    ],
)
def test_error_bodies_of_all_shapes(body: Any, error: tuple[str, str | None] | None) -> None:
    found = error_from_body(body)
    assert (found and (found.type, found.code)) == error
    assert found is None or found.message == "m"


def event(value: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


TALK = (
    'data: [DONE]\n\nevent: message_stop\n{"type":"message_stop"} "usage":{"prompt_tokens":99} '
    '"error":{"type":"x"} "finish_reason":"length" event: error "type":"response.completed" "type":"error"'
)
"""A model that writes about wire formats."""


def test_a_chat_that_talks_about_the_wire_is_not_taken_by_its_word() -> None:
    start = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    talk = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": TALK}, "finish_reason": None}]}
    short = {"delta": "[DONE]"}
    reader = read(
        chat(), [event(talk | {"model": ""}), event(start), event(talk), event(short), *every(event(talk), 3)]
    )
    assert known(reader) == (Facts(model="m", response_id="1"), 5)


@pytest.mark.parametrize(
    ("path", "start", "talk"),
    [
        (
            "/v1/messages",
            {"type": "message_start", "message": {"type": "message", "id": "1", "model": "m"}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TALK}},
        ),
        (
            "/v1/responses",
            {"type": "response.created", "response": {"object": "response", "id": "1", "model": "m"}},
            {"type": "response.output_text.delta", "output_index": 0, "delta": TALK},
        ),
    ],
)
def test_an_answer_that_talks_about_the_wire_is_not_taken_by_its_word(path: str, start: Any, talk: Any) -> None:
    format = find(path)
    assert format is not None
    reader = read(format, [event(start, start["type"]), event(talk, talk["type"]), event(talk)])
    assert known(reader) == (Facts(model="m", response_id="1"), 3)


def test_json_with_spaces_is_read_as_well() -> None:
    """Servers in Python dump with spaces."""
    chunks = [
        {"id": "1", "model": "m", "choices": []},
        {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "padding": "x" * 50},
        {"id": "1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}, "padding": "x" * 50},
    ]
    pieces = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    facts = read(chat(), pieces).facts
    assert facts.finish_reasons == ["stop"]
    assert facts.usage == Usage(1, 2, 3)


def test_the_model_may_come_with_the_second_event_as_with_azure() -> None:
    first = {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    second = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": "a" * 50}}]}
    facts = read(chat(), [event(first), event(second)]).facts
    assert (facts.model, facts.response_id) == ("m", "1")


def test_finish_reasons_stand_at_the_place_of_their_choice_and_are_not_doubled() -> None:
    chunks = [
        {"id": "1", "model": "m", "choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]},
        {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {}},
    ]
    assert read(chat(), map(event, chunks)).facts.finish_reasons == ["stop", "length"]


def test_anthropic_counts_are_cumulative_and_what_a_later_event_leaves_out_stays() -> None:
    """The older API has only output tokens in message_delta."""
    format = find("/v1/messages")
    assert format is not None
    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3, "output_tokens": 1}
    start = {"type": "message_start", "message": {"type": "message", "id": "1", "model": "m", "usage": usage}}
    first = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 7}}
    second = {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 0, "output_tokens": 9}}
    facts = read(format, map(event, [start, first, second])).facts
    assert facts.usage == Usage(18, 9, 27, cache_read_tokens=5, cache_creation_tokens=3)


def test_a_count_that_is_none_is_never_invented() -> None:
    facts = Facts()
    chat().read_json(
        facts, {"choices": [], "usage": {"prompt_tokens": "7", "completion_tokens": True, "total_tokens": -1}}
    )
    assert facts.usage == Usage()
    assert facts.usage.as_dict() is None


@pytest.mark.parametrize("data", [b"", b"{", b"null", b'{"type":"response.completed"}'])
def test_the_end_of_responses_is_seen_by_its_name_even_where_its_data_cannot_be_read(data: bytes) -> None:
    format = find("/v1/responses")
    assert format is not None
    reader = read(format, [b"event: response.completed\ndata: " + data + b"\n\n"])
    assert reader.facts.terminal


def test_an_end_with_an_image_of_megabytes_is_still_an_end() -> None:
    format = find("/v1/responses")
    assert format is not None
    data = event({"type": "response.completed", "response": {"output": ["x" * sse.MAX_EVENT]}}, "response.completed")
    reader = read(format, every(data, 65_536))
    assert reader.facts.terminal
    assert reader.oversized == 1
    assert reader.events == 1


def test_responses_error_event() -> None:
    format = find("/v1/responses")
    assert format is not None
    facts = read(format, [event({"type": "error", "code": "server_error", "message": "m"}, "error")]).facts
    assert facts.error == WireError("server_error", "m", "server_error")
    assert not facts.terminal


def test_an_error_event_without_data_that_can_be_read_is_an_error() -> None:
    format = find("/v1/messages")
    assert format is not None
    message = {"type": "message", "id": "1", "model": "m"}
    start = event({"type": "message_start", "message": message}, "message_start")
    for error in (b"event: error\ndata: ", b"event:error\ndata: ", b"id: 7\nevent: error\ndata: "):
        data = start + error + b"oops " * 20 + b"\n\n"
        for pieces in ([data], [start, data[len(start) :]]):
            assert read(format, pieces).facts.error == WireError("error")


def test_groq_says_why_it_stopped_early() -> None:
    chunk = {"id": "1", "model": "m", "choices": [{"delta": {}}], "x_groq": {"id": "r", "error": "over capacity"}}
    assert read(chat(), [event(chunk)]).facts.error == WireError("error", "over capacity")


def test_a_gateway_that_puts_an_error_into_a_chunk() -> None:
    chunk = {"id": "1", "error": {"code": 502, "message": "m"}, "choices": [{"delta": {}, "finish_reason": "error"}]}
    start = {"id": "1", "model": "m", "choices": []}
    assert read(chat(), [event(start), event(chunk)]).facts.error == WireError("502", "m", "502")


@pytest.mark.parametrize(
    "stream", [s for s in STREAMS if "interactions" in s.name or "conversations" in s.name], ids=str
)
def test_whoever_speaks_like_them_is_read_so_at_any_path(stream: Transcript) -> None:
    reader = StreamReader(generic, stream.framing)
    reader.feed(stream.data)
    assert reader.format.name == stream.format.name  # type: ignore[union-attr]
    assert reader.facts == read_stream(stream).facts


def test_the_generic_format_sees_errors_and_the_end_and_nothing_else() -> None:
    reader = read(
        generic, [event({"usage": {"prompt_tokens": 1}, "model": "m", "text": "x" * 50}), b"data: [DONE]\n\n"]
    )
    assert known(reader) == (Facts(terminal=True), 2)
    assert not reader.has_terminal
    assert read(generic, [event({"error": {"type": "t", "message": "m"}})]).facts.error == WireError("t", "m")
    facts = Facts()
    generic.read_json(facts, {"detail": "a description, not an error"})
    assert facts == Facts()


def test_request_facts_are_named_as_the_span_attributes_are() -> None:
    facts = chat().request_facts(
        {
            "model": "m",
            "stream": True,
            "max_completion_tokens": 5,
            "temperature": 0.5,
            "top_p": "0.5",
            "seed": True,
            "n": 2,
            "stop": "END",
            "messages": [],
        },
        "/v1/chat/completions",
    )
    assert (facts.model, facts.stream) == ("m", True)
    assert facts.options == {"max_tokens": 5, "temperature": 0.5, "choice.count": 2, "stop_sequences": ["END"]}


@pytest.mark.parametrize(
    ("content_type", "name"),
    [
        ("text/event-stream; charset=utf-8", "sse"),
        ("Text/Event-Stream", "sse"),
        ("application/x-ndjson", "ndjson"),
        ("application/jsonl", "ndjson"),
        ("application/vnd.amazon.eventstream", "aws_event_stream"),
        ("application/json", None),
        ("text/plain", None),
        ("", None),
        (None, None),
    ],
)
def test_how_a_body_is_framed_is_known_by_its_type(content_type: str | None, name: str | None) -> None:
    found = framing(content_type)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("path", "first", "name"),
    [
        ("/v1/chat/completions", b"data: {}", "sse"),
        ("/v1/chat/completions", b"event: x", "sse"),
        ("/v1/chat/completions", b"\xef\xbb\xbf: ping", "sse"),
        ("/v1/chat/completions", b'{"a": 1}', None),
        ("/v1/chat/completions", b"", None),
        ("/v1/models/x:streamGenerateContent", b'[{\n  "candidates"', "json_array"),
        ("/v1/models/x:streamGenerateContent", b'{"error": {}}', None),
        ("/api/chat", b'{"model": "x"', "ndjson"),
        ("/model/x/converse-stream", frames.event("messageStart", {}), "aws_event_stream"),
        ("/model/x/converse-stream", b"\0" * 20, None),
    ],
)
def test_where_a_stream_was_asked_for_its_first_bytes_tell(path: str, first: bytes, name: str | None) -> None:
    found = framing_by_start(find(path) or generic, first)
    assert (found and found.name) == name


def test_a_fault_of_a_format_is_counted_and_the_stream_goes_on() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(chat(), name)

        def read_event(self, facts: Facts, event: str | None, value: Any) -> None:
            raise RuntimeError("ours")

    reader = StreamReader(Broken())
    reader.feed(b"data: {}\n\n" * 3)
    reader.finish()
    assert (reader.events, reader.faults) == (3, 3)
    assert "RuntimeError: ours" in str(reader.last_fault)


def test_a_bomb_of_tiny_events_is_counted_and_its_end_is_still_seen() -> None:
    format = find("/v1/chat/completions")
    assert format is not None
    reader = StreamReader(format)
    many = 50_000
    for _ in range(many // 100):
        reader.feed(b"data: {}\n\n" * 100)
    assert not reader.facts.terminal
    reader.feed(b": only a comment\n\ndata: [DONE]\n\n")
    assert (reader.events, reader.facts.terminal) == (many + 1, True)


def test_a_bomb_of_tiny_events_hides_no_terminal_event_of_anthropic() -> None:
    format = find("/v1/messages")
    assert format is not None
    reader = StreamReader(format)
    reader.feed(b"data: {}\n\n" * 20_000)
    reader.feed(b'data: {"type":"message_stop"}\n\n')
    assert reader.facts.terminal


@pytest.mark.parametrize("step", [1, 2, 3, 7, 10_000])
def test_brackets_and_quotes_within_texts_do_not_cut_an_array(step: int) -> None:
    values: list[Any] = [
        {"a": 'quote " bracket ] brace } backslash \\', "b": ["\\", '\\"', "{[", ""]},
        {},
        {"c": {"d": [[{}], "\\\\"]}},
    ]
    data = json.dumps(values, indent=1).encode()
    framer = JSON_ARRAY.framer()
    blocks = [block for piece in every(data, step) for block in framer.feed(piece)]
    assert [json.loads(block) for block in blocks] == values


def test_a_block_whose_type_is_no_text_is_kept_raw() -> None:
    format = find("/v1/messages")
    assert format is not None
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": ["text"], "x": 1}}
    made = registry.assemble(format, [(None, json.dumps(start).encode())])
    assert made is not None
    assert made["messages"][0]["parts"] == [{"type": "unknown", "raw": {"type": ["text"], "x": 1}}]


def test_a_stream_that_nobody_is_known_to_say_ends_with_done() -> None:
    """SDKs stop there, and close without reading the end of the body: the stream was whole all the same."""
    reader = registry.StreamReader(registry.generic)
    for number in range(20):
        reader.feed(b'data: {"kind": "delta", "number": %d, "text": "a text of no known format"}\n\n' % number)
    assert not reader.facts.terminal
    reader.feed(b"event: done\ndata: [DONE]\n\n")
    assert reader.facts.terminal
