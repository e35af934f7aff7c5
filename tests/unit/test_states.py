"""The table of endings is total, and what must hold for any sequence of events does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_chatdebug.capture import states
from otel_chatdebug.capture.states import (
    MOVES,
    Ending,
    EndReason,
    Event,
    Moment,
    Move,
    Outcome,
    State,
    outcome,
)
from otel_chatdebug.records import AttemptRank
from otel_chatdebug.status import Status

EVERY_MOVE = [(state, event) for state in State for event in Event]
ENDINGS = sorted({move.ending for move in MOVES.values() if move.ending is not None}, key=repr)

BEGUN = frozenset(State) - {State.WAITING}
CLOSING = frozenset(
    {State.STREAM_CLOSING, State.STREAM_ENDED_CLOSING, State.BODY_CLOSING, State.BODY_ENDED_CLOSING},
)
FRAMED = frozenset(
    {State.STREAMING, State.STREAM_LEFT, State.STREAM_ENDED, State.STREAM_CLOSING, State.STREAM_ENDED_CLOSING}
)

sequences = st.lists(st.sampled_from(Event), max_size=12)
"""Any events in any order, the impossible ones included: the table has a word on each."""


@dataclass
class Walk:
    """What an attempt would be after some events."""

    state: State = State.WAITING
    rank: int = AttemptRank.OPEN
    last: Outcome | None = None

    def step(self, event: Event, *, whole: bool, raised: str | None = None) -> None:
        move = MOVES[self.state, event]
        self.state = move.to
        if move.ending is not None:
            self.last = outcome(move.ending, whole=whole, stream_error=None, status_error=None, raised=raised)
            self.rank = self.last.rank
        elif move.to is State.FINAL:
            self.rank = AttemptRank.FINAL


# -- the table


def test_the_table_has_a_move_for_every_state_and_every_event_and_no_other() -> None:
    assert set(MOVES) == set(EVERY_MOVE)


@pytest.mark.parametrize(("state", "event"), EVERY_MOVE, ids=lambda value: value.name)
def test_a_move_leads_to_a_state_and_only_a_learned_outcome_ends_an_attempt(state: State, event: Event) -> None:
    move = MOVES[state, event]
    assert isinstance(move.to, State)
    if move.to is State.FINAL and state not in (State.READER_LEFT, State.FINAL):
        assert move.ending is not None, "final, and nobody knows how it ended"
        assert move.ending.rank == AttemptRank.FINAL
    if move.ending is not None and move.ending.rank == AttemptRank.FINAL:
        assert move.to in (State.FINAL, State.READER_LEFT)


@pytest.mark.parametrize("event", Event)
def test_nothing_changes_what_is_final(event: Event) -> None:
    assert MOVES[State.FINAL, event] == Move(State.FINAL)


def test_a_reader_that_left_is_final_but_for_a_close_that_fails_after_all() -> None:
    learned = {event for event in Event if MOVES[State.READER_LEFT, event].ending is not None}
    assert learned == {Event.CLOSE_FAILED}
    assert MOVES[State.READER_LEFT, Event.CLOSE_FAILED] == Move(State.FINAL, states.CLOSE_ERROR)


@pytest.mark.parametrize("state", sorted(BEGUN - {State.FINAL}, key=lambda state: state.name))
def test_a_failed_close_is_an_error_whatever_was_seen_before(state: State) -> None:
    assert MOVES[state, Event.CLOSE_FAILED] == Move(State.FINAL, states.CLOSE_ERROR)


@pytest.mark.parametrize("state", sorted(BEGUN, key=lambda state: state.name))
@pytest.mark.parametrize("event", [Event.CLOSED, Event.COLLECTED])
def test_after_a_close_or_a_collection_nothing_is_open(state: State, event: Event) -> None:
    assert MOVES[state, event].to is State.FINAL


@pytest.mark.parametrize("state", sorted(CLOSING, key=lambda state: state.name))
@pytest.mark.parametrize("event", [Event.READ_ERROR, Event.CANCELLED, Event.GENERATOR_CLOSED])
def test_what_a_reader_sees_because_somebody_closes_is_no_news(state: State, event: Event) -> None:
    assert MOVES[state, event] == Move(state)


@pytest.mark.parametrize("state", State)
def test_an_end_of_the_process_leaves_every_attempt_final_or_left(state: State) -> None:
    move = MOVES[state, Event.SHUTDOWN]
    if state in (State.STREAM_LEFT, State.BODY_LEFT):  # by its run, and the row says so
        assert move == Move(state)
    else:
        assert move.to is State.FINAL or (move.ending is not None and move.ending.rank == AttemptRank.LEFT)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", [Event.RUN_LEFT, Event.SHUTDOWN])
def test_an_attempt_that_is_left_behind_can_still_be_corrected(state: State, event: Event) -> None:
    move = MOVES[state, event]
    if move.ending is not None and move.ending.rank == AttemptRank.LEFT:
        left = {State.STREAMING: State.STREAM_LEFT, State.READING: State.BODY_LEFT}
        assert move.to is (left[state] if event is Event.RUN_LEFT else state)


@pytest.mark.parametrize(
    ("state", "left"), [(State.STREAMING, State.STREAM_LEFT), (State.READING, State.BODY_LEFT)], ids=["framed", "not"]
)
@pytest.mark.parametrize("event", [event for event in Event if event not in (Event.RUN_LEFT, Event.SHUTDOWN)])
def test_a_body_whose_run_was_left_goes_on_like_any_other(state: State, left: State, event: Event) -> None:
    move, expected = MOVES[left, event], MOVES[state, event]
    assert move.ending == expected.ending
    assert move.to is {State.STREAMING: State.STREAM_LEFT, State.READING: State.BODY_LEFT}.get(expected.to, expected.to)


def test_a_body_that_turns_out_framed_is_in_the_same_place_of_the_other_half_of_the_table() -> None:
    moved = {state: MOVES[state, Event.FRAMED].to for state in State if MOVES[state, Event.FRAMED].to is not state}
    assert moved == {
        State.READING: State.STREAMING,
        State.BODY_LEFT: State.STREAM_LEFT,
        State.BODY_CLOSING: State.STREAM_CLOSING,
    }


def test_every_ending_of_this_module_is_reached() -> None:
    named = {value for value in vars(states).values() if isinstance(value, Ending)}
    assert named == set(ENDINGS)


def test_every_reason_but_the_sweeps_is_reached() -> None:
    told = {reason for ending in ENDINGS for reason in (ending.whole_reason, ending.broken_reason)}
    assert told == set(EndReason) - {EndReason.STALE}


@pytest.mark.parametrize("field", ["moves", "ignored"])
def test_a_row_that_does_not_name_every_event_once_is_refused(field: str) -> None:
    every = tuple(Event)
    moves, ignored = ({Event.CLOSED: Move(State.FINAL)}, every) if field == "moves" else ({}, every[1:])
    with pytest.raises(ValueError, match="does not name every event once"):
        states._row(State.WAITING, moves, ignored)


# -- any sequence of events


@given(sequences, st.booleans())
def test_ranks_never_fall(events: list[Event], whole: bool) -> None:
    walk = Walk()
    for event in events:
        before = walk.rank
        walk.step(event, whole=whole)
        assert walk.rank >= before, (event, walk)


@given(sequences, sequences, st.booleans())
def test_a_final_outcome_stays_but_for_a_close_that_fails_after_the_reader_left(
    before: list[Event], after: list[Event], whole: bool
) -> None:
    walk = Walk()
    for event in before:
        walk.step(event, whole=whole)
    if walk.rank < AttemptRank.FINAL:
        return
    known = walk.last
    for event in after:
        left = walk.state is State.READER_LEFT
        walk.step(event, whole=whole)
        if left and event is Event.CLOSE_FAILED:
            assert walk.last is not None
            assert walk.last.reason is EndReason.CLOSE_ERROR
            known = walk.last
        assert walk.last == known


@given(sequences)
def test_a_provisional_success_yields_to_a_close_that_fails(between: list[Event]) -> None:
    walk = Walk()
    for event in (Event.STREAM_HEADERS, Event.END_OF_BODY):
        walk.step(event, whole=True)
    assert walk.last is not None
    assert (walk.last.status, walk.last.rank) == (Status.COMPLETED, AttemptRank.PROVISIONAL)
    for event in between:
        walk.step(event, whole=True, raised="httpx.CloseError" if event is Event.CLOSE_FAILED else None)
        if walk.rank == AttemptRank.FINAL:
            break
        assert walk.last.status is Status.COMPLETED
    else:
        walk.step(Event.CLOSE_FAILED, whole=True, raised="httpx.CloseError")
        event = Event.CLOSE_FAILED
    if event is Event.CLOSE_FAILED:
        assert (walk.last.status, walk.last.reason) == (Status.ERROR, EndReason.CLOSE_ERROR)
        assert walk.last.error == "httpx.CloseError"
    else:
        assert (walk.last.status, walk.last.reason) == (Status.COMPLETED, EndReason.SSE_EOF)
    assert walk.last.rank == AttemptRank.FINAL


@given(sequences)
def test_a_framed_body_is_never_judged_as_one_that_is_not_and_the_other_way_round(events: list[Event]) -> None:
    walk = Walk()
    for event in events:
        ending = MOVES[walk.state, event].ending
        if walk.state in FRAMED:
            assert ending not in (states.BODY_CLOSE, states.BODY_EARLY_CLOSE)
        elif walk.state is not State.WAITING:
            assert ending not in (states.STREAM_END, states.STREAM_END_CONFIRMED, states.STREAM_CLOSE)
        walk.step(event, whole=True)


@given(sequences, st.booleans())
def test_the_outcome_of_a_stream_that_ended_does_not_depend_on_what_else_is_told_in_between(
    noise: list[Event], whole: bool
) -> None:
    """Second iterations, and the reader's view of a close: the end of the body was seen, and that stays."""
    walk = Walk()
    for event in (Event.STREAM_HEADERS, Event.END_OF_BODY):
        walk.step(event, whole=whole)
    known = walk.last
    for event in noise:
        if event is not Event.CLOSE_FAILED:
            walk.step(event, whole=whole)
    assert known is not None
    assert walk.last is not None
    assert (walk.last.status, walk.last.reason, walk.last.error) == (known.status, known.reason, known.error)
    assert walk.last.moment is Moment.END_OF_BODY


