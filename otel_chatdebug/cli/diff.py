"""``otel-chatdebug diff A B``: what changed between two requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import click

from otel_chatdebug.cli import completion
from otel_chatdebug.cli.common import console, database_option, open_database, print_json, settings
from otel_chatdebug.differences import Compared, Difference, compare, text_changes

if TYPE_CHECKING:
    from rich.text import Text
    from sqlalchemy import Engine

SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}

LONGEST = 400
"""Characters of a value that are shown; the rest is counted."""


@click.command()
@click.argument("before", metavar="RUN", shell_complete=completion.run_ids)
@click.argument("after", metavar="RUN", shell_complete=completion.run_ids)
@click.option("--full", is_flag=True, help="Cut no text.")
@click.option(
    "--json", "as_json", is_flag=True, help="JSON on standard output: a list, one item for each pair of steps."
)
@database_option
def diff(before: str, after: str, full: bool, as_json: bool) -> None:
    """Show what changed between two requests.

    Messages, tools, options and model of two runs, step by step; or of two steps, whose ids are given in place of the
    runs'. + is only in the second, - only in the first, ~ is in both and differs.

    \b
    otel-chatdebug diff 3f2a9c41 77aa01ce
    otel-chatdebug diff 3f2a9c41 77aa01ce --json | jq '.[].differences[].part'
    """
    with open_database(settings().database_url) as engine:
        pairs = [_pair(old, new) for old, new in zip_longest(_steps(engine, before), _steps(engine, after))]
    if as_json:
        print_json(pairs)
        return
    from rich.text import Text

    output = console()
    if not pairs:
        output.print("Neither of them has a model call.")
    for pair in pairs:
        output.print(Text(_title(pair), style="bold"))
        for line in _told(pair, full):
            output.print(line)


def _steps(engine: Engine, id: str) -> list[dict[str, Any]]:
    """The steps that an id names: those of a run, or the one, with their requests."""
    from otel_chatdebug.tables import queries

    found = queries.find(engine, id)
    steps: list[dict[str, Any]] = queries.load_run(engine, found.run_id, content=False)["steps"]
    if found.kind != "run":
        steps = [
            step for step in steps if found.id == step["id"] or any(found.id == each["id"] for each in step["attempts"])
        ]
    for step in steps:
        content = queries.load_step_content(engine, step["id"])
        step["normalized_request"] = content["normalized_request"] if content else None
    return steps


def _pair(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any]:
    def named(step: dict[str, Any] | None) -> dict[str, Any] | None:
        return step and {key: step[key] for key in ("id", "run_id", "step_number", "model")}

    requests = [step["normalized_request"] if step else None for step in (old, new)]
    recorded = all(request is not None for request in requests)
    compared = compare(*requests) if recorded else Compared(same_messages=0, differences=[])
    return {"before": named(old), "after": named(new), "recorded": recorded, **compared}


def _title(pair: dict[str, Any]) -> str:
    from otel_chatdebug.words import one_line

    def named(step: dict[str, Any] | None) -> str:
        if step is None:
            return "no step"
        return f"step {step['step_number'] or '?'} of {one_line(step['run_id'][:8])} ({one_line(step['id'])})"

    return f"{named(pair['before'])}  →  {named(pair['after'])}"


def _told(pair: dict[str, Any], full: bool) -> Iterator[Text]:
    from rich.text import Text

    from otel_chatdebug.words import plural

    if pair["before"] is None or pair["after"] is None:
        yield Text("  only one of them has this step", style="dim")
        return
    if not pair["recorded"]:
        yield Text("  the request of one of them was not recorded, or is not kept any more", style="dim")
        return
    if pair["same_messages"]:
        yield Text(f"  {plural(pair['same_messages'], 'message')} the same", style="dim")
    if not pair["differences"]:
        yield Text("  the requests are the same")
    for difference in pair["differences"]:
        yield _one(difference, full)


def _one(difference: Difference, full: bool) -> Text:
    from rich.text import Text

    from otel_chatdebug.words import one_line

    sign, style = SIGNS[difference["kind"]]
    part = difference["part"].replace("_", " ")
    is_message = part == "messages"
    name = difference["name"] or " → ".join(str(place) for place in dict.fromkeys(difference["places"]) if place)
    words = {"messages": "message", "tools": "tool", "options": "option", "provider options": "provider option"}
    text = Text(f"{sign} {words.get(part, part)} {one_line(name)}".rstrip(), style=style)
    before, after = (_value(difference[side], is_message) for side in ("before", "after"))
    if difference["kind"] != "changed":
        text.append(f": {_cut(after if difference['kind'] == 'added' else before, full)}", "default")
    elif "\n" not in before + after and len(before) + len(after) < LONGEST:
        text.append(f": {before} → {after}", "default")
    else:
        for line in text_changes(before, after):
            shown = {"-": "red", "+": "green"}.get(line[:1], "dim")
            text.append(f"\n    {_cut(line, full)}", shown)
    return text


def _value(value: Any, is_message: bool) -> str:
    from otel_chatdebug.cli.tree import part_text
    from otel_chatdebug.words import clean

    if is_message and isinstance(value, dict):
        parts = value.get("parts")
        said = "\n".join(part_text(part) for part in parts) if isinstance(parts, list) else part_text(parts)
        return clean(f"{value.get('role')}: {said}")
    if isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False)
        return clean(text if len(text) < LONGEST // 4 else json.dumps(value, ensure_ascii=False, indent=2))
    return clean(value if isinstance(value, str) else json.dumps(value))


def _cut(text: str, full: bool) -> str:
    rest = len(text) - LONGEST
    return text if full or rest <= 0 else f"{text[:LONGEST]}… ({rest:,} more characters, --full shows all)"
