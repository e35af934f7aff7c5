"""Rows for the pages, and the pages as people get them: ``otel-chatdebug serve`` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

from sqlalchemy import Engine

from otel_chatdebug.records import AttemptRank, Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, merge, migrations
from tests.support.records import attempt_content, attempt_record, run_record, step_content, step_record

TOKEN = "token-of-the-tests"

PATIENCE = 60.0
"""Seconds until a server must have begun, or ended, on a machine that is busy with other things."""

SECOND = 1_000_000
HOUR = 3600 * SECOND

RANKS = {Status.IN_PROGRESS: 0, Status.INTERRUPTED: 1, Status.ERROR: 2, Status.COMPLETED: 3}

WICKED = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)>{{7*7}}${7*7}"
"""What executes wherever a page takes text for anything but text."""


@contextmanager
def tables(url: str) -> Iterator[Engine]:
    """Tables to write into, made where there are none."""
    engine = database.open_engine(url)
    try:
        migrations.upgrade(engine)
        yield engine
    finally:
        engine.dispose()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def turn(id: str, *, at: int, status: Status = Status.COMPLETED, took: int = 2 * SECOND, **more: Any) -> list[Record]:
    """A run with a step of one attempt, and what was said in it; ``more`` goes over the run."""
    rank = RANKS[status]
    is_open = status is Status.IN_PROGRESS
    end = None if is_open else at + took
    error = {"type": "api_error", "message": f"what went wrong in {id}"} if status is Status.ERROR else None
    common: dict[str, Any] = {
        "status": status,
        "rank": rank,
        "started_at": at,
        "finished_at": end,
        "updated_at": at + took,
        "error": error,
    }
    summary = {
        "first_message": f"What about {id}?",
        "step_count": 1,
        "total_input_tokens": 1200,
        "total_output_tokens": 84,
        "has_error": status is Status.ERROR,
        "endpoint_label": "POST /v1/chat/completions",
    }
    chat = {"chat_id": more.get("chat_id", "chat-1")}
    run = {
        "summary": summary,
        "model": "gpt-5-mini",
        "provider": "openai",
        "kind": "chat_turn",
        **chat,
        **common,
        **more,
    }
    attempt = {
        **common,
        "rank": AttemptRank.OPEN if is_open else AttemptRank.FINAL,
        "method": "POST",
        "url": "https://api.example.com/v1/chat/completions",
        "path": "/v1/chat/completions",
        "response_status": None if is_open else 200,
        "end_reason": None if is_open else "sse_eof",
        "first_byte_at": at + took // 4,
        "last_byte_at": at + took,
        "bytes_received": 4321,
        "events": 17,
    }
    usage = {"input_tokens": 1200, "output_tokens": 84, "total_tokens": 1284}
    step = {**common, "model": "gpt-5-mini", "provider": "openai", "operation": "stream", "usage": usage}
    key = {"run_id": id, "chat_id": run["chat_id"]}
    return [
        run_record(id, **run),
        step_record(f"{id}s", **key, **step),
        attempt_record(f"{id}a", step_id=f"{id}s", **key, **attempt),
        step_content(f"{id}s", **key, normalized_request=asked(id), normalized_response=answered(id)),
        attempt_content(
            f"{id}a",
            step_id=f"{id}s",
            **key,
            request_headers=[["content-type", "application/json"], ["authorization", "[REDACTED]"]],
            request_body='{"model": "gpt-5-mini", "messages": []}',
            response_headers=[["content-type", "text/event-stream"]],
            response_body='data: {"answer": 1}\n\ndata: [DONE]\n',
        ),
    ]


def asked(id: str) -> dict[str, Any]:
    """A normalised request with a bit of all."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    call = {"type": "tool_call", "id": "call_1", "name": "weather", "arguments": {"city": "Bern"}}
    return {
        "format": "openai.chat",
        "model": "gpt-5-mini",
        "messages": [
            {"role": "system", "parts": [{"type": "text", "text": "You are brief."}]},
            {"role": "user", "parts": [{"type": "text", "text": f"What about {id}?"}]},
            {"role": "assistant", "parts": [{"type": "reasoning", "text": "Hm."}, call]},
            {"role": "tool", "parts": [{"type": "tool_result", "id": "call_1", "content": "rain"}]},
            {"role": "user", "parts": [{"type": "image", "media_type": "image/png", "bytes": 12345}]},
        ],
        "tools": [{"type": "function", "name": "weather", "description": "Tells the weather", "schema": schema}],
        "tool_choice": {"mode": "auto"},
        "options": {"temperature": 0.2, "parallel_tool_calls": True},
        "provider_options": {"user": "u1"},
        "provider_option_count": 1,
    }


def answered(id: str) -> dict[str, Any]:
    """A normalised response."""
    return {
        "format": "openai.chat",
        "model": "gpt-5-mini-2026",
        "id": "chatcmpl-1",
        "messages": [
            {
                "role": "assistant",
                "parts": [{"type": "text", "text": f"This about {id}."}],
                "finish_reason": "stop",
            }
        ],
        "usage": {"input_tokens": 1200, "output_tokens": 84},
        "warnings": [{"type": "deprecated", "message": "this model will go"}],
    }


def now() -> int:
    """Microseconds since 1970."""
    return time_ns() // 1000


