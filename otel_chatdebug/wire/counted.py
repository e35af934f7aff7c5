"""Token counts as an application hands them in: by our names, or as the ``usage`` that a provider answered with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from otel_chatdebug.wire.anthropic import AnthropicMessages
from otel_chatdebug.wire.gemini import Gemini
from otel_chatdebug.wire.openai_chat import OpenAIChat
from otel_chatdebug.wire.openai_responses import OpenAIResponses
from otel_chatdebug.wire.reading import count
from otel_chatdebug.wire.types import Facts

_SPEAKERS: Final = (
    ({"prompt_tokens", "completion_tokens"}, OpenAIChat(), "usage"),
    ({"cache_read_input_tokens", "cache_creation_input_tokens"}, AnthropicMessages(), "usage"),
    ({"input_tokens_details", "output_tokens_details"}, OpenAIResponses(), "usage"),
    ({"promptTokenCount", "candidatesTokenCount"}, Gemini(), "usageMetadata"),
)
"""What is peculiar to the counts of each, who reads them, and where they stand in a body."""


def token_counts(given: Mapping[str, Any]) -> dict[str, int]:
    """``input_tokens``, ``output_tokens``, ... as `otel_chatdebug.wire.types.Usage` means them.

    A provider's own counts are read as in its answers. What is no number of tokens is left out.
    """
    if any(key.endswith("_token_count") for key in given):  # google-genai's objects
        given = {_camel(key): value for key, value in given.items()}
    for marks, speaker, place in _SPEAKERS:
        if not marks.isdisjoint(given):
            facts = Facts()
            speaker.read_json(facts, {place: given})
            return (facts.usage and facts.usage.as_dict()) or {}
    return {key: known for key, value in given.items() if (known := count(value)) is not None}


def _camel(key: str) -> str:
    first, *others = key.split("_")
    return first + "".join(other.capitalize() for other in others)
