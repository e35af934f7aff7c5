"""Run by Alembic. The connection is handed in by `otel_chatdebug.tables.migrations.upgrade`, within a transaction."""

from __future__ import annotations

from alembic import context

from otel_chatdebug.tables.migrations import VERSION_TABLE
from otel_chatdebug.tables.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,  # on SQLite too: we begin the transaction ourselves
)
with context.begin_transaction():
    context.run_migrations()
