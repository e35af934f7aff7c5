"""The transcripts in tests/data/wire: what providers send, one file for each case."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from otel_chatdebug.wire import registry
from otel_chatdebug.wire.event_stream import AWS_EVENT_STREAM
from otel_chatdebug.wire.framing import JSON_ARRAY, NDJSON, SSE, Framing, events
from tests.support import frames

FOLDER = Path(__file__).parent.parent / "data" / "wire"

CHAT = "/v1/chat/completions"
PATHS = {
    "anthropic": "/v1/messages",
    "azure": "/openai/deployments/gpt-4o/chat/completions",
    "bedrock_converse": "/model/amazon.nova-pro-v1:0/converse-stream",
    "bedrock_invoke": "/model/anthropic.claude-sonnet-4-5-20250929-v1:0/invoke-with-response-stream",
    "deepseek": "/chat/completions",
    "gemini": "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
    "gemini_embeddings": "/v1beta/models/gemini-embedding-001:batchEmbedContents",
    "gemini_interactions": "/v1beta/interactions",
    "gemini_interactions_older": "/v1beta/interactions",
    "groq": "/openai/v1/chat/completions",
    "mistral": CHAT,
    "mistral_conversations": "/v1/conversations",
    "mistral_thinking": CHAT,
    "ollama_chat": "/api/chat",
    "ollama_embeddings": "/api/embed",
    "ollama_generate": "/api/generate",
    "openai": CHAT,
    "openai_chat": CHAT,
    "openai_embeddings": "/v1/embeddings",
    "openai_responses": "/v1/responses",
    "openrouter": "/api/v1/chat/completions",
    "vllm": CHAT,
}
"""The beginning of a file's name -> where that provider speaks so."""

CONTENT_TYPES = {
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
    "aws_event_stream": "application/vnd.amazon.eventstream",
    "json_array": "application/json; charset=UTF-8",
}
"""What the providers say of their streams."""


@dataclass(frozen=True)
class Transcript:
    name: str
    format: registry.Format
    data: bytes
    framing: Framing = SSE

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> str:
        return PATHS[self.name.split(".")[0]]

    def pieces(self) -> list[bytes]:
        """The bytes of its events, one by one, and what stands around them."""
        framer = self.framing.framer()
        found: list[bytes] = []
        start = 0
        for end in range(1, len(self.data) + 1):
            if framer.feed(self.data[end - 1 : end]):
                found.append(self.data[start:end])
                start = end
        return [*found, self.data[start:]] if start < len(self.data) else found


def load(suffix: str, framing: Framing = SSE) -> list[Transcript]:
    """All transcripts in files that end so."""
    transcripts = []
    for path in sorted(FOLDER.glob(f"*{suffix}")):
        format = registry.find(PATHS[path.name.split(".")[0]])
        assert format is not None, path
        data = path.read_bytes()
        if framing is AWS_EVENT_STREAM:
            data = frames.stream(data)
        transcripts.append(Transcript(path.name, format, data, framing))
    return transcripts


def as_array(stream: Transcript) -> Transcript:
    """A stream of Gemini as it comes without ``alt=sse``: pretty-printed, with commas on lines of their own."""
    values = [json.loads(data) for _, data in events(stream.framing, stream.data)]
    text = "[" + "\n,\r\n".join(json.dumps(value, ensure_ascii=False, indent=2) for value in values) + "\n]\n"
    return Transcript(stream.name.replace(".sse", ".array"), stream.format, text.encode(), JSON_ARRAY)


def as_chunks(stream: Transcript) -> Transcript:
    """A stream of Anthropic as Bedrock sends it: in frames, without its names and pings, with counts in its end."""
    values = [json.loads(data) for _, data in events(stream.framing, stream.data)]
    metrics = {"inputTokenCount": 176, "outputTokenCount": 84, "invocationLatency": 1275, "firstByteLatency": 400}
    data = b""
    for value in values:
        if value["type"] == "ping":
            continue
        if value["type"] == "message_stop":
            value["amazon-bedrock-invocationMetrics"] = metrics
        data += frames.chunk(json.dumps(value, ensure_ascii=False).encode())
    format = registry.find(PATHS["bedrock_invoke"])
    assert format is not None
    name = stream.name.replace("anthropic.", "bedrock_invoke.").replace(".sse", ".frames")
    return Transcript(name, format, data, AWS_EVENT_STREAM)


_SSE = load(".sse")
STREAMS = [
    *_SSE,
    *load(".ndjson", NDJSON),
    *load(".frames", AWS_EVENT_STREAM),
    *(as_array(stream) for stream in _SSE if stream.name.startswith("gemini.")),
    *(as_chunks(stream) for stream in _SSE if stream.name.startswith("anthropic.")),
]
BODIES = load(".json")
