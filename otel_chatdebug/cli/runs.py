"""``otel-chatdebug runs``: runs, the newest first, one line each."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from otel_chatdebug import durations
from otel_chatdebug.cli import completion
from otel_chatdebug.cli.common import console, database_option, open_database, print_json, settings
from otel_chatdebug.status import Status

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from otel_chatdebug.tables import queries

DEFAULT_LIMIT = 20
MOST = 2**31 - 1
"""More than one can have, and no database refuses it."""


@click.command()
@click.option("--chat", "chat_id", metavar="ID", shell_complete=completion.chat_ids, help="Of this chat.")
@click.option(
    "--kind", metavar="KIND", shell_complete=completion.kinds, help="Of this kind: chat_turn, compaction, ..."
)
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="With this status.")
@click.option("--model", metavar="MODEL", shell_complete=completion.models, help="Of this model, by its whole name.")
@click.option(
    "--since", type=durations.moment, metavar="TIME", help="Started since: 30m, 2h, 7d ago, or 2026-01-31T14:30."
)
@click.option("--until", type=durations.moment, metavar="TIME", help="Started before that time.")
@click.option("--text", metavar="TEXT", help="Whose first message has this text, in upper or lower case.")
@click.option("--error", metavar="TEXT", help='With this text in an error, also of a request; "" is any error.')
@click.option(
    "--limit", type=click.IntRange(1, MOST), default=DEFAULT_LIMIT, show_default=True, help="At most so many."
)
@click.option("--before", metavar="RUN", shell_complete=completion.run_ids, help="The next page: older than this run.")
@click.option("--after", metavar="RUN", shell_complete=completion.run_ids, help="The page before: newer than this run.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: a list of runs.")
@database_option
def runs(limit: int, before: str | None, after: str | None, as_json: bool, **conditions: Any) -> None:
    """List the newest runs.

    All conditions that are given hold together. Pages stay right while runs are added: each begins where the other
    one ended.

    \b
    otel-chatdebug runs --chat my-chat
    otel-chatdebug runs --status in_progress
    otel-chatdebug runs --since 2h --model gpt-5-mini --error rate_limit
    otel-chatdebug runs --text "blue sky" --before 3f2a9c41
    otel-chatdebug runs --json --limit 1000 | jq -r '.[].id'
    """
    if before is not None and after is not None:
        raise click.UsageError("--before and --after cannot both be given.")
    with open_database(settings().database_url) as engine:
        found = _page(engine, conditions, limit, before, after)
    if as_json:
        print_json(list(found))
        return
    from otel_chatdebug.cli import render
    from otel_chatdebug.words import clean

    output = console()
    if not found:
        is_all = not (before or after or any(value is not None for value in conditions.values()))
        output.print("No run yet: it is recorded when an application makes a model call." if is_all else "No such run.")
        return
    output.print(render.runs_table(found, width=output.width))
    ids = render.unique_ids([run["id"] for run in found])
    if found.older is not None:
        output.print(clean(_command(conditions, limit, "--before", ids[-1])), style="dim", soft_wrap=True)
    if found.newer is not None:
        output.print(clean(_command(conditions, limit, "--after", ids[0])), style="dim", soft_wrap=True)
    output.print(f"otel-chatdebug show {clean(ids[0])}", style="dim")


def _page(
    engine: Engine, conditions: dict[str, Any], limit: int, before: str | None, after: str | None
) -> queries.Page[queries.Run]:
    from otel_chatdebug.tables import queries

    cursor, at = None, before or after
    if at is not None:
        cursor = queries.cursor_at(engine, queries.find_run(engine, at), to_newer=after is not None)
    return queries.list_runs(engine, queries.RunFilter(**conditions), limit=limit, cursor=cursor)


def _command(conditions: dict[str, Any], limit: int, direction: str, id: str) -> str:
    """What to type for the page before or behind this one."""
    words = ["otel-chatdebug", "runs"]
    for name, value in conditions.items():
        if value is not None:
            said = value.isoformat(timespec="seconds") if isinstance(value, datetime) else str(value)
            words += [f"--{name.removesuffix('_id')}", said]
    if limit != DEFAULT_LIMIT:
        words += ["--limit", str(limit)]
    return shlex.join([*words, direction, id])
