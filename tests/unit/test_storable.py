"""Whatever an application hands in can be stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_chatdebug import storable
from otel_chatdebug.status import Status

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


def test_a_name_is_bounded_and_the_same_one_always_the_same() -> None:
    longest = "n" * storable.LONGEST_NAME
    assert storable.name(longest) == longest
    one, other = (storable.name(longest + end) for end in "ab")
    assert len(one) == len(other) == storable.LONGEST_NAME
    assert one != other
    assert one == storable.name(longest + "a") == storable.name(one)
    assert one.startswith("n" * 200)
    # As it is stored: what storing replaces, or joins, is replaced before it is looked at.
    for odd in ("\ud83d\ude00" * 200, "a\0" * 200, "\ud800" * 500):
        assert storable.name(odd) == storable.name(storable.text(odd))


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


ODD = st.text(st.characters(exclude_categories=[]), max_size=8) | st.sampled_from(["\0", "\ud800", "\U0001f600", "é"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3) | st.tuples(inner),
    max_leaves=12,
)


@given(VALUES)
def test_the_quick_way_to_json_text_gives_what_the_thorough_one_gives(value: Any) -> None:
    found = storable.json_text(value)
    found.encode()
    assert json.loads(found) == json.loads(json.dumps(storable.json_value(value)))


@pytest.mark.parametrize("value", [{"a": 1j}, {1, 2}, [float("inf")], "\ud83d", {"n": 2**70}])
def test_what_json_cannot_say_is_replaced_in_json_text_too(value: Any) -> None:
    assert json.loads(storable.json_text(value)) == storable.json_value(value)


def test_json_text_of_a_cycle_ends() -> None:
    value: list[Any] = []
    value.append(value)
    assert json.loads(storable.json_text(value))


@pytest.mark.parametrize("padding", range(20))
def test_a_long_integer_is_found_wherever_it_stands(padding: int) -> None:
    """The text is searched in strides."""
    found = json.loads(storable.json_text(["x" * padding, 2**63, "y" * padding]))
    assert found[1] == str(2**63)
    found = json.loads(storable.json_text(["x" * padding, 2**63 - 1, "y" * padding]))
    assert found[1] == 2**63 - 1
