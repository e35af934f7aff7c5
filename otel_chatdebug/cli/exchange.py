"""Requests and responses as text, as they were recorded: ``otel-chatdebug show --raw``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from otel_chatdebug.words import Row, clean, error_text, one_line


def exchanges(run: Row) -> str:
    """All requests of a run with their responses: ``>`` before each line of a request's head, ``<`` of a response's."""
    blocks = [
        "\n".join(_exchange(step, attempt)) for step in run.get("steps") or () for attempt in step.get("attempts") or ()
    ]
    return "\n\n".join(blocks) or "No request was sent."


def _exchange(step: Row, attempt: Row) -> Iterator[str]:
    where = f"step {step.get('step_number') or '?'}, attempt {attempt.get('number') or '?'}"
    yield f"# {where}  {one_line(attempt['id'])}  {one_line(attempt.get('status'))}"
    yield f"> {one_line(attempt.get('method') or '')} {one_line(attempt.get('url') or attempt.get('path') or '')}"
    yield from _message(">", attempt.get("request_headers"), attempt.get("request_body"), "no body was recorded")
    yield ""
    code = attempt.get("response_status")
    yield f"< {code if code is not None else 'no answer'}"
    yield from _message("<", attempt.get("response_headers"), attempt.get("response_body"), None)
    if attempt.get("error"):
        yield f"# {error_text(attempt['error'])}"


def _message(sign: str, headers: Any, body: str | None, nothing: str | None) -> Iterator[str]:
    for name, value in headers or ():
        yield f"{sign} {one_line(name)}: {one_line(value)}"
    yield sign
    if body:
        yield clean(body)
    elif nothing:
        yield f"# {nothing}"
