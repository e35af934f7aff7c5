"""The demo's provider against the real SDKs and bare clients: it does what its behaviours say."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from otel_chatdebug.demo.answers import INPUT_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS
from otel_chatdebug.demo.provider import Behaviour, Provider

MESSAGES: Any = [{"role": "user", "content": "Hello?"}]
WORDS = "".join(Behaviour().deltas)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def client(provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="sk-demo", timeout=5) as client:
        yield client


@pytest.fixture
def claude(provider: Provider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=provider.url, api_key="sk-ant-demo", timeout=5) as client:
        yield client


def chat(client: openai.OpenAI, model: str = "gpt-4.1-mini") -> list[str]:
    """The texts of a streamed chat turn."""
    stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    return [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]


def read(url: str, model: str = "m", *, stream: bool = True) -> httpx.Response:
    """A bare client's request."""
    return httpx.post(f"{url}/v1/chat/completions", json={"model": model, "stream": stream}, timeout=5)


class TestGoodAnswers:
    def test_openai_chat(self, client: openai.OpenAI) -> None:
        whole = client.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES)
        assert whole.choices[0].message.content == WORDS
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage
        assert whole.usage.prompt_tokens == INPUT_TOKENS
        chunks = list(client.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == WORDS
        assert chunks[-2].choices[0].finish_reason == "stop"
        usage = chunks[-1].usage
        assert usage
        assert usage.completion_tokens_details
        assert usage.completion_tokens_details.reasoning_tokens == REASONING_TOKENS

    def test_openai_responses(self, client: openai.OpenAI) -> None:
        whole = client.responses.create(model="gpt-5-mini", input="Hello?")
        assert whole.output_text == WORDS
        with client.responses.stream(model="gpt-5-mini", input="Hello?") as stream:
            events = list(stream)
            final = stream.get_final_response()
        assert events[-1].type == "response.completed"
        assert final.output_text == WORDS
        assert final.usage
        assert final.usage.output_tokens == OUTPUT_TOKENS

    def test_anthropic(self, claude: anthropic.Anthropic) -> None:
        whole = claude.messages.create(model="claude", messages=MESSAGES, max_tokens=100)
        assert whole.content[0].text == WORDS  # type: ignore[union-attr]
        with claude.messages.stream(model="claude", messages=MESSAGES, max_tokens=100) as stream:
            texts = list(stream.text_stream)
            final = stream.get_final_message()
        assert texts == Behaviour().deltas
        assert final.stop_reason == "end_turn"
        assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == INPUT_TOKENS
        assert final.usage.output_tokens == OUTPUT_TOKENS

    def test_async_clients(self, provider: Provider) -> None:
        async def calls() -> tuple[str, str]:
            async with (
                openai.AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="sk-demo") as client,
                anthropic.AsyncAnthropic(base_url=provider.url, api_key="sk-ant-demo") as claude,
            ):
                stream = await client.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, stream=True)
                one = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
                async with claude.messages.stream(model="claude", messages=MESSAGES, max_tokens=9) as answer:
                    other = [text async for text in answer.text_stream]
            return "".join(one), "".join(other)

        assert asyncio.run(calls()) == (WORDS, WORDS)

    def test_other_endpoints(self, client: openai.OpenAI) -> None:
        assert {"gpt-4.1-mini-2025-04-14"} <= {model.id for model in client.models.list()}
        assert client.files.create(file=("notes.txt", b"hello"), purpose="user_data").filename == "notes.txt"
        assert [file.id for file in client.files.list()] == ["file-demo"]

    def test_the_text_and_the_number_of_its_pieces_are_free(self, provider: Provider, client: openai.OpenAI) -> None:
        provider.script(Behaviour(text="Grüße aus Köln", chunks=3), Behaviour(text="two words"), Behaviour(chunks=40))
        assert chat(client) == ["Grüße", " aus ", "Köln"]
        assert chat(client) == ["two ", "words"]
        assert len(chat(client)) == 40


