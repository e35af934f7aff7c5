"""The curl command of a recorded request, run by a real shell and a real curl against a server that keeps what came."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from otel_chatdebug.curl import NotRepeatable, curl

HOSTILE = 'it\'s $(touch /tmp/x) `id` "q" \\ !! %s {a,b} ;|&\n\ttab é 😀 ~ #'


class Received:
    """A server on 127.0.0.1 and the requests that it got."""

    def __init__(self) -> None:
        received: list[tuple[str, str, dict[str, str], bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                received.append((self.command, self.path, headers, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST = do_HEAD = do_PATCH = answer

            def log_message(self, *args: Any) -> None:
                pass

        self.requests = received
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> Received:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Received]:
    with Received() as received:
        yield received


def run(command: str, shell: str = "bash", **environment: str) -> None:
    done = subprocess.run(
        [shell, "-c", command],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def attempt(server: Received, **more: Any) -> dict[str, Any]:
    known = {"method": "POST", "url": f"{server.url}/v1/x", "request_headers": [], "request_body": None}
    return known | {"response_headers": None} | more


@pytest.mark.parametrize("shell", [name for name in ("sh", "bash", "zsh") if shutil.which(name)])
def test_what_arrives_is_what_was_sent(shell: str, server: Received) -> None:
    made = curl(
        attempt(
            server,
            url=f"{server.url}/v1/x?a=1&b=[2]&c={{d}}&e='$(id)",
            request_headers=[
                ["Host", "elsewhere"],
                ["Content-Length", "999"],
                ["Accept-Encoding", "gzip, br"],
                ["Content-Type", "application/json"],
                ["User-Agent", "OpenAI/Python 'x' $HOME"],
                ["X-Empty", ""],
                ["Authorization", "[REDACTED]"],
                ["X-Api-Key", "[REDACTED]"],
                ["Cookie", "[REDACTED]"],
                ["X-`touch${IFS}hurt`$(id)", "[REDACTED]"],
                ["X-`id`$HOME!", "[REDACTED]"],
                ["traceparent", "00-aa-bb-01"],
                ["@/etc/passwd", "x"],
                ["X-Two", "a\r\nInjected: b"],
            ],
            request_body=HOSTILE,
        ),
        provider="openai",
    )
    assert set(made.variables) == {"OPENAI_API_KEY", "COOKIE", "X_ID_HOME"}
    run(str(made), shell, OPENAI_API_KEY="sk '$x", COOKIE="c=1", X_ID_HOME="home")
    ((method, path, headers, body),) = server.requests
    assert (method, path, body.decode()) == ("POST", "/v1/x?a=1&b=[2]&c={d}&e='$(id)", HOSTILE)
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == "OpenAI/Python 'x' $HOME"
    assert headers["authorization"] == "Bearer sk '$x"
    assert (headers["x-api-key"], headers["cookie"], headers["x-empty"]) == ("sk '$x", "c=1", "")
    assert headers["x-`id`$home!"] == "home"
    assert headers["host"] == server.url.removeprefix("http://")
    assert headers["x-two"] == "a Injected: b"
    assert not {"traceparent", "injected", "@/etc/passwd"} & headers.keys()


@pytest.mark.parametrize("shell", [name for name in ("bash", "zsh") if shutil.which(name)])
def test_control_characters_reach_the_server_and_not_the_terminal(shell: str, server: Received) -> None:
    body = "\x1b[31m'red'\x07\\n\u202e9\x9b1\n"
    made = curl(attempt(server, request_body=body, request_headers=[["content-type", "text/plain"]]))
    assert made.command.isprintable() or not set(made.command) & set("\x1b\x07\u202e\x9b")
    run(made.command, shell)
    assert server.requests[0][3].decode() == body


def test_a_url_with_a_secret_gets_a_variable(server: Received) -> None:
    made = curl(attempt(server, url=f"{server.url}/v1beta/m:x?alt=sse&key=[REDACTED]#[REDACTED]", request_body="{}"))
    assert made.variables == ("KEY",)
    run(made.command, KEY="abc")
    assert server.requests[0][1] == "/v1beta/m:x?alt=sse&key=abc"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "POST"])
def test_every_method_is_sent(method: str, server: Received) -> None:
    run(curl(attempt(server, method=method)).command)
    assert server.requests[0][0] == method


def test_a_body_without_a_content_type_gets_none(server: Received) -> None:
    run(curl(attempt(server, request_body="{}")).command)
    assert "content-type" not in server.requests[0][2]


def test_what_is_not_as_it_was_is_told(server: Received) -> None:
    cut = curl(attempt(server, request_body='{"a": "[REDACTED]", "b": [cut: 12 more bytes]'))
    assert len(cut.notes) == 2
    assert "No body was recorded" in curl(attempt(server)).notes[0]
    assert "--user" in curl(attempt(server, url="http://[REDACTED]@h/", request_body="x")).notes[0]
    assert str(cut).startswith("# The body was too long")


@pytest.mark.parametrize("url", [None, "", "file:///etc/passwd", "-o /etc/x", "$(id)", "[REDACTED]"])
def test_what_is_no_url_of_http_is_not_repeated(url: str | None, server: Received) -> None:
    with pytest.raises(NotRepeatable):
        curl(attempt(server, url=url))
