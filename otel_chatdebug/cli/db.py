"""``otel-chatdebug db``: the schema."""

from __future__ import annotations

import click

from otel_chatdebug.cli.common import database_option, sentences, settings


@click.group()
@database_option
def db() -> None:
    """Look after the tables."""


@db.command()
@database_option
def upgrade() -> None:
    """Create the tables, or bring them to this version's schema.

    Applications do that by themselves when they record; this is for doing it at a time of your choosing.

    \b
    otel-chatdebug db upgrade
    otel-chatdebug db upgrade --database-url postgresql+psycopg://user:password@host/database
    """
    with sentences():
        from otel_chatdebug.tables import database, migrations

        url = settings().database_url
        engine = database.open_engine(url)
        try:
            found = migrations.upgrade(engine)
        finally:
            engine.dispose()
        head, place = migrations.head(), database.redacted(url)
    if found is None:
        click.echo(f"Created the tables, schema version {head}, in {place}.")
    elif found == head:
        click.echo(f"Nothing to do: schema version {head} is the newest, in {place}.")
    else:
        click.echo(f"Upgraded from schema version {found} to {head}, in {place}.")
