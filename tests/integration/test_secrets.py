"""No secret leaves the process: markers wherever a chat application has secrets, and a search of all that is kept.

One application with the real SDKs and bare clients, in a process of its own with debug logging on. What it leaves is
searched as bytes: the database with its -wal, all spans, standard output and error, and what the CLI shows.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from otel_chatdebug.demo.answers import OpenAIChat
from otel_chatdebug.demo.provider import Behaviour, Provider

SECRETS: list[str] = []
"""What must be nowhere, filled in by `secret` while the application and its answers are put together."""


def secret(name: str) -> str:
    """A text that looks like nothing in particular, so that only its place says that it is a secret."""
    marker = f"mk7{name}q9Zx"
    SECRETS.append(marker)
    return marker


def coded(text: str) -> str:
    """Base64 of ``text``, which must not be seen either."""
    data = base64.b64encode(text.encode()).decode()
    SECRETS.append(data[:40])
    return data


HEADERS = {
    name: secret(name.replace("-", ""))
    for name in (
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "cookie",
        "proxy-authorization",
        "baggage",
        "x-session",
        "x-amz-security-token",
        "openai-organization",
        "x-forwarded-authorization",
    )
}
BASIC = coded("user:" + secret("basicpassword"))
PICTURE = coded(secret("picture") + "not a picture, but long enough " * 20)
DEEP: dict[str, Any] = {
    "client_secret": secret("deep"),
    "list": [{"refreshToken": secret("refresh"), "kept": "shown-7"}],
}
for _ in range(12):
    DEEP = {"level": [DEEP]}
ARGUMENTS = {"city": "Lübeck", "auth": {"apiKey": secret("arguments")}, "password": secret("argumentpassword")}
NESTED = {"outer": json.dumps({"inner": json.dumps({"db_password": secret("doublyquoted")})})}
IN_TEXT = " ".join(
    (
        "sk-proj-" + secret("openaikey"),
        "sk-ant-api03-" + secret("anthropickey"),
        "ghp_" + secret("githubtoken"),
        "AKIA" + "MARKER234567MARK",
        "AIzaSy" + secret("googlekeyaaaaaaaaaaaaaaaaaaa"),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0." + secret("jwtsignature"),
        f"https://user:{secret('urlpassword')}@example.org/v1?key={secret('urlkey')}&alt=json",
        f"curl -H 'Authorization: Bearer {secret('bearer')}'",
        f"postgresql://chat:{secret('dsnpassword')}@db/chat",
    )
)
SECRETS.append("AKIAMARKER")
MCP = {
    "type": "mcp",
    "server_label": "files",
    "server_url": f"https://me:{secret('mcpuser')}@mcp.example.org/sse?token={secret('mcpquery')}",
    "authorization": secret("mcpauthorization"),
    "headers": {"Authorization": f"Bearer {secret('mcpheader')}", "X-Tenant-Secret": secret("mcptenant")},
}
REQUEST = {
    "model": "gpt-5-mini",
    "messages": [
        {"role": "user", "content": "Why is the sky blue, id 4711?"},
        {"role": "user", "content": IN_TEXT},
        {"role": "user", "content": [
            {"type": "text", "text": "And this picture?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
        ]},
        {"role": "assistant", "tool_calls": [{"id": "call_kept1", "type": "function", "function": {
            "name": "log_in", "arguments": json.dumps(ARGUMENTS)}}]},
        {"role": "tool", "tool_call_id": "call_kept1", "content": json.dumps(NESTED)},
    ],
    "metadata": {"session_token": secret("metadata"), "tier": "kept-tier"},
    "extra": DEEP,
}  # fmt: skip

ANSWER = OpenAIChat().whole("gpt-5-mini-2026", "Because of Rayleigh, answer 8128.", usage=True)
ANSWER["choices"][0]["message"]["tool_calls"] = [
    {"id": "call_kept2", "type": "function", "function": {"name": "log_in", "arguments": json.dumps(
        {"password": secret("answeredargument"), "city": "Kiel"})}}
]  # fmt: skip
ANSWER["system"] = {"private_key": secret("answered"), "echo": IN_TEXT, "deep": DEEP}

ERROR = {
    "error": {
        "type": "invalid_request_error",
        "message": f"Incorrect API key provided: sk-proj-{secret('errorkey')} for https://u:{secret('erroruser')}@h/",
        "code": "invalid_api_key",
        "param": {"api_key": secret("errorparam")},
    }
}


def sse(*events: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(event, ensure_ascii=False).encode() for event in events)


def named(*events: Any) -> bytes:
    """The same with the names of the events, which Anthropic and OpenAI's responses have."""
    return b"".join(b"event: %b\n%b" % (event["type"].encode(), sse(event)) for event in events)


