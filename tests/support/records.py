"""Hypothesis strategies for records and their histories, and short ways to make one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from otel_chatdebug.records import (
    AttemptContent,
    AttemptRank,
    AttemptRecord,
    ContentRank,
    Record,
    RunRecord,
    Source,
    StepContent,
    StepRecord,
)
from otel_chatdebug.status import Status

KINDS: list[type[Record]] = [RunRecord, StepRecord, AttemptRecord, StepContent, AttemptContent]

NOW = 1_780_000_000_000_000
"""A moment in 2026, microseconds."""

# What is storable as it is: other text and numbers are the matter of test_tables_storable.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
optional_texts = st.none() | texts
times = st.integers(NOW, NOW + 3)
# Larger ones come back from PostgreSQL as integers: JSONB keeps numbers as decimals.
floats = st.floats(-1e15, 1e15)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats
values = st.recursive(
    scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)

_MORE: dict[type[Record], dict[str, st.SearchStrategy[Any]]] = {
    RunRecord: {
        "status": st.sampled_from(Status),
        "kind": texts,
        "started_at": times,
        "finished_at": st.none() | times,
        "chat_id": optional_texts,
        "summary": values,
        "error": values,
        "service_name": optional_texts,
    },
    StepRecord: {
        "run_id": st.sampled_from(["one", "two"]),
        "status": st.sampled_from(Status),
        "step_number": st.integers(0, 3),
        "started_at": times,
        "model": optional_texts,
        "usage": values,
        "metadata": values,
    },
    AttemptRecord: {
        "step_id": st.sampled_from(["one", "two"]),
        "run_id": st.sampled_from(["one", "two"]),
        "status": st.sampled_from(Status),
        "number": st.integers(0, 3),
        "started_at": times,
        "url": optional_texts,
        "response_status": st.none() | st.integers(100, 599),
        "bytes_received": st.integers(0, 2**63 - 1),
        "first_byte_at": st.none() | times,
        "duration_ms": st.none() | st.floats(0, 1e9),
    },
    StepContent: {
        "run_id": st.sampled_from(["one", "two"]),
        "normalized_request": values,
        "normalized_response": values,
    },
    AttemptContent: {
        "step_id": st.sampled_from(["one", "two"]),
        "run_id": st.sampled_from(["one", "two"]),
        "request_headers": values,
        "request_body": optional_texts,
        "response_body": optional_texts,
    },
}


def records(kind: type[Record], ids: Sequence[str] = ("one", "two", "three")) -> st.SearchStrategy[Record]:
    """Records of few ids with keys that often lie close together. No stubs: those are brought by the tables."""
    return st.builds(
        kind,
        id=st.sampled_from(ids),
        rank=st.integers(0, 3),
        source=st.sampled_from([Source.SPAN, Source.LIVE]),
        updated_at=times,
        replica_id=st.sampled_from(["", "A", "a", "b", "\xe9", "\U0001f600", "\uffee"]),
        **_MORE[kind],
    )


@st.composite
def histories(
    draw: st.DrawFn,
    *,
    kinds: Sequence[type[Record]] = KINDS,
    ids: Sequence[str] = ("one", "two", "three"),
    min_size: int = 0,
    max_size: int = 12,
) -> list[Record]:
    """Records in any order. Those of the same kind, id and key are the same record, as the rule presumes."""
    drawn = draw(st.lists(st.one_of([records(kind, ids) for kind in kinds]), min_size=min_size, max_size=max_size))
    known: dict[tuple[Any, ...], Record] = {}
    return [known.setdefault((type(record), record.id, record.key), record) for record in drawn]


def run_record(id: str = "run", **more: Any) -> RunRecord:
    """An open run; ``more`` goes over it."""
    return RunRecord(
        **(_common(id) | {"rank": 0, "status": Status.IN_PROGRESS, "kind": "chat_turn", "started_at": NOW} | more)
    )


def ended_run(id: str = "run", **more: Any) -> RunRecord:
    """A completed run."""
    return run_record(id, **({"rank": 3, "status": Status.COMPLETED, "finished_at": NOW + 1} | more))


def step_record(id: str = "step", **more: Any) -> StepRecord:
    """An open first step of the run "run"."""
    known = {"run_id": "run", "rank": 0, "status": Status.IN_PROGRESS, "step_number": 1, "started_at": NOW}
    return StepRecord(**(_common(id) | known | more))


def attempt_record(id: str = "attempt", **more: Any) -> AttemptRecord:
    """An open first attempt of the step "step"."""
    known = {"step_id": "step", "run_id": "run", "rank": AttemptRank.OPEN, "status": Status.IN_PROGRESS}
    return AttemptRecord(**(_common(id) | known | {"number": 1, "started_at": NOW} | more))


def step_content(id: str = "step", **more: Any) -> StepContent:
    """Of the step "step"."""
    return StepContent(**(_common(id) | {"run_id": "run", "rank": ContentRank.COMPLETE} | more))


def attempt_content(id: str = "attempt", **more: Any) -> AttemptContent:
    """Of the attempt "attempt"."""
    return AttemptContent(**(_common(id) | {"step_id": "step", "run_id": "run", "rank": ContentRank.COMPLETE} | more))


def _common(id: str) -> dict[str, Any]:
    return {"id": id, "updated_at": NOW, "replica_id": "replica"}
