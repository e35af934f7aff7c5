"""What comes in pieces: texts, and the messages that a stream says, put together within bounds."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from otel_chatdebug.wire.reading import loads, name
from otel_chatdebug.wire.shapes import (
    MAX_OTHER,
    MAX_PART,
    MAX_PARTS,
    MAX_STREAMED,
    Budget,
    Message,
    Part,
    answer,
    bounded,
    dumps,
)


class Text:
    """A text that comes in pieces: as much as the budget allows is kept, the rest only counted."""

    __slots__ = ("_budget", "_kept", "_pieces", "length")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept = 0
        self._pieces: list[str] = []
        self.length = 0
        """Of all that came, kept or not."""

    def add(self, piece: Any) -> None:
        """Anything but a text is read over."""
        if not isinstance(piece, str) or not piece:
            return
        self.length += len(piece)
        kept = self._budget.take(len(piece))
        if kept:
            self._pieces.append(piece[:kept])
            self._kept += kept

    def __str__(self) -> str:
        return "".join(self._pieces)

    def into(self, part: Part, key: str = "text") -> Part:
        """``part`` with the text under ``key``, marked where it was cut."""
        part[key] = str(self)
        if self._kept < self.length:
            part["truncated"] = True
            part["length"] = self.length
        return part

    def bounded(self) -> Any:
        """As `shapes.bounded` makes it."""
        part = self.into({})
        return part if "truncated" in part else part["text"]

    def into_tool_call(self, id: Any, tool: Any) -> Part:
        """The text as the arguments of a tool call; whole arguments become what they are as JSON."""
        part = self.into({"type": "tool_call", "id": name(id), "name": name(tool)}, "arguments")
        if "truncated" not in part and isinstance(parsed := loads(part["arguments"]), dict | list):
            part["arguments"] = parsed
        return part


class Budgets:
    """What all choices of one stream share. Reasoning has a budget of its own: a model that thinks at length must not
    be left without its answer."""

    __slots__ = ("other", "reasoning", "said")

    def __init__(self) -> None:
        self.said = Budget.streamed()
        self.reasoning = Budget.streamed()
        self.other = Budget(MAX_PART, MAX_STREAMED)

    @classmethod
    def whole(cls) -> Budgets:
        """For a response that did not stream: each part is bounded by itself."""
        budgets = cls()
        budgets.said = budgets.reasoning = Budget()
        return budgets


class Draft:
    """One message of a stream, as its pieces come in. Its parts stand in the order in which they began."""

    __slots__ = ("_budgets", "_other", "_parts", "finish_reason", "role")

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._parts: dict[Hashable, _Piecemeal | Part] = {}
        self._other: dict[str, Text | list[Any]] = {}
        self.role: str | None = None
        self.finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self._parts)

    def text(self, piece: Any, at: Hashable = None) -> None:
        """A piece of what is said; ``at`` tells one text from another."""
        self._add("text", piece, at)

    def reasoning(self, piece: Any, at: Hashable = None) -> None:
        """A piece of what is thought."""
        self._add("reasoning", piece, at)

    def refusal(self, piece: Any, at: Hashable = None) -> None:
        """A piece of a refusal."""
        self._add("refusal", piece, at)

    def call(self, at: Hashable, id: Any = None, tool: Any = None, arguments: Any = None) -> None:
        """A piece of the tool call ``at``: its arguments come in fragments, its id and name mostly once."""
        call = self._open("tool_call", at)
        if call is not None:
            call.id = call.id or name(id)
            call.name = call.name or name(tool)
            call.text.add(arguments if isinstance(arguments, str) or arguments is None else dumps(arguments))

    def also(self, key: str, value: Any) -> None:
        """Something that we do not know and that is said of the message: texts are put together, others listed."""
        known = self._other.get(key)
        if known is None and len(self._other) < MAX_OTHER:
            known = self._other[key[:MAX_PART]] = Text(self._budgets.other) if isinstance(value, str) else []
        if isinstance(known, Text):
            known.add(value)
        elif known is not None and len(known) < MAX_OTHER:
            known.append(bounded(value, self._budgets.other))

    def part(self, part: Part) -> None:
        """A part that came whole."""
        if len(self._parts) < MAX_PARTS:
            self._parts[len(self._parts), "whole"] = part

    def budget(self) -> Budget:
        """For parts that come whole."""
        return self._budgets.said

    def parts(self) -> list[Part]:
        """What has come so far."""
        return [part.made() if isinstance(part, _Piecemeal) else part for part in self._parts.values()]

    def message(self) -> Message:
        """The message so far."""
        made = answer(self.role, self.parts(), self.finish_reason)
        if self._other:
            made["other"] = {
                key: said.bounded() if isinstance(said, Text) else said for key, said in self._other.items()
            }
        return made

    def _add(self, type: str, piece: Any, at: Hashable) -> None:
        if isinstance(piece, str) and piece and (text := self._open(type, at)) is not None:
            text.text.add(piece)

    def _open(self, type: str, at: Hashable) -> _Piecemeal | None:
        key = (type, at)
        part = self._parts.get(key)
        if part is None and len(self._parts) < MAX_PARTS:
            budgets = self._budgets
            part = self._parts[key] = _Piecemeal(type, budgets.reasoning if type == "reasoning" else budgets.said)
        return part if isinstance(part, _Piecemeal) else None


class _Piecemeal:
    """A part that comes in pieces."""

    __slots__ = ("id", "name", "text", "type")

    def __init__(self, type: str, budget: Budget) -> None:
        self.type = type
        self.text = Text(budget)
        self.id: str | None = None
        self.name: str | None = None

    def made(self) -> Part:
        if self.type == "tool_call":
            return self.text.into_tool_call(self.id, self.name)
        return self.text.into({"type": self.type})
