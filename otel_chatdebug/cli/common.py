"""What all commands share: the option that names the database, opening it, and where output goes.

An error that a person can do something about is one sentence on stderr. Its exit status is `UNUSABLE` where it is the
database, else 1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

from otel_chatdebug.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Engine

F = TypeVar("F", bound=Callable[..., Any])

_URL = "otel_chatdebug.database_url"

UNUSABLE = 2
"""Exit status where the database cannot be used as it is; also that of click for a bad argument."""

FILE_WIDTH = 200
"""Columns of output that goes to a file or a pipe, where COLUMNS says nothing else."""


def database_option(function: F) -> F:
    """``--database-url``, before or after the command's name; the inner one counts."""

    def remember(context: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.meta[_URL] = value

    return click.option(
        "--database-url",
        metavar="URL",
        expose_value=False,
        callback=remember,
        help="Where the tables are.  [env: OTEL_CHATDEBUG_DATABASE_URL; default: SQLite in the user's state folder]",
    )(function)


def settings(**overrides: Any) -> Settings:
    """The settings in force for the command that runs. What its options say goes over the environment."""
    return Settings.load(database_url=click.get_current_context().meta.get(_URL), **overrides)


class Unusable(click.ClickException):
    """The database cannot be used as it is; the message says why, and what to do."""

    exit_code = UNUSABLE


@contextmanager
def sentences() -> Iterator[None]:
    """Turns what reading can raise into one sentence and an exit status."""
    from sqlalchemy.exc import SQLAlchemyError

    from otel_chatdebug.tables import database, queries
    from otel_chatdebug.words import clean

    try:
        yield
    except BrokenPipeError:
        raise  # of the output, not of the database
    except (queries.NotFound, queries.Ambiguous) as exc:
        raise click.ClickException(clean(exc)) from None
    except database.DatabaseError as exc:
        raise Unusable(clean(exc)) from None
    except (SQLAlchemyError, OSError) as exc:
        raise Unusable(clean(cannot_be_used(exc))) from None


def cannot_be_used(exc: Exception) -> str:
    """The sentence for what the database raised."""
    from otel_chatdebug.tables import database

    why = database.diagnose(exc)[1]
    return f"The database cannot be used: {why}{'' if why.endswith(('?', '.')) else '.'}"


@contextmanager
def open_database(url: str, *, read_only: bool = True) -> Iterator[Engine]:
    """An engine for a database that is there and has our schema; all else is a sentence. Creates nothing."""
    with sentences():
        from otel_chatdebug.tables import database, queries

        engine = queries.open_for_reading(url)
        try:
            if not read_only:
                engine.dispose()
                engine = database.open_engine(url)
            yield engine
        finally:
            engine.dispose()


def console(*, stderr: bool = False) -> Console:
    """Standard output. Colours only on a terminal, and not where NO_COLOR is set; no text is taken for markup."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would exit with status 1: see `Commands`

    stream = sys.stderr if stderr else sys.stdout
    fixed = None if stream.isatty() or "COLUMNS" in os.environ else FILE_WIDTH
    return Output(markup=False, emoji=False, highlight=False, width=fixed, stderr=stderr)


class Commands(click.Group):
    """The group of all commands. Whoever reads our output may stop (``| head -1``): that is no error of theirs."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with writing():
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except BrokenPipeError:
            _drop_output()
            ctx.exit(0)


@contextmanager
def writing() -> Iterator[None]:
    """Around what writes output while a database is open: what goes wrong then is not the database's fault."""
    try:
        yield
    except BrokenPipeError:
        raise  # see `Commands`
    except OSError as exc:
        _drop_output()
        raise click.ClickException(f"The output cannot be written: {exc.strerror or exc}.") from None


def _drop_output() -> None:
    """What is still in the buffer goes nowhere, or Python would complain at its exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: Any) -> None:
    """Pure JSON on standard output, without a raw control character."""
    from otel_chatdebug.words import clean_json

    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    click.echo(clean_json(json.dumps(value, ensure_ascii=ascii_only, indent=2)))
