"""How many messages a chat has, from the application: a hook of its own, or a table that the settings name.

The debug tables hold requests, not conversations; only the application knows which messages were deleted.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, TypedDict

from sqlalchemy import Boolean, Engine, Integer, MetaData, Table, case, func, select

from otel_chatdebug.viewer import threads

UNKNOWN_ROLE = "unknown"
"""Entry of messages whose role nobody tells."""


class MessageCounts(TypedDict):
    """What a snapshot tells of a chat's messages."""

    total: int
    """All messages, the deleted ones included: the sum of ``by_role``."""
    deleted: int
    by_role: dict[str, int]


CountMessages: TypeAlias = Callable[[str], Any | Awaitable[Any]]
"""Takes a chat's id, gives ``{"by_role": {role: count}, "deleted": count}``, with a ``total`` if it likes; None where
there is no such chat. May be asynchronous."""


class BadCounts(Exception):
    """What should count messages does not; the message is a sentence."""


async def from_hook(hook: CountMessages, chat_id: str) -> MessageCounts | None:
    """What the application says, such that the counts sum up. Raises `BadCounts`, and what the hook raises."""
    said = await threads.ask(hook, chat_id)
    if said is None:
        return None
    if not isinstance(said, Mapping) or not isinstance(said.get("by_role"), Mapping):
        raise BadCounts("count_messages(chat_id) is to give {'by_role': {role: count}, 'deleted': count}, or None.")
    return summed(
        {str(role): int(count) for role, count in said["by_role"].items()}, said.get("deleted"), said.get("total")
    )


def summed(by_role: dict[str, int], deleted: Any = 0, total: Any = None) -> MessageCounts:
    """``total`` is what the roles sum up to; where more was told, the rest is of an unknown role."""
    rest = int(total or 0) - sum(by_role.values())
    if rest > 0:
        by_role = {**by_role, UNKNOWN_ROLE: by_role.get(UNKNOWN_ROLE, 0) + rest}
    return MessageCounts(total=sum(by_role.values()), deleted=int(deleted or 0), by_role=by_role)


def from_table(engine: Engine, name: str, columns: str, chat_id: str) -> MessageCounts | None:
    """Counts in the application's own table, in the same database.

    ``name`` is ``table`` or ``schema.table``; ``columns`` are the names of those with the chat's id, the role and, if
    there is one, what says that a message is deleted (a boolean, or a time that is NULL otherwise), with commas.

    Raises `BadCounts`, and what the database raises.
    """
    names = [part.strip() for part in columns.split(",")]
    table = _reflected(engine, name)
    missing = [column for column in names if column not in table.c]
    if len(names) not in (2, 3) or missing:
        raise BadCounts(f"OTEL_CHATDEBUG_MESSAGES_COLUMNS is {columns!r}, and {name} has: {', '.join(table.c.keys())}.")
    chat, role = table.c[names[0]], table.c[names[1]]
    key = _as_key(chat_id, chat)
    if key is None:
        return None
    is_deleted: Any = False
    if len(names) == 3:
        column = table.c[names[2]]
        is_deleted = column.is_not(None)
        if isinstance(column.type, (Boolean, Integer)):
            is_deleted = is_deleted & (column != (False if isinstance(column.type, Boolean) else 0))
    deleted = func.sum(case((is_deleted, 1), else_=0)) if len(names) == 3 else func.min(0)
    with engine.connect() as connection:
        found = connection.execute(select(role, func.count(), deleted).where(chat == key).group_by(role)).all()
    if not found:
        return None
    by_role: dict[str, int] = {}
    for who, count, _ in found:
        who = UNKNOWN_ROLE if who is None else str(who)
        by_role[who] = by_role.get(who, 0) + count
    return summed(by_role, sum(int(gone or 0) for _, _, gone in found))


@lru_cache(maxsize=8)
def _reflected(engine: Engine, name: str) -> Table:
    schema_name, _, table = name.rpartition(".")
    return Table(table, MetaData(), schema=schema_name or None, autoload_with=engine)


def _as_key(chat_id: str, column: Any) -> Any:
    """The chat's id as that column has it; None where it can have none such."""
    try:
        kind = column.type.python_type
    except NotImplementedError:
        return chat_id
    if kind not in (int, uuid.UUID):
        return chat_id
    try:
        key = kind(chat_id)
    except ValueError:
        return None
    # Whoever may see the chat " 42" or "4_2" may not see 42.
    return key if str(key) == (chat_id.lower() if kind is uuid.UUID else chat_id) else None
