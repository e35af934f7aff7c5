"""Every reader against damaged transcripts: nothing is raised, time and memory are bounded, what is
valid stays readable.

Time is counted in calls (`sys.setprofile`) and memory in bytes (tracemalloc): no clock. More than the usual few
examples: ``CHATDEBUG_FUZZ_EXAMPLES=2000``.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_chatdebug.wire import registry, shapes
from otel_chatdebug.wire.event_stream import AWS_EVENT_STREAM
from otel_chatdebug.wire.framing import JSON_ARRAY, NDJSON, SSE, Framing, events
from otel_chatdebug.wire.reading import MAX_CHOICES, MAX_COUNT, MAX_MESSAGE, MAX_NAME
from otel_chatdebug.wire.registry import FORMATS, StreamReader, generic
from tests.support import frames
from tests.support.damage import damaged, deep, encoded, value_damaged
from tests.support.shape import check_request, check_response
from tests.support.transcripts import BODIES, STREAMS, Transcript

EXAMPLES = int(os.environ.get("CHATDEBUG_FUZZ_EXAMPLES", "4"))

fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
streams = pytest.mark.parametrize("stream", STREAMS, ids=str)
seeds = st.integers(0, 2**32).map(random.Random)


def follow(format: registry.Format, framing: Framing, pieces: list[bytes]) -> StreamReader:
    reader = StreamReader(format, framing)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    assert reader.faults == 0, reader.last_fault
    return reader


def check_facts(reader: StreamReader) -> None:
    facts = reader.facts
    for text in (facts.model, facts.response_id, *facts.finish_reasons):
        assert text is None or (isinstance(text, str) and len(text) <= MAX_NAME)
    assert len(facts.finish_reasons) <= MAX_CHOICES
    if facts.usage is not None:
        counts = (facts.usage.as_dict() or {}).values()
        assert all(type(count) is int and 0 <= count <= 8 * MAX_COUNT for count in counts)
    if facts.error is not None:
        assert facts.error.type
        assert len(facts.error.type) <= MAX_NAME
        assert len(facts.error.message) <= MAX_MESSAGE


@streams
@fuzz
@given(chance=seeds)
def test_a_damaged_stream_is_read_as_far_as_it_can_be(stream: Transcript, chance: random.Random) -> None:
    """In its own format and in any other, split anywhere."""
    data = damaged(stream, chance)
    for format in (stream.format, generic, chance.choice(FORMATS)):
        whole = follow(format, stream.framing, [data])
        check_facts(whole)
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice([1, 3, 40])))
        places = [0, *cuts, len(data)]
        pieces = [data[start:end] for start, end in pairwise(places)]
        split = follow(format, stream.framing, pieces)
        assert (split.facts, split.events, split.oversized) == (whole.facts, whole.events, whole.oversized)
        made = registry.response_so_far(whole, pieces)
        if made is not None:
            check_response(made)
        stream.framing.text(data[: chance.randrange(len(data) + 1)])


@pytest.mark.parametrize("body", BODIES, ids=str)
@fuzz
@given(chance=seeds)
def test_a_damaged_body_is_read_as_far_as_it_can_be(body: Transcript, chance: random.Random) -> None:
    """As an answer, and as a request, in its own format and in any other."""
    for format in (body.format, generic, chance.choice(FORMATS)):
        wrong = value_damaged(json.loads(body.data), chance)
        reader = StreamReader(format)
        format.read_json(reader.facts, wrong)
        check_facts(reader)
        made = registry.normalize_response(format, wrong)
        if made is not None:
            check_response(made)
        check_request(registry.normalize_request(format, wrong, body.path))


NONSENSE = [b"", b"null", b"7", b'"x"', b"[]", b"{}", b'{"a":', b'{"a":"\xff\xfe"}', b"[" * 5000, b'{"a":' * 5000]
NONSENSE += [b'{"unknown":{"deep":[1,2,3]}}', b"9" * 5000, b'{"type":7}', b'{"choices":7}', b'{"message":[]}']


@streams
@fuzz
@given(chance=seeds)
def test_what_is_valid_between_nonsense_stays_readable(stream: Transcript, chance: random.Random) -> None:
    """Facts and messages are those of the whole stream, whatever stands between its events."""
    said = list(events(stream.framing, stream.data))
    whole = follow(stream.format, stream.framing, [stream.data])
    nonsense = [n for n in NONSENSE if stream.framing is not JSON_ARRAY or (n[:1] == b"{" and n[-1:] == b"}")]
    for _ in range(chance.randint(1, 6)):  # behind the first, in which some formats name what follows
        said.insert(chance.randint(1, len(said)), (None, chance.choice(nonsense)))
    data = encoded(stream.framing, said)
    reader = follow(stream.format, stream.framing, [data])
    assert reader.facts == whole.facts
    assert registry.response_so_far(reader, [data]) == registry.response_so_far(whole, [stream.data])


# --- bounds


def calls_of(work: Callable[[], Any]) -> int:
    """How many functions, Python's and C's, are called by ``work``."""
    made = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return made


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes that ``work`` holds at most."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()


ENDLESS: dict[str, tuple[Framing, bytes, bytes]] = {
    "sse line": (SSE, b"data: ", b"x" * 4096),
    "sse lines": (SSE, b"data: x\n", b"data: y\n" * 500),
    "ndjson line": (NDJSON, b'{"a": "', b"x" * 4096),
    "array text": (JSON_ARRAY, b'[{"a": "', b"x" * 4096),
    "array brackets": (JSON_ARRAY, b"[{", b"{" * 4096),
    "array backslashes": (JSON_ARRAY, b'[{"a": "', b"\\" * 4095),
    "array commas": (JSON_ARRAY, b"[", b"7,[]," * 800),
    "frame": (AWS_EVENT_STREAM, frames.frame(b"x" * 20_000_000)[:4096], b"x" * 4096),
    "rubbish frames": (AWS_EVENT_STREAM, b"\0" * 12, b"\0" * 4096),
}
"""How a stream begins that never ends, and how it goes on."""


def endless(framing: Framing, start: bytes, piece: bytes, count: int) -> None:
    reader = StreamReader(generic, framing)
    reader.feed(start)
    for _ in range(count):
        reader.feed(piece)
    reader.finish()
    assert reader.faults == 0


@pytest.mark.parametrize("case", ENDLESS)
def test_an_event_without_an_end_costs_little_memory_and_linear_time(case: str) -> None:
    framing, start, piece = ENDLESS[case]
    assert peak_of(lambda: endless(framing, start, piece, 1500)) < 4 * 1024 * 1024  # of 6 MB
    once, twice = (calls_of(lambda n=n: endless(framing, start, piece, n)) for n in (50, 100))  # type: ignore[misc]
    assert twice < 2.2 * once + 1000


def big_frame() -> Iterator[bytes]:
    data = frames.chunk(b'{"type":"ping","x":"' + b"x" * 60_000 + b'"}')
    yield from (data[at : at + 1] for at in range(len(data)))


def test_a_large_frame_byte_by_byte_is_not_copied_again_and_again() -> None:
    """Copying all that has come at each byte would take hundreds of gigabytes; calls cannot tell, bytes can."""
    framer = AWS_EVENT_STREAM.framer()
    copied = 0
    for byte in big_frame():
        framer.feed(byte)
        copied += len(framer._partial) if len(framer._partial) >= framer._needed else 0  # type: ignore[attr-defined]
    assert copied == 0


@streams
def test_a_stream_many_times_as_long_takes_so_many_times_as_long_and_gives_no_more(stream: Transcript) -> None:
    """Taken apart and put together: linear in what came, and bounded in what is kept."""
    said = list(events(stream.framing, stream.data))

    def work(times: int) -> Any:
        data = encoded(stream.framing, said * times)
        return registry.assemble(stream.format, events(stream.framing, data))

    once, twice = (calls_of(lambda n=n: work(n)) for n in (10, 20))  # type: ignore[misc]
    assert twice < 2.3 * once
    response = work(3000 // len(said))
    check_response(response)
    assert len(json.dumps(response)) < 10 * shapes.MAX_STREAMED


HOSTILE = {
    "deep": deep(900),
    "wide": {str(number): number for number in range(2_000)},
    "parts": [{"type": "text", "text": "x"}] * 500,
    "numbers": [10**300] * 100,
    "texts": ["x" * 5000] * 10,
}


@pytest.mark.parametrize("format", [*FORMATS, generic], ids=lambda format: str(format.name))
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_value_anywhere_is_bounded(format: registry.Format, name: str) -> None:
    """What is made of a request is no larger than the request, and of a response likewise."""
    hostile = HOSTILE[name]
    keys = ("messages", "contents", "input", "content", "choices", "candidates", "output", "tools", "system", "error")
    for key in keys:
        for value in ({key: hostile}, {key: [hostile]}, {key: [{"content": hostile, "parts": hostile}]}):
            size = len(json.dumps(value))
            request = registry.normalize_request(format, value, "/v1/x")
            check_request(request)
            assert len(json.dumps(request)) < 10 * size + 20_000
            response = registry.normalize_response(format, value)
            if response is not None:
                check_response(response)
                assert len(json.dumps(response)) < 10 * size + 20_000
