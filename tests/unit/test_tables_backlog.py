"""What waits is bounded by number and by size, and what is worth least goes first."""

from __future__ import annotations

import pytest

from otel_chatdebug.records import AttemptRank, ContentRank, Record, is_open, size_of, size_of_json
from otel_chatdebug.tables import backlog
from otel_chatdebug.tables.backlog import Backlog, Token, Worth, worth_of
from tests.support.records import attempt_content, attempt_record, ended_run, run_record, step_content, step_record
from tests.support.sources import Live

LARGE = "x" * 100_000


@pytest.mark.parametrize(
    ("record", "worth"),
    [
        (attempt_content(rank=ContentRank.PARTIAL), Worth.TEXT_SO_FAR),
        (step_content(rank=ContentRank.PARTIAL), Worth.TEXT_SO_FAR),
        (run_record(), Worth.IN_PROGRESS),
        (step_record(), Worth.IN_PROGRESS),
        (attempt_record(), Worth.IN_PROGRESS),
        (attempt_content(), Worth.CONTENT),
        (step_content(), Worth.CONTENT),
        (ended_run(), Worth.FINAL),
        (attempt_record(rank=AttemptRank.LEFT), Worth.FINAL),
    ],
)
def test_text_so_far_is_worth_least_and_how_it_ended_most(record: Record, worth: Worth) -> None:
    assert worth_of(record) is worth
    assert is_open(record) == (worth is Worth.IN_PROGRESS)


def test_of_what_was_read_the_least_worthy_goes_first_and_of_equal_worth_the_oldest() -> None:
    waiting = Backlog(max_size=250_000)
    waiting.hold([ended_run("final"), attempt_content("old", response_body=LARGE)], 1)
    waiting.hold([attempt_content("so far", rank=ContentRank.PARTIAL, response_body=LARGE)], 2)
    waiting.relieve()
    assert waiting.dropped == 0
    waiting.hold([run_record("open", summary={"first_message": LARGE})], 3)
    waiting.relieve()
    assert taken_ids(waiting) == {"final", "old", "open"}
    waiting.hold([attempt_content("new", response_body=LARGE)], 4)
    waiting.relieve()
    assert taken_ids(waiting) == {"final", "old", "new"}
    waiting.hold([attempt_content("newest", response_body=LARGE)], 5)
    waiting.relieve()
    assert taken_ids(waiting) == {"final", "new", "newest"}
    assert waiting.dropped == 3


def taken_ids(waiting: Backlog) -> set[str]:
    """Looks, without taking anything out of the line."""
    return {id for _, id in waiting._held}


def test_the_size_is_that_of_the_bodies_and_nothing_is_left_of_it_when_all_is_taken() -> None:
    waiting = Backlog()
    waiting.hold([attempt_content(request_body=LARGE, response_body=LARGE)], 1)
    assert 200_000 < waiting.size < 210_000
    waiting.hold([attempt_content(updated_at=2**60, response_body=LARGE)], 2)  # replaces it
    assert 100_000 < waiting.size < 110_000
    assert waiting.offer(Live(run_record(), final=True, size=50_000))
    assert 150_000 < waiting.size < 160_000
    waiting.drain()
    assert 150_000 < waiting.size < 160_000
    waiting.all_held()
    waiting.next_sources(9, 10**9)
    assert waiting.size == 0


def test_of_each_row_only_the_record_with_the_highest_key_is_held() -> None:
    waiting = Backlog()
    waiting.hold([ended_run(), run_record(), run_record(updated_at=2**60)], 1)
    (held,) = waiting.all_held()
    assert held == ended_run()


def test_where_the_thread_is_busy_the_content_of_what_comes_is_let_go_and_its_state_is_kept() -> None:
    waiting = Backlog(max_size=250_000)
    sources = [
        Live(ended_run(str(number)), attempt_content(str(number)), final=True, size=100_000) for number in range(6)
    ]
    for source in sources:
        assert waiting.offer(source)
    assert [len(source.told) for source in sources] == [2, 2, 1, 1, 1, 1]
    assert waiting.size <= 250_000
    assert waiting.refused == 4


def test_a_source_that_became_final_after_it_was_put_counts_when_it_is_put_again_and_is_read_once() -> None:
    waiting = Backlog()
    source = Live(ended_run(), size=100_000)
    waiting.offer(source)
    assert waiting.size == 0  # in progress: it is in memory anyway
    source.final = True
    waiting.offer(source)
    assert waiting.size == 100_000
    waiting.drain()
    assert waiting.size == 100_000
    assert waiting.next_sources(99, 10**9) == [source]
    waiting.offer(source)
    source.queued = False  # it was read after that
    waiting.drain()
    assert not waiting.waits
    assert waiting.size == 0


def test_twice_the_size_refuses_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_QUEUE", 10**6)
    waiting = Backlog(max_size=250_000)
    stubborn = [Live(ended_run(str(number)), final=True, size=100_000) for number in range(8)]
    for source in stubborn:
        source.strip = lambda: None  # type: ignore[method-assign]
        waiting.offer(source)
    assert len(waiting) == 5
    assert not any(source.queued for source in stubborn[5:])
    assert not waiting.offer(Live(run_record()))  # one in progress is refused much earlier


def test_sources_that_wait_are_stripped_the_oldest_first_before_any_is_dropped() -> None:
    waiting = Backlog(max_size=10**9)
    sources = [Live(ended_run(str(number)), attempt_content(), final=True, size=100_000) for number in range(4)]
    for source in sources:
        waiting.offer(source)
    waiting.drain()
    waiting._max_size = 250_000
    waiting.relieve()
    assert [len(source.told) for source in sources] == [1, 1, 2, 2]
    assert len(waiting) == 4
    assert waiting.dropped == 2


def test_a_token_waits_for_all_that_was_put_before_it_wherever_that_is_now() -> None:
    waiting = Backlog()
    first, token = Live(ended_run(), final=True), Token()
    waiting.offer(first)
    waiting.tell(token)
    waiting.offer(Live(run_record("later")))
    waiting.drain()
    for position, source in waiting.ended():
        waiting.hold(source.records(), position)
    waiting.hold([ended_run(updated_at=2**60)], 99)  # the same row once more
    waiting.settle()
    assert not token.done.is_set()
    waiting.all_held()
    waiting.settle()
    assert token.done.is_set()
    assert waiting.waits


def test_a_size_needs_no_stack_and_no_end() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert size_of_json(deep) > 100_000
    assert size_of_json(list(range(10**6))) < 10**8
    assert size_of(attempt_content(response_body="\N{SNOWMAN}" * 1000)) > 2000
