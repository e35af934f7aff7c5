"""An index for the deletion of a chat, whose steps may be within runs of other chats."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("ix_chat_debug_steps_chat", "chat_debug_steps", ["chat_id"])
