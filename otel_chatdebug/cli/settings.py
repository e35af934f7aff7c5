"""``otel-chatdebug settings``: who is recorded where OTEL_CHATDEBUG_ENABLED is opt_in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from otel_chatdebug.cli.common import console, database_option, open_database, print_json, sentences
from otel_chatdebug.cli.common import settings as settings_in_force
from otel_chatdebug.settings import OPT_IN

if TYPE_CHECKING:
    from sqlalchemy import Engine

ON_OFF = click.Choice(["on", "off"])


@click.group(invoke_without_command=True)
@click.pass_context
@database_option
def settings(context: click.Context) -> None:
    """Say who is recorded with opt_in.

    Where applications run with OTEL_CHATDEBUG_ENABLED=opt_in, a run is recorded if an administrator
    allows it for users, and the user who owns the run (owner_id) has opted in. What is said here is in
    force within seconds.

    \b
    otel-chatdebug settings allow-users on
    otel-chatdebug settings user user-17 on
    otel-chatdebug settings show
    """
    if context.invoked_subcommand is None:
        context.invoke(show)


@settings.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
@database_option
def show(as_json: bool) -> None:
    """Show what was said, by the administrator and by each user.

    \b
    otel-chatdebug settings show
    otel-chatdebug settings show --json
    """
    chosen = settings_in_force()
    with open_database(chosen.database_url) as engine:
        from otel_chatdebug.tables import consent, queries

        allowed, users = consent.choices(engine)
    if as_json:
        said = [
            {"owner_id": each.owner_id, "on": each.on, "updated_at": queries.iso(each.updated_at)} for each in users
        ]
        print_json({"enabled": chosen.enabled, "allow_users": allowed, "users": said})
        return
    from otel_chatdebug.words import clean

    output = console()
    output.print(f"Users may opt in: {'yes' if allowed else 'no'}")
    for user in users:
        output.print(f"{clean(user.owner_id)}: {'on' if user.on else 'off'}, since {queries.iso(user.updated_at)}")
    if not users:
        output.print("No user has said anything yet.")
    if chosen.enabled != OPT_IN:
        output.print(
            f"OTEL_CHATDEBUG_ENABLED is {chosen.enabled} here: all this is only asked for where it is {OPT_IN}.",
            style="dim",
        )


@settings.command("allow-users")
@click.argument("choice", metavar="on|off", type=ON_OFF)
@database_option
def allow_users(choice: str) -> None:
    """Allow users to opt in, or stop it for all of them.

    \b
    otel-chatdebug settings allow-users on
    """
    with _tables() as engine:
        from otel_chatdebug.tables import consent

        consent.set_choice(engine, consent.EVERYBODY, choice == "on")
        _, users = consent.choices(engine)
    from otel_chatdebug.words import plural

    if choice == "on":
        click.echo(f"Users may opt in; {plural(sum(user.on for user in users), 'user')} did so far.")
    else:
        click.echo("Users may not opt in: none is recorded where OTEL_CHATDEBUG_ENABLED is opt_in.")


@settings.command()
@click.argument("id")
@click.argument("choice", metavar="on|off", type=ON_OFF)
@database_option
def user(id: str, choice: str) -> None:
    """Opt a user in, or out.

    ID is what the application gives as owner_id of the user's runs.

    \b
    otel-chatdebug settings user user-17 on
    """
    if not id.strip():
        raise click.BadParameter("a user's id is not empty", param_hint="ID")
    with _tables() as engine:
        from otel_chatdebug.tables import consent

        consent.set_choice(engine, id, choice == "on")
        allowed, _ = consent.choices(engine)
    from otel_chatdebug.words import clean

    click.echo(f"The user {clean(id)} has opted {'in' if choice == 'on' else 'out'}.")
    if choice == "on" and not allowed:
        click.echo("Not in force before an administrator allows it: otel-chatdebug settings allow-users on", err=True)


@contextmanager
def _tables() -> Iterator[Engine]:
    """An engine for the tables, which are made where there are none: this may be said before anything is recorded."""
    with sentences():
        from otel_chatdebug.tables import database, migrations

        engine = database.open_engine(settings_in_force().database_url)
        try:
            migrations.upgrade(engine)
            yield engine
        finally:
            engine.dispose()
