"""What a shell offers behind a TAB: ids of runs, chats, kinds and models that are there.

A shell asks while somebody types: whatever goes wrong, nothing is offered and nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import click
from click.shell_completion import CompletionItem

from otel_chatdebug.cli.common import settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

MOST = 50
"""Values that are offered."""

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offering(offers: Callable[[Engine, str], Iterator[tuple[str, str]]]) -> Complete:
    """Opens the database, and leaves out what could change the line that is typed: recorded values are hostile."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            from otel_chatdebug.tables import queries
            from otel_chatdebug.words import one_line

            with context.scope(cleanup=False):
                engine = queries.open_for_reading(settings().database_url)
            try:
                found = [(value, one_line(said)) for value, said in offers(engine, incomplete)]
            finally:
                engine.dispose()
        except Exception:
            return []
        return [CompletionItem(value, help=said or None) for value, said in found if value and value.isprintable()][
            :MOST
        ]

    return complete


def _runs(engine: Engine, incomplete: str) -> Iterator[tuple[str, str]]:
    from otel_chatdebug.tables import queries

    for run in queries.list_runs(engine, limit=1000):
        if run["id"].startswith(incomplete.lower()):
            first = (run["summary"] or {}).get("first_message") or run["chat_id"] or ""
            yield run["id"], f"{run['kind']} {run['status']} {str(first)[:40]}"


def _chats(engine: Engine, incomplete: str) -> Iterator[tuple[str, str]]:
    from otel_chatdebug.tables import queries

    for chat in queries.list_chats(engine, text=incomplete, limit=1000, most_scanned=20_000):
        if chat["chat_id"].startswith(incomplete):
            yield chat["chat_id"], f"{chat['runs']} runs"


def _kinds(engine: Engine, incomplete: str) -> Iterator[tuple[str, str]]:
    from otel_chatdebug.tables import queries

    yield from ((kind, "") for kind in queries.facets(engine).kinds if kind.startswith(incomplete))


def _models(engine: Engine, incomplete: str) -> Iterator[tuple[str, str]]:
    from otel_chatdebug.tables import queries

    yield from ((model, "") for model in queries.facets(engine).models if model.startswith(incomplete))


run_ids, chat_ids, kinds, models = (_offering(offers) for offers in (_runs, _chats, _kinds, _models))
