"""Who is recorded with opt_in: what the administrator and the users say, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select

import otel_chatdebug as chatdebug
from otel_chatdebug import lifecycle
from otel_chatdebug.cli import main
from otel_chatdebug.pipeline import permits
from otel_chatdebug.tables import beside, consent, database, migrations, schema
from tests.support.postgres import Postgres
from tests.support.recording import Model


def settings(url: str, *arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["settings", *arguments, "--database-url", url], prog_name="otel-chatdebug")
    assert result.exit_code == status, result.output
    return result


class Recorded:
    """This process records into ``url``; the spans that it made."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def configure(self, **more: Any) -> None:
        chatdebug.configure(database_url=self.url, tracer_provider=self.provider, **({"enabled": "opt_in"} | more))

    def owners(self) -> list[str | None]:
        """Of the runs that are in the table, all of them with a step and an attempt."""
        chatdebug.flush(30)
        engine = database.open_engine(self.url)
        with engine.connect() as connection:
            runs = {row.id: row.owner_id for row in connection.execute(select(schema.runs))}
            for table in (schema.steps, schema.attempts, schema.attempt_contents):
                assert set(connection.scalars(select(table.c.run_id))) == set(runs)
        engine.dispose()
        return sorted(runs.values(), key=str)


@pytest.fixture
def recorded(database_url: str) -> Iterator[Recorded]:
    yield Recorded(database_url)
    chatdebug.shutdown()


def turn(owner: str | None = None, chat: str | None = "c") -> None:
    with chatdebug.run(chat_id=chat, owner_id=owner):
        Model().call()


def forget_answers() -> None:
    """As if some seconds had passed."""
    armed = lifecycle._armed
    assert armed is not None
    assert armed.recorder.gate is not None
    armed.recorder.gate._answers.clear()


def test_it_takes_the_administrator_and_the_user(recorded: Recorded) -> None:
    recorded.configure()
    turn("u")  # nobody has said anything
    assert recorded.owners() == []
    assert "opted in" in settings(recorded.url, "user", "u", "on").stdout
    forget_answers()
    turn("u")  # the administrator has not
    assert recorded.owners() == []
    assert "1 user" in settings(recorded.url, "allow-users", "on").stdout
    forget_answers()
    turn("u")
    turn("other")
    turn(None)
    Model().call()  # an auto run has no owner
    assert recorded.owners() == ["u"]
    settings(recorded.url, "user", "u", "off")
    forget_answers()
    turn("u")
    assert recorded.owners() == ["u"]
    spans = [span for span in recorded.exporter.get_finished_spans() if span.name == "chat_turn"]
    assert len(spans) == 6  # each run has made its span all the same


def test_an_answer_is_in_force_within_seconds_without_a_restart(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permits, "CACHE_SECONDS", 0.0)
    recorded.configure()
    turn("u")
    settings(recorded.url, "allow-users", "on")
    settings(recorded.url, "user", "u", "on")
    turn("u")
    assert recorded.owners() == ["u"]


