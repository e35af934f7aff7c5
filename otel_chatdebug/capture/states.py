"""When an attempt ends: the state machine of one physical request, as a table.

`MOVES` holds a move for every state and every event, so what is ignored is said, too. A move names the next state and,
where something about the attempt's outcome is learned, an `Ending`. An ending says what the outcome is where the
response was *whole* (the format's terminal event was seen; or, for a body that is not framed, all of its bytes) and
what it is where it was *broken*, how final that is, and which moment is the end of the attempt. `outcome` adds the one
rule that stands above the endings: which error wins.

The table knows no HTTP client, no clock and no thread. The rows are those of "When an attempt ends" in docs/why.md,
which is drawn from this module; they were measured on the real SDKs.

"Framed" bodies are made of events that can be told apart (SSE, NDJSON, AWS event streams): their end says little and
their terminal event says all. All others (JSON above all) are whole when their bytes are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import NamedTuple

from otel_chatdebug.records import AttemptRank
from otel_chatdebug.status import Status


class State(Enum):
    """Where an attempt is."""

    WAITING = auto()
    """The request is under way; no headers yet."""
    STREAMING = auto()
    """Headers are here, the body is framed, its end was not seen."""
    STREAM_LEFT = auto()
    """As ``STREAMING``, and its run was left meanwhile: it may still go on, but the end of the process is no news."""
    STREAM_ENDED = auto()
    """The end of a framed body was seen, the close was not: a provisional outcome."""
    STREAM_CLOSING = auto()
    """A close of a framed body has begun before its end was seen, and has not returned yet."""
    STREAM_ENDED_CLOSING = auto()
    """A close has begun and the end of the framed body was seen, before or meanwhile."""
    READING = auto()
    """Headers are here, the body is not framed, its end was not seen."""
    BODY_LEFT = auto()
    """As ``READING``, and its run was left meanwhile."""
    BODY_ENDED = auto()
    """The end of a body that is not framed was seen; the outcome is known at the close only."""
    BODY_CLOSING = auto()
    """A close of a body that is not framed has begun before its end was seen."""
    BODY_ENDED_CLOSING = auto()
    """A close has begun and the end of the body was seen, before or meanwhile."""
    READER_LEFT = auto()
    """The body's generator was closed: final, unless a close follows after all and fails."""
    FINAL = auto()
    """Nothing that comes now changes anything."""

    __hash__ = object.__hash__  # by identity, in C; Enum's own hashes the name, in Python, at each look at the table


class Event(Enum):
    """What can be seen of a request, by whom."""

    STREAM_HEADERS = auto()
    """The transport returned; the body is framed."""
    BODY_HEADERS = auto()
    """The transport returned; the body is not framed, or not known to be."""
    FRAMED = auto()
    """The first bytes show that the body is framed after all."""
    TRANSPORT_ERROR = auto()
    """The transport raised an ``Exception``."""
    END_OF_BODY = auto()
    """The body's iterator is exhausted."""
    CLOSING = auto()
    """Somebody called close; it has not returned yet."""
    CLOSED = auto()
    """The close returned, or was cancelled."""
    CLOSE_FAILED = auto()
    """The close raised an ``Exception``."""
    READ_ERROR = auto()
    """Reading the body raised an ``Exception``."""
    CANCELLED = auto()
    """A ``BaseException`` that is no ``Exception`` went through the transport, or through the reading of the body."""
    GENERATOR_CLOSED = auto()
    """``GeneratorExit``: the body's generator was closed or dropped."""
    COLLECTED = auto()
    """The response's stream object was garbage collected."""
    SETTLED = auto()
    """The step is over: nobody will close this body any more."""
    RUN_LEFT = auto()
    """The run's scope was left while this body was half read."""
    SHUTDOWN = auto()
    """The process, or this package, ends."""

    __hash__ = object.__hash__  # as above


class EndReason(StrEnum):
    """How an attempt ended: the ``end_reason`` column."""

    TRANSPORT_ERROR = "transport_error"
    CANCELLED = "cancelled"
    SSE_EOF = "sse_eof"
    BODY_CLOSE = "body_close"
    EARLY_CLOSE = "early_close"
    CLOSE_ERROR = "close_error"
    READ_ERROR = "read_error"
    ABANDONED = "abandoned"
    RUN_END = "run_end"
    SHUTDOWN = "shutdown"
    STALE = "stale"
    """By the sweep only: the process died."""


class Moment(Enum):
    """Which moment is the end of the attempt, and of its span."""

    EVENT = auto()
    """When the event was seen."""
    END_OF_BODY = auto()
    LAST_BYTE = auto()