# -- which error wins

endings = st.sampled_from(ENDINGS)
optional = st.none() | st.sampled_from(["one", "two"])


@given(endings, st.booleans(), optional, optional, optional)
def test_an_error_event_wins_over_a_status_code_over_what_was_raised_over_an_incomplete_body(
    ending: Ending, whole: bool, stream: str | None, status: str | None, raised: str | None
) -> None:
    found = outcome(ending, whole=whole, stream_error=stream, status_error=status, raised=raised)
    plain = ending.whole if whole else ending.broken
    assert (found.status is Status.ERROR) == (found.error is not None)
    assert found.rank == ending.rank
    assert found.reason is (ending.whole_reason if whole else ending.broken_reason)
    if stream is not None:
        assert found.error == stream
    elif status is not None:
        assert found.error == status
    elif plain is not Status.ERROR:
        assert found.status is plain
    elif raised is not None:
        assert found.error == raised
    elif ending.incomplete is not None and not whole:
        assert found.error == ending.incomplete
    else:
        assert found.error == found.reason.value


@given(endings, st.booleans())
def test_an_interruption_names_no_error_whatever_was_raised_meanwhile(ending: Ending, whole: bool) -> None:
    found = outcome(ending, whole=whole, stream_error=None, status_error=None, raised="httpx.ReadError")
    if found.status is not Status.ERROR:
        assert found.error is None