def test_the_tables_are_asked_once_for_many_runs_of_a_user(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(recorded.url, "allow-users", "on")
    settings(recorded.url, "user", "u", "on")
    asked: list[str] = []
    agreed = consent.agreed
    monkeypatch.setattr(consent, "agreed", lambda engine, owner: asked.append(owner) or agreed(engine, owner))  # type: ignore[func-returns-value]
    recorded.configure()
    for _ in range(20):
        turn("u")
    assert recorded.owners() == ["u"] * 20
    assert asked == ["u"]


def test_the_application_decides_in_place_of_the_tables(recorded: Recorded) -> None:
    settings(recorded.url, "allow-users", "on")
    settings(recorded.url, "user", "u", "on")
    recorded.configure(is_enabled=lambda chat, owner: chat == "recorded")
    turn("u", "c")
    turn("u", "recorded")
    turn(None, "recorded")
    assert recorded.owners() == [None, "u"]
    recorded.configure(enabled="always", is_enabled=lambda chat, owner: owner == "v")
    turn("u", "recorded")
    turn("v")
    assert recorded.owners() == [None, "u", "v"]
    recorded.configure(enabled="never", is_enabled=lambda chat, owner: True)
    turn("v")
    assert recorded.owners() == [None, "u", "v"]


def test_a_user_does_not_wait_for_a_slow_database_and_is_not_recorded(
    own_postgres: Callable[..., Postgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has stopped to answer; each of the calls returns before it goes on."""
    server = own_postgres()
    url = server.url(server.new_database())
    settings(url, "allow-users", "on")
    settings(url, "user", "u", "on")
    asked = threading.Event()
    reading = beside.reading

    def noticed(url: str) -> Any:
        asked.set()
        return reading(url)

    monkeypatch.setattr(beside, "reading", noticed)
    monkeypatch.setattr(permits, "LOOKUP_SECONDS", 0.2)
    recorded = Recorded(url)
    recorded.configure()
    chatdebug.flush(30)
    server.freeze()
    try:
        for _ in range(5):
            turn("u")
        assert asked.wait(30)
        armed = lifecycle._armed
        assert armed is not None
        assert armed.recorder.gate is not None
        assert armed.recorder.gate.flush(30)  # all are refused by now
    finally:
        server.thaw()
    forget_answers()
    monkeypatch.setattr(permits, "LOOKUP_SECONDS", 30.0)
    turn("u")
    assert recorded.owners() == ["u"]
    chatdebug.shutdown()


def test_what_was_asked_at_the_end_is_answered_before_the_shutdown(recorded: Recorded) -> None:
    settings(recorded.url, "allow-users", "on")
    settings(recorded.url, "user", "u", "on")
    recorded.configure()
    turn("u")
    chatdebug.shutdown()
    assert recorded.owners() == ["u"]


# -- the command


def test_settings_can_be_said_before_anything_is_recorded_and_are_shown(database_url: str) -> None:
    warned = settings(database_url, "user", "b", "on")
    assert "allow-users on" in warned.stderr
    settings(database_url, "user", "a\x1b[31m", "off")
    shown = settings(database_url)
    assert shown.stdout == settings(database_url, "show").stdout
    assert "may opt in: no" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "b: on, since 20" in shown.stdout
    assert "opt_in" in shown.stdout  # it is not asked for here
    assert settings(database_url, "allow-users", "on").stdout.startswith("Users may opt in")
    told = json.loads(settings(database_url, "show", "--json").stdout)
    assert (told["enabled"], told["allow_users"]) == ("always", True)
    assert [(user["owner_id"], user["on"]) for user in told["users"]] == [("a\x1b[31m", False), ("b", True)]
    settings(database_url, "user", "b", "off")
    settings(database_url, "allow-users", "off")
    told = json.loads(settings(database_url, "show", "--json").stdout)
    assert (told["allow_users"], [user["on"] for user in told["users"]]) == (False, [False, False])


@pytest.mark.parametrize("arguments", [("user", "", "on"), ("user", "u"), ("user", "u", "yes"), ("allow-users", "1")])
def test_what_cannot_be_meant_is_a_sentence(arguments: tuple[str, ...], database_url: str) -> None:
    said = settings(database_url, *arguments, status=2)
    assert "Error:" in said.stderr
    assert "Traceback" not in said.output


def test_a_database_without_tables_is_told_when_it_is_shown(database_url: str) -> None:
    assert settings(database_url, "show", status=_status(database_url)).stdout == ""


def _status(url: str) -> int:
    """Of a sentence about the database."""
    result = CliRunner().invoke(main, ["runs", "--database-url", url])
    assert result.exit_code
    return result.exit_code


def test_the_choice_of_a_user_is_changed_and_not_doubled(database_url: str) -> None:
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    for on in (True, False, True):
        consent.set_choice(engine, "u", on)
    allowed, users = consent.choices(engine)
    engine.dispose()
    assert not allowed
    assert [(user.owner_id, user.on) for user in users] == [("u", True)]
