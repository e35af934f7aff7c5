"""``otel-chatdebug db``: the schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from otel_chatdebug.cli.common import UNUSABLE, database_option, print_json, sentences, settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from otel_chatdebug.tables.migrations import Examined

UPGRADE_SECONDS = 600.0
"""How long an upgrade waits for another process that is at it, or that writes. A person sees that, and may end it."""

BEHIND = 1
"""Exit status of ``check`` where an upgrade is all that is needed."""


@click.group()
@database_option
def db() -> None:
    """Look after the tables."""


@db.command()
@database_option
def upgrade() -> None:
    """Create the tables, or bring them to this version's schema.

    Applications do that by themselves when they record; this is for doing it at a time of your choosing. It
    happens wholly or not at all, and several that do it at once take turns. There is no way back: restore a
    backup to return to an older version.

    \b
    otel-chatdebug db upgrade
    otel-chatdebug db upgrade --database-url postgresql://user:password@host/database
    """
    with _opened(read_only=False) as (engine, place):
        from otel_chatdebug.tables import migrations

        found = migrations.upgrade(engine)
        head = migrations.head()
        if (problem := migrations.examine(engine).problem) is not None:
            raise problem
    if found is None:
        click.echo(f"Created the tables, schema version {head}, in {place}.")
    elif found == head:
        click.echo(f"Nothing to do: schema version {head} is the newest, in {place}.")
    else:
        click.echo(f"Upgraded from schema version {found} to {head}, in {place}.")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_option
def check(as_json: bool) -> None:
    """Say whether the tables have this version's schema.

    Exit status 0: they have. 1: an upgrade is needed, or there are none yet. 2: they cannot be used, being newer,
    damaged or out of reach. Changes nothing.

    \b
    otel-chatdebug db check || otel-chatdebug db upgrade
    """
    from otel_chatdebug.tables.migrations import State

    examined, place = _examined()
    if as_json:
        print_json(_as_dict(examined, place))
    else:
        click.echo(f"{_sentence(examined)} ({place})")
    match examined.state:
        case State.CURRENT:
            return
        case State.EMPTY | State.BEHIND:
            raise click.exceptions.Exit(BEHIND)
        case _:
            raise click.exceptions.Exit(UNUSABLE)


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_option
def info(as_json: bool) -> None:
    """Show which database it is, its schema, and what is in it.

    \b
    otel-chatdebug db info
    """
    with _opened() as (engine, place):
        from otel_chatdebug.tables import migrations

        examined = migrations.examine(engine)
        facts = _as_dict(examined, place) | {
            "server": _server(engine),
            "rows": _rows(engine),
        }
    if as_json:
        print_json(facts)
        return
    click.echo(f"Database    {place}")
    click.echo(f"Server      {facts['server']}")
    click.echo(f"Schema      {_sentence(examined)}")
    width = max((len(name) for name in facts["rows"]), default=0)
    for name, count in facts["rows"].items():
        click.echo(f"{'Rows' if name == next(iter(facts['rows'])) else '':<10}  {name:<{width}}  {count:>12,}")


@contextmanager
def _opened(*, read_only: bool = True) -> Iterator[tuple[Engine, str]]:
    """An engine, whatever the schema is, and how the database is called. What goes wrong is a sentence."""
    with sentences():
        from otel_chatdebug.tables import database

        url = settings().database_url
        database.check_shared(url)
        patience = database.BUSY_SECONDS if read_only else UPGRADE_SECONDS
        engine = database.open_engine(url, read_only=read_only, busy_seconds=patience)
        try:
            yield engine, database.redacted(url)
        finally:
            engine.dispose()


def _examined() -> tuple[Examined, str]:
    with sentences():
        from otel_chatdebug.tables import database, migrations

        url = settings().database_url
        path = database.sqlite_path(database.parse(url))
    if path is not None and not path.exists():  # looking makes none
        return migrations.Examined(migrations.State.EMPTY, None), database.redacted(url)
    with _opened() as (engine, place):
        return migrations.examine(engine), place


def _sentence(examined: Examined) -> str:
    from otel_chatdebug.tables.migrations import HEAD, State

    if examined.state is State.CURRENT:
        return f"Up to date: schema version {HEAD}."
    if examined.state is State.EMPTY:
        return f"There are no debug tables yet: run `otel-chatdebug db upgrade` for schema version {HEAD}."
    return str(examined.problem)


def _as_dict(examined: Examined, place: str) -> dict[str, Any]:
    from otel_chatdebug.tables.migrations import HEAD

    return {
        "database": place,
        "state": examined.state.value,
        "schema_version": examined.found,
        "newest_version": HEAD,
        "missing": list(examined.missing),
        "message": _sentence(examined),
    }


def _server(engine: Engine) -> str:
    with engine.connect() as connection:
        version = connection.dialect.server_version_info or ()
    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[engine.dialect.name]
    return f"{name} {'.'.join(map(str, version))}"


def _rows(engine: Engine) -> dict[str, int]:
    """How many rows each of our tables has, of those that are there."""
    from sqlalchemy import func, inspect, select

    from otel_chatdebug.tables import schema

    there = set(inspect(engine).get_table_names())
    with engine.connect() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in schema.metadata.tables.values()
            if table.name in there
        }
