"""``otel-chatdebug stuck``: what is in progress and where nothing comes any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from otel_chatdebug import durations
from otel_chatdebug.cli import completion
from otel_chatdebug.cli.common import console, database_option, open_database, print_json, settings
from otel_chatdebug.words import duration

if TYPE_CHECKING:
    from rich.text import Text

    from otel_chatdebug.tables.queries import Waiting

DEFAULT_IDLE = "30s"


@click.command()
@click.option(
    "--idle",
    type=durations.duration,
    default=DEFAULT_IDLE,
    show_default=True,
    metavar="DURATION",
    help="Where nothing came for that long; 0 is all that is in progress.",
)
@click.option("--chat", "chat_id", metavar="ID", shell_complete=completion.chat_ids, help="Of this chat.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: a list.")
@database_option
def stuck(idle: float, chat_id: str | None, as_json: bool) -> None:
    """Show what hangs, where, and since when.

    What waits longest comes first: for headers, in the middle of a stream, between two attempts, between two steps. The
    times go by the database's clock.

    \b
    otel-chatdebug stuck
    otel-chatdebug stuck --idle 5m --chat my-chat
    otel-chatdebug stuck --idle 0 --json | jq '.[] | {run_id, where, idle_seconds}'
    """
    chosen = settings()
    with open_database(chosen.database_url) as engine:
        from otel_chatdebug.tables import queries

        found = queries.list_waiting(engine, idle=idle, chat_id=chat_id, stale_after=chosen.stale_after)
    if as_json:
        print_json(found)
        return
    output = console()
    if not found:
        what = f"nothing came for {duration(idle)}" if idle else "anything runs"
        output.print(
            f"Nothing is stuck: there is no run in progress where {what}." if idle else "Nothing is in progress."
        )
        return
    from otel_chatdebug.words import clean

    for one in found:
        output.print(told(one))
    output.print(f"\notel-chatdebug show {clean(found[0]['run_id'][:8])}", style="dim")
    if any(one["is_stale"] for one in found):
        output.print("otel-chatdebug sweep    closes what dead processes left open", style="dim")


def told(one: Waiting) -> Text:
    """Some lines about something that waits."""
    from rich.text import Text

    from otel_chatdebug.words import error_text, one_line, plural, size, where_text

    text = Text.assemble((f"{duration(one['idle_seconds'])}  ", "bold yellow"), (where_text(one["where"]), "bold"))
    facts: list[Any] = [f"{one_line(one['kind'])} {one_line(one['run_id'][:8])}"]
    facts.append(f"chat {one_line(one['chat_id'])}" if one["chat_id"] else "")
    facts.append(f"step {one['step_number'] or '?'}" if one["step_id"] else "")
    facts.append(f"attempt {one['attempt_number'] or '?'}" if one["attempt_number"] or one["attempt_id"] else "")
    facts.append(one_line(one["model"] or ""))
    text.append("\n  " + " · ".join(fact for fact in facts if fact))
    if one["url"]:
        code = f"  {one['response_status']}" if one["response_status"] is not None else ""
        text.append(f"\n  {one_line(one['method'] or '')} {one_line(one['url'])}{code}")
        if one["bytes_received"]:
            events = f", {plural(one['events'], 'event')}" if one["events"] else ""
            text.append(f"  {size(one['bytes_received'])}{events} so far", "dim")
    if one["error"]:
        text.append(f"\n  {error_text(one['error'])}", "red")
    if one["first_message"]:
        text.append(f"\n  “{one_line(one['first_message'])[:80]}”", "dim")
    if one["is_stale"]:
        age = duration(one["heartbeat_age_seconds"] or 0.0)
        text.append(
            f"\n  No sign of life from its process for {age}: it is dead, or cut off from the database.", "yellow"
        )
    return text