def _chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "chatcmpl-kept3", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini-2026",
            "choices": [choice], **more}  # fmt: skip


def _call(**function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "id": "call_kept4", "type": "function", "function": function}]}


STREAM = (
    sse(
        _chunk({"role": "assistant", "content": "Streamed "}),
        _chunk({"content": "words 1729."}, access_token=secret("event")),
        _chunk(_call(name="log_in", arguments="")),
        # A secret whose name came in an event before.
        _chunk(_call(arguments='{"city": "Bremen", "pass')),
        _chunk(_call(arguments='word": "')),
        _chunk(_call(arguments=secret("fragment"))),
        _chunk(_call(arguments='", "n": 5}')),
        {**_chunk({}), "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {**_chunk({}), "choices": [], "usage": {"prompt_tokens": 1301, "completion_tokens": 77, "total_tokens": 1378}},
    )
    + b"data: [DONE]\n\n"
)
ANTHROPIC_STREAM = named(
    {"type": "message_start", "message": {"id": "msg_kept5", "type": "message", "role": "assistant",
        "model": "claude-kept", "content": [], "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": 1409, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "toolu_kept6",
        "name": "log_in", "input": {}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta",
        "partial_json": '{"api_key": "'}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta",
        "partial_json": secret("partialjson")}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '"}'}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 31}},
    {"type": "message_stop"},
)  # fmt: skip
RESPONSES_STREAM = named(
    {"type": "response.output_item.added", "output_index": 0, "sequence_number": 0, "item": {
        "type": "function_call", "id": "fc_kept7", "call_id": "call_kept8", "name": "log_in", "arguments": "",
        "status": "in_progress"}},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_kept7", "output_index": 0,
        "sequence_number": 1, "delta": '{"secret": "'},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_kept7", "output_index": 0,
        "sequence_number": 2, "delta": secret("responsesdelta")},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_kept7", "output_index": 0,
        "sequence_number": 3, "delta": '"}'},
    {"type": "response.completed", "sequence_number": 4, "response": {
        "id": "resp_kept9", "object": "response", "created_at": 1, "status": "completed",
        "model": "gpt-5-mini-2026", "tools": [MCP], "parallel_tool_calls": True, "tool_choice": "auto",
        "output": [{"type": "function_call", "id": "fc_kept7", "call_id": "call_kept8", "name": "log_in",
            "arguments": json.dumps({"secret": secret("responseswhole")}), "status": "completed"}],
        "usage": {"input_tokens": 1511, "output_tokens": 19, "total_tokens": 1530,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}}},
)  # fmt: skip

SET_COOKIE = {"set-cookie": f"sid={secret('setcookie')}; HttpOnly", "x-auth-echo": secret("answeredheader")}

