"""What a request failed of is told apart, whichever library sends it: real sockets that refuse, hang and lie."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import httpx
import httpx2
import openai
import pytest

from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.status import Status
from otel_chatdebug.words import error_text, failed_attempts
from tests.support.recording import Recording, recording

SHORT = 0.2
"""Seconds of the time limit that is to be reached."""

PATH = "/v1/chat/completions"
BODY: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello?"}]}


@pytest.fixture
def recorded() -> Iterator[Recording]:
    with recording() as found:
        yield found


def send(library: ModuleType, asynchronous: bool, url: str, *, stream: bool = False, **client: Any) -> None:
    """One request with ``stream`` in its body; what it raises comes out."""
    body = client.pop("body", {**BODY, "stream": stream})
    given: Any = {"timeout": 30, "trust_env": False, **client}

    async def send_async() -> None:
        async with library.AsyncClient(**given) as sender:
            await sender.post(url, json=body)

    if asynchronous:
        asyncio.run(send_async())
        return
    with library.Client(**given) as sender:
        sender.post(url, json=body)


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}{PATH}"


@contextmanager
def unknown_host() -> Iterator[str]:
    yield f"http://no-such-host.invalid{PATH}"  # RFC 6761: it never resolves


@contextmanager
def no_tls() -> Iterator[str]:
    """It speaks plain HTTP where TLS is expected."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection, contextlib.suppress(ConnectionError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(65536)  # until the other side has had enough

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}{PATH}"
        thread.join()


@contextmanager
def deaf() -> Iterator[str]:
    """It listens and accepts nothing, and its queue is full: the kernel drops whoever knocks."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}{PATH}"


@contextmanager
def unread() -> Iterator[str]:
    """It accepts, and reads nothing of what is sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        yield f"http://127.0.0.1:{server.getsockname()[1]}{PATH}"


def answering(**behaviour: Any) -> Callable[[], AbstractContextManager[str]]:
    @contextmanager
    def serve() -> Iterator[str]:
        with Provider() as provider:
            provider.script(Behaviour(**behaviour))
            yield provider.url + PATH

    return serve


LARGE: Any = {**BODY, "padding": "x" * 30_000_000}

