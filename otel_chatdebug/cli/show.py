"""``otel-chatdebug show RUN``: one run, its steps and their attempts."""

from __future__ import annotations

import click

from otel_chatdebug.cli.common import console, database_option, open_database, print_json, settings


@click.command()
@click.argument("run")
@click.option("--full", is_flag=True, help="Cut no text; show all messages, headers and bodies too.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: all columns, with all content.")
@database_option
def show(run: str, full: bool, as_json: bool) -> None:
    """Show one run with all its requests.

    RUN is the id of a run, or the beginning of one.

    \b
    otel-chatdebug show 3f2a9c41
    otel-chatdebug show 3f2a9c41 --full
    otel-chatdebug show 3f2a9c41 --json | jq '.steps[].attempts[].end_reason'
    """
    chosen = settings()
    with open_database(chosen.database_url) as engine:
        from otel_chatdebug.tables import queries

        found = queries.load_run(engine, queries.find_run(engine, run))
    if as_json:
        print_json(found)
        return
    from otel_chatdebug.cli import render

    console().print(render.run_tree(found, full=full, stale_after=chosen.stale_after))
