"""The command ``otel-chatdebug``: one module for each command, and `render` for how things look.

What takes long to import (SQLAlchemy, rich) is imported inside the commands: ``--help`` and mistyped options answer at
once.
"""

from __future__ import annotations

import io
import sys

import click

from otel_chatdebug.cli.common import Commands, database_option
from otel_chatdebug.cli.curl import curl
from otel_chatdebug.cli.db import db
from otel_chatdebug.cli.delete import delete
from otel_chatdebug.cli.demo import demo
from otel_chatdebug.cli.diff import diff
from otel_chatdebug.cli.info import info
from otel_chatdebug.cli.open import open_trace
from otel_chatdebug.cli.purge import purge
from otel_chatdebug.cli.runs import runs
from otel_chatdebug.cli.serve import serve
from otel_chatdebug.cli.settings import settings
from otel_chatdebug.cli.show import show
from otel_chatdebug.cli.stuck import stuck
from otel_chatdebug.cli.sweep import sweep
from otel_chatdebug.cli.tail import tail
from otel_chatdebug.cli.transfer import export_command, import_command
from otel_chatdebug.version import __version__

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="otel-chatdebug")
@database_option
def main() -> None:
    """See every model call of a chat application: what was sent, what came back, how it ended.

    \b
    Is a chat stuck, or did one fail?
      otel-chatdebug stuck
      otel-chatdebug runs --chat CHAT_ID
      otel-chatdebug show RUN_ID
      otel-chatdebug tail

    \b
    In a browser, live:
      otel-chatdebug serve

    \b
    Nothing recorded yet?
      otel-chatdebug demo
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign must not end the command


for command in (
    runs,
    show,
    tail,
    stuck,
    diff,
    curl,
    open_trace,
    export_command,
    import_command,
    serve,
    info,
    sweep,
    purge,
    delete,
    settings,
    demo,
    db,
):
    main.add_command(command)
