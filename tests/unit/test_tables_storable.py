"""Whatever an application hands in can be stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_chatdebug.status import Status
from otel_chatdebug.tables import storable

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


@given(anything)
def test_json_values_can_be_written_in_strict_json(value: Any) -> None:
    text = json.dumps(storable.json_value(value), allow_nan=False, ensure_ascii=False)
    text.encode()
    assert "\\u0000" not in text


@given(anything)
def test_what_was_made_storable_stays_as_it_is(value: Any) -> None:
    once = storable.json_value(value)
    assert storable.json_value(once) == once


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_good_text_stays_as_it_is(value: str) -> None:
    assert storable.text(value) == value


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\0b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        (Status.ERROR, "error"),
        (7, "7"),
        (b"\xff", "b'\\xff'"),
    ],
)
def test_text(value: object, stored: str) -> None:
    assert storable.text(value) == stored
    assert type(storable.text(value)) is str


def test_integers_of_64_bits_stay_and_longer_ones_become_strings() -> None:
    assert storable.json_value([2**63 - 1, -(2**63)]) == [2**63 - 1, -(2**63)]
    assert storable.json_value([2**63, -(2**63) - 1]) == [str(2**63), str(-(2**63) - 1)]
    assert storable.json_value(10**5000) == hex(10**5000)


def test_numbers_that_json_does_not_know_become_strings() -> None:
    assert storable.json_value([float("nan"), float("inf"), float("-inf")]) == ["nan", "inf", "-inf"]


def test_a_cycle_ends() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    assert json.dumps(storable.json_value(cycle)).count("[") == storable.MAX_DEPTH


def test_an_object_that_cannot_be_shown_is_its_type() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert storable.json_value({"key": Hostile()}) == {"key": "<Hostile>"}
