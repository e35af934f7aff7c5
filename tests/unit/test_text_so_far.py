"""How soon the text of a stream that goes on is in its row, and what that may cost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug import lifecycle
from otel_chatdebug.capture import content
from otel_chatdebug.records import AttemptContent
from otel_chatdebug.tables import chores
from otel_chatdebug.tables.chores import Beat, Heart
from tests.support.recording import Model, Recording, recording


@pytest.fixture
def record() -> Iterator[Recording]:
    with recording() as found:
        yield found


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def _texts(record: Recording) -> list[str | None]:
    """What each of three beats writes, while deltas come one by one."""
    found: list[str | None] = []
    with chatdebug.run():
        response = Model().open()
        chunks = response.iter_raw()
        for _ in range(2):  # the role, and the first delta
            next(chunks)
        lifecycle.flush()
        (attempt,) = record.recorder.open_attempts.values()
        for _ in range(3):
            attempt.beat()
            rows = [row for row in attempt.records() if isinstance(row, AttemptContent)]
            found.append(rows[0].response_body if rows else None)
            next(chunks)
        response.close()
    return found


def test_each_beat_writes_the_text_so_far_where_that_is_cheap(
    record: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "PARTIAL_COST", float("inf"))
    found = _texts(record)
    assert all(found)
    assert len({len(text or "") for text in found}) == 3  # it grows


def test_making_the_text_so_far_takes_a_small_share_of_the_time(
    record: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "PARTIAL_COST", 1e-12)
    monkeypatch.setattr(content, "LONGEST_PARTIAL_INTERVAL", 3_600_000_000_000)
    first, *others = _texts(record)
    assert first
    assert others == [None, None]


def test_what_moves_is_looked_at_more_often_than_there_are_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(chores, "time", clock)
    looks: list[float] = []

    def look() -> Beat:
        looks.append(clock.now - 100)
        return Beat()

    heart = Heart(look, 2.5, "me")
    beats = []
    for tenth in range(60):
        clock.now = 100 + tenth / 10
        heart.collect()
        if heart._alive is not None:
            beats.append(tenth / 10)
            heart._alive = None
    assert beats == [0, 2.5, 5]
    assert looks == pytest.approx([0, 1, 2, 2.5, 3.5, 4.5, 5])
