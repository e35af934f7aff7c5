"""``otel-chatdebug demo``: a small chat application against a provider on this machine, and what was recorded of it."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from otel_chatdebug.cli.common import console, database_option, open_database, settings

if TYPE_CHECKING:
    from rich.tree import Tree

SDKS = ("openai", "anthropic")

PROGRAM = "otel-chatdebug"

SVG_WIDTH = 108
"""Columns."""


@click.command()
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the tree to this file as a picture, too.",
)
@database_option
def demo(svg: Path | None) -> None:
    """Record a small chat application.

    Five turns, three of which go wrong, and what was recorded of them.

    It uses the real openai and anthropic SDKs against a provider on 127.0.0.1 that answers, refuses, and breaks off;
    no network and no API key is needed. The rows go to your database, beside those of your own applications.

    \b
    otel-chatdebug demo
    otel-chatdebug demo --svg demo.svg
    """
    missing = [name for name in SDKS if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"The demo needs {' and '.join(missing)}: pip install 'otel-chatdebug[demo]', or pip install "
            f"{' '.join(missing)}."
        )
    chosen = settings()
    if not chosen.recording:
        raise click.ClickException(
            "Recording is switched off: unset OTEL_CHATDEBUG_ENABLED and OTEL_SDK_DISABLED for the demo."
        )
    from otel_chatdebug.demo import app

    ids = app.main(chosen.database_url, click.echo)
    with open_database(chosen.database_url) as engine:
        from otel_chatdebug.tables import queries

        runs = [queries.load_run(engine, id) for id in ids]

    from rich.text import Text

    from otel_chatdebug.cli import render, tree

    trees = [tree.run_tree(run, content=False) for run in runs]
    output = console()
    output.print(Text("\nWhat was recorded: runs, their model calls, and each request\n", style="bold"))
    for one in trees:
        output.print(one)
        output.print()
    if svg is not None:
        save_svg(svg, trees)
    failed = next((run["id"] for run in runs if run["status"] == "error"), ids[0])
    short = render.unique_ids([failed])[0]
    program = how_to_call()
    lines = (
        (f"{program} runs", "the newest runs, also those of your own applications"),
        (f"{program} show {short}", "with what was said until it failed"),
        (f"{program} show {short} --full", "with tools, headers and bodies"),
        (f"{program} curl {short}", "the request, to be sent again"),
        (f"{program} tail", "live, while your application runs"),
        (f"{program} stuck", "what hangs, where and since when"),
        (f"{program} info", "where the tables are, and all settings"),
    )
    width = max(len(command) for command, _ in lines)
    click.echo("Now type:")
    for command, why in lines:
        click.echo(f"  {command:<{width}}  {why}")


def how_to_call() -> str:
    """What to type for this program: its name, or its path where the shell does not find it (after ``make demo``)."""
    if shutil.which(PROGRAM):
        return PROGRAM
    script = Path(sys.executable).with_name(PROGRAM)
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m otel_chatdebug.cli"
    relative = os.path.relpath(script)
    return shlex.quote(str(script) if relative.startswith(os.pardir) else relative)


def save_svg(path: Path, trees: list[Tree]) -> None:
    """The trees as a picture, always with colours and of the same width."""
    from rich.console import Console

    picture = Console(
        file=io.StringIO(), record=True, width=SVG_WIDTH, force_terminal=True, no_color=False, color_system="truecolor"
    )
    for place, tree in enumerate(trees):
        if place:
            picture.print()
        picture.print(tree)
    picture.save_svg(str(path), title="otel-chatdebug demo")
