"""``otel-chatdebug sweep``: marks what dead processes left open."""

from __future__ import annotations

import click

from otel_chatdebug.cli.common import database_option, open_database, print_json, settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_option
def sweep(as_json: bool) -> None:
    """Close what dead processes left open.

    What gave no sign of life for OTEL_CHATDEBUG_STALE_AFTER seconds is marked as interrupted, as of its last one.
    Applications do that by themselves, now and then; this does it now. Exits with 0, also where nothing was to be done.

    \b
    otel-chatdebug sweep
    OTEL_CHATDEBUG_STALE_AFTER=30 otel-chatdebug sweep
    """
    chosen = settings()
    with open_database(chosen.database_url, read_only=False) as engine:
        from otel_chatdebug.tables import liveness

        swept = liveness.finalize_stale(engine, chosen.stale_after)
    if as_json:
        print_json({"stale_after": chosen.stale_after, **swept._asdict()})
        return
    from otel_chatdebug.words import plural

    counts = [(swept.runs, "run"), (swept.steps, "step"), (swept.attempts, "attempt")]
    marked = [plural(count, noun) for count, noun in counts if count]
    if marked:
        click.echo(f"Marked as interrupted: {', '.join(marked)} (no heartbeat for {chosen.stale_after:g} s).")
    else:
        click.echo(f"Nothing to do: no open run without a heartbeat for {chosen.stale_after:g} s.")
