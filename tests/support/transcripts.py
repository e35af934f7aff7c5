"""The transcripts in tests/data/wire: what providers send, one file for each case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from otel_chatdebug.wire import registry

FOLDER = Path(__file__).parent.parent / "data" / "wire"

PATHS = {
    "anthropic": "/v1/messages",
    "groq": "/openai/v1/chat/completions",
    "mistral": "/v1/chat/completions",
    "openai": "/v1/chat/completions",
    "openai_chat": "/v1/chat/completions",
    "openai_responses": "/v1/responses",
}
"""The beginning of a file's name -> where that provider speaks so. Gemini's format comes with another issue."""


@dataclass(frozen=True)
class Transcript:
    name: str
    format: registry.Format
    data: bytes

    def __str__(self) -> str:
        return self.name


def load(suffix: str) -> list[Transcript]:
    """All transcripts whose format is known; ``suffix`` is ``.sse`` or ``.json``."""
    transcripts = []
    for path in sorted(FOLDER.glob(f"*{suffix}")):
        url_path = PATHS.get(path.name.split(".")[0])
        if url_path and (format := registry.find(url_path)):
            transcripts.append(Transcript(path.name, format, path.read_bytes()))
    return transcripts


STREAMS = load(".sse")
BODIES = load(".json")
