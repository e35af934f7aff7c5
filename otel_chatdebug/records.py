"""Records: what is known of a run, a step or an attempt, and the one rule by which two of them become one.

A record is told whole, as far as it is known at that moment. Two records of the same id are folded by `merge`: **the
one with the higher key ``(rank, source, updated_at, replica_id)`` replaces the other**. That is a join (commutative,
associative, idempotent), so any order, any repetition and any number of writers give the same row. The same rule in
SQL stands in `otel_chatdebug.tables.merge`, and a property test holds the two against each other.

Two things stand outside of the fold: ``heartbeat_at`` (a column of its own, folded alone by max; no record carries it)
and ``step_number`` (proposed by the record, assigned when the row is inserted, never updated).

All times are whole microseconds since 1970-01-01 UTC. Fields that hold a ``JSON`` are made of dict, list, str, int,
float, bool and None, and are redacted already: a record never holds a secret.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from otel_chatdebug.status import Status

JSON: TypeAlias = Any
"""What ``json.dumps`` takes: dict, list, str, int, float, bool or None."""


class Source(IntEnum):
    """Where a record comes from. A span never blanks what was recorded live."""

    STUB = 0
    """Brought by a child whose parent is not there yet."""
    SPAN = 1
    """Derived from a finished span (of another process, or another language)."""
    LIVE = 2
    """Recorded by the process that made the call."""


class AttemptRank(IntEnum):
    """How final an attempt's record is."""

    OPEN = 0
    LEFT = 1
    """Swept, or left behind by its run or its process; corrected if the stream goes on after all."""
    PROVISIONAL = 2
    """The end of the body was seen, the close was not."""
    FINAL = 3


class ContentRank(IntEnum):
    """How complete a content record is."""

    PARTIAL = 0
    """The request, and for a stream what has come so far."""
    COMPLETE = 1


Key: TypeAlias = tuple[int, int, int, str]
"""``(rank, source, updated_at, replica_id)``, compared as tuples are."""


@dataclass(slots=True, kw_only=True)
class Record:
    """What all records share. Not to be changed once made: the writer may hold it (not frozen, for speed)."""

    id: str
    """32 hex digits for a run, 16 for a step or an attempt: its trace id or span id."""
    rank: int
    source: int = Source.LIVE
    updated_at: int
    """Strictly increases per id within one process: ``max(now, last + 1)``."""
    replica_id: str
    """Names the process; the last tie-breaker."""

    @property
    def key(self) -> Key:
        return (self.rank, self.source, self.updated_at, self.replica_id)


@dataclass(slots=True, kw_only=True)
class RunRecord(Record):
    """One piece of work on a chat. ``rank`` is the priority of its status."""

    status: Status
    kind: str
    started_at: int
    finished_at: int | None = None
    trace_id: str | None = None
    span_id: str | None = None
    chat_id: str | None = None
    root_chat_id: str | None = None
    parent_chat_id: str | None = None
    owner_id: str | None = None
    model_config_id: str | None = None
    trigger_message_id: str | None = None
    history_tip_message_id: str | None = None
    provider: str | None = None
    model: str | None = None
    summary: JSON = None
    """``first_message``, ``step_count``, ``total_input_tokens``, ``total_output_tokens``, ``has_error``, ..."""
    error: JSON = None
    """``{"type": ..., "message": ...}``; None unless the status is ``error``."""
    service_name: str | None = None


@dataclass(slots=True, kw_only=True)
class StepRecord(Record):
    """One logical model call. ``rank`` is the priority of its status."""

    run_id: str
    status: Status
    step_number: int
    """Proposed: the row gets this number when it is inserted, or the next free one of its run. From 1."""
    started_at: int
    finished_at: int | None = None
    chat_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    operation: str | None = None
    """``stream`` or ``generate``, or what the application says."""
    provider: str | None = None
    model: str | None = None
    """The model that was asked for; the one that answered stands in ``metadata["response_model"]``."""
    history_tip_message_id: str | None = None
    assistant_message_id: str | None = None
    usage: JSON = None
    """``input_tokens``, ``output_tokens``, ``total_tokens``, ``reasoning_tokens``, ``cache_read_tokens``,
    ``cache_creation_tokens``. Input includes cached tokens, output includes reasoning, for every provider."""
    error: JSON = None
    metadata: JSON = None


@dataclass(slots=True, kw_only=True)
class AttemptRecord(Record):
    """One physical HTTP request. ``rank`` is an `AttemptRank`."""

    step_id: str
    run_id: str
    status: Status
    number: int
    """Within its step, from 1."""
    started_at: int
    finished_at: int | None = None
    chat_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    end_reason: str | None = None
    method: str | None = None
    url: str | None = None
    path: str | None = None
    response_status: int | None = None
    error: JSON = None
    bytes_received: int = 0
    """Of the body, as it came over the wire (before any content decoding)."""
    events: int = 0
    """Frames of a streamed body (SSE events and the like) so far."""
    first_byte_at: int | None = None
    last_byte_at: int | None = None
    duration_ms: float | None = None
    """From the start of the request to the end of the attempt."""
    longest_gap_at: int | None = None
    """When the longest silence between two chunks of a streamed body began."""
    longest_gap_ms: float | None = None


@dataclass(slots=True, kw_only=True)
class StepContent(Record):
    """Messages of a step; ``id`` is the step's. ``rank`` is a `ContentRank`."""

    run_id: str
    chat_id: str | None = None
    normalized_request: JSON = None
    normalized_response: JSON = None


@dataclass(slots=True, kw_only=True)
class AttemptContent(Record):
    """Headers and bodies of an attempt; ``id`` is the attempt's. ``rank`` is a `ContentRank`."""

    step_id: str
    run_id: str
    chat_id: str | None = None
    request_headers: JSON = None
    """``[[name, value], ...]`` in the order of the wire."""
    request_body: str | None = None
    response_headers: JSON = None
    response_body: str | None = None


R = TypeVar("R", bound=Record)


def merge(one: R, other: R) -> R:
    """Folds two records of the same kind and id: the one with the higher key wins, whole.

    Records with the same key are the same record, so either may be returned then. Pure; any thread.
    """
    if one.id != other.id or type(one) is not type(other):
        raise ValueError(f"cannot merge {type(one).__name__} {one.id} with {type(other).__name__} {other.id}")
    return other if other.key > one.key else one


def is_open(record: Record) -> bool:
    """Whether a record of a run, a step or an attempt says that it is under way."""
    if isinstance(record, AttemptRecord):
        return record.rank == AttemptRank.OPEN
    return getattr(record, "status", None) is Status.IN_PROGRESS


MOST_VALUES = 10_000
"""Values in a ``JSON`` that are looked at to estimate its size: far more than messages have."""


def size_of(record: Record) -> int:
    """Bytes of memory that a record takes, near enough."""
    values = [getattr(record, name) for kind in type(record).__mro__ for name in getattr(kind, "__slots__", ())]
    return sys.getsizeof(record) + size_of_json(values)


def size_of_json(value: JSON) -> int:
    """Bytes of memory that a ``JSON`` takes, near enough; its first `MOST_VALUES` values are looked at."""
    size = 0
    for item in islice(_values(value), MOST_VALUES):
        size += sys.getsizeof(item)
    return size


def _values(value: JSON) -> Iterable[Any]:
    waiting = [value]
    while waiting:  # not recursive: a value may be nested deeper than Python's stack
        item = waiting.pop()
        yield item
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
