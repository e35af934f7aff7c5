"""The seven tables.

Written out, not taken from `schema.metadata`: a revision says what the tables were at its time.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from otel_chatdebug.tables.schema import JSON, Text, Time

revision = "0001"
down_revision = None


def _text(*names: str, null: bool = True) -> list[sa.Column[Any]]:
    return [sa.Column(name, Text(), nullable=null) for name in names]


def _json(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, JSON()) for name in names]


def _time(*names: str, null: bool = True) -> list[sa.Column[Any]]:
    return [sa.Column(name, Time(), nullable=null) for name in names]


def _small(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.SmallInteger(), nullable=False) for name in names]


def upgrade() -> None:
    op.create_table(
        "chat_debug_runs",
        sa.Column("id", Text(), primary_key=True),
        *_text("trace_id", "span_id", "chat_id", "root_chat_id", "parent_chat_id", "owner_id", "model_config_id"),
        *_text("trigger_message_id", "history_tip_message_id"),
        *_text("kind", "status", null=False),
        *_small("rank", "source"),
        *_text("provider", "model"),
        *_json("summary", "error"),
        *_text("service_name"),
        *_text("replica_id", null=False),
        *_time("started_at", "updated_at", null=False),
        *_time("heartbeat_at", "finished_at"),
    )
    op.create_index("ix_chat_debug_runs_started", "chat_debug_runs", ["started_at", "id"])
    op.create_index("ix_chat_debug_runs_chat", "chat_debug_runs", ["chat_id", "started_at"])

    op.create_table(
        "chat_debug_steps",
        sa.Column("id", Text(), primary_key=True),
        *_text("run_id", null=False),
        *_text("chat_id", "trace_id", "span_id"),
        sa.Column("step_number", sa.Integer()),
        *_text("operation"),
        *_text("status", null=False),
        *_small("rank"),
        *_text("provider", "model", "history_tip_message_id", "assistant_message_id"),
        *_json("usage", "error", "metadata"),
        *_small("source"),
        *_text("replica_id", null=False),
        *_time("started_at", "updated_at", null=False),
        *_time("heartbeat_at", "finished_at"),
        sa.UniqueConstraint("run_id", "step_number", name="uq_chat_debug_steps_number"),
    )

    op.create_table(
        "chat_debug_step_contents",
        sa.Column("step_id", Text(), primary_key=True),
        *_text("run_id", null=False),
        *_text("chat_id"),
        *_small("rank", "source"),
        *_json("normalized_request", "normalized_response"),
        *_text("replica_id", null=False),
        *_time("updated_at", null=False),
    )

    op.create_table(
        "chat_debug_attempts",
        sa.Column("id", Text(), primary_key=True),
        *_text("step_id", "run_id", null=False),
        *_text("chat_id", "trace_id", "span_id"),
        sa.Column("number", sa.Integer()),
        *_text("status", null=False),
        *_small("rank"),
        *_text("end_reason", "method", "url", "path"),
        sa.Column("response_status", sa.Integer()),
        *_json("error"),
        sa.Column("bytes_received", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        *_small("source"),
        *_text("replica_id", null=False),
        *_time("started_at", null=False),
        *_time("first_byte_at", "last_byte_at"),
        *_time("updated_at", null=False),
        *_time("heartbeat_at", "finished_at"),
        sa.Column("duration_ms", sa.Float(53)),
        sa.UniqueConstraint("step_id", "number", name="uq_chat_debug_attempts_number"),
    )
    op.create_index("ix_chat_debug_attempts_run", "chat_debug_attempts", ["run_id"])

    op.create_table(
        "chat_debug_attempt_contents",
        sa.Column("attempt_id", Text(), primary_key=True),
        *_text("step_id", "run_id", null=False),
        *_text("chat_id"),
        *_small("rank", "source"),
        *_json("request_headers"),
        *_text("request_body"),
        *_json("response_headers"),
        *_text("response_body"),
        *_text("replica_id", null=False),
        *_time("updated_at", null=False),
    )

    op.create_table(
        "chat_debug_replicas",
        sa.Column("id", Text(), primary_key=True),
        *_text("service_name", "host"),
        sa.Column("pid", sa.BigInteger()),
        *_time("started_at", null=False),
        *_time("heartbeat_at"),
    )

    op.create_table(
        "chat_debug_settings",
        sa.Column("owner_id", Text(), primary_key=True),
        sa.Column("debug_logging", sa.Boolean(), nullable=False),
        *_time("updated_at", null=False),
    )

    for contents in ("step_contents", "attempt_contents"):
        op.create_index(f"ix_chat_debug_{contents}_run", f"chat_debug_{contents}", ["run_id"])
        op.create_index(f"ix_chat_debug_{contents}_updated", f"chat_debug_{contents}", ["updated_at"])
    is_open = sa.text("status = 'in_progress'")
    for name in ("runs", "steps", "attempts"):
        op.create_index(
            f"ix_chat_debug_{name}_open",
            f"chat_debug_{name}",
            ["heartbeat_at"],
            sqlite_where=is_open,
            postgresql_where=is_open,
        )