INCOMPLETE_STREAM = "incomplete_stream"
"""Error type: a known format's terminal event is missing."""
INCOMPLETE_BODY = "incomplete_body"
"""Error type: fewer bytes came than were promised, or the JSON is not whole."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What an ending means for an attempt. ``incomplete`` is the error type of a broken response, if that is one."""

    whole: Status
    whole_reason: EndReason
    broken: Status
    broken_reason: EndReason
    rank: AttemptRank = AttemptRank.FINAL
    moment: Moment = Moment.EVENT
    incomplete: str | None = None


def _always(status: Status, reason: EndReason, rank: AttemptRank = AttemptRank.FINAL) -> Ending:
    return Ending(status, reason, status, reason, rank)


_COMPLETED, _INTERRUPTED, _ERROR = Status.COMPLETED, Status.INTERRUPTED, Status.ERROR

TRANSPORT_ERROR = _always(_ERROR, EndReason.TRANSPORT_ERROR)
NEVER_ANSWERED = _always(_INTERRUPTED, EndReason.CANCELLED)
READ_ERROR = _always(_ERROR, EndReason.READ_ERROR)
CLOSE_ERROR = _always(_ERROR, EndReason.CLOSE_ERROR)
STREAM_END = Ending(
    _COMPLETED,
    EndReason.SSE_EOF,
    _ERROR,
    EndReason.SSE_EOF,
    AttemptRank.PROVISIONAL,
    Moment.END_OF_BODY,
    INCOMPLETE_STREAM,
)
STREAM_END_CONFIRMED = Ending(
    _COMPLETED,
    EndReason.SSE_EOF,
    _ERROR,
    EndReason.SSE_EOF,
    AttemptRank.FINAL,
    Moment.END_OF_BODY,
    INCOMPLETE_STREAM,
)
STREAM_CLOSE = Ending(_COMPLETED, EndReason.BODY_CLOSE, _INTERRUPTED, EndReason.EARLY_CLOSE)
STREAM_CANCELLED = Ending(_COMPLETED, EndReason.BODY_CLOSE, _INTERRUPTED, EndReason.CANCELLED)
BODY_CLOSE = Ending(_COMPLETED, EndReason.BODY_CLOSE, _ERROR, EndReason.BODY_CLOSE, incomplete=INCOMPLETE_BODY)
BODY_EARLY_CLOSE = Ending(_COMPLETED, EndReason.EARLY_CLOSE, _ERROR, EndReason.EARLY_CLOSE, incomplete=INCOMPLETE_BODY)
ABANDONED = Ending(_COMPLETED, EndReason.ABANDONED, _INTERRUPTED, EndReason.ABANDONED, moment=Moment.LAST_BYTE)
RUN_END = Ending(_COMPLETED, EndReason.RUN_END, _INTERRUPTED, EndReason.RUN_END, AttemptRank.LEFT)
SHUTDOWN = Ending(_COMPLETED, EndReason.SHUTDOWN, _INTERRUPTED, EndReason.SHUTDOWN, AttemptRank.LEFT)


@dataclass(frozen=True, slots=True)
class Move:
    """Where an event leads; with an `Ending` where something about the outcome is learned."""

    to: State
    ending: Ending | None = None


def _row(state: State, moves: Mapping[Event, Move], ignored: tuple[Event, ...]) -> dict[tuple[State, Event], Move]:
    """The moves of one state. Every event is named exactly once: in a move, or as ignored."""
    if set(moves) & set(ignored) or set(moves) | set(ignored) != set(Event):
        raise ValueError(f"the row of {state} does not name every event once")
    row = {(state, event): move for event, move in moves.items()}
    row.update({(state, event): Move(state) for event in ignored})
    return row


_S, _E = State, Event

_ANSWER = (_E.STREAM_HEADERS, _E.BODY_HEADERS, _E.FRAMED, _E.TRANSPORT_ERROR)
"""Events of the time before the body: over once the headers are here."""
_CONSEQUENCES = (_E.READ_ERROR, _E.CANCELLED, _E.GENERATOR_CLOSED, _E.CLOSING)
"""What a reader sees because somebody else is closing the body: no news."""

