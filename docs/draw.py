"""Writes what the documentation says about the code from the code itself: ``python docs/draw.py``.

Each generated section stands between ``<!-- NAME: ... -->`` and ``<!-- end of NAME -->``; all around it is written by
hand. A test (tests/unit/test_docs.py) fails where a section is not what this would write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from otel_chatdebug.capture.states import MOVES, Ending, Event, Moment, Move, State, outcome
from otel_chatdebug.cli import main
from otel_chatdebug.records import AttemptRank
from otel_chatdebug.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

RANKS = {
    AttemptRank.FINAL: "final",
    AttemptRank.PROVISIONAL: "provisional",
    AttemptRank.LEFT: "corrected if it goes on",
}
MOMENTS = {Moment.EVENT: "then", Moment.END_OF_BODY: "the end of the body", Moment.LAST_BYTE: "the last byte"}


def words(member: State | Event) -> str:
    """A state or an event as the pages write it."""
    return member.name.lower().replace("_", " ")


def row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    titles = list(titles)
    return "\n".join([row(titles), row("---" for _ in titles), *map(row, rows)])


def settings() -> str:
    """Every setting, its default, what it means."""
    return table(
        ("variable", "default", "meaning"),
        ((f"`{variable}`", default, meaning) for variable, default, meaning in Settings.table()),
    )


def commands() -> str:
    """Every command, with its arguments and options."""
    return table(
        ("command", "what it does"), ((f"`{usage}`", said) for usage, said in _commands("otel-chatdebug", main))
    )


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, str]]:
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from _commands(f"{path} {name}", sub)
        return
    usage = [path]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            name = parameter.metavar or str(parameter.name).upper()
            usage.append(name if parameter.required else f"[{name}]")
        elif isinstance(parameter, click.Option) and parameter.opts != ["--database-url"]:  # all commands have that one
            flag = parameter.opts[-1]
            usage.append(f"[{flag}]" if parameter.is_flag else f"[{flag} {parameter.metavar or flag[2:].upper()}]")
    yield " ".join(usage), command.get_short_help_str(limit=200)


def diagram(answer: Event) -> str:
    """The moves of a request that is answered by ``answer``, as a Mermaid diagram. What is ignored is not drawn."""
    others = {Event.STREAM_HEADERS, Event.BODY_HEADERS} - {answer}
    edges: dict[tuple[State, State], list[str]] = {}
    waiting, seen = [State.WAITING], {State.WAITING}
    while waiting:
        state = waiting.pop(0)
        for event in Event:
            move = MOVES[state, event]
            if event in others or move == Move(state):
                continue
            edges.setdefault((state, move.to), []).append(words(event))
            if move.to not in seen and event is not Event.FRAMED:  # from there on it is the other diagram
                seen.add(move.to)
                waiting.append(move.to)
    drawn = [f"    {state.name} --> {to.name} : {', '.join(events)}" for (state, to), events in edges.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> WAITING", *drawn, "    FINAL --> [*]", "```"])


def endings() -> str:
    """Every ending: where it is seen, and what it says of a whole and of a broken response."""
    rows = []
    for ending in dict.fromkeys(move.ending for move in MOVES.values() if move.ending is not None):
        seen: dict[tuple[State, ...], list[Event]] = {}
        for event in Event:
            states = tuple(state for state in State if MOVES[state, event].ending == ending)
            if states:
                seen.setdefault(states, []).append(event)
        whole, broken = said(ending, whole=True), said(ending, whole=False)
        outcomes = (whole, "the same" if broken == whole else broken, RANKS[ending.rank], MOMENTS[ending.moment])
        rows += [
            (", ".join(map(words, events)), ", ".join(map(words, states)), *outcomes) for states, events in seen.items()
        ]
    return table(
        ("what is seen", "in the states", "a whole response is", "a broken one is", "the row is", "the attempt ended"),
        rows,
    )


def said(ending: Ending, *, whole: bool) -> str:
    """The outcome of an ending where no other error was seen: status, end reason, and the error type of its own."""
    found = outcome(ending, whole=whole, stream_error=None, status_error=None, raised=None)
    own = f" (`{found.error}`)" if found.error is not None and found.error == ending.incomplete else ""
    return f"{found.status}{own} `{found.reason}`"


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"settings": settings, "commands": commands},
    "docs/why.md": {
        "framed": lambda: diagram(Event.STREAM_HEADERS),
        "not framed": lambda: diagram(Event.BODY_HEADERS),
        "endings": endings,
    },
}
"""By file: the generated sections."""


def drawn(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """``text`` with its sections as they should be. ``ValueError`` where a section has not exactly one place."""
    for name, make in sections.items():
        place = re.compile(rf"(<!-- {name}: .* -->\n\n).*?(\n<!-- end of {name} -->)", re.S)
        if len(place.findall(text)) != 1:
            raise ValueError(f"there must be one section {name!r}")
        made = f"{make()}\n"
        text = place.sub(lambda found, made=made: found[1] + made + found[2], text)  # type: ignore[misc]
    return text


def write() -> None:
    for name, sections in SECTIONS.items():
        path = ROOT / name
        path.write_text(drawn(path.read_text("utf-8"), sections), "utf-8")


if __name__ == "__main__":
    write()