CASES: list[tuple[str, Callable[[], AbstractContextManager[str]], dict[str, Any]]] = [
    ("dns", unknown_host, {}),
    ("connection_refused", closed_port, {}),
    ("tls", no_tls, {}),
    ("connect_timeout", deaf, {"timeout": SHORT}),
    ("write_timeout", unread, {"timeout": SHORT, "body": LARGE}),
    ("read_timeout", answering(stall_headers=True), {"timeout": SHORT}),
    ("disconnected", answering(raw=b""), {}),
    ("protocol", answering(raw=b"220 mail.example ready\r\n\r\n"), {}),
    ("disconnected", answering(cut_after=2), {"stream": True}),
]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize(("cause", "place", "how"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_what_a_request_failed_of(
    cause: str,
    place: Callable[[], AbstractContextManager[str]],
    how: dict[str, Any],
    library: ModuleType,
    asynchronous: bool,
    recorded: Recording,
) -> None:
    with place() as url, pytest.raises(library.RequestError) as raised:
        send(library, asynchronous, url, **how)
    attempt = recorded.attempt
    assert attempt.status is Status.ERROR
    assert attempt.error["cause"] == cause
    assert attempt.error["type"] == f"{library.__name__}.{type(raised.value).__name__}"
    assert attempt.error["bytes_received"] == attempt.bytes_received
    assert "retryable" not in attempt.error  # no SDK has sent it
    assert recorded.step.error["cause"] == cause


NO_GZIP: Any = {"body": b"this is no gzip", "headers": {"content-encoding": "gzip"}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_body_that_cannot_be_decoded(
    library: ModuleType, asynchronous: bool, stream: bool, recorded: Recording
) -> None:
    """All of its bytes came, and only the library that decodes them for the application raises."""
    with answering(**NO_GZIP)() as url, pytest.raises(library.DecodingError):
        send(library, asynchronous, url, stream=stream)
    attempt = recorded.attempt
    assert (attempt.status, recorded.step.status) == (Status.ERROR, Status.ERROR)
    assert attempt.error["cause"] == recorded.step.error["cause"] == "decoding"
    assert attempt.error["type"] == "content_decoding_error"
    assert "gzip" in attempt.error["message"]
    assert attempt.error["bytes_received"] == len(NO_GZIP["body"])
    assert "the answer's content coding is broken" in error_text(attempt.error)


def test_an_sdk_tries_again_what_cannot_be_decoded_but_for_a_stream(recorded: Recording) -> None:
    with Provider() as provider:
        provider.script(Behaviour(**NO_GZIP), Behaviour(encoding="gzip"), Behaviour(**NO_GZIP))
        with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key", max_retries=1) as client:
            assert client.chat.completions.create(**BODY).choices
            with pytest.raises(Exception, match=r"decompress|Connection error"):
                list(client.chat.completions.create(**BODY, stream=True))
    first, second, third = recorded.attempts
    assert [step.status for step in recorded.steps] == [Status.COMPLETED, Status.ERROR]
    assert [attempt.status for attempt in (first, second, third)] == [Status.ERROR, Status.COMPLETED, Status.ERROR]
    assert {first.error["cause"], third.error["cause"], recorded.steps[1].error["cause"]} == {"decoding"}
    assert (first.error["retryable"], third.error["retryable"]) == (True, False)


def test_a_status_says_more_than_a_body_that_cannot_be_decoded(recorded: Recording) -> None:
    with answering(**NO_GZIP, status=429)() as url, pytest.raises(httpx.DecodingError):
        send(httpx, False, url)
    assert recorded.attempt.error["status_code"] == 429
    assert "cause" not in recorded.attempt.error


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_no_connection_of_the_pool_is_free(library: ModuleType, asynchronous: bool, recorded: Recording) -> None:
    limits = library.Limits(max_connections=1)
    timeout = library.Timeout(30, pool=SHORT)

    async def two() -> None:
        async with (
            library.AsyncClient(limits=limits, timeout=timeout) as client,
            client.stream("POST", url, json={**BODY, "stream": True}),
        ):
            with pytest.raises(library.PoolTimeout):
                await client.post(url, json=BODY)

    with Provider() as provider:
        url = provider.url + PATH
        if asynchronous:
            asyncio.run(two())
        else:
            with (
                library.Client(limits=limits, timeout=timeout) as client,
                client.stream("POST", url, json={**BODY, "stream": True}),
                pytest.raises(library.PoolTimeout),
            ):
                client.post(url, json=BODY)
    second = recorded.attempts[1]
    assert (second.status, second.error["cause"]) == (Status.ERROR, "pool_timeout")


def test_a_timeout_tells_after_how_much(recorded: Recording) -> None:
    with Provider() as provider:
        provider.script(Behaviour(stall_after=3))
        with pytest.raises(httpx.ReadTimeout):
            send(httpx, False, provider.url + PATH, stream=True, timeout=SHORT)
    attempt = recorded.attempt
    assert attempt.events >= 3
    told = error_text(attempt.error)
    assert f"read timeout: nothing came for too long, after {attempt.bytes_received:,} bytes" in told
    assert f"and {attempt.events} events" in told


def test_a_step_of_several_failures_tells_each_in_one_line(recorded: Recording) -> None:
    """A limit, a connection that is refused by a reset, an overload: three attempts of one call, and no fourth."""
    with Provider() as provider:
        provider.script(Behaviour(status=429, retry_after=0.01), Behaviour(raw=b""), Behaviour(status=503))
        with (
            openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key", max_retries=2) as client,
            pytest.raises(openai.InternalServerError),
        ):
            client.chat.completions.create(**BODY)
    attempts = recorded.attempts
    rows = [
        {"number": a.number, "status": str(a.status), "response_status": a.response_status, "error": a.error}
        for a in attempts
    ]
    assert failed_attempts(rows) == [
        "attempt 1: 429 requests: Rate limit reached for requests per min (RPM): Limit 3, Used 3. "
        "(the SDK retries it, 2 left, code rate_limit_exceeded, retry after 1 s, request id req_demo)",
        "attempt 2: httpx2.RemoteProtocolError: Server disconnected without sending a response. "
        "(the other side closed the connection, the SDK retries it, 1 left)",
        "attempt 3: 503 server_error: The server is overloaded. (the SDK has no retry left, request id req_demo)",
    ]
    assert recorded.step.error["exception"] == "openai.InternalServerError"


@pytest.mark.parametrize(
    ("status", "headers", "retryable"),
    [
        (400, {}, False),
        (401, {}, False),
        (408, {}, True),
        (409, {}, True),
        (429, {}, True),
        (500, {}, True),
        (429, {"x-should-retry": "false"}, False),
        (400, {"x-should-retry": "true"}, True),
        (429, {"retry-after": "1000"}, False),
    ],
)
def test_what_the_openai_sdk_would_retry_is_what_it_does_retry(
    status: int, headers: dict[str, str], retryable: bool, recorded: Recording
) -> None:
    """Told by the first attempt, proved by whether there is a second."""
    with Provider() as provider:
        provider.script(Behaviour(status=status, headers=headers or {"retry-after-ms": "1"}))
        with (
            openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key", max_retries=1) as client,
            contextlib.suppress(openai.APIStatusError),
        ):
            client.chat.completions.create(**BODY)
    attempts = recorded.attempts
    assert attempts[0].error["retryable"] is retryable
    assert len(attempts) == (2 if retryable else 1)