# -- the rows of the design, word by word

ROWS = [
    ("transport raises", [Event.TRANSPORT_ERROR], False, "error", "transport_error", 3, Moment.EVENT),
    ("cancelled before headers", [Event.CANCELLED], False, "interrupted", "cancelled", 3, Moment.EVENT),
    ("stream ended", "S end", True, "completed", "sse_eof", 2, Moment.END_OF_BODY),
    ("stream ended, closed", "S end closing closed", True, "completed", "sse_eof", 3, Moment.END_OF_BODY),
    ("stream ended, step over", "S end settled", True, "completed", "sse_eof", 3, Moment.END_OF_BODY),
    ("stream ended, collected", "S end collected", True, "completed", "sse_eof", 3, Moment.END_OF_BODY),
    ("stream ended, close fails", "S end closing close_failed", True, "error", "close_error", 3, Moment.EVENT),
    ("no terminal event", "S end closed", False, "error", "sse_eof", 3, Moment.END_OF_BODY),
    ("closed after the terminal event", "S closing closed", True, "completed", "body_close", 3, Moment.EVENT),
    ("cancelled after the terminal event", "S cancelled", True, "completed", "body_close", 3, Moment.EVENT),
    ("left after the terminal event", "S generator_closed", True, "completed", "body_close", 3, Moment.EVENT),
    ("closed early", "S closing closed", False, "interrupted", "early_close", 3, Moment.EVENT),
    ("generator closed only", "S generator_closed", False, "interrupted", "early_close", 3, Moment.EVENT),
    ("reading raises", "S read_error", False, "error", "read_error", 3, Moment.EVENT),
    ("cancelled while reading", "S cancelled", False, "interrupted", "cancelled", 3, Moment.EVENT),
    ("forgotten", "S collected", False, "interrupted", "abandoned", 3, Moment.LAST_BYTE),
    ("forgotten after the terminal event", "S collected", True, "completed", "abandoned", 3, Moment.LAST_BYTE),
    ("body whole", "B end closing closed", True, "completed", "body_close", 3, Moment.EVENT),
    ("body short", "B end closing closed", False, "error", "body_close", 3, Moment.EVENT),
    ("body ended, not closed", "B end", True, None, None, 0, None),
    ("body closed early, whole", "B closing closed", True, "completed", "early_close", 3, Moment.EVENT),
    ("body closed early", "B closing closed", False, "error", "early_close", 3, Moment.EVENT),
    ("run left", "S run_left", False, "interrupted", "run_end", 1, Moment.EVENT),
    ("run left, goes on", "S run_left end closed", True, "completed", "sse_eof", 3, Moment.END_OF_BODY),
    ("process ends", "B shutdown", False, "interrupted", "shutdown", 1, Moment.EVENT),
    ("process ends before headers", [Event.SHUTDOWN], False, "interrupted", "shutdown", 1, Moment.EVENT),
    ("framed after all", "B framed end closed", True, "completed", "sse_eof", 3, Moment.END_OF_BODY),
]
SHORT = {"S": Event.STREAM_HEADERS, "B": Event.BODY_HEADERS, "end": Event.END_OF_BODY}


