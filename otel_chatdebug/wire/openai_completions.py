"""OpenAI's older text completions: a prompt instead of messages, a text instead of a message."""

from __future__ import annotations

import re
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.openai_chat import OpenAIChat, deployment
from otel_chatdebug.wire.reading import mapping, name


class OpenAICompletions(OpenAIChat):
    """``POST .../completions``. Streams, usage and errors are those of chat completions."""

    name = "openai.completions"
    operation = "text_completion"
    path = re.compile(r"(?<!/chat)(?<!/agents)/completions/?$")

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """Each prompt as a user's message."""
        if not isinstance(body, dict):
            return None
        model = name(body.get("model")) or deployment(path)
        return shapes.request(self.name, body, user_messages(body.get("prompt")), ("prompt",), model=model)

    def choice_message(self, value: Any, budget: shapes.Budget) -> shapes.Message:
        """The text as a message; Mistral's fill-in-the-middle has a message here."""
        choice = mapping(value)
        text = choice.get("text")
        if not isinstance(text, str):
            return super().choice_message(value, budget)
        return shapes.answer(None, [shapes.text_part(text, budget)], choice.get("finish_reason"))


def user_messages(texts: Any) -> list[shapes.Message]:
    """A text, a list of texts, or token numbers, as the user's messages."""
    budget = shapes.Budget()
    several = isinstance(texts, list) and not all(isinstance(text, int) for text in texts)
    return [shapes.message("user", [_part(text, budget)]) for text in (texts if several else [texts])]


def _part(value: Any, budget: shapes.Budget) -> shapes.Part:
    return shapes.text_part(value, budget) if isinstance(value, str) else shapes.unknown_part(value, budget)
