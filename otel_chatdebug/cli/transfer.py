"""``otel-chatdebug export`` and ``import``: recorded runs as one JSON file, and back."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from otel_chatdebug.cli import completion
from otel_chatdebug.cli.common import console, database_option, open_database, print_json, sentences, settings, writing

if TYPE_CHECKING:
    pass

DAY = 86_400.0
"""Seconds."""


@click.command("export")
@click.argument("run", required=False, shell_complete=completion.run_ids)
@click.option("--chat", "chat_id", metavar="ID", shell_complete=completion.chat_ids, help="All runs of this chat.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Into this file, which only you can read. Without it, on standard output.",
)
@database_option
def export_command(run: str | None, chat_id: str | None, output: Path | None) -> None:
    """Write a run, or a chat, as one JSON file.

    With all of its content: what people wrote and what models answered. Secrets were taken out when it was recorded.
    `otel-chatdebug import` reads it, on this machine or another.

    \b
    otel-chatdebug export 3f2a9c41 -o run.json
    otel-chatdebug export --chat my-chat > chat.json
    """
    if (run is None) == (chat_id is None):
        raise click.UsageError("Give either a run or --chat ID.")
    with open_database(settings().database_url) as engine:
        from otel_chatdebug.tables import queries, transfer

        if run is not None:
            ids = [queries.find(engine, run).run_id]
            count = 1
        else:
            assert chat_id is not None
            count = transfer.count_runs(engine, chat_id)
            if not count:
                raise click.ClickException(
                    f"There is no run of the chat {chat_id!r}: `otel-chatdebug runs` lists them."
                )
        with _progress("Exporting", count, shown=output is not None or not sys.stdout.isatty()) as advance:
            pieces = (
                transfer.export_chat(engine, chat_id, advance=lambda: advance(1))
                if chat_id is not None
                else transfer.export_runs(engine, ids, advance=lambda: advance(1))
            )
            if output is None:
                _print(pieces)
            else:
                _save(output, pieces)
    if output is not None:
        from otel_chatdebug.words import plural

        click.echo(f"Wrote {plural(count, 'run')} to {output}.", err=True)


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: how many were added, updated, kept.")
@database_option
def import_command(file: BinaryIO, as_json: bool) -> None:
    """Read a file of `export` into the tables.

    FILE may be - for standard input. A wrong file changes nothing. What is here already and as new stays as it is, so
    importing twice does no harm. The tables are created where there are none.

    \b
    otel-chatdebug import chat.json
    otel-chatdebug export --chat my-chat | otel-chatdebug import - --database-url sqlite:////tmp/copy.db
    """
    with sentences():
        from otel_chatdebug.tables import database, migrations, transfer
        from otel_chatdebug.words import clean, plural

        chosen = settings()
        try:
            runs = transfer.read_export(file.read())
        except transfer.BadExport as exc:
            raise click.ClickException(clean(exc)) from None
        engine = database.open_engine(chosen.database_url)
        try:
            migrations.upgrade(engine)
            with _progress("Importing", len(runs)) as advance:
                done = transfer.import_runs(engine, runs, advance=advance)
        finally:
            engine.dispose()
    if as_json:
        print_json({"added": done.added, "updated": done.updated, "kept": done.kept})
        return
    parts = [(done.added, "new"), (done.updated, "newer than here"), (done.kept, "here already")]
    said = ", ".join(f"{count:,} {what}" for count, what in parts if count)
    click.echo(f"Imported {plural(len(runs), 'run')}{f': {said}' if said else ''}.")
    old = sum(run.ended_before(chosen.retention_days * DAY) for run in runs) if chosen.retention_days else 0
    if old:
        click.echo(
            f"{plural(old, 'run')} ended more than {chosen.retention_days:g} days ago: an application that records "
            "here removes such runs. Raise OTEL_CHATDEBUG_RETENTION, or import into a database of its own.",
            err=True,
        )


def _print(pieces: Iterable[str]) -> None:
    from otel_chatdebug.words import clean_json

    utf = (sys.stdout.encoding or "").lower().startswith("utf")
    for piece in pieces:
        text = clean_json(piece)
        with writing():
            click.echo(text if utf else _ascii(text), nl=False)


def _ascii(text: str) -> str:
    """JSON without a sign that the encoding may lack; outside of its strings there is none."""
    units = text.encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[place : place + 2]) for place in range(0, len(units), 2))
    return "".join(chr(code) if code < 0x80 else f"\\u{code:04x}" for code in codes)


def _save(path: Path, pieces: Iterable[str]) -> None:
    """The whole file or none: an export that breaks off leaves what was there."""
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")  # of mode 0600
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.writelines(pieces)
        os.replace(temporary, path)
        temporary = None
    except OSError as exc:
        raise click.ClickException(f"The file {path} cannot be written: {exc.strerror or exc}.") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


@contextmanager
def _progress(what: str, count: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal and there is more than one thing to do."""
    output = console(stderr=True)
    if not shown or count < 2 or not output.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=output, transient=True) as progress:
        task = progress.add_task(what, total=count)
        yield lambda done: progress.advance(task, done)
