"""What changed between two requests."""

from __future__ import annotations

from typing import Any

from otel_chatdebug.differences import compare, text_changes


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "text": text}]}


def told(before: Any, after: Any) -> list[tuple[Any, ...]]:
    return [(one["part"], one["kind"], one["name"], one["places"]) for one in compare(before, after)["differences"]]


def test_the_same_request_has_no_difference() -> None:
    request = {"model": "m", "messages": [said("user", "a")], "tools": [{"name": "t"}], "options": {"top_p": 1}}
    assert compare(request, dict(request)) == {"same_messages": 1, "differences": []}
    assert compare(None, None)["differences"] == []


def test_the_next_turn_adds_messages() -> None:
    before = {"messages": [said("system", "s"), said("user", "a")]}
    after = {"messages": [said("system", "s"), said("user", "a"), said("assistant", "b"), said("user", "c")]}
    assert told(before, after) == [("messages", "added", None, (None, 3)), ("messages", "added", None, (None, 4))]
    assert told(after, before) == [("messages", "removed", None, (3, None)), ("messages", "removed", None, (4, None))]
    assert compare(before, after)["same_messages"] == 2


def test_a_message_of_the_same_role_in_the_same_place_has_changed() -> None:
    before = {"messages": [said("system", "old"), said("user", "a")]}
    after = {"messages": [said("system", "new"), said("user", "a")]}
    assert told(before, after) == [("messages", "changed", None, (1, 1))]
    assert told(before, {"messages": [said("tool", "x"), said("user", "a")]}) == [
        ("messages", "removed", None, (1, None)),
        ("messages", "added", None, (None, 1)),
    ]


def test_options_tools_model_and_what_nobody_knows() -> None:
    before = {
        "model": "m",
        "options": {"temperature": 0, "top_p": None},
        "tools": [{"type": "function", "name": "a", "schema": {}}, {"type": "function", "name": "b"}],
        "tool_choice": {"mode": "auto"},
        "provider_option_count": 1,
    }
    after = {
        "model": "n",
        "options": {"temperature": 1},
        "tools": [{"type": "function", "name": "b"}, {"type": "function", "name": "a", "schema": {"x": 1}}, 7],
        "tool_choice": None,
        "provider_option_count": 2,
        "later": [1],
    }
    assert told(before, after) == [
        ("model", "changed", None, (None, None)),
        ("tool_choice", "removed", None, (None, None)),
        ("options", "changed", "temperature", (None, None)),
        ("options", "removed", "top_p", (None, None)),
        ("tools", "changed", "a", (1, 2)),
        ("tools", "added", None, (None, 3)),
        ("later", "added", None, (None, None)),
    ]


def test_shapes_that_are_not_known_are_compared_as_they_are() -> None:
    assert told(None, {"messages": []}) == [("raw", "added", None, (None, None))]
    assert told("a", "b") == [("raw", "changed", None, (None, None))]
    assert compare({"messages": "x", "tools": 5, "options": []}, {})["differences"] == []


def test_lines_that_changed_are_marked() -> None:
    before = "\n".join(["one", "two", "three", "four", "five", "six", "seven"])
    after = before.replace("two", "2").replace("seven", "7")
    assert text_changes(before, after) == [" one", "-two", "+2", " three", "@@", " six", "-seven", "+7"]
    assert text_changes("same", "same") == []
