"""The application's own redactor: what it gets, that its answer is what is written, and that its faults hide all."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

import httpx
import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug import lifecycle
from otel_chatdebug.demo.answers import OpenAIChat
from otel_chatdebug.redaction import REDACTED, UserRedactor
from otel_chatdebug.redaction.hook import PLACES, THREAD_NAME
from tests.support.recording import Chunks, Model, Recording, recording

NAME = "Mustermann"
"""What no rule of ours knows for a secret."""


def pseudonym(text: str, place: str) -> str:
    return text.replace(NAME, "[PERSON]")


def written(recorded: Recording) -> str:
    """All rows, and all that spans say."""
    rows = [asdict(row) for row in (*recorded.runs, *recorded.steps, *recorded.attempts, *recorded.contents)]
    spans = [span.to_json() for span in recorded.spans.values()]
    return json.dumps(rows, ensure_ascii=False, default=str) + "".join(spans).encode().decode("unicode_escape")


def call_about(model: Model) -> None:
    """Puts the name wherever an application can, and lets one call succeed and one fail."""
    body = {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": f"Who is {NAME}?"}],
        "metadata": {"about": NAME},
    }
    url = f"https://api.openai.com/{NAME}/v1/chat/completions"
    with chatdebug.run(first_message=NAME), chatdebug.step(metadata={"id": NAME}):
        model.sync.post(url, json=body, headers={"user-agent": NAME})
    with pytest.raises(httpx.ConnectError):
        model.sync.post(url, json=body)


def answering() -> Model:
    whole = OpenAIChat().whole("gpt-5-mini-2026", f"I do not know {NAME}.", usage=True)
    headers = {"content-type": "application/json", "x-request-id": f"req {NAME}"}
    return Model(
        httpx.Response(200, headers=headers, stream=Chunks([json.dumps(whole, ensure_ascii=False).encode()])),
        httpx.ConnectError(f"no way to {NAME}"),
    )


def test_its_answer_is_what_is_written_everywhere() -> None:
    """In rows and on spans; without it the name is in all of these places, so the test looks where there is one."""
    with recording() as plain:
        call_about(answering())
        assert written(plain).count(NAME) > 10
    asked: set[tuple[str, str]] = set()

    def redact(text: str, place: str) -> str:
        asked.add((place, text))
        return pseudonym(text, place)

    with recording(redact=redact) as recorded:
        call_about(answering())
        shown = written(recorded)
    assert NAME not in shown
    assert shown.count("[PERSON]") > 10
    for kept in ("gpt-5-mini", "chatcmpl", "user", '"input_tokens": ', "completed", "httpx.ConnectError"):
        assert kept in shown
    assert {place for place, _ in asked} == set(PLACES) - {"stack"}  # see test_inspection
    assert not {text for _, text in asked} & {"user", "assistant", "text", "stop", "httpx.ConnectError", REDACTED}


def test_a_name_that_comes_in_pieces_is_seen_in_the_whole() -> None:
    """The raw body shows none of the pieces, since no piece says by itself what it is a part of."""
    said = ["It is Frau Mu", "sterm", "ann."]
    stream = OpenAIChat().stream("gpt-5-mini-2026", said, usage=True, terminal=True)
    pieces = [piece.data for piece in stream]
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks(pieces))
    with recording(redact=pseudonym) as recorded:
        Model(answer).call()
        shown = written(recorded)
    assert "It is Frau [PERSON]." in shown
    assert "sterm" not in shown


def raising(text: str, place: str) -> str:
    raise ValueError(text)


def leaving(text: str, place: str) -> str:
    raise SystemExit


FAULTS: dict[str, Callable[[str, str], Any]] = {
    "raised ValueError": raising,
    "raised SystemExit": leaving,
    "raised TypeError": lambda text: text,  # type: ignore[dict-item, misc]
    "returned NoneType instead of a text": lambda text, place: None,
    "returned bytes instead of a text": lambda text, place: text.encode(),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_its_fault_hides_everything(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """No text is written at all; that there was a call, when, how long, and how it ended, is. Said once, without the
    text."""
    with recording(redact=FAULTS[reason]) as recorded:
        call_about(answering())
        shown = written(recorded)
        assert [step.status.value for step in recorded.steps] == ["completed", "error"]
        assert recorded.steps[0].usage["input_tokens"] > 0
    for text in (NAME, "Who is", "I do not know", "no way"):
        assert text not in shown
    assert REDACTED in shown
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert NAME not in caplog.text


class Slow:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.called: SimpleQueue[str] = SimpleQueue()
        self.let = threading.Event()
        self.threads: set[str] = set()

    def __call__(self, text: str, place: str) -> str:
        self.threads.add(threading.current_thread().name)
        self.called.put(text)
        self.let.wait(30)
        return text.upper()


@pytest.fixture
def slow() -> Iterator[Slow]:
    found = Slow()
    yield found
    found.let.set()


def test_a_piece_takes_a_bounded_time_and_a_hanging_call_none_more(slow: Slow) -> None:
    """While a call hangs, all is redacted at once; when it has returned, the redactor is asked again."""
    mine = UserRedactor(slow, seconds=0.05)
    assert mine.piece("error", {"type": "Kept", "message": "first"}) == {"type": "Kept", "message": REDACTED}
    assert mine.piece("request_body", "second") == REDACTED
    assert slow.called.get(timeout=10) == "first"
    assert slow.called.empty()  # the second did not even reach it
    assert mine._jobs.empty()  # and nobody waited for its turn
    slow.let.set()
    while mine._is_stuck:
        pass
    patient = UserRedactor(slow)
    assert patient.piece("request_body", "third") == mine.piece("request_body", "third") == "THIRD"
    mine.close()
    patient.close()


def test_no_call_of_the_application_waits_for_it(slow: Slow) -> None:
    with recording(redact=slow) as recorded:
        with closing(Model().sync) as client:
            client.post("https://api.openai.com/v1/chat/completions", json={"model": "m", "messages": []})
        assert not recorded._exporter.get_finished_spans()
        slow.let.set()
        assert recorded.spans
    assert slow.threads == {THREAD_NAME}


def test_its_thread_ends_with_the_recording() -> None:
    before = set(threading.enumerate())
    with recording(redact=pseudonym) as recorded:
        Model().call()
        assert recorded.steps
        assert THREAD_NAME in {thread.name for thread in threading.enumerate()}
    assert set(threading.enumerate()) <= before


def test_a_forked_child_has_the_redactor_too() -> None:
    with recording(redact=pseudonym) as recorded:
        lifecycle._after_fork_in_child()
        again = lifecycle._armed
        assert again is not None
        assert again.recorder is not recorded.recorder
        assert again.recorder.redact is not None
        assert again.recorder.redact is not recorded.recorder.redact
        assert again.recorder.redact.piece("path", NAME) == "[PERSON]"


def test_form_and_numbers_of_a_request_stay() -> None:
    """What is hidden is what somebody has written: not roles, types and counts."""
    request = {
        "format": "openai.chat", "model": "m", "tool_choice": {"mode": "auto"}, "options": {"max_tokens": 5},
        "messages": [{"role": "user", "parts": [
            {"type": "text", "text": "a"},
            {"type": "tool_call", "id": "call_1", "name": "log_in", "arguments": {"type": "b", "id": 7}},
        ]}],
    }  # fmt: skip
    mine = UserRedactor(raising)
    assert mine.piece("normalized_request", request) == {
        "format": "openai.chat", "model": "m", "tool_choice": {"mode": "auto"}, "options": REDACTED,
        "messages": [{"role": "user", "parts": [
            {"type": "text", "text": REDACTED},
            {"type": "tool_call", "id": "call_1", "name": REDACTED, "arguments": REDACTED},
        ]}],
    }  # fmt: skip
    shouting = UserRedactor(lambda text, place: text.upper())
    shouted = shouting.piece("normalized_request", request)
    assert shouted["messages"][0]["parts"][1]["arguments"] == {"type": "B", "id": 7}
    assert shouted["messages"][0]["role"] == "user"
    mine.close()
    shouting.close()
