"""Redaction: no planted secret survives anywhere, and no message, id or count is lost."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_chatdebug.redaction import REDACTED, Redactor, bodies
from otel_chatdebug.wire.reading import value_of
from tests.support.transcripts import BODIES, STREAMS, Transcript

redactor = Redactor()

# Put together here, so that no scanner takes this file for a leak.
KEYS = {
    "openai": "sk-" + "abcdEFGH1234ijklMNOP5678",
    "openai project": "sk-" + "proj-MARKERmarkerMARKERmarker",
    "openai service": "sk-" + "svcacct-MARKER_marker-1",
    "openai of letters only": "sk-" + "abcdefghijklmnopqrstuvwx",
    "openai of words": "sk-" + "planted-marker-for-the-test",
    "anthropic": "sk-" + "ant-api03-MARKER-marker_1",
    "openrouter": "sk-" + "or-v1-0123456789abcdef",
    "groq": "gsk_" + "MARKERmarker12345678",
    "xai": "xai-" + "MARKERmarker12345678",
    "perplexity": "pplx-" + "0123456789abcdef0123",
    "github": "ghp_" + "MARKERmarker12345678",
    "github oauth": "gho_" + "MARKERmarker12345678",
    "github fine-grained": "github_pat_" + "11AAAAAAA0_MARKER",
    "gitlab": "glpat-" + "MARKERmarker12345678",
    "aws": "AKIA" + "ABCDEFGHIJKLMNOP",
    "aws session": "ASIA" + "ABCDEFGHIJKLMNOP",
    "google": "AIza" + "SyMARKERmarkerMARKERmarkerMARKERmar",
    "google oauth": "ya29" + ".a0MARKERmarker",
    "hugging face": "hf_" + "MARKERmarkerMARKERmarker",
    "slack": "xoxb-" + "1234567890-MARKER",
    "stripe": "sk_" + "live_MARKERmarker1234",
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.MARKERmarker",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMARKERmarker\nMARKER==\n-----END RSA PRIVATE KEY-----",
}


def secret_of(key: str) -> str:
    """What must not be seen: the key without what says of which kind it is."""
    return key.split("KEY-----")[1] if "BEGIN" in key else key[8:]


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    "around", ["{}", "Use {} please", "key={}.", "'{}'", "({})", "https://h/{}/x", "a\n{}\nb", "[{}]", "ключ {} здесь"]
)
def test_known_formats_of_keys_are_found_wherever_they_stand(name: str, around: str) -> None:
    text = redactor.text(around.format(KEYS[name]))
    assert secret_of(KEYS[name]) not in text
    assert REDACTED in text
    before, _, after = around.partition("{}")
    if "://" not in around:
        assert text.startswith(before)
        assert text.endswith(after)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-123", f"Authorization: {REDACTED}"),
        ("with Bearer abc.def-123 as", f"with Bearer {REDACTED} as"),
        ("with bearer ABCDEFGHIJKLMNOPQRSTUVWX as", f"with bearer {REDACTED} as"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: {REDACTED}"),
        ("authorization: bearer hunter", f"authorization: {REDACTED}"),
        ("with Basic dXNlcjpwYXNz", f"with Basic {REDACTED}"),
        ('curl -H "x-api-key: secret99" h', f'curl -H "x-api-key: {REDACTED}" h'),
        ("OPENAI_API_KEY=abc123def456 python", f"OPENAI_API_KEY={REDACTED} python"),
        ("postgresql+psycopg://me:hunter2@h/db", f"postgresql+psycopg://{REDACTED}@h/db"),
        ("see https://h/p?key=hunter2&alt=sse.", f"see https://h/p?key={REDACTED}&alt=sse."),
        ("GET /v1/models?key=hunter2 failed", f"GET /v1/models?key={REDACTED} failed"),
        ("POST /p?a=1&access_token=hunter2", f"POST /p?a=1&access_token={REDACTED}"),
        ('bad body {"password": "hunter2", "n": 1', f'bad body {{"password": "{REDACTED}", "n": 1'),
        ("bad body {'api_key': 'hunter2'}", f"bad body {{'api_key': '{REDACTED}'}}"),
        (r"bad body {\"client_secret\": \"hunter2\"}", rf"bad body {{\"client_secret\": \"{REDACTED}\"}}"),
    ],
)
def test_credentials_in_texts(text: str, expected: str) -> None:
    assert redactor.text(text) == expected


HARMLESS = [
    "Hello, wörld! What is 6 x 7? It is 42.",
    "sk-estimator-checks and risk-assessment-2024 and task-live-migration",
    "the bearer authentication scheme, a basic functionality, Basic Authentication",
    "max_tokens=100, input_tokens: 1200, total_tokens 1284; key=lambda item: item.price",
    'the "token" is "Hello"; tokens: 5; a token: a word',
    "chatcmpl-Bx1 msg_01 resp_1 toolu_01 call_1 req_011CSHoEeqs5C35K2UUqR7Fy",
    "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7 550e8400-e29b-41d4-a716-446655440000",
    "https://example.com/path/to/page",
    "1234 @ 5 USD; me@example.com; a://",
    "def f(password): return hash(password)",
    "x" * 5000,
    "hf_hub_download, gsk_ and ghp_ are prefixes",
    "data: 7, metadata:image",
    "",
    "\ud800 \0",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_texts_without_a_secret_stay_as_they_are(text: str) -> None:
    assert redactor.text(text) == text
    assert redactor.json_value({"content": text}) == {"content": text}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "https://h:8080/v1/p?alt=sse&key=hunter2&api-version=1",
            f"https://h:8080/v1/p?alt=sse&key={REDACTED}&api-version=1",
        ),
        ("https://me:hunter2@h/p", f"https://{REDACTED}@h/p"),
        ("https://me:hunt@er2@h/p", f"https://{REDACTED}@h/p"),
        ("https://h/p#hunter2", f"https://h/p#{REDACTED}"),
        ("https://h?hunter2", f"https://h?{REDACTED}"),
        ("https://h/p?a=hunter2&a=hunter2;b=hunter2", f"https://h/p?a={REDACTED}&a={REDACTED}"),
        ("https://h/p?ALT=sse&flag=&x", f"https://h/p?ALT=sse&flag=&{REDACTED}"),
        ("https://h/p?next=https://me:hunter2@h/?alt=sse", f"https://h/p?next={REDACTED}"),
        ("https://proxy/https://me:hunter2@h/p", f"https://proxy/https://{REDACTED}@h/p"),
        ("/v1/p?key=hunter2", f"/v1/p?key={REDACTED}"),
        ("https://h/" + KEYS["google"] + "/p", f"https://h/{REDACTED}/p"),
        ("https://h/p", "https://h/p"),
        ("http://[::1]:80/p", "http://[::1]:80/p"),
        ("http://[broken/p", "http://[broken/p"),
        ("", ""),
    ],
)
def test_urls(url: str, expected: str) -> None:
    assert redactor.url(url) == expected


def test_headers_are_kept_by_an_allow_list() -> None:
    kept = [
        ["Content-Type", "application/json"],
        ["accept-encoding", "gzip"],
        ["User-Agent", "OpenAI/Python 3.52.0"],
        ["Date", "Fri, 21 Nov 2025 00:00:00 GMT"],
        ["Retry-After", "20"],
        ["retry-after-ms", "200"],
        ["x-ratelimit-remaining-tokens", "149984"],
        ["anthropic-ratelimit-requests-limit", "50"],
        ["x-request-id", "req_011"],
        ["request-id", "req_011"],
        ["openai-processing-ms", "200"],
        ["x-stainless-retry-count", "1"],
        ["anthropic-version", "2023-06-01"],
        ["server-timing", "cfL4;desc"],
        ["CF-RAY", "9a1-FRA"],
        ["x-should-retry", "false"],
    ]
    hidden = [
        "Authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "Cookie",
        "set-cookie",
        "proxy-authorization",
        "openai-organization",
        "anthropic-workspace-id",
        "x-amz-security-token",
        "baggage",
        "www-authenticate",
        "x-anything-else",
        "x" * 500,
    ]
    pairs = [(name, value) for name, value in kept] + [(name, "hunter2") for name in hidden]
    assert redactor.headers(pairs) == kept + [[name, REDACTED] for name in hidden]


def test_a_header_that_is_a_url_is_kept_as_one_and_keys_are_found_in_allowed_ones() -> None:
    pairs = [("Location", "https://h/p?key=hunter2"), ("user-agent", f"me {KEYS['openai']}")]
    assert redactor.headers(pairs) == [
        ["Location", f"https://h/p?key={REDACTED}"],
        ["user-agent", f"me sk-{REDACTED}"],
    ]


def test_users_add_names_of_their_own() -> None:
    mine = Redactor(allow_headers=("X-Tenant", "x-my-*"), allow_query=("Page",))
    assert mine.headers([("x-tenant", "a"), ("X-My-Thing", "b"), ("x-your-thing", "c")]) == [
        ["x-tenant", "a"],
        ["X-My-Thing", "b"],
        ["x-your-thing", REDACTED],
    ]
    assert mine.url("https://h/?page=2&other=3") == f"https://h/?page=2&other={REDACTED}"


def test_users_name_secret_keys_of_their_own() -> None:
    """At any depth, in streams, in texts that are JSON or show a piece of it; in any spelling, and as a pattern."""
    mine = Redactor(secret_keys=("Tax-Number", "internal_*", "max_tokens"))
    value = {
        "a": [{"taxNumber": "hunter2", "TAX_NUMBERS": ["hunter2"], "number": 4711}],
        "internal_id": {"x": "hunter2"},
        "arguments": '{"tax.number": "hunter2", "city": "Kiel"}',
        "max_tokens": 5,
        "text": 'it said {"tax_number": "hunter2", and broke off',
    }
    redacted = mine.json_value(value)
    assert redacted["max_tokens"] == REDACTED  # the user's word goes before ours
    stream = b"".join(b"data: %b\n\n" % json.dumps(item).encode() for item in (value, {"Tax Number": "hunter2"}))
    shown = json.dumps(redacted) + (mine.body(stream, "text/event-stream", framed=True) or "")
    assert "hunter2" not in shown
    assert "4711" in shown
    assert "Kiel" in shown
    assert redactor.json_value({"tax_number": "7"}) == {"tax_number": "7"}


SECRET_NAMES = [
    "authorization",
    "Authorization",
    "api_key",
    "apikey",
    "apiKey",
    "x-api-key",
    "OPENAI_API_KEY",
    "password",
    "db.password",
    "secret",
    "client_secret",
    "clientSecret",
    "token",
    "access_token",
    "accessToken",
    "refresh_token",
    "id_token",
    "authorization_token",
    "tokens",
    "cookie",
    "set-cookie",
    "credential",
    "credentials",
    "private_key",
    "aws_secret_access_key",
    "auth",
    "options.auth",
    "pwd",
    "Ocp-Apim-Subscription-Key",
]


@pytest.mark.parametrize("name", SECRET_NAMES)
@pytest.mark.parametrize("value", ["hunter2", ["hunter2"]], ids=["text", "list"])
def test_secret_keys_are_found_at_any_depth(name: str, value: Any) -> None:
    deep: Any = {name: value, "n": 1}
    for _ in range(20):
        deep = {"a": [deep, "b"]}
    result = json.dumps(redactor.json_value(deep))
    assert "hunter2" not in result
    assert json.dumps({name: REDACTED, "n": 1}) in result


@pytest.mark.parametrize("name", ["password", "credentials", "auth", "secrets", "api_key"])
def test_whatever_stands_under_a_secret_name_goes_whole(name: str) -> None:
    for value in ({"user": "hunter2"}, [{"x": "hunter2"}], 12345678, 0.5):
        assert redactor.json_value({name: value}) == {name: REDACTED}
    for nothing in (None, "", False):
        assert redactor.json_value({name: nothing}) == {name: nothing}


COUNTS = {
    "max_tokens": 100,
    "max_completion_tokens": 100,
    "input_tokens": 1200,
    "total_tokens": 1284,
    "token": 7,
    "tokens": [1, 2, 3],
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
    "input_tokens_details": {"cached_tokens": 1024},
    "cache_creation": {"ephemeral_5m_input_tokens": 0},
    "cache_read_input_tokens": 1024,
    "budget_tokens": 2048,
    "reasoning_tokens": None,
    "logprobs": {"content": [{"token": "Hello", "logprob": -0.1, "top_logprobs": [{"token": "Hi", "logprob": -2}]}]},
    "old": {"tokens": ["He", "llo"], "token_logprobs": [-0.1, -0.2]},
    "eos_token": "</s>",
    "token_type": "word",
    "prompt_cache_key": "chat-1",
    "tokenizer": "o200k",
    "key": "value",
}


def test_token_counts_and_tokens_of_the_model_are_never_redacted() -> None:
    assert redactor.json_value(COUNTS) == COUNTS


def test_a_secret_below_a_name_of_tokens_is_still_found() -> None:
    assert redactor.json_value({"tokens": {"api_key": "hunter2"}}) == {"tokens": {"api_key": REDACTED}}


def test_json_inside_of_texts_is_looked_through() -> None:
    arguments = json.dumps(
        {"city": "Paris", "auth": {"password": "hunter2"}, "list": [json.dumps({"token": "hunter2"})]}
    )
    result = redactor.json_value({"function": {"name": "f", "arguments": arguments}})
    assert "hunter2" not in json.dumps(result)
    assert json.loads(result["function"]["arguments"])["city"] == "Paris"
    untouched = '{ "city" : "Paris" }'
    assert redactor.json_value({"arguments": untouched}) == {"arguments": untouched}


def test_headers_that_are_handed_on_to_a_tool_are_kept_by_the_allow_list() -> None:
    tool = {
        "type": "mcp",
        "server_url": "https://me:hunter2@mcp.example/sse?x=hunter2",
        "authorization": "hunter2",
        "headers": {"X-Custom": "hunter2", "Content-Type": "application/json", "n": {"x": "hunter2"}},
    }
    others = {
        "mcp_servers": [{"type": "url", "name": "s", "authorization_token": "hunter2"}],
        "extra_headers": [["X-Custom", "hunter2"], {"name": "x-custom", "value": "hunter2"}, "hunter2"],
        "env": [{"name": "MY_API_KEY", "value": "hunter2"}, {"name": "PATH", "value": "/bin"}],
    }
    result = redactor.json_value({"tools": [tool], **others})
    assert "hunter2" not in json.dumps(result)
    assert result["tools"][0]["headers"]["Content-Type"] == "application/json"
    assert result["tools"][0]["type"] == "mcp"
    assert result["mcp_servers"][0]["name"] == "s"
    assert result["env"][1] == {"name": "PATH", "value": "/bin"}


def test_the_schema_of_a_tool_with_a_secret_parameter_stays_readable() -> None:
    schema = {
        "type": "object",
        "properties": {
            "password": {"type": "string", "description": "Of the user.", "default": "hunter2", "minLength": 8},
            "token": {"$ref": "#/$defs/token"},
        },
        "required": ["password", "token"],
    }
    result = redactor.json_value({"parameters": schema})["parameters"]
    assert result["properties"]["password"] == {
        "type": "string",
        "description": "Of the user.",
        "default": REDACTED,
        "minLength": 8,
    }
    assert result["properties"]["token"] == {"$ref": "#/$defs/token"}
    assert result["required"] == ["password", "token"]
    assert redactor.json_value({"properties": {"password": "hunter2"}}) == {"properties": {"password": REDACTED}}


PNG = base64.b64encode(b"\x89PNG" + bytes(range(256)) * 4).decode()


def test_binary_data_is_replaced_by_its_length() -> None:
    result = redactor.json_value(
        {
            "image_url": f"data:image/png;base64,{PNG}",
            "text": f"see ![x](data:image/png;base64,{PNG}) there",
            "data": "AAAA" * 50,
            "embedding": PNG,
            "signature": PNG[:100],
        }
    )
    assert result == {
        "image_url": "data:image/png;base64,[1028 bytes]",
        "text": "see ![x](data:image/png;base64,[1028 bytes]) there",
        "data": "[150 bytes]",
        "embedding": f"[base64: {len(PNG)} characters]",
        "signature": PNG[:100],
    }


@pytest.mark.parametrize("before", range(0, 300, 7))
@pytest.mark.parametrize("length", [255, 256, 257, 400])
def test_a_long_run_of_base64_is_found_at_any_place(before: int, length: int) -> None:
    text = "ab " * before + PNG[:length] + " end"
    found = "ab " * before + f"[base64: {length} characters] end"
    assert redactor.text(text) == (found if length >= 256 else text)


def test_what_is_nested_too_deeply_is_left_out_and_never_raises() -> None:
    deep: Any = {"password": "hunter2"}
    for _ in range(500):
        deep = [deep]
    assert "hunter2" not in json.dumps(redactor.json_value(deep))
    assert "too deeply" in json.dumps(redactor.json_value(deep))
    body = b"[" * 100_000
    assert redactor.body(body, "application/json") == "[REDACTED: 100000 bytes that are no valid JSON]"


def test_a_value_refers_to_itself() -> None:
    loop: dict[str, Any] = {"password": "hunter2"}
    loop["loop"] = loop
    assert "hunter2" not in json.dumps(redactor.json_value(loop))


# --- bodies

REQUEST = {
    "model": "m",
    "api_key": "hunter2",
    "messages": [{"role": "user", "content": "Hello, wörld!"}],
    "max_tokens": 5,
}


def test_a_json_body_is_redacted_and_compact() -> None:
    text = redactor.body(json.dumps(REQUEST, indent=2).encode(), "application/json; charset=utf-8")
    assert text is not None
    assert json.loads(text) == {**REQUEST, "api_key": REDACTED}
    assert "wörld" in text
    assert '": ' not in text
    assert redactor.body(json.dumps(REQUEST).encode(), None) == text
    assert redactor.body(b"\xef\xbb\xbf" + json.dumps(REQUEST).encode(), "application/json") == text


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/problem+json", None, "application/octet-stream"]
)
@pytest.mark.parametrize("data", [b'{"api_key": "hunter2"', b'{"api_key": hunter2}', b"[hunter2", b"{\xff hunter2"])
def test_what_should_be_json_and_is_none_is_replaced_whole(content_type: str | None, data: bytes) -> None:
    assert redactor.body(data, content_type) == f"[REDACTED: {len(data)} bytes that are no valid JSON]"


def test_a_text_may_begin_with_a_bracket() -> None:
    assert redactor.body(b"[INFO] all is well", "text/plain") == "[INFO] all is well"
    assert redactor.body(b'{"password": "hunter2" ...', "text/plain") == "[REDACTED: 26 bytes that are no valid JSON]"


@pytest.mark.parametrize(
    ("data", "content_type", "expected"),
    [
        (b"", "application/json", None),
        (b"\x89PNG\0", "image/png", "[5 bytes of image/png]"),
        (b"\x89PNG\0", None, "[5 bytes]"),
        (b"a\0b", None, "[3 bytes]"),
        (b"--x\r\nhunter2", "multipart/form-data; boundary=x", "[12 bytes of multipart/form-data]"),
        (b"<h1>502</h1>", "text/html", "<h1>502</h1>"),
        (b"plain w\xc3\xb6rld", None, "plain wörld"),
        (b"bad \xff", "text/plain", "bad \ufffd"),
        (
            b"grant_type=x&client_secret=hunter2",
            "application/x-www-form-urlencoded",
            f"grant_type={REDACTED}&client_secret={REDACTED}",
        ),
        (b"data: https://h/?key=hunter2", "text/plain", f"data: https://h/?key={REDACTED}"),
    ],
)
def test_bodies_of_other_kinds(data: bytes, content_type: str | None, expected: str | None) -> None:
    assert redactor.body(data, content_type) == expected


def test_a_stream_is_redacted_line_by_line() -> None:
    data = (
        b": comment\n"
        b"event: x\n"
        b'data: {"api_key": "hunter2", "usage": {"total_tokens": 5}}\n\n'
        b'data: {"broken": "hunter2\n\n'
        b'data: {"a":\ndata: "\xc3\xb6", "secret": "hunter2"}\n\n'
        b'data: {"secret": "hunter2"}\ndata: {"a": 1}\n\n'
        b"data: text with Bearer hunter2hunter2\n"
        b"data: [DONE]\n\n"
    )
    expected = (
        ": comment\n"
        "event: x\n"
        f'data: {{"api_key":"{REDACTED}","usage":{{"total_tokens":5}}}}\n\n'
        "data: [REDACTED: 19 bytes that are no valid JSON]\n\n"
        f'data: {{"a":"ö","secret":"{REDACTED}"}}\n\n'
        f'data: {{"secret":"{REDACTED}"}}\ndata: {{"a": 1}}\n\n'
        f"data: text with Bearer {REDACTED}\n"
        "data: [DONE]\n\n"
    )
    assert redactor.body(data, "text/event-stream") == expected
    assert redactor.body(data, "application/json", framed=True) == expected
    assert redactor.body(data.replace(b"\n", b"\r\n"), None, framed=True) == expected


def test_an_unfinished_last_line_waits_for_its_rest_while_the_stream_runs() -> None:
    data = b'data: {"a": 1}\n\ndata: {"password": "hun'
    assert redactor.body(data, None, framed=True, complete=False) == 'data: {"a": 1}\n\n'
    assert redactor.body(data, None, framed=True) == (
        'data: {"a": 1}\n\ndata: [REDACTED: 17 bytes that are no valid JSON]'
    )
    assert redactor.body(b"data: {", None, framed=True, complete=False) == ""


def test_ndjson_and_an_error_body_where_a_stream_was_expected() -> None:
    assert (
        redactor.body(b'{"a":1}\n{"token":"hunter2"}\n', "application/x-ndjson")
        == f'{{"a":1}}\n{{"token":"{REDACTED}"}}\n'
    )
    pretty = json.dumps({"error": {"message": "m", "secret": "hunter2"}}, indent=1).encode()
    assert redactor.body(pretty, None, framed=True) == f'{{"error":{{"message":"m","secret":"{REDACTED}"}}}}'


@pytest.mark.parametrize("transcript", STREAMS + BODIES, ids=str)
def test_what_providers_send_loses_nothing(transcript: Transcript) -> None:
    framed = not transcript.name.endswith(".json")
    data = transcript.framing.text(transcript.data) if framed else transcript.data
    text = redactor.body(data, None, framed=framed)
    assert text is not None
    assert REDACTED not in text
    if not framed:
        assert json.loads(text) == json.loads(data)
        return
    for line, original in zip(text.splitlines(), data.decode().splitlines(), strict=True):
        start = "data: " if original.startswith("data: ") else ""
        if original.startswith(start + "{"):
            assert json.loads(line.removeprefix(start)) == json.loads(original.removeprefix(start))
        else:
            assert line == original


@pytest.mark.parametrize("limit", [100, 1000, 50_000])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/event-stream"])
def test_a_body_is_cut_to_its_limit_and_says_how_much_is_missing(limit: int, content_type: str) -> None:
    line = json.dumps({"text": "wörld " * 5}, ensure_ascii=False, separators=(",", ":"))
    count = limit // 20
    data = (
        {
            "application/json": "[" + ",".join([line] * count) + "]",
            "text/plain": line * count,
            "text/event-stream": f"data: {line}\n\n" * count,
        }[content_type]
        .removeprefix("{" if content_type == "text/plain" else "")
        .encode()
    )
    text = redactor.body(data, content_type, limit=limit)
    assert text is not None
    kept, _, marker = text.partition(" [cut: ")
    assert len(text.encode()) <= limit
    assert data.startswith(kept.encode())
    assert int(marker.removesuffix(" more bytes]")) == len(data) - len(kept.encode())


def test_a_secret_at_the_cut_is_no_secret_any_more() -> None:
    """Redaction comes before the cut."""
    data = json.dumps({"a": "x" * 60, "b": KEYS["openai"]}).encode()
    for limit in range(60, 120):
        text = redactor.body(data, "application/json", limit=limit)
        assert text is not None
        assert KEYS["openai"][3:8] not in text


# --- robustness


@given(
    st.binary(max_size=300), st.sampled_from([None, "application/json", "text/event-stream", "text/plain", ";", "é"])
)
def test_no_bytes_make_it_raise(data: bytes, content_type: str | None) -> None:
    for framed in (False, True):
        text = redactor.body(data, content_type, framed=framed, complete=framed)
        assert text is None or isinstance(text, str)
    redactor.url(data.decode("latin-1"))
    redactor.text(data.decode("latin-1"))
    redactor.headers([(data.decode("latin-1"), "x")])


class Hostile(str):
    """A text whose every method fails."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    __len__ = __contains__ = __getitem__ = None  # type: ignore[assignment]


def test_what_fails_on_its_own_is_redacted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = Hostile("hunter2")
    assert redactor.text(hostile) == REDACTED
    assert redactor.url(hostile) == REDACTED
    assert redactor.json_value({"a": hostile}) == REDACTED
    assert redactor.headers([("date", hostile)]) == [["date", REDACTED]]

    def fail(*args: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(Redactor, "_value", fail)
    assert redactor.body(b'{"a": "hunter2"}', "application/json") == "[REDACTED: 16 bytes]"


HOSTILE = [
    "a",
    "sk-",
    "sk-a",
    "xai-",
    "://",
    "://a@",
    "://a:b",
    "?key",
    "&key=",
    "a_key=",
    "api-key:",
    "eyJ",
    "eyJaaaaaaaa.",
    "AKIA",
    "data:",
    "data:a/b;",
    "data:a/b;base64,",
    "-----BEGIN PRIVATE KEY",
    "-----BEGIN PRIVATE KEY-----",
    '"a":',
    '"password":"',
    '"token" : "b\\',
    "Bearer ",
    "bearer a",
    "basic aA",
    "Aa1",
    "aA1-",
    "{",
    "[",
    '{"a":',
    '\\"',
    '"',
    "'",
    "\n",
    "data: {\n",
    "=",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_costs_linear_time(unit: str) -> None:
    """Ten times the text takes about ten times the time: at 25 times, and some milliseconds of grace for a busy
    machine, something looks at its characters again and again (a quadratic pattern takes a hundred times)."""

    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            redactor.text(text)
            redactor.url(text)
            redactor.body(text.encode(), None, framed=True)
            redactor.body(text.encode(), "text/plain")
            best = min(best, time.process_time() - start)
        return best

    assert seconds(100_000) < 25 * seconds(10_000) + 0.02


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_hostile_text_is_taken(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    assert isinstance(redactor.text(text), str)
    assert isinstance(redactor.body(text.encode(), "application/json"), str)


_HARMLESS_OR_NOT = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.sampled_from(
        [
            "Hello", "sk-proj-abc123def456", "Bearer abcdef123456", "https://u:p@h/x?key=1", "a\nb", 'say "hi"',
            "AKIA" + "A1" * 8, ", ", ":", "{", '{"password": "hunter2"}', "'token': 'hunter2'",
        ]
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            [
                "id", "choices", "delta", "content", "api_key", "api key", "token", "usage", "max_tokens", "name",
                "value", "headers", "data", "properties", "type", "password", ":password", " : token", "a:b", "{",
            ]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["id", "choices", "delta", "secret"]), _HARMLESS_OR_NOT, min_size=1, max_size=3))
def test_an_event_that_is_taken_for_harmless_is_what_redaction_leaves_of_it(event: dict[str, Any]) -> None:
    redactor = Redactor()
    text = json.dumps(event)
    found = redactor.body(f"data: {text}\n\n".encode(), "text/event-stream", framed=True)
    assert found is not None
    assert json.loads(found.removeprefix("data: ")) == redactor.json_value(event)


class Thorough(Redactor):
    """Takes nothing for harmless: every line is parsed and walked."""

    def _is_harmless(self, text: str, clean: bool = False) -> bool:
        return False

    def _unchanged(self, lines: list[str], parsed: Mapping[str, Any]) -> dict[str, str]:
        return {}


EVENTS = st.lists(
    st.dictionaries(st.sampled_from(["id", "choices", "delta", "secret", ":password"]), _HARMLESS_OR_NOT, max_size=3),
    min_size=1,
    max_size=8,
)


def of_json(line: str) -> Any:
    """What a line says; itself where that is no JSON."""
    try:
        return json.loads(line.removeprefix("data: "))
    except ValueError:
        return line


@given(
    EVENTS,
    st.randoms(use_true_random=False),
    st.sampled_from(["data: {}\n\n", "data:{}\n\n", "event: delta\ndata: {}\n\n", "{}\n"]),
    st.sampled_from([",", ", "]),
)
@settings(max_examples=500)
def test_what_is_passed_over_together_is_what_redaction_leaves_line_by_line(
    events: list[dict[str, Any]], chance: random.Random, frame: str, comma: str
) -> None:
    """Also where the lines are damaged: whatever the shortcuts skip, redaction by the longest way would not change."""
    stream = "".join(frame.replace("{}", json.dumps(event, separators=(comma, ":"))) for event in events)
    for _ in range(chance.choice([0, 0, 1, 3])):
        at = chance.randrange(len(stream) + 1)
        damage = ['"', ":", ",", "{", "}", "\n", "\\", " ", '"a":', '":password":"hunter2"', stream[at // 2 : at]]
        piece = chance.choice(damage)
        stream = stream[:at] + piece + stream[at + chance.choice([0, 1, 4]) :]
    known = {}
    for line in stream.split("\n"):
        text = line.removeprefix("data:").removeprefix(" ")
        if isinstance(value := value_of(text), dict | list):
            known[text] = value
    expected = Thorough().body(stream.encode(), "text/event-stream", framed=True)
    for parsed in ({}, known):
        shown = Redactor().body(stream.encode(), "text/event-stream", framed=True, parsed=parsed)
        if shown is None:
            assert expected is None
            continue
        assert expected is not None
        assert list(map(of_json, shown.split("\n"))) == list(map(of_json, expected.split("\n")))


@pytest.mark.parametrize("frame", ["data: {}\n\n", "{}\n"])
@pytest.mark.parametrize(
    "lines",
    [
        ['{"a":"b",":password":"hunter2"}'],
        ['{"a": "b", " : password": "hunter2"}'],
        ['["a",{":password":"hunter2"}]'],
        ['{"a":"b"}', '{":password":"hunter2"}'],
        ['{"a":"b"}', '[[{":password":"hunter2"}]]'],
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_a_name_that_begins_with_a_colon_does_not_hide_behind_a_text(known: bool, lines: list[str], frame: str) -> None:
    """What stands between the two is not taken for the name."""
    parsed = {line: json.loads(line) for line in lines} if known else {}
    stream = "".join(frame.replace("{}", line) for line in lines).encode()
    shown = Redactor().body(stream, "text/event-stream", framed=True, parsed=parsed)
    assert shown is not None
    assert "hunter2" not in shown


def test_events_that_are_known_to_be_json_are_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"choices": [{"delta": {"content": f"word {number}"}}]}) for number in range(100)]
    stream = "".join(f"data: {line}\n\n" for line in lines).encode()
    expected = Redactor().body(stream, "text/event-stream", framed=True)
    monkeypatch.setattr(bodies, "parse", None)
    known = {line: json.loads(line) for line in lines}
    assert Redactor().body(stream, "text/event-stream", framed=True, parsed=known) == expected
    unknown = Redactor().body(stream, "text/event-stream", framed=True) or ""
    assert unknown.startswith("[REDACTED")  # what fails is redacted whole


def test_an_ordinary_event_is_taken_for_harmless() -> None:
    event = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}
    assert Redactor()._is_harmless(json.dumps(event))
    assert not Redactor()._is_harmless(json.dumps({**event, "api_key": "x"}))


@pytest.mark.parametrize(
    "line",
    [
        ': comment {"password": "hunter2"}',
        "event: x-password: 'hunter2'",
        'id: "api_key": "hunter2"',
        'data: not json, "secret": "hunter2"',
        "data: {\"text\": \"it said {'password': 'hunter2'}\"}",
        'data: {"text": "it said {\\"password\\": \\"hunter2\\"}"}',
        'data: {"text": "Authorization: Bearer hunter2hunter2"}',
        "data: " + json.dumps({"text": KEYS["private key"].replace("MARKER", "hunter2")}),
        'data: {"password": "hunter2"}',
    ],
)
@pytest.mark.parametrize("before", [0, 1, 200])
def test_a_secret_among_harmless_lines_is_found(line: str, before: int) -> None:
    """Lines are looked at together first: one with a secret must not pass in the company of harmless ones."""
    harmless = ["event: delta", 'data: {"id": "a", "choices": [{"delta": {"content": "word"}}]}', ""]
    lines = [*harmless * before, line, "", *harmless * 3]
    shown = redactor.body("\n".join(lines).encode(), "text/event-stream", framed=True)
    assert shown is not None
    if "event: x" not in line:  # which is no way to name a secret
        assert "hunter2" not in shown
    assert shown.startswith("\n".join(harmless * before)[:1000])


def test_pieces_of_a_text_with_a_secret_are_left_out() -> None:
    """Where the whole has a secret, no event shows a piece of it; its kind, its ids and its counts stay."""
    events = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [
            {"id": "call_1", "function": {"name": "log_in", "arguments": "{\"pass"}}]}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "hunter2"}, "finish_reason": "stop"}], "usage": {"n": 3}},
        {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "hunter2"}},
        {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "hunter2",
            "logprobs": [{"token": "hunter2", "logprob": -0.5}]},
        {"candidates": [{"content": {"parts": [{"text": "hunter2"}]}, "finishReason": "STOP"}], "responseId": "r_1"},
        {"model": "m", "message": {"role": "assistant", "content": "hunter2", "thinking": "hunter2"}},
        {"model": "m", "response": "hunter2", "done": False},
    ]  # fmt: skip
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"

    def shown(**options: bool) -> str:
        return Redactor().body(stream.encode(), "text/event-stream", framed=True, **options) or ""

    assert shown().count("hunter2") == 8
    assert "hunter2" not in shown(fragments=False)
    assert "pass" not in shown(fragments=False)
    for kept in (
        "assistant",
        "call_1",
        "log_in",
        '"n":3',
        "input_json_delta",
        "msg_1",
        '"stop"',
        "STOP",
        "r_1",
        "[DONE]",
    ):
        assert kept in shown(fragments=False)


@pytest.mark.parametrize(
    "value",
    [
        {"token": {"value": "hunter2"}},
        {"tokens": {"access": "hunter2", "more": [{"refresh": "hunter2"}]}},
        {"api_keys": ["hunter2"]},
        {"passwords": {"db": "hunter2"}},
        {"password1": "hunter2"},
        {"api_key_2": "hunter2"},
        {"field": "password", "value": "hunter2"},
        {"id": "api_key", "value": "hunter2"},
    ],
    ids=json.dumps,
)
def test_secrets_that_are_named_in_other_ways(value: dict[str, Any]) -> None:
    """Several of them, numbered ones, those of an object, and a form's fields that are named by a value."""
    assert "hunter2" not in json.dumps(redactor.json_value(value))


def test_details_of_token_counts_stay() -> None:
    counts = {"tokens": {"input": 3, "output": {"text": 4, "cached": None}}, "token": {"text": "Hi", "logprob": -0.1}}
    assert redactor.json_value(counts) == counts
