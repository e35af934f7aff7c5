"""Who has agreed to be recorded, for the setting ``opt_in``: the table ``chat_debug_settings``.

An administrator allows it for all users, and each user opts in; it takes both. One row for each user who has said
something, and one for the administrator, under the id that no user has (`EVERYBODY`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_chatdebug.tables import beside
from otel_chatdebug.tables.database import NoDatabase

if TYPE_CHECKING:
    from sqlalchemy import Engine

EVERYBODY: Final = ""
"""``owner_id`` of the administrator's row."""

BUSY_SECONDS: Final = 1.0
"""How long a look waits for another connection's lock."""


class Choice(NamedTuple):
    """What a user has said."""

    owner_id: str
    on: bool
    updated_at: int
    """Microseconds since 1970."""


def asker(url: str) -> Callable[[str | None, str | None], bool]:
    """What answers, for a run of a chat and an owner, whether both have agreed. It opens the database each time and
    may block; raises what the database raises. A run without an owner is not recorded: there is nobody who could have
    agreed."""

    def ask(chat_id: str | None, owner_id: str | None) -> bool:
        if not owner_id:
            return False
        try:
            with beside.reading(url) as engine:
                return agreed(engine, owner_id)
        except NoDatabase:  # then nobody has said anything
            return False

    return ask


def agreed(engine: Engine, owner_id: str) -> bool:
    """Whether the administrator and this user have agreed."""
    from sqlalchemy import func, select

    from otel_chatdebug.tables import schema

    table = schema.settings
    both = select(func.count()).where(table.c.owner_id.in_([EVERYBODY, owner_id]), table.c.debug_logging)
    with engine.connect() as connection:
        return bool(connection.execute(both).scalar_one() == 2)


def set_choice(engine: Engine, owner_id: str, on: bool) -> None:
    """Keeps what a user, or with `EVERYBODY` the administrator, has said; in force within seconds everywhere."""
    from sqlalchemy.dialects import postgresql, sqlite

    from otel_chatdebug.tables import schema

    insert = (postgresql if engine.dialect.name == "postgresql" else sqlite).insert(schema.settings)
    values = {"owner_id": owner_id, "debug_logging": on, "updated_at": schema.utc_now()}
    said = {name: insert.excluded[name] for name in ("debug_logging", "updated_at")}
    with engine.begin() as connection:
        connection.execute(insert.values(values).on_conflict_do_update(index_elements=["owner_id"], set_=said))


def choices(engine: Engine) -> tuple[bool, list[Choice]]:
    """Whether the administrator allows it, and what the users have said, in the order of their ids."""
    from sqlalchemy import select

    from otel_chatdebug.tables import schema

    table = schema.settings
    with engine.connect() as connection:
        rows = connection.execute(
            select(table.c.owner_id, table.c.debug_logging, table.c.updated_at).order_by(table.c.owner_id)
        )
        said = [Choice(*row) for row in rows]
    return any(choice.on for choice in said if choice.owner_id == EVERYBODY), [
        choice for choice in said if choice.owner_id != EVERYBODY
    ]
