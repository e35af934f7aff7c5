"""``otel-chatdebug tail``: runs as they appear and change, live."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from otel_chatdebug.cli import completion
from otel_chatdebug.cli.common import (
    cannot_be_used,
    console,
    database_option,
    open_database,
    sentences,
    settings,
    writing,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text
    from sqlalchemy import Engine

    from otel_chatdebug.tables import queries

POLL = 0.5
"""Seconds between two looks at the tables."""

DEFAULT_RUNS = 10

BEGINNING = "0"
"""The cursor from which on all that is in the tables is told: where they came to be while we waited for them."""

MOST_LIVE = 15
"""Runs in progress that are shown below the others on a terminal."""


@click.command()
@click.option("--chat", "chat_id", metavar="ID", shell_complete=completion.chat_ids, help="Only of this chat.")
@click.option(
    "-n",
    "--runs",
    "count",
    type=click.IntRange(0, 10_000),
    default=DEFAULT_RUNS,
    show_default=True,
    help="So many of the newest runs first.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object on each line: the rows as they change.")
@database_option
def tail(chat_id: str | None, count: int, as_json: bool) -> None:
    """Show runs as they happen, until Ctrl-C.

    A line for each run that starts, fails in an attempt, or ends; on a terminal, what is in progress stands below and
    moves. It sees what other processes record, too, and may be started before them: it waits for the database. With
    --json, each line has "type": run, step or attempt, and all columns.

    \b
    otel-chatdebug tail
    otel-chatdebug tail --chat my-chat
    otel-chatdebug tail --json -n 0 | jq -c 'select(.status == "error")'
    """
    url = settings().database_url
    try:
        is_new = _wait_for_database(url)
        with open_database(url) as engine:
            _follow(engine, chat_id, count, is_new, _JSONLines() if as_json else _Lines(engine, chat_id))
    except KeyboardInterrupt:
        return  # that is how one leaves


def _wait_for_database(url: str) -> bool:
    """Whether it had to: there was none, or one without our tables. Whatever else is wrong is for who opens it."""
    from otel_chatdebug.tables import queries
    from otel_chatdebug.words import clean

    waited = False
    while True:
        with sentences():
            try:
                queries.open_for_reading(url).dispose()
                return waited
            except queries.NoDatabase as exc:
                if not waited:
                    click.echo(f"{clean(exc)} Waiting for it; Ctrl-C leaves.", err=True)
        waited = True
        time.sleep(POLL)


def _follow(engine: Engine, chat_id: str | None, count: int, is_new: bool, out: _Out) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from otel_chatdebug.tables import queries

    follower = queries.Follower(engine, chat_id=chat_id, cursor=BEGINNING if is_new else None)
    if not is_new:
        follower.poll()  # from here on nothing is missed
    with out.shown():
        if count and not is_new:
            newest = queries.list_runs(engine, queries.RunFilter(chat_id=chat_id), limit=count)
            with writing():
                out.show(queries.Changes(runs=tuple(reversed(newest))))
        away = False
        while True:
            try:
                changes = follower.poll()
                with writing():
                    out.show(changes)
                if away:
                    click.echo("The database is back.", err=True)
                away = False
            except SQLAlchemyError as exc:
                if not away:  # said once; it may come back
                    click.echo(f"{cannot_be_used(exc)} Trying again.", err=True)
                away = True
            if away or not changes.more:
                time.sleep(POLL)


class _Out:
    """Where changes go."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        yield

    def show(self, changes: queries.Changes) -> None:
        raise NotImplementedError


class _JSONLines(_Out):
    def __init__(self) -> None:
        self._ascii = not (sys.stdout.encoding or "").lower().startswith("utf")

    def show(self, changes: queries.Changes) -> None:
        from otel_chatdebug.words import clean_json

        for kind, rows in (("run", changes.runs), ("step", changes.steps), ("attempt", changes.attempts)):
            for row in rows:
                click.echo(clean_json(json.dumps({"type": kind, **row}, ensure_ascii=self._ascii)))
        sys.stdout.flush()  # whoever reads the pipe wants it now


