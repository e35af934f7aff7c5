"""What another client sends while a model call is under way, for a token say, is no attempt of that call."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import httpx
import httpx2
import openai
import pytest

from otel_chatdebug.status import Status
from tests.support.recording import ANSWER, BODY, URL, Recording, recording

TOKEN_URL = "https://login.example/oauth/token"


@pytest.fixture
def record() -> Iterator[Recording]:
    with recording() as made:
        yield made


def token() -> str:
    answer = httpx.MockTransport(lambda request: httpx.Response(200, json={"access_token": "fresh"}))
    with httpx.Client(transport=answer) as client:
        return str(client.post(TOKEN_URL, data={"client_secret": "s"}).json()["access_token"])


def test_a_token_that_an_sdk_has_fetched_in_its_call_is_no_attempt(record: Recording) -> None:
    """openai's ``api_key`` may be a function, which it calls within its ``request``."""
    answer = httpx2.MockTransport(lambda request: httpx2.Response(200, json=ANSWER))
    with openai.OpenAI(api_key=token, http_client=httpx2.Client(transport=answer)) as client:
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello?"}])
    assert (record.attempt.url, record.attempt.number) == (URL, 1)
    assert record.step.status is Status.COMPLETED


class Refreshing(httpx.Auth):
    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if (yield request).status_code == 401:
            request.headers["authorization"] = f"Bearer {token()}"
            yield request


def test_a_token_that_is_fetched_between_two_attempts_of_a_bare_client_is_none(record: Recording) -> None:
    """The retry with the fresh token is an attempt of the same step; how the token was got is not."""

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=ANSWER) if "authorization" in request.headers else httpx.Response(401)

    with httpx.Client(transport=httpx.MockTransport(respond), auth=Refreshing()) as client:
        assert client.post(URL, json=BODY).status_code == 200
    assert [(attempt.url, attempt.response_status) for attempt in record.attempts] == [(URL, 401), (URL, 200)]
    assert {attempt.step_id for attempt in record.attempts} == {record.step.id}
