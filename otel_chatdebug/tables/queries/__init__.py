"""The read side, for the CLI, the viewer and the snapshot. Reading creates nothing and changes nothing.

Rows are plain dicts, keyed by the names of the columns and ready for ``json.dumps``: times are ISO 8601 in UTC with a
``Z``, JSON columns are Python values. Functions take an engine of `open_for_reading`, may be called in any thread, and
raise what the database raises besides what they name. Each query uses an index (a test asks SQLite's planner), so that
none grows with the number of runs; where a search has to look at rows one by one, it is bounded (see `list_runs`).

- `opening`: the engine, and what may be wrong with a database
- `rows`: what rows look like, pages and their cursors
- `runs`: lists of runs and chats
- `detail`: one run, its content as a whole or in pieces, ids by their beginnings
- `chat`: one chat as it stands, and who runs it
- `waiting`: what is in progress, and where it hangs
- `following`: what changed since
"""

from __future__ import annotations

from otel_chatdebug.tables.database import NoDatabase
from otel_chatdebug.tables.queries.chat import ChatState, Owner, load_chat
from otel_chatdebug.tables.queries.detail import (
    Ambiguous,
    Found,
    MessagesPiece,
    TextPiece,
    find,
    find_run,
    load_attempt_content,
    load_body,
    load_messages,
    load_run,
    load_step_content,
)
from otel_chatdebug.tables.queries.following import Changes, Follower
from otel_chatdebug.tables.queries.opening import check, open_for_reading
from otel_chatdebug.tables.queries.rows import (
    Attempt,
    AttemptContent,
    BadCursor,
    Chat,
    NotFound,
    Page,
    Run,
    Step,
    StepContent,
    iso,
    microseconds,
)
from otel_chatdebug.tables.queries.runs import Facets, RunFilter, cursor_at, facets, list_chats, list_runs
from otel_chatdebug.tables.queries.waiting import Waiting, Where, count_open, list_waiting

__all__ = [
    "Ambiguous",
    "Attempt",
    "AttemptContent",
    "BadCursor",
    "Changes",
    "Chat",
    "ChatState",
    "Facets",
    "Follower",
    "Found",
    "MessagesPiece",
    "NoDatabase",
    "NotFound",
    "Owner",
    "Page",
    "Run",
    "RunFilter",
    "Step",
    "StepContent",
    "TextPiece",
    "Waiting",
    "Where",
    "check",
    "count_open",
    "cursor_at",
    "facets",
    "find",
    "find_run",
    "iso",
    "list_chats",
    "list_runs",
    "list_waiting",
    "load_attempt_content",
    "load_body",
    "load_chat",
    "load_messages",
    "load_run",
    "load_step_content",
    "microseconds",
    "open_for_reading",
]
