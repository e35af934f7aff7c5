"""What a snapshot says of this process: redacted as what is written, and got at whatever goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug.pipeline import inbox, inspection
from otel_chatdebug.redaction import REDACTED
from tests.support.recording import Model, recording

KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD"
"""In the form of a key of OpenAI's: our rules know it."""

LEFT = f"sk-{REDACTED}"

NAME = "Mustermann"
"""What only the application's own redactor knows."""


def pseudonym(text: str, place: str) -> str:
    return text.replace(NAME, "[PERSON]") if place in ("stack", "summary") else text


@contextmanager
def hanging(name: str) -> Iterator[None]:
    """A run of the chat ``c`` in a thread of that name, on a line of source with both secrets."""
    entered, hold = threading.Event(), threading.Event()

    def turn() -> None:
        with chatdebug.run("chat_turn", chat_id="c"):
            entered.set()
            hold.wait()  # for Mustermann, by sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD

    thread = threading.Thread(target=turn, name=name)
    thread.start()
    entered.wait()
    try:
        yield
    finally:
        hold.set()
        thread.join()


def stacks() -> list[Any]:
    """Of the only run, until its thread stands on its last line."""
    while True:
        state = inspection.inspect("c")
        assert state is not None
        (run,) = state["runs"]
        if any("hold.wait()" in frame["code"] or frame["code"] == REDACTED for frame in run["stacks"][0]["frames"]):
            return list(run["stacks"])


def test_secrets_in_names_of_threads_and_in_lines_of_source_are_taken_out() -> None:
    with recording(), hanging(f"turn of {NAME} with {KEY}"):
        (stack,) = stacks()
    assert stack["name"] == f"turn of {NAME} with {LEFT}"
    assert KEY not in json.dumps(stack)
    assert f"hold.wait()  # for {NAME}, by {LEFT}" in [frame["code"] for frame in stack["frames"]]


def test_and_by_the_applications_own_redactor() -> None:
    with recording(redact=pseudonym), hanging(f"turn of {NAME} with {KEY}"):
        (stack,) = stacks()
    assert stack["name"] == f"turn of [PERSON] with {LEFT}"
    assert f"hold.wait()  # for [PERSON], by {LEFT}" in [frame["code"] for frame in stack["frames"]]
    assert (stack["kind"], stack["state"]) == ("thread", "running")


def test_names_of_tasks_too() -> None:
    async def main() -> None:
        async with chatdebug.run("chat_turn", chat_id="c"):
            current = asyncio.current_task()
            assert current is not None
            current.set_name(f"{NAME} {KEY}")
            state = inspection.inspect("c")
            assert state is not None
            assert state["runs"][0]["stacks"][0]["name"] == f"[PERSON] {LEFT}"

    with recording(redact=pseudonym):
        asyncio.run(main())


def test_a_redactor_that_fails_leaves_the_frames_without_their_text() -> None:
    def raising(text: str, place: str) -> str:
        raise ValueError

    with recording(redact=raising), hanging("a thread"):
        (stack,) = stacks()
    assert stack["name"] == REDACTED
    assert {frame["code"] for frame in stack["frames"]} == {REDACTED}
    assert any(frame["function"].endswith("turn") and frame["file"] == __file__ for frame in stack["frames"])


def test_it_looks_although_others_fold_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not get the turn in time looks nevertheless, while runs begin and end."""
    monkeypatch.setattr(inbox, "ANSWER_TIMEOUT", 0.01)
    with recording() as recorded, chatdebug.run("chat_turn", chat_id="c") as handle:
        recorded.recorder.inbox.settle(wait=True)
        runs = recorded.recorder.open_runs
        run = runs[handle.id]

        class Begins:
            """Of a run: while it is looked at, another one begins."""

            @property
            def allowed(self) -> bool:
                runs["another"] = run
                return True

        permit, run.permit = run.permit, Begins()  # type: ignore[assignment]
        held, hold = threading.Event(), threading.Event()

        def fold() -> None:
            recorded.recorder.inbox.reading(lambda: (held.set(), hold.wait()))

        folding = threading.Thread(target=fold)
        folding.start()
        held.wait()
        try:
            state = inspection.inspect("c")
        finally:
            hold.set()
            folding.join()
            del runs["another"]
            run.permit = permit
    assert state is not None
    assert len(state["runs"]) == 1


@pytest.mark.parametrize("step", [chatdebug.step, contextlib.nullcontext])
def test_the_row_of_a_run_that_hangs_says_whom_it_asks(step: Any) -> None:
    """The lists show it, and a filter for a model finds what hangs in it."""
    with recording() as recorded, chatdebug.run("chat_turn", chat_id="c"):
        with step():
            assert recorded.run.model is None
            response = Model().open()
            run = recorded.run
        response.close()
    assert (run.status, run.provider, run.model) == ("in_progress", "openai", "gpt-5-mini")
    assert run.summary is not None
    assert run.summary["endpoint_label"] == "POST /v1/chat/completions"
