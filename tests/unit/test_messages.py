"""Which messages come after a given one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_chatdebug.tables.messages import After


@given(st.integers(0, 10**30), st.integers(0, 10**30), st.sampled_from(["", "m", "msg-", "0x "]))
def test_numbers_are_compared_as_numbers_with_a_name_before_them_or_without(one: int, other: int, name: str) -> None:
    if name == "0x ":  # a name with digits in it is no name
        assert not After(f"{name}{one}", [])(f"{name}{other}")
    else:
        assert After(f"{name}{one}", [])(f"{name}{other}") == (other > one)
        assert After(f"{name}00{one}", [])(f"{name}0{other}") == (other > one)


def test_a_number_of_any_length_is_one() -> None:
    """Python refuses to make an int of it."""
    assert After("9" * 5000, [])("1" + "0" * 5000)
    assert not After("1" + "0" * 5000, [])("9" * 5000)


def test_what_cannot_be_compared_is_not_after() -> None:
    after = After("m5", ["m5", "9"])
    assert after("m6")
    assert not after("a6")  # another name, and nobody mentions it
    assert not after(None)
    assert not after("")


@given(st.permutations(["b7f1-4e", "0c2d-99", "ffff-01", "zz"]), st.integers(0, 3))
def test_other_ids_are_in_the_order_of_their_first_mention(order: list[str], place: int) -> None:
    mentions = [id for id in order for _ in range(2)] + order[::-1] + [None]  # type: ignore[list-item]
    after = After(order[place], mentions)
    assert [after(id) for id in order] == [later > place for later in range(4)]


@pytest.mark.parametrize(
    ("id", "mentions", "known"),
    [
        ("5", ["7"], True),
        ("5", ["x"], False),
        ("5", [], False),
        ("x", ["y"], False),
        ("x", ["y", "x"], True),
        ("m1", ["a2", None], False),
    ],
)
def test_it_knows_when_nothing_can_be_told(id: str, mentions: list[str | None], known: bool) -> None:
    assert After(id, mentions).known is known
