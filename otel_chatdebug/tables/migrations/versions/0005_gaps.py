"""Where the longest silence within a streamed body was, for the timeline."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from otel_chatdebug.tables.schema import Time

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("chat_debug_attempts", sa.Column("longest_gap_at", Time()))
    op.add_column("chat_debug_attempts", sa.Column("longest_gap_ms", sa.Float(53)))
