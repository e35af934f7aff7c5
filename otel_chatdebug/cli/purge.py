"""``otel-chatdebug purge``: what is too old."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from otel_chatdebug import durations
from otel_chatdebug.cli.common import database_option, open_database, print_json, settings

if TYPE_CHECKING:
    from otel_chatdebug.tables.retention import Removed


def age(value: str) -> float:
    """A duration with its unit: a bare 7 that was meant as days must not remove all but the last seconds."""
    if value.strip().replace(".", "", 1).isdigit():
        raise click.BadParameter(f"{value!r} has no unit: write {value.strip()}d for days, {value.strip()}h for hours.")
    return durations.duration(value)


@click.command()
@click.option(
    "--older-than",
    metavar="AGE",
    type=age,
    help="7d, 12h, 30m, 2w. Default: what OTEL_CHATDEBUG_RETENTION and OTEL_CHATDEBUG_CONTENT_RETENTION say.",
)
@click.option("--content-only", is_flag=True, help="Only messages, headers and bodies; runs, steps and attempts stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: numbers of rows, and bytes.")
@database_option
def purge(older_than: float | None, content_only: bool, dry_run: bool, as_json: bool) -> None:
    """Remove what is too old, and give its space back.

    Runs that ended (or gave their last sign of life) so long ago, with their steps, attempts and contents.
    Applications do it by themselves, hourly; this is for doing it now, or for less. They go on writing
    meanwhile.

    \b
    otel-chatdebug purge --older-than 7d --dry-run
    otel-chatdebug purge --older-than 7d
    otel-chatdebug purge --older-than 12h --content-only
    """
    chosen = settings()
    with open_database(chosen.database_url, read_only=dry_run) as engine:
        from otel_chatdebug.tables import retention

        rows_age, content_age = _ages(older_than, content_only, chosen.retention_days, chosen.content_retention_days)
        before = None if rows_age is None else retention.cutoff(engine, rows_age)
        content_before = None if content_age is None else retention.cutoff(engine, content_age)
        found = retention.count_old(engine, before, content_before)
        size = retention.disk_size(engine)
        told = None
        if not dry_run:
            with _progress(found) as advance:
                if before is not None:
                    retention.remove_old(engine, before, told=advance)
                if content_before is not None:
                    retention.remove_old_content(engine, content_before, told=advance)
            told = retention.give_back(engine, vacuum=True)
        freed = 0 if dry_run else max(0, size - retention.disk_size(engine))
    if as_json:
        print_json({"dry_run": dry_run, **found._asdict(), "freed_bytes": freed, "note": told})
        return
    _tell(found, dry_run=dry_run, freed=freed)
    if told is not None:
        click.echo(told, err=True)


def _ages(
    older_than: float | None, content_only: bool, retention_days: float, content_retention_days: float
) -> tuple[float | None, float | None]:
    """Seconds after which rows, and contents, are too old; None where they never are."""
    from otel_chatdebug.tables.retention import DAY

    if older_than is not None:
        return (None, older_than) if content_only else (older_than, None)
    rows_age = retention_days * DAY or None
    content_age = content_retention_days * DAY or None
    if rows_age is None and content_age is None:
        raise click.UsageError(
            "OTEL_CHATDEBUG_RETENTION is 0, so all is kept: say --older-than, as in --older-than 7d."
        )
    if content_only:
        return None, content_age or rows_age
    return rows_age, content_age if content_age is not None and (rows_age is None or content_age < rows_age) else None


@contextmanager
def _progress(found: Removed) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal and there is something to wait for."""
    total = found.runs or found.contents
    if not total or not sys.stderr.isatty():
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Removing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda rows: progress.advance(task, rows)


def _tell(found: Removed, *, dry_run: bool, freed: int) -> None:
    from otel_chatdebug.words import plural, size

    nouns = ("run", "step", "attempt", "content row")
    counts = [plural(count, noun) for count, noun in zip(found, nouns, strict=True) if count]
    if not counts:
        click.echo("Nothing to do: nothing is that old.")
    elif dry_run:
        click.echo(f"Would remove {', '.join(counts)}.")
    else:
        back = f", and gave {size(freed)} back" if freed else ""
        click.echo(f"Removed {', '.join(counts)}{back}.")
