"""What the read side needs: when a row last changed, by the database's clock, and an index for each filter."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from otel_chatdebug.tables.schema import Time

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name in ("runs", "steps", "attempts"):
        op.add_column(f"chat_debug_{name}", sa.Column("changed_at", Time()))
        op.create_index(f"ix_chat_debug_{name}_changed", f"chat_debug_{name}", ["changed_at", "id"])
    op.drop_index("ix_chat_debug_runs_chat", "chat_debug_runs")
    op.create_index("ix_chat_debug_runs_chat", "chat_debug_runs", ["chat_id", "started_at", "id", "status"])
    for column in ("status", "kind", "model"):
        op.create_index(f"ix_chat_debug_runs_{column}", "chat_debug_runs", [column, "started_at", "id"])
