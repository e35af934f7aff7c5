"""``otel-chatdebug runs``: the newest runs, one line each."""

from __future__ import annotations

import click

from otel_chatdebug import words
from otel_chatdebug.cli.common import console, database_option, open_database, print_json, settings
from otel_chatdebug.status import Status

DEFAULT_LIMIT = 20
MOST = 2**31 - 1
"""More than one can have, and no database refuses it."""


@click.command()
@click.option("--chat", "chat_id", metavar="ID", help="Only runs of this chat.")
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="Only runs with this status.")
@click.option(
    "--limit", type=click.IntRange(1, MOST), default=DEFAULT_LIMIT, show_default=True, help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: a list of runs.")
@database_option
def runs(chat_id: str | None, status: str | None, limit: int, as_json: bool) -> None:
    """List the newest runs.

    \b
    otel-chatdebug runs --chat my-chat
    otel-chatdebug runs --status in_progress
    otel-chatdebug runs --json --limit 1000 | jq -r '.[].id'
    """
    url = settings().database_url
    with open_database(url) as engine:
        from otel_chatdebug.tables import queries

        found = queries.list_runs(engine, queries.RunFilter(chat_id=chat_id, status=status), limit=limit)
    if as_json:
        print_json(list(found))
        return
    from otel_chatdebug.cli import render

    output = console()
    if not found:
        output.print("No such run." if chat_id or status else "No run yet.")
        return
    output.print(render.runs_table(found, width=output.width))
    if len(found) == limit:
        output.print(f"The newest {limit}; --limit shows more.", style="dim")
    output.print(f"otel-chatdebug show {words.clean(render.unique_ids([row['id'] for row in found])[0])}", style="dim")
