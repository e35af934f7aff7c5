"""Google's embeddings: Gemini's ``embedContent`` and ``batchEmbedContents``, and Vertex AI's ``predict``.

Gemini counts no tokens of them; Vertex AI counts those of each text, and what they cost in characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from otel_chatdebug.wire import shapes
from otel_chatdebug.wire.gemini import MODEL_IN_PATH, Gemini, content_message
from otel_chatdebug.wire.openai_completions import user_messages
from otel_chatdebug.wire.reading import Parsed, count, items, mapping, model_in
from otel_chatdebug.wire.types import Facts, Usage


class GeminiEmbeddings(Gemini):
    """``POST .../models/MODEL:embedContent``, ``:batchEmbedContents`` and ``/publishers/google/...:predict``."""

    name = "gemini.embeddings"
    operation = "embeddings"
    has_terminal = False
    path = re.compile(r":(?:embedContent|batchEmbedContents)/?$|/publishers/google/models/[^/:]+:predict/?$")

    def read_json(self, facts: Facts, body: Any) -> None:
        """Folds a whole response or an error body into ``facts``."""
        super().read_json(facts, body)
        counts = [
            count(mapping(mapping(mapping(entry).get("embeddings")).get("statistics")).get("token_count"))
            for entry in items(mapping(body).get("predictions"))
        ]
        if counts and None not in counts:
            read = sum(number or 0 for number in counts)
            facts.usage = Usage(input_tokens=read, total_tokens=read)

    def normalize_request(self, body: Any, path: str) -> dict[str, Any] | None:
        """Each text as a user's message."""
        if not isinstance(body, dict):
            return None
        budget = shapes.Budget()
        given = (
            body["content"] if "content" in body else [mapping(r).get("content") for r in items(body.get("requests"))]
        )
        messages = [content_message(content, budget) for content in shapes.listed(given)]
        for instance in items(body.get("instances")):
            messages += user_messages(mapping(instance).get("content", instance))
        known = ("content", "requests", "instances")
        return shapes.request(
            self.name, body, messages, known, model=model_in(path, MODEL_IN_PATH), nested=("parameters",)
        )

    def assemble(self, events: Iterable[Parsed]) -> dict[str, Any] | None:
        """Nothing: embeddings do not stream."""
        for _ in events:
            pass
        return None

    def normalize_response(self, body: Any) -> dict[str, Any] | None:
        """How many vectors came, and of which size."""
        given = mapping(body)
        entries = given.get("embeddings", [given["embedding"]] if "embedding" in given else given.get("predictions"))
        if not isinstance(entries, list):
            return None
        facts = Facts()
        self.read_json(facts, body)
        vectors = [mapping(mapping(entry).get("embeddings", entry)).get("values") for entry in entries]
        return shapes.embeddings(self.name, facts, vectors)