MOVES: dict[tuple[State, Event], Move] = {
    **_row(
        _S.WAITING,
        {
            _E.STREAM_HEADERS: Move(_S.STREAMING),
            _E.BODY_HEADERS: Move(_S.READING),
            _E.TRANSPORT_ERROR: Move(_S.FINAL, TRANSPORT_ERROR),
            _E.CANCELLED: Move(_S.FINAL, NEVER_ANSWERED),
            _E.SHUTDOWN: Move(_S.WAITING, SHUTDOWN),
        },
        # There is no body yet; and a run that is left waits for an answer that is still under way.
        (
            _E.FRAMED,
            _E.END_OF_BODY,
            _E.CLOSING,
            _E.CLOSED,
            _E.CLOSE_FAILED,
            _E.READ_ERROR,
            _E.GENERATOR_CLOSED,
            _E.COLLECTED,
            _E.SETTLED,
            _E.RUN_LEFT,
        ),
    ),
    **_row(
        _S.STREAMING,
        {
            _E.END_OF_BODY: Move(_S.STREAM_ENDED, STREAM_END),
            _E.CLOSING: Move(_S.STREAM_CLOSING),
            _E.CLOSED: Move(_S.FINAL, STREAM_CLOSE),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.READ_ERROR: Move(_S.FINAL, READ_ERROR),
            _E.CANCELLED: Move(_S.FINAL, STREAM_CANCELLED),
            _E.GENERATOR_CLOSED: Move(_S.READER_LEFT, STREAM_CLOSE),
            _E.COLLECTED: Move(_S.FINAL, ABANDONED),
            _E.RUN_LEFT: Move(_S.STREAM_LEFT, RUN_END),
            _E.SHUTDOWN: Move(_S.STREAMING, SHUTDOWN),
        },
        (*_ANSWER, _E.SETTLED),
    ),
    **_row(
        _S.STREAM_LEFT,
        {
            _E.END_OF_BODY: Move(_S.STREAM_ENDED, STREAM_END),
            _E.CLOSING: Move(_S.STREAM_CLOSING),
            _E.CLOSED: Move(_S.FINAL, STREAM_CLOSE),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.READ_ERROR: Move(_S.FINAL, READ_ERROR),
            _E.CANCELLED: Move(_S.FINAL, STREAM_CANCELLED),
            _E.GENERATOR_CLOSED: Move(_S.READER_LEFT, STREAM_CLOSE),
            _E.COLLECTED: Move(_S.FINAL, ABANDONED),
        },
        (*_ANSWER, _E.SETTLED, _E.RUN_LEFT, _E.SHUTDOWN),
    ),
    **_row(
        _S.STREAM_ENDED,
        {
            _E.CLOSING: Move(_S.STREAM_ENDED_CLOSING),
            _E.CLOSED: Move(_S.FINAL, STREAM_END_CONFIRMED),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.COLLECTED: Move(_S.FINAL, STREAM_END_CONFIRMED),
            _E.SETTLED: Move(_S.FINAL, STREAM_END_CONFIRMED),
            _E.RUN_LEFT: Move(_S.FINAL, STREAM_END_CONFIRMED),
            _E.SHUTDOWN: Move(_S.FINAL, STREAM_END_CONFIRMED),
        },
        # A second iteration of a body that was read to its end ends somehow; that is no news.
        (*_ANSWER, _E.END_OF_BODY, _E.READ_ERROR, _E.CANCELLED, _E.GENERATOR_CLOSED),
    ),
    **_row(
        _S.STREAM_CLOSING,
        {
            _E.END_OF_BODY: Move(_S.STREAM_ENDED_CLOSING, STREAM_END),
            _E.CLOSED: Move(_S.FINAL, STREAM_CLOSE),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.COLLECTED: Move(_S.FINAL, ABANDONED),
            _E.SHUTDOWN: Move(_S.STREAM_CLOSING, SHUTDOWN),
        },
        (*_ANSWER, *_CONSEQUENCES, _E.SETTLED, _E.RUN_LEFT),
    ),
    **_row(
        _S.STREAM_ENDED_CLOSING,
        {
            _E.CLOSED: Move(_S.FINAL, STREAM_END_CONFIRMED),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.COLLECTED: Move(_S.FINAL, STREAM_END_CONFIRMED),
            _E.SHUTDOWN: Move(_S.FINAL, STREAM_END_CONFIRMED),
        },
        (*_ANSWER, *_CONSEQUENCES, _E.END_OF_BODY, _E.SETTLED, _E.RUN_LEFT),
    ),
    **_row(
        _S.READING,
        {
            _E.FRAMED: Move(_S.STREAMING),
            _E.END_OF_BODY: Move(_S.BODY_ENDED),
            _E.CLOSING: Move(_S.BODY_CLOSING),
            _E.CLOSED: Move(_S.FINAL, BODY_EARLY_CLOSE),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.READ_ERROR: Move(_S.FINAL, READ_ERROR),
            _E.CANCELLED: Move(_S.FINAL, STREAM_CANCELLED),
            _E.GENERATOR_CLOSED: Move(_S.READER_LEFT, BODY_EARLY_CLOSE),
            _E.COLLECTED: Move(_S.FINAL, ABANDONED),
            _E.RUN_LEFT: Move(_S.BODY_LEFT, RUN_END),
            _E.SHUTDOWN: Move(_S.READING, SHUTDOWN),
        },
        (_E.STREAM_HEADERS, _E.BODY_HEADERS, _E.TRANSPORT_ERROR, _E.SETTLED),
    ),
    **_row(
        _S.BODY_LEFT,
        {
            _E.FRAMED: Move(_S.STREAM_LEFT),
            _E.END_OF_BODY: Move(_S.BODY_ENDED),
            _E.CLOSING: Move(_S.BODY_CLOSING),
            _E.CLOSED: Move(_S.FINAL, BODY_EARLY_CLOSE),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.READ_ERROR: Move(_S.FINAL, READ_ERROR),
            _E.CANCELLED: Move(_S.FINAL, STREAM_CANCELLED),
            _E.GENERATOR_CLOSED: Move(_S.READER_LEFT, BODY_EARLY_CLOSE),
            _E.COLLECTED: Move(_S.FINAL, ABANDONED),
        },
        (_E.STREAM_HEADERS, _E.BODY_HEADERS, _E.TRANSPORT_ERROR, _E.SETTLED, _E.RUN_LEFT, _E.SHUTDOWN),
    ),
    **_row(
        _S.BODY_ENDED,
        {
            _E.CLOSING: Move(_S.BODY_ENDED_CLOSING),
            _E.CLOSED: Move(_S.FINAL, BODY_CLOSE),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.COLLECTED: Move(_S.FINAL, BODY_CLOSE),
            _E.SETTLED: Move(_S.FINAL, BODY_CLOSE),
            _E.RUN_LEFT: Move(_S.FINAL, BODY_CLOSE),
            _E.SHUTDOWN: Move(_S.FINAL, BODY_CLOSE),
        },
        (*_ANSWER, _E.END_OF_BODY, _E.READ_ERROR, _E.CANCELLED, _E.GENERATOR_CLOSED),
    ),
    **_row(
        _S.BODY_CLOSING,
        {
            _E.FRAMED: Move(_S.STREAM_CLOSING),
            _E.END_OF_BODY: Move(_S.BODY_ENDED_CLOSING),
            _E.CLOSED: Move(_S.FINAL, BODY_EARLY_CLOSE),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.COLLECTED: Move(_S.FINAL, ABANDONED),
            _E.SHUTDOWN: Move(_S.BODY_CLOSING, SHUTDOWN),
        },
        (_E.STREAM_HEADERS, _E.BODY_HEADERS, _E.TRANSPORT_ERROR, *_CONSEQUENCES, _E.SETTLED, _E.RUN_LEFT),
    ),
    **_row(
        _S.BODY_ENDED_CLOSING,
        {
            _E.CLOSED: Move(_S.FINAL, BODY_CLOSE),
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.COLLECTED: Move(_S.FINAL, BODY_CLOSE),
            _E.SHUTDOWN: Move(_S.FINAL, BODY_CLOSE),
        },
        (*_ANSWER, *_CONSEQUENCES, _E.END_OF_BODY, _E.SETTLED, _E.RUN_LEFT),
    ),
    **_row(
        _S.READER_LEFT,
        {
            _E.CLOSE_FAILED: Move(_S.FINAL, CLOSE_ERROR),
            _E.CLOSED: Move(_S.FINAL),
            _E.COLLECTED: Move(_S.FINAL),
            _E.SETTLED: Move(_S.FINAL),
            _E.RUN_LEFT: Move(_S.FINAL),
            _E.SHUTDOWN: Move(_S.FINAL),
        },
        (*_ANSWER, *_CONSEQUENCES, _E.END_OF_BODY),
    ),
    **_row(_S.FINAL, {}, tuple(Event)),
}


class Outcome(NamedTuple):
    """An attempt's outcome. ``error`` is the type of the error that won; None unless the status is ``error``."""

    status: Status
    reason: EndReason
    rank: AttemptRank
    moment: Moment
    error: str | None


def outcome(
    ending: Ending, *, whole: bool, stream_error: str | None, status_error: str | None, raised: str | None
) -> Outcome:
    """The outcome of an ending. Pure.

    ``whole``: the terminal event was seen, or all bytes were. The other three name errors that were seen (None: none
    was): an error event inside the stream, a status code of 400 or more, an exception of the transport, of reading or
    of closing. **Which error wins**: in this order, and the incompleteness of the body last. An error that the
    provider reported also wins over an interruption: what is known is known.
    """
    status = ending.whole if whole else ending.broken
    reason = ending.whole_reason if whole else ending.broken_reason
    error = stream_error or status_error
    if error is None and status is Status.ERROR:
        error = raised or (None if whole else ending.incomplete) or str(reason)
    return Outcome(
        Status.ERROR if error is not None else status,
        reason,
        ending.rank,
        ending.moment,
        error,
    )
