"""The SSE decoder against the WHATWG specification, at any split, in bounded memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_chatdebug.wire import sse
from otel_chatdebug.wire.sse import Event, SSEDecoder

CASES: dict[str, tuple[bytes, list[Event]]] = {
    "one line": (b"data: a\n\n", [(None, b"a")]),
    "only one space is taken off": (b"data:  a \n\n", [(None, b" a ")]),
    "no space": (b"data:a\n\n", [(None, b"a")]),
    "a name": (b"event: ping\ndata: a\n\n", [("ping", b"a")]),
    "the name behind the data": (b"data: a\nevent: ping\n\n", [("ping", b"a")]),
    "the last name counts": (b"event: a\nevent: b\ndata:\n\n", [("b", b"")]),
    "an empty name is none": (b"event:\ndata: a\n\n", [(None, b"a")]),
    "a name is of one event only": (b"event: a\ndata: 1\n\ndata: 2\n\n", [("a", b"1"), (None, b"2")]),
    "several lines": (b"data: a\ndata: b\ndata:\n\n", [(None, b"a\nb\n")]),
    "a field without a colon": (b"data\n\n", [(None, b"")]),
    "data twice without a colon": (b"data\ndata\n\n", [(None, b"\n")]),
    "no data is no event": (b"event: ping\n\n", []),
    "comments": (b": hello\n\n:\ndata: a\n: b\n\n", [(None, b"a")]),
    "id, retry and unknown fields": (b"id: 1\nretry: 5\nfoo: bar\ndata: a\n\n", [(None, b"a")]),
    "a name in capitals is another field": (b"DATA: a\n\n", []),
    "a space before the name is another field": (b" data: a\n\n", []),
    "blank lines between": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [(None, b"a"), (None, b"b")]),
    "CRLF": (b"event: x\r\ndata: a\r\n\r\ndata: b\r\n\r\n", [("x", b"a"), (None, b"b")]),
    "CR": (b"data: a\rdata: b\r\rdata: c\r\r", [(None, b"a\nb"), (None, b"c")]),
    "all line ends mixed": (b"data: a\r\n\ndata: b\n\r\ndata: c\r\n\r", [(None, b"a"), (None, b"b"), (None, b"c")]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [(None, b"a")]),
    "only one byte order mark": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [(None, b"b")]),
    "a byte order mark inside": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(None, b"a")]),
    "half a byte order mark": (b"\xef\xbbdata: a\n\ndata: b\n\n", [(None, b"b")]),
    "an end without a blank line is no event": (b"data: a\n\ndata: b\n", [(None, b"a")]),
    "bytes that are no UTF-8": (b"event: \xff\ndata: \xfe\n\n", [("\ufffd", b"\xfe")]),
    "a null": (b"data: a\0b\n\n", [(None, b"a\0b")]),
    "a colon in the data": (b"data: a: b:\n\n", [(None, b"a: b:")]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("case", CASES)
def test_events_are_what_the_specification_says_whole_byte_by_byte_and_with_trailing_data(case: str) -> None:
    data, events = CASES[case]
    assert SSEDecoder().feed(data) == events
    decoder = SSEDecoder()
    assert [event for i in range(len(data)) for event in decoder.feed(data[i : i + 1])] == events
    decoder = SSEDecoder()
    assert decoder.feed(data) + decoder.feed(b"\xef") == events


PIECES = [b"data", b"event", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"x", b"data: y\n\n", b"\xef\xbb\xbf", b"\xef"]


@given(st.lists(st.sampled_from(PIECES), max_size=40), st.lists(st.integers(0, 120), max_size=8))
def test_no_split_changes_the_events(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    decoder = SSEDecoder()
    places = [0, *sorted(cuts), len(data)]
    split = [event for start, end in pairwise(places) for event in decoder.feed(data[start:end])]
    assert split == SSEDecoder().feed(data)


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_events_are_those_of_a_reader_that_takes_line_by_line(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert SSEDecoder().feed(data) == list(by_line(data))


def by_line(data: bytes) -> list[Event]:
    """The specification's algorithm, written down as it stands there."""
    events: list[Event] = []
    name = ""
    lines: list[bytes] = []
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in text.split(b"\n")[:-1]:
        if not line:
            if lines:
                events.append((name or None, b"\n".join(lines)))
            name, lines = "", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"data":
            lines.append(value)
    return events


LONG = b"x" * (2 * sse.MAX_EVENT)


@pytest.mark.parametrize("step", [None, 1000, 65_536, sse.MAX_EVENT])
def test_an_oversized_event_comes_as_its_name_and_the_next_one_whole(step: int | None) -> None:
    data = b"data: a\n\nevent: big\ndata: " + LONG + b"\n\ndata: b\n\n"
    decoder = SSEDecoder()
    step = step or len(data)
    events = [event for i in range(0, len(data), step) for event in decoder.feed(data[i : i + step])]
    assert events == [(None, b"a"), ("big", b""), (None, b"b")]
    assert decoder.oversized == 1


@pytest.mark.parametrize("length", range(sse.MAX_EVENT - 8, sse.MAX_EVENT + 3))
def test_the_limit_is_the_same_for_any_split(length: int) -> None:
    data = b"data: " + b"x" * (length - 6) + b"\n\ndata: b\n\n"
    whole, split = SSEDecoder(), SSEDecoder()
    expected = whole.feed(data)
    events = split.feed(data[:length]) + split.feed(data[length : length + 1]) + split.feed(data[length + 1 :])
    assert events == expected
    assert split.oversized == whole.oversized == (length > sse.MAX_EVENT)


def test_an_endless_line_takes_bounded_memory() -> None:
    framer = sse.Framer()
    for _ in range(100):
        assert framer.feed(b"data: " + b"x" * 65_536) == []
    assert framer.oversized == 1
    assert len(framer._partial) <= sse.MAX_EVENT + 1
    assert framer.rest() == b""
    assert framer.feed(b"\n\ndata: b\n\n") == [b"data:", b"data: b"]
