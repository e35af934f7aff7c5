"""What leaves the process passes the application's own redactor here, where there is one: records, and what spans say.

Not while folding: the redactor is somebody else's code. Records are made in the writer's thread, spans are ended in the
inbox's own thread then, so no call of the application waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from otel_chatdebug.attributes import URL_FULL, URL_PATH
from otel_chatdebug.records import AttemptContent, AttemptRecord, Record, RunRecord, StepContent, StepRecord
from otel_chatdebug.redaction import UserRedactor

PIECES: Final[dict[type[Record], tuple[str, ...]]] = {
    RunRecord: ("summary", "error"),
    StepRecord: ("metadata", "error"),
    AttemptRecord: ("url", "path", "error"),
    StepContent: ("normalized_request", "normalized_response"),
    AttemptContent: ("request_headers", "request_body", "response_headers", "response_body"),
}
"""The fields of each record whose texts pass the redactor."""

ATTRIBUTES: Final = {URL_FULL: "url", URL_PATH: "path"}
"""The attributes of spans that do. Content on spans passes it before it becomes attributes."""


def records(redact: UserRedactor | None, found: Sequence[Record]) -> Sequence[Record]:
    """The records, changed in place."""
    if redact is not None:
        for record in found:
            for place in PIECES[type(record)]:
                value = getattr(record, place)
                if value is not None:
                    setattr(record, place, redact.piece(place, value))
    return found


def attributes(redact: UserRedactor, given: dict[str, Any]) -> dict[str, Any]:
    """What a span is told."""
    return {
        name: redact.piece(ATTRIBUTES[name], value) if name in ATTRIBUTES else value for name, value in given.items()
    }
