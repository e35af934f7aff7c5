"""What is kept of a body: as much as is looked at later, in pieces; memory stays bounded whatever comes."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from otel_chatdebug.capture.kept import KEPT_BODY, KEPT_HEAD, KEPT_START, Kept
from otel_chatdebug.records import AttemptContent
from tests.support.recording import BODY, URL, recording

SIZE = 24 * 1024 * 1024
"""Bytes of a body that passes: several times what is kept of any."""

MOST = 7 * 1024 * 1024
"""Bytes of memory that its recording may take at any moment, and some for what the interpreter caches."""


def test_no_more_is_kept_than_there_is_room_for() -> None:
    kept = Kept()
    for _ in range(4):
        kept.add(b"0123456789", 25)
    assert (kept.size, kept.total, kept.is_whole) == (25, 40, False)
    assert kept.whole() == b"0123456789012345678901234"
    assert kept.head(12) == b"012345678901"
    assert kept.head(10) == b"0123456789"
    assert kept.head(99) == kept.whole()
    assert b"".join(kept.pieces()) == kept.whole()
    assert Kept().head(5) == Kept().whole() == b""


def test_a_copy_is_what_it_was() -> None:
    kept = Kept()
    kept.add(b"first", 99)
    copy = kept.copy()
    kept.add(b"second", 99)
    assert (copy.whole(), copy.size, copy.total, copy.is_whole) == (b"first", 5, 5, True)


def test_what_has_shrunk_keeps_its_start() -> None:
    kept = Kept()
    for _ in range(3):
        kept.add(b"x" * KEPT_START, KEPT_BODY)
    kept.shrink()
    assert (kept.size, kept.total) == (KEPT_START, 3 * KEPT_START)
    assert kept.whole() == b"x" * KEPT_START


class Long(httpx.SyncByteStream):
    """A body of `SIZE` bytes that is nowhere as a whole."""

    def __init__(self, start: bytes, unit: bytes, end: bytes) -> None:
        self._start, self._end = start, end
        self._chunk = unit * (64 * 1024 // len(unit))

    def __iter__(self) -> Iterator[bytes]:
        yield self._start
        for _ in range(SIZE // len(self._chunk)):
            yield bytes(bytearray(self._chunk))  # a chunk of its own, as from a socket
        yield self._end


EVENT = {"choices": [{"index": 0, "delta": {"content": "word " * 200}}]}
BODIES = {
    "application/json": (b'{"choices": [{"message": {"content": "', b"word ", b'"}}]}'),
    "text/event-stream": (b": hello\n\n", b"data: %b\n\n" % json.dumps(EVENT).encode(), b"data: [DONE]\n\n"),
    "text/plain": (b"Words: ", b"word ", b"."),
    "application/octet-stream": (b"\0", b"\1\2\3\4", b"\5"),
    "": (b"Words: ", b"word ", b"."),
}


@pytest.mark.parametrize("content_type", BODIES)
def test_a_long_body_costs_a_few_mebibytes(content_type: str) -> None:
    """While it is read and when it is written; and how long it was is said."""
    headers = {"content-type": content_type} if content_type else {}
    answer = httpx.Response(200, headers=headers, stream=Long(*BODIES[content_type]))
    client = httpx.Client(transport=httpx.MockTransport(lambda request: answer))
    with recording() as recorded:
        tracemalloc.start()
        try:
            with client.stream("POST", URL, json=BODY) as response:
                total = sum(len(chunk) for chunk in response.iter_raw())
            (content,) = [row for row in recorded.contents if isinstance(row, AttemptContent)]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < MOST
    assert content.response_body is not None
    said: Any = content.response_body
    if content_type in ("text/plain", "text/event-stream", ""):
        shown, _, cut = said.partition(" [cut: ")
        assert len(shown) > 49_000
        assert abs(len(shown) + int(cut.split()[0]) - total) < 20  # the marker itself
    else:
        assert str(total) in said
    gc.collect()


def test_json_is_read_whole_or_not_at_all() -> None:
    """One that is a little shorter than what is kept is shown; a longer one by its length."""
    bodies: list[str | None] = []
    for size in (KEPT_BODY - 1000, KEPT_BODY + 1000):
        text = json.dumps({"note": ["word"] * (size // 8)}).encode()
        answer = httpx.Response(200, headers={"content-type": "application/json"}, content=text)
        client = httpx.Client(transport=httpx.MockTransport(lambda request, answer=answer: answer))
        with recording() as recorded:
            client.post(URL, json=BODY)
            bodies += [row.response_body for row in recorded.contents if isinstance(row, AttemptContent)]
    assert bodies[0] is not None
    assert bodies[0].startswith('{"note":["word","word"')
    assert bodies[1] is not None
    assert bodies[1].startswith("[REDACTED: ")


def test_room_for_what_is_shown_is_more_than_is_shown() -> None:
    assert KEPT_HEAD >= 50_000
