"""The merge rule is a join, for every kind of record."""

from __future__ import annotations

from functools import reduce
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_chatdebug.records import Record, RunRecord, StepContent, merge
from otel_chatdebug.status import RunKind, Status
from tests.support.records import KINDS, histories, records


@given(st.data(), st.sampled_from(KINDS))
def test_it_is_commutative_associative_and_idempotent(data: st.DataObject, kind: type[Record]) -> None:
    one, two, three = data.draw(histories(kinds=[kind], ids=["id"], min_size=3, max_size=3))
    assert merge(one, two) == merge(two, one)
    assert merge(merge(one, two), three) == merge(one, merge(two, three))
    assert merge(one, one) == one


@given(histories(kinds=[RunRecord], ids=["id"], min_size=1, max_size=4))
def test_any_order_and_repetition_gives_the_same(history: list[Record]) -> None:
    results = [reduce(merge, [*order, *order]) for order in permutations(history)]
    assert all(result == results[0] for result in results)


@given(records(RunRecord, ids=["id"]), records(RunRecord, ids=["id"]))
def test_the_result_is_one_of_the_two_and_never_a_mixture(one: Record, two: Record) -> None:
    result = merge(one, two)
    assert result is one or result is two
    assert result.key == max(one.key, two.key)


def _run(status: Status, updated_at: int, **more: object) -> RunRecord:
    return RunRecord(
        id="id", rank=status.priority, updated_at=updated_at, replica_id="r", status=status, kind=RunKind.AUTO,
        started_at=0, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_tardy_interrupted_cannot_undo_completed() -> None:
    completed = _run(Status.COMPLETED, 1)
    assert merge(_run(Status.INTERRUPTED, 2), completed) is completed


def test_a_success_after_an_error_carries_no_error() -> None:
    failed = _run(Status.ERROR, 2, error={"type": "rate_limit"})
    assert merge(failed, _run(Status.COMPLETED, 1)).error is None


def test_a_later_error_replaces_an_earlier_one() -> None:
    later = _run(Status.ERROR, 2, error={"type": "second"})
    assert merge(_run(Status.ERROR, 1, error={"type": "first"}), later) is later


def test_records_of_other_ids_or_kinds_are_refused() -> None:
    run = _run(Status.COMPLETED, 1)
    other: Record = StepContent(id="id", rank=0, updated_at=1, replica_id="r", run_id="run")
    with pytest.raises(ValueError, match="cannot merge"):
        merge(run, other)
