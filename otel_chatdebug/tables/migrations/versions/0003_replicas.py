"""What is told of a process: the boot of its machine, the version of its code, where it can be asked, and its end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from otel_chatdebug.tables.schema import Text, Time

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for name in ("boot_id", "version", "inspection_url"):
        op.add_column("chat_debug_replicas", sa.Column(name, Text()))
    op.add_column("chat_debug_replicas", sa.Column("stopped_at", Time()))
