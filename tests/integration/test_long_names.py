"""Ids and names that no index takes as they are: recorded all the same, and found by the whole name everywhere."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, select
from starlette.testclient import TestClient

import otel_chatdebug as chatdebug
from otel_chatdebug import Outcome
from otel_chatdebug.attributes import record_from_span
from otel_chatdebug.cli import main
from otel_chatdebug.runners import leases
from otel_chatdebug.settings import Settings
from otel_chatdebug.storable import LONGEST_NAME
from otel_chatdebug.tables import consent, database, merge, migrations, queries, schema
from otel_chatdebug.viewer.app import make_app
from otel_chatdebug.viewer.auth import Access

SIGNS = string.ascii_letters + string.digits + "éж中😀 %/?#"
LONG = "".join(random.Random(4).choices(SIGNS, k=100_000))
"""Nothing that could be compressed."""
OTHER = LONG[:-1]
"""Another one, which begins in the same way."""


@pytest.fixture
def recording(database_url: str, chatdebug_home: Path) -> Iterator[str]:
    chatdebug.configure(database_url=database_url)
    yield database_url
    chatdebug.shutdown()


@pytest.fixture
def engine(recording: str) -> Iterator[Engine]:
    engine = database.open_engine(recording)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


def listed(url: str, chat: str) -> list[str]:
    result = CliRunner().invoke(main, ["runs", "--database-url", url, "--chat", chat, "--json"])
    assert result.exit_code == 0, result.output
    return [run["id"] for run in json.loads(result.stdout)]


def snapshot(url: str, chat: str) -> Any:
    """As a server hands the request to the application: no HTTP client sends so long a path."""
    app = make_app(Settings.load(database_url=url), Access("t"), None)
    path = "/api/experimental/chats/{}/debug/snapshot"
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path.format(chat),
        "raw_path": path.format(quote(chat, safe="")).encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer t")],
        "server": ("127.0.0.1", 80),
    }
    answer = []

    async def send(message: Any) -> None:
        answer.append(message)

    async def ask() -> None:
        await app(scope, AsyncMock(return_value={"type": "http.request"}), send)

    with TestClient(app) as running:
        assert running.portal is not None
        running.portal.call(ask)
    assert answer[0]["status"] == 200
    return json.loads(b"".join(message.get("body", b"") for message in answer))


def test_a_chat_with_a_very_long_id_is_recorded_listed_seen_and_deleted(
    recording: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    follower = queries.Follower(engine, chat_id=LONG)
    follower.poll()
    with (
        chatdebug.run(chat_id=LONG, owner_id=LONG, trigger_message_id=LONG, root_chat_id=LONG) as run,
        chatdebug.step(chat_id=LONG, model=LONG, provider=LONG, assistant_message_id=LONG),
    ):
        assert chatdebug.flush(60)
        told = snapshot(recording, LONG)
        assert [one["id"] for one in told["in_progress"]["runs"]] == [run.id]
        assert [one["id"] for one in told["live"]["runs"]] == [run.id]
        assert chatdebug.touch_run(run.id, chat_id=LONG) is Outcome.RECORDED
        assert chatdebug.touch_run(run.id, chat_id=OTHER) is Outcome.OTHER_CHAT
    with chatdebug.run(chat_id=OTHER, trigger_message_id=OTHER) as other:
        pass
    assert chatdebug.flush(60)
    assert [one["id"] for one in follower.poll().runs] == [run.id]
    assert listed(recording, LONG) == [run.id]
    (found,) = queries.list_runs(engine, queries.RunFilter(chat_id=LONG))
    for name in ("chat_id", "owner_id", "trigger_message_id", "root_chat_id"):
        assert len(found[name]) == LONGEST_NAME  # type: ignore[literal-required]
    assert listed(recording, found["chat_id"] or "") == [run.id]  # as it is shown
    assert chatdebug.finish_run(run.id, chat_id=LONG) is Outcome.ALREADY_FINISHED
    assert chatdebug.finish_run(run.id, chat_id=OTHER) is Outcome.OTHER_CHAT
    assert chatdebug.delete_chat(LONG) == (1, 1, 0)
    assert listed(recording, LONG) == []
    assert listed(recording, OTHER) == [other.id]
    assert LONG not in caplog.text
    assert "drop" not in caplog.text


def test_messages_with_very_long_ids_are_cut_off(recording: str, engine: Engine) -> None:
    for message in (LONG, OTHER, "short"):
        with chatdebug.run(chat_id="c", trigger_message_id=message):
            pass
    assert chatdebug.flush(60)
    assert chatdebug.delete_after_message("c", OTHER).runs == 1
    assert chatdebug.delete_after_message("c", LONG).runs == 1


def test_users_and_leases_with_very_long_ids(engine: Engine) -> None:
    consent.set_choice(engine, consent.EVERYBODY, True)
    consent.set_choice(engine, LONG, True)
    assert consent.agreed(engine, LONG)
    assert not consent.agreed(engine, OTHER)
    assert leases.acquire(engine, LONG, LONG)
    assert not leases.acquire(engine, LONG, OTHER)
    assert leases.acquire(engine, OTHER, OTHER)
    assert leases.release(engine, LONG, LONG)


def test_what_spans_of_others_say_is_bounded_likewise(engine: Engine) -> None:
    """A span of another language may carry anything for the id of its run."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("theirs")
    spans = []
    for kind in ("run", "step", "attempt"):
        told = {"chatdebug.record": kind, "chatdebug.run.id": LONG, "chatdebug.step.id": LONG}
        span = tracer.start_span("s", attributes=told | {"gen_ai.conversation.id": LONG, "gen_ai.request.model": LONG})
        span.end()
        spans.append(span)
    records = [record for span in spans if (record := record_from_span(span, "r")) is not None]  # type: ignore[arg-type]
    for _ in range(2):
        with engine.begin() as connection:
            assert merge.write(connection, records) == []
    with engine.connect() as connection:
        (run,) = connection.scalars(select(schema.runs.c.id))
        assert connection.scalars(select(schema.steps.c.run_id).distinct()).all() == [run]
    assert len(queries.load_run(engine, run)["steps"]) == 2
