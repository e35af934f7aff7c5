"""OpenAI embeddings: texts in, vectors out. Vectors are counted, never kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.openai_chat import OpenAIChat
from otel_chatdebug.wire.openai_completions import user_messages
from otel_chatdebug.wire.reading import items, mapping


class OpenAIEmbeddings(OpenAIChat):
    """``POST .../embeddings``. Never a stream; usage has no output."""

    name = "openai.embeddings"
    operation = "embeddings"
    has_terminal = False
    path = re.compile(r"/embeddings/?$")

    def normalize_request(self, body: Any) -> dict[str, Any] | None:
        """Each input as a user's message."""
        if not isinstance(body, dict):
            return None
        return shapes.request(user_messages(body.get("input")), [], shapes.options(body, "input"), None)

    def assemble(self, events: Iterable[tuple[str | None, bytes]]) -> dict[str, Any] | None:
        """Nothing: embeddings do not stream."""
        return None

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """How many vectors came, and of which size where they are lists."""
        if not isinstance(body, dict) or not isinstance(body.get("data"), list):
            return None
        vectors = body["data"]
        first = mapping(vectors[0]).get("embedding") if vectors else None
        normalized = shapes.response([], [], body.get("model"), body.get("id"))
        normalized["embeddings"] = {"count": len(vectors), "dimensions": len(items(first)) or None}
        return normalized