class TestErrors:
    def test_a_429_is_retried_by_the_sdk(self, provider: Provider, client: openai.OpenAI) -> None:
        provider.script(Behaviour(status=429, retry_after=0.01))
        assert "".join(chat(client)) == WORDS
        assert [request.headers["x-stainless-retry-count"] for request in provider.requests] == ["0", "1"]
        assert provider.requests[0].json["messages"] == MESSAGES

    def test_error_bodies_become_the_errors_of_the_sdks(
        self, provider: Provider, client: openai.OpenAI, claude: anthropic.Anthropic
    ) -> None:
        provider.script(Behaviour(status=401))
        with pytest.raises(openai.AuthenticationError) as openai_error:
            chat(client)
        assert openai_error.value.code == "invalid_api_key"
        provider.script(*[Behaviour(status=529, retry_after=0.01) for _ in range(3)])
        with pytest.raises(anthropic.APIStatusError) as claude_error:
            claude.messages.create(model="claude", messages=MESSAGES, max_tokens=9)
        assert claude_error.value.status_code == 529
        assert claude_error.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]

    def test_an_error_event_inside_the_stream(
        self, provider: Provider, client: openai.OpenAI, claude: anthropic.Anthropic
    ) -> None:
        provider.script(Behaviour(error_after=2), Behaviour(error_after=2), Behaviour(error_after=2))
        with pytest.raises(openai.APIError, match="had an error"):
            chat(client)
        events = list(client.responses.create(model="gpt-5-mini", input="Hello?", stream=True))
        assert [event.type for event in events[-2:]] == ["response.output_text.delta", "error"]
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            list(claude.messages.create(model="claude", messages=MESSAGES, max_tokens=9, stream=True))

    def test_a_behaviour_by_header_or_model(self, provider: Provider, client: openai.OpenAI) -> None:
        with pytest.raises(openai.APIError):
            chat(client, model="error-event")
        headers = {"x-demo-behaviour": "overloaded"}
        assert httpx.post(f"{provider.url}/v1/messages", json={}, headers=headers).status_code == 529

    def test_retry_after_is_sent_in_both_units(self, provider: Provider) -> None:
        provider.script(Behaviour(status=429, retry_after=0.25))
        headers = read(provider.url).headers
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")


class TestEndsOfStreams:
    def test_a_cut_inside_the_chunked_body(self, provider: Provider) -> None:
        provider.script(Behaviour(cut_after=2))
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            read(provider.url)

    def test_a_reset(self, provider: Provider) -> None:
        provider.script(Behaviour(cut_after=2, reset=True))
        with pytest.raises(httpx.ReadError):
            read(provider.url)

    def test_a_cut_json_body(self, provider: Provider) -> None:
        provider.script(Behaviour(cut_after=2))
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            read(provider.url, stream=False)

    @pytest.mark.parametrize("framing", [None, "chunked", "close"])
    def test_a_clean_end_without_a_terminal_event(self, provider: Provider, framing: Any) -> None:
        provider.script(Behaviour(truncate_after=2, framing=framing))
        response = read(provider.url)
        assert response.text.count("wörd") == 2
        assert ("transfer-encoding" in response.headers) == (framing == "chunked")

    def test_no_done(self, provider: Provider) -> None:
        provider.script(Behaviour(terminal=False))
        text = read(provider.url).text
        assert '"finish_reason":"stop"' in text
        assert "[DONE]" not in text

    def test_a_stall_goes_on_when_released(self, provider: Provider, client: openai.OpenAI) -> None:
        stall = Behaviour(stall_after=2)
        provider.script(stall)
        stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        chunks = iter(stream)
        first = [next(chunks) for _ in range(3)]
        assert stall.wait_held()
        stall.release()
        rest = list(chunks)
        assert [chunk.choices[0].delta.content for chunk in first] == ["", *stall.deltas[:2]]
        assert rest[0].choices[0].delta.content == stall.deltas[2]

    def test_a_stall_before_the_headers(self, provider: Provider) -> None:
        stall = Behaviour(stall_headers=True)
        provider.script(stall)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{provider.url}/v1/responses", json={}, timeout=0.05)
        assert stall.wait_held()

    @pytest.mark.parametrize("encoding", [None, "gzip"])
    def test_a_late_end_of_body(self, provider: Provider, encoding: Any) -> None:
        late = Behaviour(hold_end=True, encoding=encoding)
        provider.script(late)
        with httpx.stream("POST", f"{provider.url}/v1/chat/completions", json={"stream": True}) as response:
            lines = response.iter_lines()
            for line in lines:
                if line == "data: [DONE]":
                    break
            assert late.wait_held()
            late.release()
            assert list(lines) == [""]

    def test_each_event_is_sent_at_once(self, provider: Provider) -> None:
        """While the provider holds, all that stands before the hold has arrived."""
        provider.script(Behaviour(stall_after=3, encoding="gzip"))
        with httpx.stream("POST", f"{provider.url}/v1/chat/completions", json={"stream": True}) as response:
            seen = ""
            for text in response.iter_text():
                seen += text
                if "wörd3 " in seen:
                    break
        assert seen.endswith("\n\n")


