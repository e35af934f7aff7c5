"""``otel-chatdebug show RUN``: one run, its steps and their attempts."""

from __future__ import annotations

import click

from otel_chatdebug.cli import completion
from otel_chatdebug.cli.common import console, database_option, open_database, print_json, settings


@click.command()
@click.argument("run", shell_complete=completion.run_ids)
@click.option("--full", is_flag=True, help="Cut no text; show all messages, tools, headers and bodies too.")
@click.option("--raw", is_flag=True, help="Headers and bodies of each request and response, as they were recorded.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: all columns, with all content.")
@database_option
def show(run: str, full: bool, raw: bool, as_json: bool) -> None:
    """Show one run with all its requests.

    RUN is the id of a run, or of one of its steps or attempts, or the beginning of one. Each step and attempt has a bar
    on the run's time: thin until the first byte, thick while bytes came, dashed since the last one.

    Where a body holds control characters, a sign stands for each; --json has them as they were.

    \b
    otel-chatdebug show 3f2a9c41
    otel-chatdebug show 3f2a9c41 --full
    otel-chatdebug show 3f2a9c41 --raw | less
    otel-chatdebug show 3f2a9c41 --json | jq '.steps[].attempts[].end_reason'
    """
    chosen = settings()
    with open_database(chosen.database_url) as engine:
        from otel_chatdebug.tables import queries

        found = queries.load_run(engine, queries.find(engine, run).run_id)
    if as_json:
        print_json(found)
        return
    if raw:
        from otel_chatdebug.cli import exchange

        click.echo(exchange.exchanges(found))
        return
    from otel_chatdebug.cli import tree

    console().print(tree.run_tree(found, full=full, stale_after=chosen.stale_after))