@pytest.mark.parametrize(
    ("events", "whole", "status", "reason", "rank", "moment"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_the_rows_of_the_design(
    events: str | list[Event], whole: bool, status: str | None, reason: str | None, rank: int, moment: Moment | None
) -> None:
    if isinstance(events, str):
        events = [SHORT.get(word) or Event[word.upper()] for word in events.split()]
    walk = Walk()
    for event in events:
        walk.step(event, whole=whole)
    assert walk.rank == rank
    if status is None:
        assert walk.last is None
    else:
        assert walk.last is not None
        assert (walk.last.status, walk.last.reason, walk.last.moment) == (status, reason, moment)


def test_the_table_knows_no_client_no_clock_and_no_thread() -> None:
    source = Path(states.__file__).read_text(encoding="utf-8")
    imported = set(re.findall(r"^(?:from|import) ([\w.]+)", source, re.MULTILINE))
    assert imported <= {
        "__future__", "collections.abc", "dataclasses", "enum", "typing", "otel_chatdebug.records",
        "otel_chatdebug.status",
    }  # fmt: skip


def test_what_becomes_final_without_an_ending_has_had_a_final_one() -> None:
    """Nothing is told at such a move: all is known already."""
    silent = {state for (state, _), move in MOVES.items() if move.to is State.FINAL and move.ending is None}
    entered = [move for (state, _), move in MOVES.items() if move.to in silent - {State.FINAL} and move.to is not state]
    assert entered
    assert all(move.ending is not None and move.ending.rank == AttemptRank.FINAL for move in entered)
