"""``otel-chatdebug info``: where the tables are, what is in them, and which settings are in force."""

from __future__ import annotations

import platform
from dataclasses import fields
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from otel_chatdebug.cli.common import (
    Unusable,
    cannot_be_used,
    console,
    database_option,
    print_json,
    sentences,
    settings,
)
from otel_chatdebug.redaction import Redactor
from otel_chatdebug.settings import Settings
from otel_chatdebug.version import __version__

if TYPE_CHECKING:
    from rich.table import Table
    from sqlalchemy import Engine

PACKAGES = (
    "opentelemetry-sdk",
    "opentelemetry-instrumentation",
    "SQLAlchemy",
    "httpx",
    "httpx2",
    "openai",
    "anthropic",
    "groq",
    "mistralai",
    "google-genai",
)
"""Distributions whose versions one asks for when something does not work."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: database, spool, settings, versions.")
@database_option
def info(as_json: bool) -> None:
    """Show the database, the settings and the versions.

    \b
    otel-chatdebug info
    otel-chatdebug info --json | jq -r '.settings.OTEL_CHATDEBUG_RETENTION'
    """
    chosen = settings()
    with sentences():
        from otel_chatdebug.tables import database

        rows, failure = _database(chosen.database_url)
        spooled = _spooled(chosen)
    if as_json:
        variables = [variable for variable, _default, _meaning in Settings.table()]
        values = [_shown(item.name, getattr(chosen, item.name)) for item in fields(Settings)]
        in_force = dict(zip(variables, values, strict=True))
        told = {"database": dict(rows), "spool": spooled, "settings": in_force, "versions": dict(_versions())}
        print_json(told)
    else:
        output = console()
        output.print(_section("Database", [*rows, ("Spooled", _in_words(spooled))]))
        output.print(_settings(chosen))
        output.print(_section("Versions", _versions()))
    if failure is not None and not isinstance(failure, database.NoDatabase):
        raise Unusable(str(failure))


def _database(url: str) -> tuple[list[tuple[str, str]], Exception | None]:
    """What is known of the database, and what is wrong with it."""
    from sqlalchemy.exc import SQLAlchemyError

    from otel_chatdebug.tables import database, migrations, queries

    rows = [("URL", database.redacted(url))]
    path = database.sqlite_path(database.parse(url))
    if path is not None:
        rows.append(("File", str(path)))
        if path.exists():
            from otel_chatdebug.words import size

            parts = [path.with_name(path.name + suffix) for suffix in ("", "-wal")]
            rows.append(("Size", size(sum(part.stat().st_size for part in parts if part.exists()))))
    try:
        engine = queries.open_for_reading(url)
        try:
            rows += [("Schema", f"{migrations.current(engine)} (the newest)"), *_counts(engine)]
        finally:
            engine.dispose()
    except database.DatabaseError as exc:
        return [*rows, ("State", str(exc))], exc
    except (SQLAlchemyError, OSError) as exc:
        failure = database.DatabaseError(cannot_be_used(exc))
        return [*rows, ("State", str(failure))], failure
    return rows, None


def _spooled(chosen: Settings) -> dict[str, Any]:
    """What waits in the spool: records of this database with their bytes, and how many there are for others."""
    import sqlite3

    from otel_chatdebug.tables.spool import Spool

    spool = Spool(chosen.database_url, chosen.max_queue_size)
    told: dict[str, Any] = {"file": str(spool.path)}
    try:
        kept = spool.kept()
    except (OSError, sqlite3.Error) as exc:
        from otel_chatdebug.tables import database

        return told | {"problem": f"The file cannot be read: {database.diagnose(exc)[1]}."}
    return told | {"records": kept.records, "size": kept.size, "records_of_other_databases": kept.others}


def _in_words(spooled: dict[str, Any]) -> str:
    from otel_chatdebug.words import plural, size

    if "problem" in spooled:
        return f"{spooled['file']}: {spooled['problem']}"
    count, others = spooled["records"], spooled["records_of_other_databases"]
    said = "nothing"
    if count:
        said = f"{plural(count, 'record')} ({size(spooled['size'])}) in {spooled['file']}, written by the next process"
    return said + (f"; {others:,} for other databases" if others else "")


def _counts(engine: Engine) -> list[tuple[str, str]]:
    from sqlalchemy import func, select

    from otel_chatdebug.tables import schema

    rows = []
    with engine.connect() as connection:
        for name, table in (("Runs", schema.runs), ("Steps", schema.steps), ("Attempts", schema.attempts)):
            query = select(table.c.status, func.count()).group_by(table.c.status).order_by(table.c.status)
            counts = {str(status): int(count) for status, count in connection.execute(query)}
            each = ", ".join(f"{count:,} {status}" for status, count in counts.items())
            rows.append((name, f"{sum(counts.values()):,}" + (f" ({each})" if each else "")))
    return rows


def _settings(chosen: Settings) -> Table:
    table = _grid("Settings", "Value", "Default")
    for item, (variable, default, _meaning) in zip(fields(Settings), Settings.table(), strict=True):
        default = default.replace("`", "")  # Markdown's, for the README
        value = getattr(chosen, item.name)
        unchanged = value == item.default or (item.name == "database_url" and value == Settings.load({}).database_url)
        shown = _text(default, "dim") if unchanged else _text(_shown(item.name, value), "bold")
        table.add_row(variable, shown, _text(default, "dim"))
    return table


def _shown(name: str, value: Any) -> str:
    if name == "database_url":
        from otel_chatdebug.tables import database

        return database.redacted(value)
    if name == "viewer_token":
        return "(set)"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if name == "otlp_endpoint":
        return Redactor().url(value)
    return str(value)


def _versions() -> list[tuple[str, str]]:
    versions = [("otel-chatdebug", __version__), ("Python", f"{platform.python_version()} on {platform.system()}")]
    for name in PACKAGES:
        try:
            versions.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue  # nobody has to have all of them
    return versions


def _section(title: str, rows: list[tuple[str, str]]) -> Table:
    table = _grid(title, "")
    for name, value in rows:
        table.add_row(name, _text(value))
    return table


def _grid(*titles: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, title in enumerate(titles):
        table.add_column(title, overflow="fold", no_wrap=place == 0, min_width=38 if place == 0 else None)
    return table


def _text(value: str, style: str = "") -> Any:
    from rich.text import Text

    from otel_chatdebug.words import clean

    return Text(clean(value), style=style)
