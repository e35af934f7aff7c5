"""The processes that write to the tables: a row each, with a heartbeat by the database's clock.

A process id says little: it is another process in the next container, and again after a reboot. So whether a process
lives is never told by its pid, only by its heartbeat; host, boot id and pid are there for people.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict, cast

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from otel_chatdebug.tables import schema
from otel_chatdebug.version import __version__

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Linux only; elsewhere the column is NULL."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A process as it tells of itself."""

    id: str
    """The ``replica_id`` of the rows that it writes."""
    host: str
    pid: int
    boot_id: str | None
    started_at: int
    """When it began to record; its own clock, microseconds."""
    version: str = __version__
    """Of otel-chatdebug."""

    @classmethod
    def this_process(cls, id: str) -> Replica:
        return cls(
            id=id, host=socket.gethostname(), pid=os.getpid(), boot_id=boot_id(), started_at=time.time_ns() // 1000
        )


class ReplicaRow(TypedDict):
    """A row as `list_live` gives it: times in microseconds."""

    id: str
    service_name: str | None
    host: str | None
    pid: int | None
    boot_id: str | None
    version: str | None
    inspection_url: str | None
    inspection_token: str | None
    """What a request that is handed on to it must carry. For `otel_chatdebug.viewer.proxy` alone."""
    started_at: int
    heartbeat_at: int | None
    stopped_at: int | None


@cache
def boot_id() -> str | None:
    """Names this boot of this machine; None where the system does not tell."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip() or None
    return None


def beat(
    connection: Connection,
    replica: Replica,
    *,
    service_name: str | None = None,
    inspection_url: str | None = None,
    inspection_token: str | None = None,
) -> float | None:
    """Says that this process lives. Makes its row, where there is none.

    Returns how many seconds ago it said so before, by the database's clock; None where it never did.
    """
    table = schema.replicas
    before = connection.execute(select(table.c.heartbeat_at).where(table.c.id == replica.id)).scalar_one_or_none()
    told = {
        "service_name": service_name,
        "inspection_url": inspection_url,
        "inspection_token": inspection_token,
        "stopped_at": None,
    }
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    clock = schema.utc_now()
    connection.execute(
        insert(table)
        .values(**asdict(replica), **told, heartbeat_at=clock)
        .on_conflict_do_update(index_elements=[table.c.id], set_={**told, "heartbeat_at": clock})
    )
    return None if before is None else (schema.now(connection) - before) / 1_000_000


def sign(connection: Connection, replica: Replica) -> None:
    """Says that this process lives, and nothing else of it."""
    table = schema.replicas
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    clock = schema.utc_now()
    connection.execute(
        insert(table)
        .values(**asdict(replica), heartbeat_at=clock)
        .on_conflict_do_update(index_elements=[table.c.id], set_={"heartbeat_at": clock})
    )


def leave(connection: Connection, id: str) -> None:
    """Says that this process ends in order, and cannot be asked any more."""
    clock = schema.utc_now()
    table = schema.replicas
    connection.execute(
        update(table)
        .where(table.c.id == id)
        .values(heartbeat_at=clock, stopped_at=clock, inspection_url=None, inspection_token=None)
    )


def list_live(engine: Engine, stale_after: float) -> list[ReplicaRow]:
    """The processes that gave a sign of life within ``stale_after`` seconds and have not ended; the newest first."""
    table = schema.replicas
    with engine.connect() as connection:
        since = schema.moment(schema.now(connection) - round(stale_after * 1_000_000))
        lives: ColumnElement[bool] = (table.c.heartbeat_at >= since) & table.c.stopped_at.is_(None)
        query = select(table).where(lives).order_by(table.c.started_at.desc(), table.c.id)
        return [_row(row) for row in connection.execute(query).mappings()]


def find(engine: Engine, id: str) -> ReplicaRow | None:
    """The process that has written rows with this ``replica_id``, living or not."""
    with engine.connect() as connection:
        return load(connection, id)


def load(connection: Connection, id: str) -> ReplicaRow | None:
    """As `find`, within a transaction."""
    row = connection.execute(select(schema.replicas).where(schema.replicas.c.id == id)).mappings().one_or_none()
    return None if row is None else _row(row)


def remove_old(connection: Connection, before: int) -> int:
    """Removes the rows of processes whose last sign of life was before that (microseconds); how many there were."""
    table = schema.replicas
    return connection.execute(delete(table).where(table.c.heartbeat_at < schema.moment(before))).rowcount


def _row(row: RowMapping) -> ReplicaRow:
    return cast(ReplicaRow, dict(row))