class _Lines(_Out):
    """A line for each event, and on a terminal what is in progress below them."""

    def __init__(self, engine: Engine, chat_id: str | None) -> None:
        self._engine, self._chat_id = engine, chat_id
        self._told: dict[str, str] = {}
        self._console = console()
        self._live: Any = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False, transient=True) as self._live:
            yield

    def show(self, changes: queries.Changes) -> None:
        # Within one look: what began, then what failed in it, then what ended.
        began = [run for run in changes.runs if run["status"] == "in_progress"]
        for run in began:
            self._tell(run["id"], run["status"], _run_line(run))
        for attempt in changes.attempts:
            if attempt["status"] == "error":
                self._tell(attempt["id"], "error", _attempt_line(attempt))
        for run in changes.runs:
            if run not in began:
                self._tell(run["id"], run["status"], _run_line(run))
        if len(self._told) > 100_000:  # a view that is open for weeks; at worst a line is told twice
            self._told.clear()
        if self._live is not None:
            self._live.update(self._in_progress(), refresh=True)
        elif changes:
            sys.stdout.flush()

    def _tell(self, id: str, status: str, line: Text) -> None:
        if self._told.get(id) != status:
            self._told[id] = status
            self._console.print(line, soft_wrap=not self._console.is_terminal)

    def _in_progress(self) -> RenderableType:
        from rich.console import Group

        from otel_chatdebug.tables import queries

        waiting = queries.list_waiting(self._engine, chat_id=self._chat_id)
        lines = [_waiting_line(one, self._console) for one in waiting[:MOST_LIVE]]
        if len(waiting) > MOST_LIVE:
            lines.append(_dim(f"  and {len(waiting) - MOST_LIVE} more"))
        return Group(_dim(f"{len(waiting)} in progress · Ctrl-C leaves"), *lines)


def _run_line(run: queries.Run) -> Text:
    from rich.text import Text

    from otel_chatdebug.cli.render import local_time, status
    from otel_chatdebug.words import SO_FAR, error_text, lasted, one_line, usage_text

    now = datetime.now(UTC)
    is_open = run["status"] == "in_progress"
    time_of = run["started_at"] if is_open else run["finished_at"] or run["started_at"]
    text = Text.assemble((local_time(time_of, now), "dim"), "  ", (one_line(run["id"][:8]), "bold"), "  ")
    text.append_text(status(run["status"]))
    text.append(f"  {one_line(run['kind'])}")
    if not is_open:
        text.append(f"  {lasted(run, now).removesuffix(SO_FAR)}")
    if run["chat_id"]:
        text.append(f"  chat {one_line(run['chat_id'])}", "dim")
    summary = run["summary"] or {}
    usage = usage_text({name: summary.get(f"total_{name}") or None for name in ("input_tokens", "output_tokens")})
    if usage:
        text.append(f"  {usage}", "dim")
    if summary.get("first_message"):
        text.append(f"  “{one_line(summary['first_message'])[:60]}”")
    if run["error"]:
        text.append(f"  {error_text(run['error'])}", "red")
    return text


def _attempt_line(attempt: queries.Attempt) -> Text:
    from rich.text import Text

    from otel_chatdebug.cli.render import local_time
    from otel_chatdebug.words import error_text, one_line

    text = Text.assemble((local_time(attempt["finished_at"] or attempt["updated_at"], datetime.now(UTC)), "dim"), "  ")
    text.append(f"{one_line(attempt['run_id'][:8])}  ", "bold")
    where = one_line(attempt["url"] or attempt["path"] or "")
    text.append(f"✗ attempt {attempt['number'] or '?'}  {one_line(attempt['method'] or '')} {where}  ", "red")
    text.append(error_text(attempt["error"]), "red")
    return text


def _waiting_line(one: queries.Waiting, output: Console) -> Text:
    from rich.text import Text

    from otel_chatdebug.words import QUIET_AFTER, duration, one_line, plural, size, where_text

    quiet = one["idle_seconds"] >= QUIET_AFTER
    text = Text.assemble(("● ", "cyan"), (f"{one_line(one['run_id'][:8])}  ", "bold"), one_line(one["kind"]), "  ")
    text.append(where_text(one["where"]).partition(":")[0], "yellow" if quiet else "cyan")
    # Before what a narrow terminal may cut off.
    text.append(f"  {'nothing for ' if quiet else ''}{duration(one['idle_seconds'])}", "yellow" if quiet else "dim")
    if one["bytes_received"]:
        events = f", {plural(one['events'], 'event')}" if one["events"] else ""
        text.append(f"  {size(one['bytes_received'])}{events}")
    if one["model"]:
        text.append(f"  {one_line(one['model'])}", "dim")
    text.truncate(output.width, overflow="ellipsis")
    return text


def _dim(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="dim")