APP = """
import json, logging, os, sys
import anthropic, httpx, openai
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import otel_chatdebug as chatdebug

given = json.loads(os.environ["GIVEN"])
logging.basicConfig(level=logging.DEBUG)
for name in ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2"):
    logging.getLogger(name).setLevel(logging.WARNING)  # what they log is theirs

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
chatdebug.configure(tracer_provider=provider)
place = os.environ["MODEL_URL"].removeprefix("http://")
base = f"http://user:{given['user']}@{place}"


def shielded(call):
    try:
        call()
    except Exception:
        pass  # the application deals with it, and says nothing


oai = openai.OpenAI(
    base_url=base + "/v1", api_key=given["api_key"], default_headers=given["headers"],
    default_query={"key": given["query"], "api-version": "2026-01-01"}, max_retries=0,
)
claude = anthropic.Anthropic(
    base_url=base, api_key=given["api_key"], default_headers=given["headers"], max_retries=0,
)
bare = httpx.Client(trust_env=False, headers=given["headers"], follow_redirects=True)
request = given["request"]
extra = {key: value for key, value in request.items() if key not in ("model", "messages")}

with chatdebug.run(chat_id="secrets", first_message=given["text"]):
    oai.chat.completions.create(model=request["model"], messages=request["messages"], extra_body=extra)
    oai.chat.completions.create(model=request["model"], messages=request["messages"], extra_body=extra)  # gzip
    for _ in oai.chat.completions.create(model="gpt-5-mini", messages=request["messages"], stream=True): pass
    for _ in oai.chat.completions.create(model="gpt-5-mini", messages=request["messages"], stream=True): pass  # gzip
    for _ in claude.messages.create(
        model="claude-kept", max_tokens=9, stream=True, messages=[{"role": "user", "content": given["text"]}],
        extra_body={"mcp_servers": [{"type": "url", "url": given["mcp"]["server_url"], "name": "files",
                                     "authorization_token": given["mcp"]["authorization"]}]},
    ): pass
    for _ in oai.responses.create(model="gpt-5-mini", input=given["text"], tools=[given["mcp"]], stream=True): pass
    shielded(lambda: oai.chat.completions.create(model="gpt-5-mini", messages=request["messages"]))  # 401
    shielded(lambda: claude.messages.create(
        model="claude-kept", max_tokens=9, messages=[{"role": "user", "content": given["text"]}]))  # 401
    shielded(lambda: list(oai.chat.completions.create(model="gpt-5-mini", messages=[], stream=True)))  # error event

with chatdebug.run(chat_id="bare"):
    url = base + "/v1/chat/completions?key=" + given["query"]
    bare.post(url, json=request)  # a redirect with secrets, and its answer
    bare.post(url, json=request)
    bare.post(url, content=json.dumps(request)[:-9], headers={"content-type": "application/json"})
    bare.post(url, data={"password": given["form"], "grant_type": "kept", "code": given["form"]})
    bare.post(url, data={"password": given["form"]}, files={"file": ("a.txt", given["form"].encode())})
    bare.post(url, content=given["multipart"].encode(), headers={"content-type": "multipart/form-data; boundary=b"})
    bare.post(url, content=given["text"].encode(), headers={"content-type": "text/plain"})
    bare.post(url, json=request, auth=("user", given["basic"]))
    shielded(lambda: httpx.Client(trust_env=False).post(
        f"http://user:{given['user']}@127.0.0.1:1/v1/chat/completions?key={given['query']}", json=request))
    shielded(lambda: httpx.Client(
        transport=httpx.MockTransport(lambda request: (_ for _ in ()).throw(httpx.ConnectError(given["text"])))
    ).post("http://localhost/v1/chat/completions", json=request))
    with chatdebug.step(model="kept-model", metadata={"api_key": given["form"], "note": given["text"]}) as step:
        step.finish(chatdebug.Status.ERROR, error={"type": "Kept", "message": given["text"], "token": given["form"]})
    with chatdebug.step() as step:
        step.finish(response={"text": given["text"], "secret": given["form"]}, metadata={"password": given["form"]})

def failing():
    with chatdebug.run(chat_id="failing"), chatdebug.step():
        try:
            raise KeyError(given["text"])
        except KeyError as cause:
            raise RuntimeError("It failed, number 6174: " + given["text"]) from cause

shielded(failing)
chatdebug.flush()
provider.force_flush()
with open(os.environ["SPANS"], "w") as file:
    for span in exporter.get_finished_spans():
        file.write(span.to_json() + "\\n")
sys.stdout.flush()
sys.stderr.flush()
os.kill(os.getpid(), 9)  # so that the -wal stays
"""

GIVEN = {
    "user": secret("baseurluser"),
    "api_key": "sk-proj-" + secret("apikey"),
    "query": secret("querykey"),
    "headers": HEADERS,
    "text": IN_TEXT,
    "mcp": MCP,
    "request": REQUEST,
    "form": secret("form"),
    "multipart": f'--b\r\ncontent-disposition: form-data; name="password"\r\n\r\n{secret("part")}\r\n--b--\r\n',
    "basic": "basic",
}
coded("user:basic")
coded(f"user:{GIVEN['user']}")  # what httpx makes of the user info of a URL


