"""Opening a database to read it, and one sentence for each reason why that may fail."""

from __future__ import annotations

from sqlalchemy import Engine

from otel_chatdebug.tables import database, migrations
from otel_chatdebug.tables.database import NoDatabase


def open_for_reading(url: str) -> Engine:
    """An engine that only reads. Close it with ``dispose()``.

    Raises `NoDatabase` where there is none or it has none of our tables, `migrations.SchemaTooNew`,
    `migrations.SchemaTooOld`, `migrations.SchemaDamaged`, `database.BadDatabaseURL`, `database.MissingDriver`, and what
    the database raises.
    """
    path = database.sqlite_path(database.parse(url))
    if path is not None and not path.exists():
        raise NoDatabase(
            f"There is no database at {path} yet: it is made when an application records its first model call."
        )
    engine = database.open_engine(url, read_only=True)
    try:
        check(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def check(engine: Engine) -> None:
    """Raises where the database has none of our tables, tables of another version, or not all of them."""
    examined = migrations.examine(engine)
    if examined.state is migrations.State.EMPTY:
        where = database.redacted(engine.url.render_as_string(hide_password=False))
        raise NoDatabase(f"The database {where} has no debug tables: is it the one that the application writes to?")
    if examined.problem is not None:
        raise examined.problem
