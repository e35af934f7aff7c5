"""What is over is gone by reference counting: a body must not stay in memory until the garbage collector comes by.

With httpx2, that is: a response of httpx 0.28 is part of a cycle of its own.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug.capture.attempt import Attempt
from otel_chatdebug.demo.answers import OpenAIChat
from otel_chatdebug.pipeline.live import LiveRun
from otel_chatdebug.pipeline.live_step import LiveStep
from tests.support.recording import ANSWER, BODY, URL, recording

EVENTS = [piece.data for piece in OpenAIChat().stream("gpt-5-mini", ["a", "b"], usage=True, terminal=True)]


class Chunks(httpx2.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield from EVENTS


def answer(request: httpx2.Request) -> httpx2.Response:
    if b'"stream"' in request.content:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks())
    return httpx2.Response(200, json=ANSWER)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to every attempt, step and run that is made."""
    found: list[weakref.ref[Any]] = []
    for cls in (Attempt, LiveStep, LiveRun):
        original = cls.__init__

        def init(self: Any, *args: Any, _original: Any = original, **kwargs: Any) -> None:
            _original(self, *args, **kwargs)
            found.append(weakref.ref(self))

        monkeypatch.setattr(cls, "__init__", init)
    return found


@pytest.mark.parametrize("body", [BODY, {**BODY, "stream": True}], ids=["json", "stream"])
@pytest.mark.parametrize("explicit", [False, True], ids=["implicit", "explicit"])
def test_a_call_that_is_over_and_written_leaves_no_cycle(
    made: list[weakref.ref[Any]], body: dict[str, Any], explicit: bool
) -> None:
    with recording() as known:
        gc.collect()
        gc.disable()
        try:
            with httpx2.Client(transport=httpx2.MockTransport(answer)) as client:
                if explicit:
                    with chatdebug.run("chat_turn"), chatdebug.step():
                        client.post(URL, json=body)
                else:
                    client.post(URL, json=body)
            chatdebug.flush()
            known.recorder.inbox.flush()
            assert len(made) == 3
            assert [ref() for ref in made] == [None, None, None]
        finally:
            gc.enable()


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_call_of_an_sdk_leaves_none_either(made: list[weakref.ref[Any]], stream: bool) -> None:
    """The SDK's method and its ``request`` are both wrapped: the inner one sees the context that has the outer one."""
    with recording() as known:
        http = httpx2.Client(transport=httpx2.MockTransport(answer))
        with openai.OpenAI(api_key="k", base_url=URL.rpartition("/v1/")[0] + "/v1", http_client=http) as client:
            gc.collect()
            gc.disable()
            try:
                answered = client.chat.completions.create(**BODY, stream=stream)
                for _ in answered if stream else ():
                    pass
                answered = None
                chatdebug.flush()
                known.recorder.inbox.flush()
                assert len(made) == 3
                assert [ref() for ref in made] == [None, None, None]
            finally:
                gc.enable()
