"""Frames of an AWS event stream, as Bedrock sends them. (botocore reads what this writes.)"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from typing import Any
from zlib import crc32


def frame(payload: bytes, **headers: str) -> bytes:
    """One frame; ``message_type`` stands for ``:message-type``."""
    encoded = b"".join(
        bytes([len(key)]) + key + b"\x07" + struct.pack(">H", len(value)) + value
        for key, value in ((f":{name.replace('_', '-')}".encode(), text.encode()) for name, text in headers.items())
    )
    prelude = struct.pack(">II", 16 + len(encoded) + len(payload), len(encoded))
    head = prelude + struct.pack(">I", crc32(prelude)) + encoded + payload
    return head + struct.pack(">I", crc32(head))


def event(kind: str, value: Mapping[str, Any]) -> bytes:
    """A frame of an event (``messageStart``, ...), or of an exception (``throttlingException``)."""
    payload = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    if kind.endswith("Exception"):
        return frame(payload, exception_type=kind, content_type="application/json", message_type="exception")
    return frame(payload, event_type=kind, content_type="application/json", message_type="event")


def chunk(data: bytes) -> bytes:
    """A frame of ``invoke-with-response-stream``: the model's own event, and padding."""
    return event("chunk", {"bytes": base64.b64encode(data).decode(), "p": "abcdefgh"})


def stream(lines: bytes) -> bytes:
    """The frames of a transcript: on each line ``{"KIND": {...}}``."""
    return b"".join(event(kind, value) for line in lines.splitlines() for kind, value in json.loads(line).items())