def sample(engine: Engine) -> None:
    """A few chats: what went well, what failed, what is in progress and what hangs."""
    at = now() - HOUR
    write(engine, *turn("aa01", at=at), *turn("aa02", at=at + SECOND, status=Status.ERROR))
    write(engine, *turn("aa03", at=at + 2 * SECOND, status=Status.INTERRUPTED, kind="title_generation", model="gpt-5"))
    write(engine, *turn("bb01", at=at + 3 * SECOND, chat_id="chat/2 %ü"))
    write(engine, *turn("cc01", at=now() - 90 * SECOND, status=Status.IN_PROGRESS, took=10 * SECOND, chat_id="chat-3"))
    write(engine, *retried("dd01", at=at + 4 * SECOND))


def retried(id: str, *, at: int) -> list[Record]:
    """A run whose step took two attempts: refused, then answered; with a gap in the middle of the stream."""
    run, step, attempt, *contents = turn(id, at=at, took=6 * SECOND)
    refused = attempt_record(
        f"{id}r",
        step_id=f"{id}s",
        run_id=id,
        chat_id="chat-1",
        number=1,
        status=Status.ERROR,
        rank=AttemptRank.FINAL,
        started_at=at,
        finished_at=at + SECOND,
        response_status=429,
        end_reason="body_close",
        method="POST",
        url="https://api.example.com/v1/chat/completions",
        error={"type": "rate_limit_exceeded", "message": "slow down", "status_code": 429, "retry_after": "1"},
    )
    attempt.number = 2  # type: ignore[attr-defined]
    attempt.started_at = at + 2 * SECOND  # type: ignore[attr-defined]
    attempt.first_byte_at = at + 3 * SECOND  # type: ignore[attr-defined]
    attempt.longest_gap_at = at + 4 * SECOND  # type: ignore[attr-defined]
    attempt.longest_gap_ms = 1000.0  # type: ignore[attr-defined]
    run.summary = {**run.summary, "has_error": True}  # type: ignore[attr-defined]
    return [run, step, refused, attempt, *contents]


def wicked(engine: Engine) -> str:
    """A run that is hostile in every place that content can come to. Its id."""
    at = now() - HOUR
    id = "ee01"
    key: dict[str, Any] = {"run_id": id, "chat_id": WICKED}
    ended: dict[str, Any] = {"status": Status.ERROR, "rank": 2, "started_at": at, "finished_at": at + SECOND}
    error = {"type": WICKED, "message": WICKED, WICKED: WICKED}
    texts = ["text", "reasoning", "refusal", WICKED]
    parts: list[Any] = [{"type": type, "text": WICKED} for type in texts]
    parts += [
        {"type": "tool_call", "id": WICKED, "name": WICKED, "arguments": {WICKED: WICKED}},
        {"type": "tool_result", "id": WICKED, "content": [{"type": "text", "text": WICKED}]},
        {"type": "image", "media_type": WICKED, "bytes": 1, "url": f"javascript:alert(4)//{WICKED}", "name": WICKED},
        {"type": "unknown", "raw": {WICKED: [WICKED]}},
        WICKED,
    ]
    said = [{"role": WICKED, "name": WICKED, "finish_reason": WICKED, "parts": parts}]
    options = {WICKED: WICKED, "user": {"a": WICKED}}
    tool = {"name": WICKED, "description": WICKED, "schema": {WICKED: WICKED}}
    request = {"messages": said, "tools": [tool], "tool_choice": WICKED, "options": options}
    response = {"messages": said, "warnings": [{"type": WICKED, "message": WICKED}], "embeddings": WICKED}
    metadata = {"response_model": WICKED, "finish_reasons": [WICKED], "more": {WICKED: WICKED}}
    write(
        engine,
        run_record(
            id,
            **ended,
            chat_id=WICKED,
            kind=WICKED,
            model=WICKED,
            provider=WICKED,
            owner_id=WICKED,
            trigger_message_id=WICKED,
            service_name=WICKED,
            error=error,
            summary={"first_message": WICKED, "endpoint_label": WICKED, "has_error": True},
        ),
        step_record(
            f"{id}s", **key, **ended, model=WICKED, provider=WICKED, operation=WICKED, error=error, metadata=metadata
        ),
        attempt_record(
            f"{id}a",
            step_id=f"{id}s",
            **key,
            **ended | {"rank": AttemptRank.FINAL},
            method=WICKED,
            url=f"javascript:alert(5)//{WICKED}",
            path=WICKED,
            response_status=500,
            end_reason=WICKED,
            error=error,
        ),
        step_content(f"{id}s", **key, normalized_request=request, normalized_response=response),
        attempt_content(
            f"{id}a",
            step_id=f"{id}s",
            **key,
            request_headers=[[WICKED, WICKED]],
            request_body=f'{{"a": "{WICKED}"',
            response_headers=[["content-type", "text/html"], [WICKED, WICKED]],
            response_body=f"<html><body>{WICKED}<script>alert(6)</script></body></html>",
        ),
    )
    return id


@dataclass(frozen=True)
class Served:
    """A server under way."""

    link: str
    """What it has printed."""
    process: subprocess.Popen[str]

    @property
    def origin(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return "/".join(self.link.split("/", 3)[:3])

    def stop(self) -> int:
        """Ends it as Ctrl-C does; its exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@contextmanager
def served(url: str, *more: str, **environment: str) -> Iterator[Served]:
    """``otel-chatdebug serve`` for this database on a free port; ended with the block."""
    command = [sys.executable, "-m", "otel_chatdebug.cli", "serve", "--port", "0", "--database-url", url, *more]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OTEL_CHATDEBUG_TOKEN": TOKEN, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Served(_link(process), process)
        finally:
            if process.poll() is None:
                process.kill()


def _link(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        if match := re.search(r"http://\S+", line):
            return match[0]
    raise AssertionError(f"it ended without an address:\n{process.stderr.read()}")


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'chatdebug.db'}"
