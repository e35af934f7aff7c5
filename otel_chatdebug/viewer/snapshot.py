"""``GET /api/experimental/chats/{chat}/debug/snapshot``: one answer about one chat, for when it hangs.

It is made of what the tables know and of what the process that runs the chat is doing at this moment. Where that is
another process, the request is handed on to it (`proxy`); where that one cannot be asked, the tables answer, and the
answer says so. Reads only.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from otel_chatdebug import lifecycle
from otel_chatdebug.pipeline import inspection
from otel_chatdebug.pipeline.recorder import active
from otel_chatdebug.settings import Settings
from otel_chatdebug.tables import queries
from otel_chatdebug.tables.queries import ChatState, Owner
from otel_chatdebug.viewer import auth, message_counts, proxy, threads
from otel_chatdebug.viewer.auth import ON_THE_WIRE, Access
from otel_chatdebug.viewer.login import ask_for_token
from otel_chatdebug.viewer.message_counts import BadCounts, CountMessages, MessageCounts
from otel_chatdebug.viewer.rendering import problem
from otel_chatdebug.viewer.store import Unavailable, sentence

logger = logging.getLogger("otel_chatdebug")

PATH: Final = "/api/experimental/chats/"
"""What comes before the chat's id in the path, as it is on the wire."""

CLOSED: Final = (
    "Nothing opens snapshots here: chatdebug_app(authorize=...) says who may see that of a chat, or a token does "
    "(OTEL_CHATDEBUG_TOKEN). What opens the pages (allow=...) does not."
)

VERSION: Final = 1
"""Of the answer's form."""

SUFFIX: Final = "/debug/snapshot"

Authorize: TypeAlias = Callable[[Request, str], bool | Awaitable[bool]]
"""Says of a request whether it may see the snapshot of the chat with that id. May be asynchronous."""


@dataclass
class Snapshots:
    """What the endpoint needs of the application around it."""

    authorize: Authorize | None = None
    """Without it the token of the pages opens snapshots, and nothing else does."""
    count_messages: CountMessages | None = None
    public_url: str | None = None
    """Where other processes reach this application; None: this process owns nothing, and only hands on."""
    clock: Callable[[], int] | None = None
    """Microseconds; None: the database's. For tests."""
    _registered_in: int = field(default=0, init=False)

    def register(self) -> None:
        """Tells the other processes where this one can be asked; once in each process, forked ones too."""
        if self.public_url is not None and self._registered_in != os.getpid():
            self._registered_in = os.getpid()
            lifecycle.set_inspection_url(self.public_url)


