"""``otel-chatdebug delete``: what was recorded of a chat, or of the part of it after a message."""

from __future__ import annotations

import sys

import click

from otel_chatdebug.cli.common import database_option, open_database, print_json, settings


@click.command()
@click.option("--chat", "chat_id", metavar="ID", required=True, help="The chat.")
@click.option("--after-message", metavar="ID", help="Only what belongs to later messages than this one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output: numbers of rows. Takes --yes.")
@database_option
def delete(chat_id: str, after_message: str | None, yes: bool, as_json: bool) -> None:
    """Delete what was recorded of a chat.

    Runs with their steps, attempts and contents, for good. Applications do it by themselves with
    delete_chat(), delete_after_message() and schedule_cleanup().

    \b
    otel-chatdebug delete --chat my-chat
    otel-chatdebug delete --chat my-chat --after-message 17 --yes
    """
    url = settings().database_url
    with open_database(url) as engine:
        from otel_chatdebug.tables.deletion import Deletion, take_up_spooled

        take_up_spooled(url)
        what = Deletion(chat_id, message_id=after_message)
        what.find(engine)
        found = what.count(engine)
    from otel_chatdebug.words import clean, plural

    if what.unknown_message:
        raise click.ClickException(
            f"No row of the chat {clean(what.chat_id)} names the message {clean(after_message)}, and the ids are no "
            "numbers: what comes after it cannot be told."
        )
    counts = [plural(number, noun) for number, noun in zip(found, ("run", "step", "attempt"), strict=True) if number]
    if counts and not yes:
        if as_json or not sys.stdin.isatty():
            raise click.UsageError(f"This would delete {', '.join(counts)}, and nobody can be asked here: say --yes.")
        click.confirm(f"Delete {', '.join(counts)} of the chat {clean(what.chat_id)}, with their contents?", abort=True)
    if counts:
        with open_database(url, read_only=False) as engine:
            found = what.apply(engine)
    if as_json:
        print_json(found._asdict())
    elif counts:
        counts = [plural(number, noun) for number, noun in zip(found, ("run", "step", "attempt"), strict=True)]
        click.echo(f"Deleted {', '.join(counts)}.")
    else:
        click.echo("Nothing to do: no such row.")
