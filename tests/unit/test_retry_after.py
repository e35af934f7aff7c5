"""After how long a provider asks to try again: from a header, or from the body of its error."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.recording import recording

GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-flash:generateContent"


def quota(delay: object) -> dict[str, Any]:
    """Gemini's error body."""
    info = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
    return {"error": {"code": 429, "message": "Quota.", "status": "RESOURCE_EXHAUSTED", "details": info}}


@pytest.mark.parametrize(
    ("headers", "body", "told"),
    [
        ({"retry-after": "7", "retry-after-ms": "6500"}, quota("1s"), "7"),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, quota("1s"), "Wed, 21 Oct 2026 07:28:00 GMT"),
        ({"retry-after-ms": "250"}, quota("1s"), "0.25"),
        ({"retry-after-ms": "soon"}, quota("34.074824224s"), "34.074824224"),
        ({"retry-after-ms": "nan"}, quota("18s"), "18"),
        ({}, quota("1h"), None),
        ({}, quota({"seconds": 5}), None),
        ({}, {"error": {"message": "no", "details": [None, 3, {}]}}, None),
        ({}, {"error": {"message": "no", "details": "none"}}, None),
    ],
)
def test_an_error_says_when_to_try_again(headers: dict[str, str], body: dict[str, Any], told: str | None) -> None:
    answer = {"content-type": "application/json", **headers}
    transport = httpx.MockTransport(lambda _: httpx.Response(429, content=json.dumps(body).encode(), headers=answer))
    with recording() as recorded:
        with httpx.Client(transport=transport) as client:
            client.post(GEMINI, json={"contents": []}).read()
        (attempt,) = recorded.attempts
    assert attempt.error is not None
    assert attempt.error["status_code"] == 429
    assert attempt.error.get("retry_after") == told


def test_a_success_that_says_when_to_come_again_is_none() -> None:
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, json={"candidates": []}, headers={"retry-after": "7"})
    )
    with recording() as recorded:
        with httpx.Client(transport=transport) as client:
            client.post(GEMINI, json={"contents": []}).read()
        (attempt,) = recorded.attempts
    assert attempt.error is None
