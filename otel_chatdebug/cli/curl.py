"""``otel-chatdebug curl RUN STEP ATTEMPT``: a recorded request as a curl command."""

from __future__ import annotations

from typing import Any

import click

from otel_chatdebug.cli import completion
from otel_chatdebug.cli.common import database_option, open_database, print_json, settings
from otel_chatdebug.cli.pick import one_of


@click.command()
@click.argument("run", shell_complete=completion.run_ids)
@click.argument("step", required=False)
@click.argument("attempt", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: command, variables, notes.")
@database_option
def curl(run: str, step: str | None, attempt: str | None, as_json: bool) -> None:
    """Print a request as a curl command.

    RUN is an id or its beginning, STEP and ATTEMPT are numbers or ids; without them the last one is meant. RUN can also
    be the id of a step or an attempt.

    Secrets were not recorded: environment variables stand in their places, named in a comment. All else is quoted for
    the shell. What differs from the request that was sent is said in comments, too.

    \b
    otel-chatdebug curl 3f2a9c41 1 2
    otel-chatdebug curl 3f2a9c41 | sh
    """
    from otel_chatdebug.curl import NotRepeatable
    from otel_chatdebug.curl import curl as as_command

    with open_database(settings().database_url) as engine:
        from otel_chatdebug.tables import queries

        found = queries.find(engine, run)
        tree = queries.load_run(engine, found.run_id)
    chosen_step, chosen = _choose(tree, found.kind, found.id, step, attempt)
    try:
        made = as_command(chosen, provider=chosen_step["provider"])
    except NotRepeatable as exc:
        raise click.ClickException(str(exc)) from None
    if as_json:
        print_json({"command": made.command, "variables": list(made.variables), "notes": list(made.notes)})
        return
    click.echo(str(made))


def _choose(
    tree: dict[str, Any], kind: str, id: str, step: str | None, attempt: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The step and the attempt that are meant. Where the id names a step, the next argument is its attempt."""
    if kind == "attempt" and (step or attempt):
        raise click.UsageError("RUN is the id of an attempt already.")
    if kind == "step":
        if attempt is not None:
            raise click.UsageError("RUN is the id of a step already: give only the attempt.")
        step, attempt = id, step
    if kind == "attempt":
        step = next(one["id"] for one in tree["steps"] if any(each["id"] == id for each in one["attempts"]))
        attempt = id
    chosen = one_of(tree["steps"], "step_number", "step", step)
    return chosen, one_of(chosen["attempts"], "number", "attempt", attempt)
