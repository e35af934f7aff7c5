"""otel_chatdebug records every LLM call that goes through httpx or httpx2: what was sent, what came back, how it ended.

``import otel_chatdebug as chatdebug``, then ``chatdebug.configure()`` and ``with chatdebug.run("chat_turn",
chat_id=...)``.
"""

from __future__ import annotations

from otel_chatdebug.by_id import finish_run, touch_run
from otel_chatdebug.configuration import configure, set_stale_after, shutdown
from otel_chatdebug.editing import Cleanup, cutoff_from, delete_after_message, delete_chat, schedule_cleanup
from otel_chatdebug.lifecycle import flush
from otel_chatdebug.pipeline.exporter import ChatDebugSpanExporter
from otel_chatdebug.pipeline.processor import ChatDebugSpanProcessor
from otel_chatdebug.scopes import reuse_step, run, step
from otel_chatdebug.status import Outcome, RunKind, Status, classify_error
from otel_chatdebug.tables.counts import Deleted
from otel_chatdebug.version import __version__

__all__ = [
    "ChatDebugSpanExporter",
    "ChatDebugSpanProcessor",
    "Cleanup",
    "Deleted",
    "Outcome",
    "RunKind",
    "Status",
    "__version__",
    "classify_error",
    "configure",
    "cutoff_from",
    "delete_after_message",
    "delete_chat",
    "finish_run",
    "flush",
    "reuse_step",
    "run",
    "schedule_cleanup",
    "set_stale_after",
    "shutdown",
    "step",
    "touch_run",
]
