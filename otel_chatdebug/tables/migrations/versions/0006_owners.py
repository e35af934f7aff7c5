"""Who runs a chat, and the token by which its process knows the requests that others hand on to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from otel_chatdebug.tables.schema import Text, Time

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("chat_debug_replicas", sa.Column("inspection_token", Text()))
    op.create_table(
        "chat_debug_runner_leases",
        sa.Column("chat_id", Text(), primary_key=True),
        sa.Column("runner_id", Text(), nullable=False),
        sa.Column("acquired_at", Time(), nullable=False),
        sa.Column("expires_at", Time(), nullable=False),
    )