async def snapshot(request: Request) -> Response:
    """Answers, hands on, or refuses. What does not exist and what may not be seen are refused in the same words."""
    snapshots: Snapshots = request.app.state.snapshots
    snapshots.register()
    chat_id = request.path_params["chat"]
    mark = request.headers.get(proxy.FORWARDED)
    own = lifecycle.inspection_token()
    trusted = mark is not None and own is not None and hmac.compare_digest(mark.encode("latin-1"), own.encode())
    recorder = active()
    if trusted:
        request.scope[auth.ADDED] = {proxy.ANSWERED_BY: "" if recorder is None else recorder.replica_id}
    else:
        refusal = await _refusal(request, snapshots.authorize, chat_id)
        if refusal is not None:
            return refusal
    settings: Settings = request.app.state.settings
    stale_after = settings.stale_after if recorder is None else recorder.settings.stale_after
    store = request.app.state.store
    notes: list[str] = []
    try:
        state = await threads.call(
            lambda: queries.load_chat(store.engine, chat_id, stale_after=stale_after, clock=snapshots.clock)
        )
    except (Unavailable, SQLAlchemyError) as exc:
        live = await threads.call(lambda: inspection.inspect(chat_id))
        if live is None or not live["runs"]:
            raise
        notes.append(f"{sentence(exc)} This is what this process is doing.")
        state = ChatState(taken_at=time.time_ns() // 1000)
    replica_id = None if recorder is None or recorder.closed else recorder.replica_id
    owner = state.owner
    reachable: bool | None = None
    if owner is not None and owner.runner_id == replica_id:
        reachable = True
    elif owner is not None and owner.is_stale:
        notes.append("The process that ran this chat gives no sign of life: this is what the tables know.")
    elif owner is not None and mark is None:
        answer = await _ask(request, owner, notes)
        if answer is not None:
            return answer
        reachable = False
    elif owner is not None:
        notes.append("Another process runs this chat, and this request was handed on already: the tables answer.")
    messages = await _count(request, snapshots, chat_id, notes)
    live = await threads.call(lambda: inspection.inspect(chat_id))
    if not state.is_known and not (live and live["runs"]) and messages is None:
        return _not_found()
    if live is None and replica_id is not None:
        notes.append("This process is shutting down.")
    return _Json(
        {
            "version": VERSION,
            "chat_id": chat_id,
            "taken_at": queries.iso(state.taken_at),
            "answered_by": {"replica_id": replica_id, "forwarded": mark is not None},
            "owner": {
                "replica_id": None if owner is None else owner.runner_id,
                "by": None if owner is None else "lease" if owner.by_lease else "run",
                "reachable": reachable,
            },
            "heartbeat": _heartbeat(owner),
            "active_task_kind": state.runs[0]["kind"] if state.runs else None,
            "in_progress": {name: list(getattr(state, name)) for name in ("runs", "steps", "attempts")},
            "finished": list(state.finished),
            "errors": {**state.errors, "of_last_runs": state.counted_runs},
            "messages": messages,
            "live": live,
            "notes": notes,
        }
    )


async def _refusal(request: Request, authorize: Authorize | None, chat_id: str) -> Response | None:
    if authorize is None:
        access: Access = request.app.state.access
        if access.token is None and not access.open:
            return problem(request, 403, "Snapshots are closed", CLOSED)
        return access.by_link(request) or (None if access.has_token(request) else ask_for_token(request))
    try:
        allowed = await threads.ask(authorize, request, chat_id)
    except HTTPException:  # how an application says no
        return _not_found()
    except Exception as exc:
        logger.warning("authorize raised %s; the snapshot is not shown.", type(exc).__name__)
        logger.debug("authorize", exc_info=exc)
        return _not_found()
    return None if allowed is True else _not_found()


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        # What an application calls its models and threads may hold half a surrogate pair, which JSON can only escape.
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def _not_found() -> Response:
    return JSONResponse({"error": "There is no such chat."}, 404)


async def _ask(request: Request, owner: Owner, notes: list[str]) -> Response | None:
    """The owner's answer, as it is; None, with a note, where there is none."""
    replica = owner.replica
    url, token = (None, None) if replica is None else (replica["inspection_url"], replica["inspection_token"])
    if url is None or token is None:
        notes.append("The process that runs this chat has told no URL (public_url=...): this is what the tables know.")
        return None
    if token == lifecycle.inspection_token():
        notes.append("This is the process that ran this chat, and it records nothing any more.")
        return None
    raw = request.scope.get("raw_path", b"").decode("latin-1").partition(PATH)[2]
    # As it came, but for what no path may hold. Where only the decoded path is ours, from the chat's id.
    path = PATH + (
        quote(raw, safe=ON_THE_WIRE, encoding="latin-1") or f"{quote(request.path_params['chat'], safe='')}{SUFFIX}"
    )
    query = proxy.without_credentials(quote(request.scope["query_string"], safe=ON_THE_WIRE))
    try:
        answer = await proxy.forward(url, token, request.method, f"{path}?{query}" if query else path, request.headers)
    except proxy.Unreachable as exc:
        logger.debug("the owner of a chat cannot be asked", exc_info=exc)
        notes.append(f"The process that runs this chat could not be asked. {exc} This is what the tables know.")
        return None
    headers = {} if answer.content_type is None else {"content-type": answer.content_type}
    return Response(answer.body, answer.status, headers)


def _heartbeat(owner: Owner | None) -> dict[str, Any]:
    if owner is None:
        return {"runner_id": None, "heartbeat_at": None, "age_seconds": None, "is_stale": None}
    beat = None if owner.replica is None else owner.replica["heartbeat_at"]
    return {
        "runner_id": owner.runner_id,
        "heartbeat_at": None if beat is None else queries.iso(beat),
        "age_seconds": owner.age_seconds,
        "is_stale": owner.is_stale,
    }


async def _count(request: Request, snapshots: Snapshots, chat_id: str, notes: list[str]) -> MessageCounts | None:
    settings: Settings = request.app.state.settings
    if snapshots.count_messages is not None:
        try:
            return await message_counts.from_hook(snapshots.count_messages, chat_id)
        except BadCounts as exc:
            notes.append(str(exc))
        except TimeoutError:
            notes.append(f"count_messages gave no answer within {threads.HOOK_SECONDS:g} seconds.")
        except Exception as exc:
            logger.warning("count_messages raised %s; the snapshot has no counts.", type(exc).__name__)
            logger.debug("count_messages", exc_info=exc)
            notes.append(f"count_messages raised {type(exc).__name__}.")
        return None
    try:
        if settings.messages_table:
            table, columns = settings.messages_table, settings.messages_columns
            engine = request.app.state.store.engine
            return await threads.call(lambda: message_counts.from_table(engine, table, columns, chat_id))
    except BadCounts as exc:
        notes.append(str(exc))
    except SQLAlchemyError as exc:
        logger.debug("the messages of a chat cannot be counted", exc_info=exc)
        notes.append(f"The messages in {settings.messages_table} could not be counted ({type(exc).__name__}).")
    return None


ROUTES = [Route(PATH + "{chat:path}" + SUFFIX, snapshot, methods=["GET"])]
