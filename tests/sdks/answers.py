"""What the local provider answers to each API: the transcripts of tests/data/wire, and some small bodies."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_chatdebug.demo.provider import Behaviour

WIRE = Path(__file__).resolve().parent.parent / "data" / "wire"

SSE = "text/event-stream"


@dataclass(frozen=True)
class Api:
    """One API: its transcripts, and the tokens that they count."""

    name: str
    stream_file: str
    whole_file: str
    stream_tokens: tuple[int, int]
    """Input and output tokens, with the meaning that they have in our tables."""
    whole_tokens: tuple[int, int]
    limited_file: str
    code: str | None
    """The provider's code of the error in the body of a 429."""

    @property
    def events(self) -> list[bytes]:
        """Of the stream, one piece each."""
        data = (WIRE / self.stream_file).read_bytes()
        return [event for event in re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", data) if event]

    def streamed(self, **more: Any) -> Behaviour:
        """A stream that is whole, unless ``more`` says otherwise."""
        return Behaviour(body=iter(self.events), content_type=SSE, **more)

    def whole(self, **more: Any) -> Behaviour:
        """An answer in one piece."""
        return Behaviour(body=(WIRE / self.whole_file).read_bytes(), content_type="application/json", **more)

    def limited(self, **more: Any) -> Behaviour:
        """A 429 that asks to wait for hardly any time."""
        body = (WIRE / self.limited_file).read_bytes()
        headers = {"retry-after-ms": "10"}
        return Behaviour(status=429, body=body, content_type="application/json", headers=headers, **more)


_LIMITED = "openai.429.json", "rate_limit_exceeded"

CHAT = Api("chat", "openai_chat.text.sse", "openai_chat.text.json", (11, 4), (11, 4), *_LIMITED)
RESPONSES = Api(
    "responses", "openai_responses.text.sse", "openai_responses.text.json", (1200, 84), (1200, 84), *_LIMITED
)
MESSAGES = Api(
    "messages", "anthropic.text.sse", "anthropic.text.json", (1200, 7), (1200, 84), "anthropic.429.json", None
)
GROQ = Api("groq", "groq.text.sse", "groq.text.json", (11, 4), (11, 4), *_LIMITED)
MISTRAL = Api("mistral", "mistral.text.sse", "mistral.text.json", (1200, 20), (1200, 20), "mistral.429.json", "1300")
CONVERSATIONS = Api(
    "conversations",
    "mistral_conversations.text.sse",
    "mistral_conversations.text.json",
    (1200, 20),
    (1200, 20),
    "mistral.429.json",
    "1300",
)
GEMINI = Api("gemini", "gemini.text.sse", "gemini.text.json", (1200, 68), (1200, 68), "gemini.429.json", "429")


def _interactions(name: str) -> Api:
    limited = "gemini.429.json", "429"
    return Api("interactions", f"{name}.text.sse", f"{name}.text.json", (1200, 84), (1200, 84), *limited)


INTERACTIONS = _interactions("gemini_interactions")
OLDER_INTERACTIONS = _interactions("gemini_interactions_older")
"""Of google-genai before its version 2."""


def embeddings(kind: str) -> Behaviour:
    """One vector, as OpenAI (and Mistral) or as Gemini sends it."""
    vector = [0.25, -0.5]
    body: dict[str, Any] = {
        "id": "emb-1",
        "object": "list",
        "model": "small",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8, "completion_tokens": 0},
    }
    if kind == "gemini":
        body = {"embeddings": [{"values": vector}]}
    return Behaviour(body=json.dumps(body).encode(), content_type="application/json")
