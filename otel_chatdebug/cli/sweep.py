"""``otel-chatdebug sweep``: marks what dead processes left open."""

from __future__ import annotations

import click

from otel_chatdebug.cli.common import database_option, open_database, settings


@click.command()
@database_option
def sweep() -> None:
    """Close what dead processes left open.

    What gave no sign of life for OTEL_CHATDEBUG_STALE_AFTER seconds is marked as interrupted. Runs once
    and exits with 0, also where nothing was to be done.

    \b
    otel-chatdebug sweep
    OTEL_CHATDEBUG_STALE_AFTER=30 otel-chatdebug sweep
    """
    chosen = settings()
    with open_database(chosen.database_url, read_only=False) as engine:
        from otel_chatdebug.tables import cleanup

        swept = cleanup.finalize_stale(engine, chosen.stale_after)
    from otel_chatdebug.words import plural

    counts = [(swept.runs, "run"), (swept.steps, "step"), (swept.attempts, "attempt")]
    marked = [plural(count, noun) for count, noun in counts if count]
    if marked:
        click.echo(f"Marked as interrupted: {', '.join(marked)} (no heartbeat for {chosen.stale_after:g} s).")
    else:
        click.echo(f"Nothing to do: no open run without a heartbeat for {chosen.stale_after:g} s.")
