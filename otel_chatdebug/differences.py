"""What changed between two requests: messages, tools, options. Pure functions of normalized requests."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

Kind: TypeAlias = Literal["added", "removed", "changed"]

SINGLE = ("format", "model", "tool_choice")
"""Parts of a request that are one value."""

NAMED = ("options", "provider_options")
"""Parts of a request that are values by names."""

LISTS = ("messages", "tools")
"""Parts of a request that have an order."""


class Difference(TypedDict):
    """One thing that one of the requests has, or has otherwise."""

    part: str
    """``messages``, ``tools``, ``options``, ...; ``raw`` for requests in a shape that is not known."""
    kind: Kind
    name: str | None
    """Of an option or a tool."""
    places: tuple[int | None, int | None]
    """Of a message or a tool in the first and in the second request, from 1."""
    before: Any
    after: Any


class Compared(TypedDict):
    """Two requests side by side."""

    same_messages: int
    """Messages that both have."""
    differences: list[Difference]


def compare(before: Any, after: Any) -> Compared:
    """Both as ``normalized_request`` of a step; None where nothing was recorded."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        differences = [] if before == after else [_one("raw", before, after)]
        return Compared(same_messages=0, differences=differences)
    found: list[Difference] = [
        _one(part, before.get(part), after.get(part)) for part in SINGLE if before.get(part) != after.get(part)
    ]
    for part in NAMED:
        found += _by_name(part, _mapping(before.get(part)), _mapping(after.get(part)))
    found += _tools(_list(before.get("tools")), _list(after.get("tools")))
    same, messages = _messages(_list(before.get("messages")), _list(after.get("messages")))
    for part in before.keys() | after.keys():
        if part not in (*SINGLE, *NAMED, *LISTS, "provider_option_count") and before.get(part) != after.get(part):
            found.append(_one(str(part), before.get(part), after.get(part)))
    return Compared(same_messages=same, differences=found + messages)


def text_changes(before: str, after: str, *, context: int = 1) -> list[str]:
    """The lines that changed, each after ``-``, ``+`` or a space, and ``@@`` where lines are left out."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=context, lineterm="")
    return ["@@" if line.startswith("@@") else line for line in list(lines)[2:]][1:]


def _messages(before: Sequence[Any], after: Sequence[Any]) -> tuple[int, list[Difference]]:
    """How many are the same, and the others. Messages that stand in for each other with the same role have changed."""
    same, found = 0, []
    matcher = difflib.SequenceMatcher(None, list(map(_key, before)), list(map(_key, after)), autojunk=False)
    for tag, old, old_end, new, new_end in matcher.get_opcodes():
        if tag == "equal":
            same += old_end - old
            continue
        while old < old_end and new < new_end and _role(before[old]) == _role(after[new]):
            found.append(_at("messages", before, old, after, new))
            old, new = old + 1, new + 1
        found += [_at("messages", before, place, after, None) for place in range(old, old_end)]
        found += [_at("messages", before, None, after, place) for place in range(new, new_end)]
    return same, found


def _tools(before: Sequence[Any], after: Sequence[Any]) -> list[Difference]:
    """By their names; those that have none, or one that another has too, by all that they are."""
    old, new = _named(before), _named(after)
    found: list[Difference] = []
    for name in dict.fromkeys([*old, *new]):
        places = old.get(name), new.get(name)
        if None in places or before[places[0] or 0] != after[places[1] or 0]:
            difference = _at("tools", before, places[0], after, places[1])
            tool = difference["before"] if difference["before"] is not None else difference["after"]
            found.append({**difference, "name": str(tool.get("name")) if isinstance(tool, Mapping) else None})
    return found


def _named(tools: Sequence[Any]) -> dict[str, int]:
    known: dict[str, int] = {}
    for place, tool in enumerate(tools):
        name = f"{tool.get('type')} {tool.get('name')}" if isinstance(tool, Mapping) else _key(tool)
        known[name if name not in known else f"{name} {place}"] = place
    return known


def _by_name(part: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    found: list[Difference] = []
    for name in dict.fromkeys([*before, *after]):
        old, new, kind = before.get(name), after.get(name), _kind(name in before, name in after)
        if kind != "changed" or old != new:
            found.append({**_one(part, old, new), "name": str(name), "kind": kind})
    return found


def _one(part: str, before: Any, after: Any) -> Difference:
    kind = _kind(before is not None, after is not None)
    return Difference(part=part, kind=kind, name=None, places=(None, None), before=before, after=after)


def _at(part: str, before: Sequence[Any], old: int | None, after: Sequence[Any], new: int | None) -> Difference:
    return Difference(
        part=part,
        kind=_kind(old is not None, new is not None),
        name=None,
        places=(None if old is None else old + 1, None if new is None else new + 1),
        before=None if old is None else before[old],
        after=None if new is None else after[new],
    )


def _kind(was: bool, is_now: bool) -> Kind:
    return "changed" if was and is_now else "removed" if was else "added"


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []
