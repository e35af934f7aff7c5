"""No secret leaves the process, whichever provider is called: markers in all that its API carries, and a search of all
that is kept or sent on, with messages on spans and in events switched on.

Bare clients speak the formats of the providers to a local one; `test_secrets.py` does it with the SDKs of OpenAI and
Anthropic. What is left is searched as bytes: the database with its -wal, spans, events, metrics, output, logs, and what
every command shows.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from otel_chatdebug.cli import main
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.settings import MODEL_PATHS

JSON = "application/json"

SECRETS: list[str] = []
"""What must be nowhere."""


def secret(name: str) -> str:
    """A text that looks like nothing in particular, so that only its place says that it is a secret."""
    marker = f"mp4{name}q8Wz"
    SECRETS.append(marker)
    return marker


def coded(text: str) -> str:
    """Base64 of ``text``, which must not be seen either."""
    data = base64.b64encode(text.encode()).decode()
    SECRETS.append(data[:24])
    return data


def frame(kind: str, payload: bytes) -> bytes:
    """One message of an AWS event stream: lengths, headers, payload, and a checksum behind each part."""
    headers = b"".join(
        bytes([len(name)]) + name + b"\x07" + struct.pack(">H", len(value)) + value
        for name, value in (
            (b":event-type", kind.encode()), (b":content-type", b"application/json"), (b":message-type", b"event"),
        )
    )  # fmt: skip
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", binascii.crc32(message))


def frames(*events: tuple[str, Any]) -> bytes:
    return b"".join(frame(kind, json.dumps(payload).encode()) for kind, payload in events)


def sse(*events: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)


def lines(*events: Any) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def text(name: str) -> str:
    """What people paste: keys of known formats, URLs, commands."""
    return " ".join(
        (
            f"kept-{name}-4711",
            "sk-proj-" + secret(f"{name}openai"),
            "ghp_" + secret(f"{name}github"),
            f"https://user:{secret(f'{name}user')}@h.example/p?key={secret(f'{name}query')}",
            f"Authorization: Bearer {secret(f'{name}bearer')}1",
            f'{{"password": "{secret(f"{name}quoted")}", cut',
        )
    )


def deep(name: str) -> dict[str, Any]:
    value: dict[str, Any] = {"clientSecret": secret(f"{name}deep"), "list": [{"refresh_token": secret(f"{name}list")}]}
    for _ in range(6):
        value = {"level": [value]}
    return value


def pieces(name: str) -> list[str]:
    """JSON arguments whose secret comes behind its name, in an event of its own."""
    return ['{"city": "Kiel", "pass', 'word": "', secret(f"{name}fragment"), '"}']


def split(name: str) -> list[str]:
    """A key of a known format that comes in two events, the second of which does not look like one."""
    return ["use sk-pro", f"j-{secret(f'{name}split')} now"]


def error(name: str) -> bytes:
    told = {
        "code": 401,
        "type": f"sk-proj-{secret(f'{name}type')}",
        "status": "UNAUTHENTICATED",
        "message": text(f"{name}error"),
        "details": deep(f"{name}error"),
    }
    return json.dumps({"error": told}).encode()


def _gemini() -> dict[str, Any]:
    request = {
        "systemInstruction": {"parts": [{"text": text("geminisystem")}]},
        "contents": [
            {"role": "user", "parts": [
                {"text": text("geminirequest")},
                {"inlineData": {"mimeType": "image/png", "data": coded(secret("geminiimage") + "x" * 300)}},
                {"fileData": {"mimeType": "text/plain", "fileUri": f"https://u:{secret('geminifile')}@h.example/f"}},
            ]},
            {"role": "model", "parts": [{"functionCall": {"name": "log_in",
                "args": {"password": secret("geminiargs")}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "log_in",
                "response": {"access_token": secret("geminiresponse")}}}]},
        ],
        "extra": deep("gemini"),
    }  # fmt: skip

    def event(*parts: Any, **more: Any) -> dict[str, Any]:
        return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, "index": 0, **more}],
                "usageMetadata": {"promptTokenCount": 1201, "candidatesTokenCount": 21, "totalTokenCount": 1222},
                "modelVersion": "gemini-kept", "responseId": "kept-id-gemini"}  # fmt: skip

    call = {"functionCall": {"name": "log_in", "args": {"apiKey": secret("geminicall"), "city": "Kiel"}}}
    events = [
        *(event({"text": piece}) for piece in split("gemini")),
        event({"text": "kept words 1729 "}),
        event({"text": text("geminianswer")}),
        event(call, finishReason="STOP"),
    ]
    headers = {"x-goog-api-key": secret("geminiheader"), "x-goog-user-project": secret("geminiproject")}
    path = "/v1beta/models/gemini-kept"
    query = f"key={secret('geminikey')}"
    return {
        "requests": [
            (f"{path}:streamGenerateContent?alt=sse&{query}", headers, request, Behaviour(
                body=sse(*events), content_type="text/event-stream")),
            (f"{path}:streamGenerateContent?{query}", headers, request, Behaviour(
                body=json.dumps(events, indent=1).encode(), content_type="application/json")),
            (f"{path}:generateContent?{query}", headers, request, Behaviour(body=json.dumps(events[-1]).encode())),
            (f"{path}:generateContent?{query}", headers, request, Behaviour(
                status=401, body=error("gemini"), content_type=JSON)),
        ]
    }  # fmt: skip


def _bedrock() -> dict[str, Any]:
    request = {
        "system": [{"text": text("bedrocksystem")}],
        "messages": [
            {"role": "user", "content": [{"text": text("bedrockrequest")}]},
            {"role": "assistant", "content": [{"toolUse": {"toolUseId": "kept-tool", "name": "log_in",
                "input": {"password": secret("bedrockargs")}}}]},
            {"role": "user", "content": [{"toolResult": {"toolUseId": "kept-tool",
                "content": [{"json": {"secret": secret("bedrockresult")}}]}}]},
        ],
        "additionalModelRequestFields": deep("bedrock"),
    }  # fmt: skip
    use = {"start": {"toolUse": {"toolUseId": "kept-tool2", "name": "log_in"}}, "contentBlockIndex": 1}
    converse = frames(
        ("messageStart", {"role": "assistant"}),
        *(("contentBlockDelta", {"delta": {"text": piece}, "contentBlockIndex": 0}) for piece in split("bedrock")),
        ("contentBlockDelta", {"delta": {"text": "kept words 1730 "}, "contentBlockIndex": 0}),
        ("contentBlockDelta", {"delta": {"text": text("bedrockanswer")}, "contentBlockIndex": 0}),
        ("contentBlockStart", use),
        *(("contentBlockDelta", {"delta": {"toolUse": {"input": piece}}, "contentBlockIndex": 1})
          for piece in pieces("bedrock")),
        ("messageStop", {"stopReason": "tool_use"}),
        ("metadata", {"usage": {"inputTokens": 1202, "outputTokens": 22, "totalTokens": 1224}}),
    )  # fmt: skip
    block = {"type": "tool_use", "id": "kept-3", "name": "log_in"}
    inner: list[Any] = [{"type": "content_block_start", "index": 0, "content_block": block}]
    for piece in pieces("bedrockinvoke"):
        delta = {"type": "input_json_delta", "partial_json": piece}
        inner.append({"type": "content_block_delta", "index": 0, "delta": delta})
    invoke = frames(*(("chunk", {"bytes": coded(json.dumps(event)), "p": "abc"}) for event in inner))
    use = {"toolUseId": "kept-4", "name": "log_in", "input": {"api_key": secret("bedrockinput")}}
    whole = {
        "output": {"message": {"role": "assistant", "content": [{"text": text("bedrockwhole")}, {"toolUse": use}]}},
        "stopReason": "tool_use",
        "usage": {"inputTokens": 1203, "outputTokens": 23, "totalTokens": 1226},
    }
    signature = f"AWS4-HMAC-SHA256 Credential=AKIA{'MARKED7' * 2}AB/20260101/eu/bedrock/aws4_request, Signature="
    SECRETS.append("AKIAMARKED7")
    headers = {
        "authorization": signature + secret("bedrocksignature"),
        "x-amz-security-token": secret("bedrocksession"),
    }
    signed = (
        f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA{'MARKED7' * 2}AB%2F20260101"
        f"&X-Amz-Security-Token={secret('bedrockquery')}&X-Amz-Signature={secret('bedrocksigned')}"
    )
    path, stream = "/model/anthropic.kept-v1/", "application/vnd.amazon.eventstream"
    return {
        "requests": [
            (f"{path}converse-stream?{signed}", headers, request, Behaviour(body=converse, content_type=stream)),
            (f"{path}invoke-with-response-stream", headers, request, Behaviour(body=invoke, content_type=stream)),
            (f"{path}converse", headers, request, Behaviour(body=json.dumps(whole).encode(), content_type=JSON)),
            (f"{path}converse", headers, request, Behaviour(status=403, body=error("bedrock"), content_type=JSON)),
        ]
    }


def _chats() -> dict[str, Any]:
    """Mistral, Groq, Azure and a gateway: OpenAI's format, with what each of them adds."""
    found = []
    for name, path, headers in (
        ("mistral", "/v1/chat/completions", {"authorization": f"Bearer {secret('mistralheader')}"}),
        ("groq", "/openai/v1/chat/completions", {"authorization": f"Bearer gsk_{secret('groqheader')}"}),
        ("azure", f"/openai/deployments/gpt/chat/completions?api-version=2026-01-01&code={secret('azurecode')}",
            {"api-key": secret("azureheader"), "cookie": f"ARRAffinity={secret('azurecookie')}"}),
        ("gateway", f"/sk-proj-{secret('gatewaypath')}/v1/chat/completions",
            {"cf-aig-authorization": f"Bearer {secret('gatewayheader')}", "helicone-auth": secret("helicone")}),
    ):  # fmt: skip
        request = {
            "model": f"kept-{name}", "stream": True, "user_token": secret(f"{name}user"), "extra": deep(name),
            "messages": [
                {"role": "user", "content": text(f"{name}request")},
                {"role": "assistant", "tool_calls": [{"id": "kept-call", "type": "function", "function": {
                    "name": "log_in", "arguments": json.dumps({"password": secret(f"{name}args")})}}]},
                {"role": "tool", "tool_call_id": "kept-call", "content": json.dumps({"token": secret(f"{name}tool")})},
            ],
        }  # fmt: skip

        def chunk(delta: Any, name: str = name, **more: Any) -> dict[str, Any]:
            return {"id": f"kept-id-{name}", "object": "chat.completion.chunk", "model": f"kept-{name}",
                    "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more}  # fmt: skip

        def call(piece: str) -> dict[str, Any]:
            function = {"name": "log_in", "arguments": piece}
            return {"tool_calls": [{"index": 0, "id": "kept-call2", "function": function}]}

        usage = {"prompt_tokens": 1204, "completion_tokens": 24, "total_tokens": 1228}
        answer = sse(
            *(chunk({"content": piece}) for piece in split(name)),
            chunk({"content": "kept words 1731 "}, x_groq={"id": "kept-req", "api_key": secret(f"{name}x")}),
            chunk({"content": text(f"{name}answer")}),
            *(chunk(call(piece)) for piece in pieces(name)),
            {**chunk({}), "choices": [], "usage": usage},
        )
        answer += b"data: [DONE]\n\n"
        found += [
            (path, headers, request, Behaviour(body=answer, content_type="text/event-stream",
                headers={"set-cookie": f"sid={secret(f'{name}setcookie')}", "x-auth-echo": secret(f"{name}echo")})),
            (path, headers, request, Behaviour(status=422, body=error(name), content_type=JSON)),
        ]  # fmt: skip
    return {"requests": found}


def _ollama() -> dict[str, Any]:
    request = {"model": "kept-ollama", "stream": True, "messages": [{"role": "user", "content": text("ollamarequest")}],
               "options": {"num_ctx": 8, "auth": secret("ollamaoption")}}  # fmt: skip

    def event(message: Any, **more: Any) -> dict[str, Any]:
        return {"model": "kept-ollama", "created_at": "2026", "message": message, "done": False, **more}

    call = {"function": {"name": "log_in", "arguments": {"password": secret("ollamacall"), "city": "Kiel"}}}
    answer = lines(
        *(event({"role": "assistant", "content": piece}) for piece in split("ollama")),
        event({"role": "assistant", "content": "kept words 1732 "}),
        event({"role": "assistant", "content": text("ollamaanswer")}),
        event({"role": "assistant", "content": "", "tool_calls": [call]}),
        event({"role": "assistant", "content": ""}, done=True, prompt_eval_count=1205, eval_count=25),
    )
    basic = {"authorization": f"Basic {coded('user:' + secret('ollamabasic'))}"}
    return {"requests": [("/api/chat", basic, request, Behaviour(body=answer, content_type="application/x-ndjson"))]}


def named(*events: Any) -> bytes:
    """Server-sent events with names, which stand in their data, too."""
    kinds = [event.get("type") or event["event_type"] for event in events]
    return b"".join(
        f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode() for kind, event in zip(kinds, events, strict=True)
    )


def _conversations() -> dict[str, Any]:
    """Mistral's."""
    request = {
        "model": "kept-conversations", "stream": True, "instructions": text("conversationssystem"),
        "inputs": [
            {"type": "message.input", "role": "user", "content": text("conversationsrequest")},
            {"type": "function.call", "tool_call_id": "kept-call", "name": "log_in",
                "arguments": json.dumps({"password": secret("conversationsargs")})},
            {"type": "function.result", "tool_call_id": "kept-call",
                "result": json.dumps({"token": secret("conversationsresult")})},
        ],
        "metadata": deep("conversations"),
    }  # fmt: skip

    def said(content: Any, index: int = 0) -> dict[str, Any]:
        return {"type": "message.output.delta", "id": "kept-msg", "output_index": 0, "content_index": index,
                "model": "kept-conversations", "role": "assistant", "content": content}  # fmt: skip

    call = {"type": "function.call.delta", "output_index": 1, "id": "kept-fc", "name": "log_in", "tool_call_id": "kept"}
    tool = {"output_index": 2, "id": "kept-tool-5", "name": "code_interpreter"}
    thought = [{"type": "text", "text": text("conversationsthought")}]
    info = {"code": f"login(password='{secret('conversationscode')}')", "apiKey": secret("conversationsinfo")}
    answer = named(
        {"type": "conversation.response.started", "conversation_id": "kept-id-conversation"},
        said({"type": "thinking", "thinking": thought}),
        *(said(piece, 1) for piece in split("conversations")),
        said("kept words 1733 ", 1),
        said({"type": "text", "text": text("conversationsanswer")}, 1),
        *({**call, "arguments": piece} for piece in pieces("conversations")),
        {"type": "tool.execution.started", **tool, "arguments": ""},
        *({"type": "tool.execution.delta", **tool, "arguments": piece} for piece in pieces("conversationstool")),
        {"type": "tool.execution.done", **tool, "info": info},
        {"type": "conversation.response.done",
            "usage": {"prompt_tokens": 1000, "completion_tokens": 26, "total_tokens": 1232, "connector_tokens": 206}},
    )  # fmt: skip
    whole = {
        "object": "conversation.response", "conversation_id": "kept-id-2", "usage": {"prompt_tokens": 1207},
        "outputs": [
            {"type": "message.output", "id": "kept-msg-2", "content": text("conversationswhole")},
            {"type": "function.call", "id": "kept-fc-2", "tool_call_id": "kept-2", "name": "log_in",
                "arguments": {"password": secret("conversationscall")}},
            {"type": "tool.execution", "id": "kept-te", "name": "code_interpreter", "info": info,
                "arguments": json.dumps({"secret": secret("conversationstoolargs")})},
        ],
    }  # fmt: skip
    headers = {"authorization": f"Bearer {secret('conversationsheader')}"}
    failed = named({"type": "conversation.response.error", "message": text("conversationsevent"), "code": 3000})
    path, stream = "/v1/conversations", "text/event-stream"
    return {
        "requests": [
            (path, headers, request, Behaviour(body=answer, content_type=stream)),
            (path, headers, request, Behaviour(body=failed, content_type=stream)),
            (f"{path}/kept-id-2", headers, request, Behaviour(body=json.dumps(whole).encode(), content_type=JSON)),
            (
                f"{path}/kept-id-2/restart",
                headers,
                request,
                Behaviour(status=401, body=error("conversations"), content_type=JSON),
            ),
        ]
    }


def _interactions() -> dict[str, Any]:
    """Google's, with steps and as they were before."""
    request = {
        "model": "kept-interactions", "stream": True, "system_instruction": text("interactionssystem"),
        "input": [
            {"type": "user_input", "content": [
                {"type": "text", "text": text("interactionsrequest")},
                {"type": "image", "mime_type": "image/png", "data": coded(secret("interactionsimage") + "x" * 300)},
                {"type": "document", "uri": f"https://u:{secret('interactionsfile')}@h.example/f"},
            ]},
            {"type": "function_call", "id": "kept-call", "name": "log_in",
                "arguments": {"password": secret("interactionsargs")}},
            {"type": "function_result", "call_id": "kept-call", "result": {"token": secret("interactionsresult")}},
        ],
        "tools": [{"type": "mcp_server", "url": "https://mcp.example", "headers": {"x": secret("interactionsmcp")}}],
        "labels": deep("interactions"),
    }  # fmt: skip
    usage = {"total_input_tokens": 1008, "total_tool_use_tokens": 200, "total_output_tokens": 7, "total_tokens": 1215}

    def about(status: str, **more: Any) -> dict[str, Any]:
        return {"id": "kept-id-interaction", "object": "interaction", "model": "kept-interactions",
                "status": status, **more}  # fmt: skip

    def delta(index: int, value: Any, kind: str = "step") -> dict[str, Any]:
        return {"event_type": f"{kind}.delta", "index": index, "delta": value}

    first, *rest = split("interactions")
    thought = {"type": "thought", "summary": [{"type": "text", "text": text("interactionsthought")}]}
    answer = named(
        {"event_type": "interaction.created", "interaction": about("in_progress")},
        {"event_type": "step.start", "index": 0, "step": thought},
        {"event_type": "step.start", "index": 1,
            "step": {"type": "model_output", "content": [{"type": "text", "text": first}]}},
        *(delta(1, {"type": "text", "text": piece}) for piece in rest),
        delta(1, {"type": "text", "text": " kept words 1734 "}),
        delta(1, {"type": "text", "text": text("interactionsanswer")}),
        {"event_type": "step.start", "index": 2,
            "step": {"type": "function_call", "id": "kept-6", "name": "log_in", "arguments": {}}},
        *(delta(2, {"type": "arguments_delta", "arguments": piece}) for piece in pieces("interactions")),
        {"event_type": "step.start", "index": 3, "step": {"type": "mcp_server_tool_call", "id": "kept-7",
            "name": "log_in", "server_name": "s", "arguments": {"apiKey": secret("interactionscall")}}},
        {"event_type": "interaction.completed",
            "interaction": about("completed", usage=usage, continuation_token=secret("interactionscontinue"))},
    ) + b"event: done\ndata: [DONE]\n\n"  # fmt: skip
    older = named(
        {"event_type": "interaction.start", "interaction": about("in_progress")},
        {"event_type": "content.start", "index": 0, "content": {"type": "text", "text": ""}},
        *(delta(0, {"type": "text", "text": piece}, "content") for piece in split("interactionsolder")),
        delta(0, {"type": "text", "text": text("interactionsolder")}, "content"),
        delta(1, {"type": "function_call", "id": "kept-8", "name": "log_in",
            "arguments": {"secret": secret("interactionsoldcall")}}, "content"),
        {"event_type": "interaction.complete", "interaction": about("completed", usage={"total_input_tokens": 1209})},
    ) + b"event: done\ndata: [DONE]\n\n"  # fmt: skip
    outputs = [{"type": "text", "text": text("interactionswhole")}]
    steps = [
        {"type": "model_output", "content": outputs},
        {"type": "function_call", "id": "kept-9", "name": "log_in",
            "arguments": {"password": secret("interactionssteps")}},
    ]  # fmt: skip
    whole = about("requires_action", steps=steps, usage={"total_input_tokens": 1210})
    failed = about("failed", errors=[{"code": "internal", "message": text("interactionsfailed")}])
    headers = {"x-goog-api-key": secret("interactionsheader")}
    path, stream = f"/v1beta/interactions?key={secret('interactionskey')}", "text/event-stream"
    return {
        "requests": [
            (path, headers, request, Behaviour(body=answer, content_type=stream)),
            (path, headers, request, Behaviour(body=older, content_type=stream)),
            (path, headers, request, Behaviour(body=json.dumps(whole).encode(), content_type=JSON)),
            (path, headers, request, Behaviour(body=json.dumps(failed).encode(), content_type=JSON)),
            (path, headers, request, Behaviour(status=401, body=error("interactions"), content_type=JSON)),
        ]
    }


MAKERS = (_gemini, _bedrock, _conversations, _interactions, _chats, _ollama)
REQUESTS = [item for make in MAKERS for item in make()["requests"]]
PROXY = {"through": secret("proxyuser"), "closed": secret("proxyclosed"), "target": secret("proxytarget")}

APP = """
import json, logging, os, sys
import httpx
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import otel_chatdebug as chatdebug

logging.basicConfig(level=logging.DEBUG)
for name in ("httpx", "httpcore"):
    logging.getLogger(name).setLevel(logging.WARNING)  # what they log is theirs
given = json.loads(os.environ["GIVEN"])
spans, reader, events = InMemorySpanExporter(), InMemoryMetricReader(), InMemoryLogRecordExporter()
tracers, meters, loggers = TracerProvider(), MeterProvider([reader]), LoggerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
loggers.add_log_record_processor(SimpleLogRecordProcessor(events))
chatdebug.configure(tracer_provider=tracers, meter_provider=meters, logger_provider=loggers)
client = httpx.Client(trust_env=False)
with chatdebug.run(chat_id="providers"):
    for path, headers, body in given["requests"]:
        with client.stream("POST", given["url"] + path, headers=headers, json=body) as response:
            for _ in response.iter_raw():
                pass
url = f"http://me:{given['proxy']['target']}@model.example/v1/chat/completions"
body = given["requests"][-1][2]
with chatdebug.run(chat_id="proxies"):
    place = given["url"].removeprefix("http://")
    with httpx.Client(trust_env=False, proxy=f"http://me:{given['proxy']['through']}@{place}") as proxied:
        proxied.post(url, json=body)
    with httpx.Client(trust_env=False, proxy=f"http://me:{given['proxy']['closed']}@127.0.0.1:1") as proxied:
        try:
            proxied.post(url, json=body)
        except httpx.ConnectError:
            pass
def chain():
    try:
        raise KeyError(given["text"])
    except KeyError as cause:
        raise ExceptionGroup(given["text"], [RuntimeError(given["text"])]) from cause
try:
    with chatdebug.run(chat_id="chains"), chatdebug.step():
        chain()
except ExceptionGroup:
    pass
assert chatdebug.flush(60)
tracers.force_flush()
with open(os.environ["OUT"], "w") as file:
    for span in spans.get_finished_spans():
        file.write(span.to_json() + "\\n")
    for event in events.get_finished_logs():
        file.write(event.to_json() + "\\n")
    file.write(reader.get_metrics_data().to_json())
sys.stdout.flush()
sys.stderr.flush()
os.kill(os.getpid(), 9)  # so that the -wal stays
"""

TIMEOUT = 120.0
"""Seconds for the application, and for a command."""

COMMANDS: dict[tuple[str, ...], list[list[str]]] = {
    ("info",): [[]],
    ("runs",): [[], ["--json"], ["--chat", "providers"]],
    ("show",): [["RUN"], ["RUN", "--full"], ["RUN", "--raw"], ["RUN", "--json"]],
    ("stuck",): [["--idle", "0"], ["--idle", "0", "--json"]],
    ("diff",): [["RUN", "FIRST"], ["RUN", "FIRST", "--full"], ["RUN", "FIRST", "--json"]],
    ("curl",): [["RUN", "STEP"], ["RUN", "STEP", "--json"]],
    ("open",): [["RUN", "--json"]],
    ("export",): [["RUN"], ["--chat", "providers"]],
    ("sweep",): [["--json"]],
    ("purge",): [["--dry-run"], ["--dry-run", "--json"]],
    ("settings", "show"): [[], ["--json"]],
    ("db", "check"): [[], ["--json"]],
    ("db", "info"): [[], ["--json"]],
}
"""What each command that shows something is asked."""

MUTE = {
    ("serve",): "shows the same rows, by a server",
    ("tail",): "shows what runs does, until it is stopped",
    ("import",): "reads what export wrote",
    ("delete",): "shows numbers of rows, and takes away what is searched",
    ("demo",): "records an application of its own",
    ("db", "upgrade"): "shows a version",
    ("settings", "allow-users"): "writes",
    ("settings", "user"): "writes",
}
"""The others, and why they are not asked."""


def cli(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments, prog_name="otel-chatdebug")
    nothing_to_show = arguments[0] in ("curl", "diff", "open")  # of a run without requests
    assert result.exit_code == 0 or nothing_to_show, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output  # standard output and error


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the application has left, by the place where it lies."""
    home = tmp_path_factory.mktemp("providers")
    with pytest.MonkeyPatch.context() as patch, Provider() as provider:
        patch.setenv("OTEL_CHATDEBUG_DATABASE_URL", f"sqlite:///{home / 'chatdebug.db'}")
        provider.script(*(behaviour for *_, behaviour in REQUESTS))
        given = {
            "url": provider.url,
            "requests": [request[:3] for request in REQUESTS],
            "proxy": PROXY,
            "text": text("chain"),
        }
        done = subprocess.run(
            [sys.executable, "-c", APP],
            env={
                **os.environ,
                "GIVEN": json.dumps(given),
                "OUT": str(home / "telemetry"),
                "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_AND_EVENT",
                "OTEL_CHATDEBUG_MODEL_PATHS": f"{MODEL_PATHS}|/v1/conversations",
            },
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert done.returncode == -9, done.stderr
        assert len(provider.requests) == len(REQUESTS) + 1
        assert (
            PROXY["through"]
            in base64.b64decode(provider.requests[-1].headers["proxy-authorization"].removeprefix("Basic ")).decode()
        )
        places = {path.name: path.read_bytes().decode("utf-8", "replace") for path in home.iterdir()}
        places |= {"stdout": done.stdout, "stderr": done.stderr}
        runs = [run["id"] for run in json.loads(cli("runs", "--json"))]
        assert len(runs) == 3
        for command, asked in COMMANDS.items():
            for arguments in asked:
                for run in runs if "RUN" in arguments else [""]:
                    for step in range(1, len(REQUESTS) + 1) if "STEP" in arguments else [0]:
                        given_names = {"RUN": run, "FIRST": runs[0], "STEP": str(step)}
                        words = [*command, *(given_names.get(word, word) for word in arguments)]
                        places[" ".join(words)] = cli(*words)
        yield places


@pytest.mark.slow
def test_no_secret_is_anywhere(left: dict[str, str]) -> None:
    assert {"chatdebug.db", "chatdebug.db-wal", "telemetry"} <= left.keys()
    shown = [content for place, content in left.items() if place.startswith("curl ")]
    assert sum("request" in content and "4711" in content for content in shown) >= 2 * len(REQUESTS)
    assert len(SECRETS) > 150
    found = {(marker, place) for place, content in left.items() for marker in SECRETS if marker in content}
    assert sorted(found) == []


@pytest.mark.slow
def test_counts_ids_and_messages_survive(left: dict[str, str]) -> None:
    """In the rows; the messages also on spans and in events."""
    asked = [content for place, content in left.items() if place.startswith("show ") and place.endswith("--json")]
    shown = next(content for content in asked if "kept-gemini" in content)
    steps = json.loads(shown)["steps"]
    assert len(steps) == len(REQUESTS)
    for name in (
        "gemini", "bedrock", "conversations", "interactions", "mistral", "groq", "azure", "gateway", "ollama"
    ):  # fmt: skip
        for what in ("request", "answer"):
            assert f"kept-{name}{what}-4711" in shown
            assert f"kept-{name}{what}-4711" in left["telemetry"]
    for number in range(1729, 1735):
        assert f"kept words {number}" in shown
    ids = ("kept-id-groq", "kept-id-gemini", "kept-tool2", "kept-id-interaction", "kept-7", "kept-msg", "kept-tool-5")
    for word in ("log_in", "Kiel", "2026-01-01", "[REDACTED]", *ids):
        assert word in shown, word
    inputs = {(step["usage"] or {}).get("input_tokens") for step in steps}
    assert set(range(1201, 1211)) <= inputs


def test_every_command_was_asked() -> None:
    """A new one that shows something belongs into the search."""

    def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from leaves(command, (*path, name))
            else:
                yield (*path, name)

    assert set(leaves(main)) == COMMANDS.keys() | MUTE.keys()