REQUESTS = 18
"""Of the application: fewer would mean that it has broken off, and sent nothing that could be found."""


@dataclass
class Left:
    """What the application has left, by the place where it lies."""

    places: dict[str, str]
    runs: list[dict[str, Any]]


def answers() -> list[Behaviour]:
    whole = json.dumps(ANSWER).encode()
    return [
        Behaviour(body=whole, headers=SET_COOKIE),
        Behaviour(body=whole, encoding="gzip"),
        Behaviour(body=STREAM, headers=SET_COOKIE),
        Behaviour(body=STREAM, encoding="gzip"),
        Behaviour(body=ANTHROPIC_STREAM),
        Behaviour(body=RESPONSES_STREAM),
        Behaviour(status=401, body=json.dumps(ERROR).encode()),
        Behaviour(status=401, body=json.dumps({"type": "error", **ERROR}).encode()),
        Behaviour(body=sse(_chunk({"content": "a"}), ERROR)),
        Behaviour(redirect=f"/v1/chat/completions?key={secret('redirectquery')}#{secret('redirectfragment')}"),
        Behaviour(body=whole),
        Behaviour(body=whole[:-5]),
        Behaviour(body=f"upstream said: {IN_TEXT}".encode(), content_type="text/plain"),
    ]


def cli(*arguments: str) -> str:
    command = [sys.executable, "-m", "otel_chatdebug.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    """The application has run to its end, by kill -9: its -wal is still there."""
    home = tmp_path_factory.mktemp("secrets")
    with pytest.MonkeyPatch.context() as patch, Provider() as provider:
        patch.setenv("OTEL_CHATDEBUG_DATABASE_URL", f"sqlite:///{home / 'chatdebug.db'}")
        provider.script(*answers())
        done = subprocess.run(
            [sys.executable, "-c", APP],
            env={**os.environ, "GIVEN": json.dumps(GIVEN), "MODEL_URL": provider.url, "SPANS": str(home / "spans")},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == -9, done.stderr
        assert len(provider.requests) == REQUESTS
        places = {path.name: path.read_bytes().decode("utf-8", "replace") for path in home.iterdir()}
        places |= {"stdout": done.stdout, "stderr": done.stderr, "runs --json": cli("runs", "--json")}
        runs = []
        for run in json.loads(places["runs --json"]):
            places[f"show --full {run['id']}"] = cli("show", run["id"], "--full")
            places[f"show --json {run['id']}"] = shown = cli("show", run["id"], "--json")
            runs.append(json.loads(shown))
        yield Left(places, sorted(runs, key=lambda run: run["started_at"]))


@pytest.mark.slow
def test_no_secret_is_anywhere(left: Left) -> None:
    """None of the markers is in the database, its -wal, the spans, the output, the logs, or what the CLI shows."""
    assert {"chatdebug.db", "chatdebug.db-wal", "spans"} <= left.places.keys()
    found = {(marker, place) for place, text in left.places.items() for marker in SECRETS if marker in text}
    assert sorted(found) == []


@pytest.mark.slow
def test_what_is_no_secret_is_kept(left: Left) -> None:
    """Messages, ids, names, token counts, and that there was something, are as they were."""
    assert [run["chat_id"] for run in left.runs] == ["secrets", "bare", "failing"]
    shown = json.dumps(left.runs, ensure_ascii=False)
    for kept in (
        "Why is the sky blue, id 4711?", "And this picture?", "Because of Rayleigh, answer 8128.",
        "Streamed words 1729.", *(f"kept{number}" for number in range(1, 10)),
        "shown-7", "kept-tier", "log_in", "Lübeck", "Kiel", "Bremen",
        "2026-01-01", "It failed, number 6174: sk-[REDACTED]", "invalid_request_error", "[REDACTED]",
    ):  # fmt: skip
        assert kept in shown, kept
    steps = left.runs[0]["steps"]
    tokens = [(step["usage"] or {}).get("input_tokens") for step in steps]
    assert tokens[2:6] == [1301, 1301, 1409, 1511]
    assert tokens[0]
