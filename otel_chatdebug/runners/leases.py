"""The runner's lease of a chat: which process runs its turns, until when. By the database's clock alone.

An application whose processes take turns with a chat takes the lease before it begins, and again before it runs out;
the snapshot of the chat is then answered by the holder. Nobody has to: without a lease the process of the newest run in
progress counts as the owner.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from otel_chatdebug.tables import schema

LEASE_SECONDS = 60.0
"""How long a lease lasts by default; whoever holds one takes it again well before."""


def acquire(engine: Engine, chat_id: str, runner_id: str, seconds: float = LEASE_SECONDS) -> bool:
    """Takes the lease of a chat for ``seconds`` from now, or makes the one that is held last so long.

    ``runner_id`` is the ``replica_id`` of the process. False where another one holds it. One statement: of several
    that ask at once one gets it.
    """
    table = schema.runner_leases
    insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    with engine.begin() as connection:
        now = schema.now(connection)
        until = schema.moment(now + round(seconds * 1_000_000))
        connection.execute(
            insert(table)
            .values(chat_id=chat_id, runner_id=runner_id, acquired_at=schema.moment(now), expires_at=until)
            .on_conflict_do_update(
                index_elements=[table.c.chat_id],
                set_={"runner_id": runner_id, "acquired_at": schema.moment(now), "expires_at": until},
                where=or_(table.c.runner_id == runner_id, table.c.expires_at <= schema.moment(now)),
            )
        )
        return holder(connection, chat_id) == schema.stored_name(runner_id)


def release(engine: Engine, chat_id: str, runner_id: str) -> bool:
    """Gives the lease back. False where this runner does not hold it."""
    table = schema.runner_leases
    with engine.begin() as connection:
        gone = connection.execute(delete(table).where(table.c.chat_id == chat_id, table.c.runner_id == runner_id))
        return gone.rowcount > 0


def holder(connection: Connection, chat_id: str) -> str | None:
    """Who holds the lease of a chat now; None where it has run out, or nobody took it."""
    table = schema.runner_leases
    lasts = table.c.expires_at > schema.moment(schema.now(connection))
    found: str | None = connection.execute(
        select(table.c.runner_id).where(table.c.chat_id == chat_id, lasts)
    ).scalar_one_or_none()
    return found
