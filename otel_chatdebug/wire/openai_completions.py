"""OpenAI's older text completions: a prompt instead of messages, a text instead of a message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.openai_chat import OpenAIChat


class OpenAICompletions(OpenAIChat):
    """``POST .../completions``. Streams, usage and errors are those of chat completions."""

    name = "openai.completions"
    operation = "text_completion"
    path = re.compile(r"(?<!/chat)/completions/?$")

    def normalize_request(self, body: Any) -> dict[str, Any] | None:
        """Each prompt as a user's message."""
        if not isinstance(body, dict):
            return None
        return shapes.request(user_messages(body.get("prompt")), [], shapes.options(body, "prompt"), None)

    def choice_message(self, choice: Mapping[str, Any], budget: shapes.Budget) -> shapes.Message:
        """The text as a message; Mistral's fill-in-the-middle has a message here."""
        text = choice.get("text")
        if not isinstance(text, str):
            return super().choice_message(choice, budget)
        return {"role": "assistant", "parts": [shapes.text_part(text, budget)]}


def user_messages(texts: Any) -> list[shapes.Message]:
    """A text, a list of texts, or token numbers, as the user's messages."""
    budget = shapes.Budget()
    several = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return [
        {
            "role": "user",
            "parts": [
                shapes.text_part(text, budget) if isinstance(text, str) else shapes.unknown_part(text, budget),
            ],
        }
        for text in (texts if several else [texts])
    ]
