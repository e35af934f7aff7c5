"""A small chat application, as a user of this package would write it: five turns, of which three go wrong.

It talks to `otel_chatdebug.demo.provider` with the real openai and anthropic SDKs. What makes it visible afterwards are
``configure()``, ``run(...)`` and ``shutdown()``; all else is the application's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import anthropic
import openai

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Behaviour, Provider

CHAT = "demo-chat"
OPENAI_MODEL = "gpt-5-mini"
ANTHROPIC_MODEL = "claude-sonnet-5"

SKY = (
    "Sunlight is scattered by the molecules of the air, and blue light, whose waves are short, much more than red. "
    "So from everywhere in the sky a little blue comes to your eyes."
)
SUNSET = "In the evening the light goes a long way through the air, and most of the blue is scattered out of it."
OCEAN = "Water takes away red light first. What comes back to you from the deep is what is left over, and that is blue."
TITLE = "Why the sky is blue"


class Chat:
    """The application: it remembers what was said, and asks one provider or the other."""

    def __init__(self, provider: Provider, say: Callable[[str], object]) -> None:
        self._openai = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="demo")
        self._anthropic = anthropic.Anthropic(base_url=provider.url, api_key="demo")
        self._provider = provider
        self._say = say
        self.runs: list[str] = []
        """The ids of the runs, in their order."""

    def close(self) -> None:
        self._openai.close()
        self._anthropic.close()

    def good_turn(self) -> None:
        self._provider.script(Behaviour(text=SKY, delay=0.01))
        with chatdebug.run("chat_turn", chat_id=CHAT, first_message="Why is the sky blue?") as run:
            self.runs.append(run.id)
            stream = self._openai.chat.completions.create(
                model=OPENAI_MODEL,
                messages=[{"role": "user", "content": "Why is the sky blue?"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            for _chunk in stream:
                pass
        self._say("1. A turn that goes well: answered and streamed to its end.")

    def retried_turn(self) -> None:
        self._provider.script(Behaviour(status=429, retry_after=0.2), Behaviour(text=SUNSET, delay=0.01))
        with chatdebug.run("chat_turn", chat_id=CHAT, first_message="And why red at sunset?") as run:
            self.runs.append(run.id)
            with self._anthropic.messages.stream(
                model=ANTHROPIC_MODEL,
                messages=[{"role": "user", "content": "And why red at sunset?"}],
                max_tokens=1000,
            ) as stream:
                stream.get_final_message()
        self._say("2. A turn that is refused at first: 429, and the SDK tries again.")

    def cut_turn(self) -> None:
        self._provider.script(Behaviour(text=OCEAN, cut_after=9, delay=0.01))
        try:
            with chatdebug.run("chat_turn", chat_id=CHAT, first_message="Is the ocean blue for that reason?") as run:
                self.runs.append(run.id)
                stream = self._openai.responses.create(
                    model=OPENAI_MODEL, input="Is the ocean blue for that reason?", stream=True
                )
                for _event in stream:
                    pass
        except openai.APIConnectionError:
            self._say("3. A turn that is cut: the provider drops the connection in the middle.")

    def broken_off_turn(self) -> None:
        self._provider.script(Behaviour(text=SKY, delay=0.01))
        with chatdebug.run("chat_turn", chat_id=CHAT, first_message="Say the first part again.") as run:
            self.runs.append(run.id)
            with self._anthropic.messages.stream(
                model=ANTHROPIC_MODEL,
                messages=[{"role": "user", "content": "Say the first part again."}],
                max_tokens=1000,
            ) as stream:
                for count, _text in enumerate(stream.text_stream, start=1):
                    if count == 7:
                        break  # the user has pressed "stop"
        self._say("4. A turn that the user breaks off.")

    def title(self) -> None:
        self._provider.script(Behaviour(text=TITLE))
        with chatdebug.run("title_generation", chat_id=CHAT) as run:
            self.runs.append(run.id)
            self._openai.chat.completions.create(
                model=OPENAI_MODEL,
                messages=[
                    {"role": "system", "content": "Name this chat in at most five words."},
                    {"role": "user", "content": "Why is the sky blue?"},
                ],
            )
        self._say("5. A title for the chat, in one piece.")


def main(database_url: str | None, say: Callable[[str], object]) -> list[str]:
    """Runs the application, records it, and returns the ids of its runs. ``say`` is told how it goes."""
    # The provider is on this machine, whatever proxy the environment names.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    chatdebug.configure(database_url=database_url)
    try:
        with Provider() as provider:
            chat = Chat(provider, say)
            try:
                chat.good_turn()
                chat.retried_turn()
                chat.cut_turn()
                chat.broken_off_turn()
                chat.title()
            finally:
                chat.close()
    finally:
        chatdebug.shutdown()
    return chat.runs
