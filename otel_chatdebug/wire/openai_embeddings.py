"""OpenAI embeddings: texts in, vectors out. Vectors are counted, never kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.openai_chat import OpenAIChat, deployment
from otel_chatdebug.wire.openai_completions import user_messages
from otel_chatdebug.wire.reading import Parsed, mapping, name
from otel_chatdebug.wire.types import Facts


class OpenAIEmbeddings(OpenAIChat):
    """``POST .../embeddings``. Never a stream; usage has no output."""

    name = "openai.embeddings"
    operation = "embeddings"
    has_terminal = False
    path = re.compile(r"/embeddings/?$")

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """Each input as a user's message."""
        if not isinstance(body, dict):
            return None
        model = name(body.get("model")) or deployment(path)
        return shapes.request(self.name, body, user_messages(body.get("input")), ("input",), model=model)

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """Nothing: embeddings do not stream."""
        for _ in events:
            pass
        return None

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """How many vectors came, and of which size where they are lists."""
        if not isinstance(body, dict) or not isinstance(body.get("data"), list):
            return None
        facts = Facts()
        self.read_json(facts, body)
        vectors = [mapping(entry).get("embedding") for entry in body["data"]]
        return shapes.embeddings(self.name, facts, vectors, shapes.warnings_of(body))
