"""An index for what is in progress in one chat, however many runs it has and however many others are open."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    is_open = sa.text("status = 'in_progress'")
    op.create_index(
        "ix_chat_debug_runs_chat_open",
        "chat_debug_runs",
        ["chat_id", "heartbeat_at"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