class TestBodies:
    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
    @pytest.mark.parametrize("stream", [True, False])
    def test_content_encodings(self, provider: Provider, encoding: Any, stream: bool) -> None:
        provider.script(Behaviour(encoding=encoding))
        response = read(provider.url, stream=stream)
        assert response.headers["content-encoding"] == encoding
        assert "wörd5 " in response.text

    def test_a_content_length_that_is_too_long(self, provider: Provider) -> None:
        provider.script(Behaviour(content_length=100_000))
        with pytest.raises(httpx.RemoteProtocolError):
            read(provider.url, stream=False)

    def test_garbage_and_a_wrong_content_type(self, provider: Provider, client: openai.OpenAI) -> None:
        assert read(provider.url, "garbage").content.startswith(b"\x00\xff")
        assert read(provider.url, "html").headers["content-type"] == "text/html"

    def test_an_endless_line_ends_when_the_client_leaves(self, provider: Provider) -> None:
        def endless() -> Iterator[bytes]:
            yield b"data: "
            while True:
                yield b"x" * 65536

        provider.script(Behaviour(body=endless()))
        with httpx.stream("POST", f"{provider.url}/v1/responses", json={"stream": True}) as response:
            raw = response.iter_raw()
            assert sum(len(next(raw)) for _ in range(100)) > 65536

    def test_a_huge_header(self, provider: Provider) -> None:
        provider.script(Behaviour(headers={"x-huge": "x" * 50_000}))
        assert len(read(provider.url).headers["x-huge"]) == 50_000

    def test_raw_bytes(self, provider: Provider) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            read(provider.url, "not-http")

    def test_a_redirect(self, provider: Provider, client: openai.OpenAI) -> None:
        provider.script(Behaviour(redirect="/elsewhere/v1/chat/completions"))
        assert "".join(chat(client)) == WORDS
        assert [request.path for request in provider.requests] == [
            "/v1/chat/completions",
            "/elsewhere/v1/chat/completions",
        ]

    def test_a_chunked_request_and_a_connection_used_again(self, provider: Provider) -> None:
        with httpx.Client(base_url=provider.url) as http:
            http.post("/v1/chat/completions", content=iter([b'{"model"', b': "m"}']))
            assert http.get("/nowhere").status_code == 404
            assert http.head("/v1/models").content == b""
            http.get("/v1/models")
        assert provider.requests[0].json == {"model": "m"}
        assert {request.connection for request in provider.requests} == {1}


def test_closing_frees_every_wait_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    stall, idle = Behaviour(stall_after=1), Behaviour()
    with Provider() as provider, httpx.Client() as http:
        provider.script(idle, stall)
        http.post(f"{provider.url}/v1/responses", json={})
        with httpx.stream("POST", f"{provider.url}/v1/responses", json={"stream": True}) as response:
            assert stall.wait_held()
            assert len(provider.requests) == 2
            provider.close()
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(provider.url.rpartition(":")[2])))
    provider.close()


def test_closing_ends_connections_that_wait_for_a_request() -> None:
    before = set(threading.enumerate())
    with httpx.Client() as http:
        with Provider() as provider:
            http.post(f"{provider.url}/v1/responses", json={})
            assert len(set(threading.enumerate()) - before) == 2
        assert set(threading.enumerate()) <= before


def test_waiting_for_requests_that_do_not_come_says_how_many_came() -> None:
    with Provider() as provider, pytest.raises(TimeoutError, match="0 of 1"):
        provider.wait_for_requests(1, timeout=0.01)
