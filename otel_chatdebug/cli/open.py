"""``otel-chatdebug open RUN``: a run's trace in Jaeger, Tempo, or what else shows traces."""

from __future__ import annotations

import click

from otel_chatdebug import trace_links
from otel_chatdebug.cli import completion
from otel_chatdebug.cli.common import database_option, open_database, print_json, settings


@click.command("open")
@click.argument("run", shell_complete=completion.run_ids)
@click.option("--browser", is_flag=True, help="Open it in a browser, too.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: trace_id, span_id, url (or null).")
@database_option
def open_trace(run: str, browser: bool, as_json: bool) -> None:
    """Print where a run's trace is to be seen.

    By the template in OTEL_CHATDEBUG_TRACE_URL: an address of Jaeger, or any URL with {trace_id} in it, and {span_id}
    where it takes one. RUN can also be the id of a step or an attempt.

    \b
    OTEL_CHATDEBUG_TRACE_URL=http://localhost:16686 otel-chatdebug open 3f2a9c41
    otel-chatdebug open 3f2a9c41 --browser
    """
    chosen = settings()
    with open_database(chosen.database_url) as engine:
        from otel_chatdebug.tables import queries

        found = queries.find(engine, run)
        tree = queries.load_run(engine, found.run_id, content=False)
    rows = [tree, *tree["steps"], *(attempt for step in tree["steps"] for attempt in step["attempts"])]
    row = next(row for row in rows if row["id"] == found.id)
    url = trace_links.trace_url(chosen.trace_url, row)
    if as_json:
        print_json({"trace_id": row["trace_id"], "span_id": row["span_id"], "url": url})
    elif url is not None:
        click.echo(url)
    elif not row["trace_id"]:
        raise click.ClickException("It has no trace: no OpenTelemetry SDK was at work in its process.")
    else:
        from otel_chatdebug.words import clean

        click.echo(f"Trace {clean(row['trace_id'])}. To get its address here, set OTEL_CHATDEBUG_TRACE_URL, such as")
        for name, template in trace_links.EXAMPLES.items():
            click.echo(f"  {name}:\n    OTEL_CHATDEBUG_TRACE_URL='{template}'")
    if browser and url is not None and click.launch(url) != 0:
        raise click.ClickException("No browser could be started.")
