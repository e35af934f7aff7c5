"""Messages on spans and in events: where they are asked for, in the format of the conventions, redacted and bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.answers import AnthropicMessages, OpenAIChat
from otel_chatdebug.pipeline import call_content
from otel_chatdebug.settings import CONTENT_MODES, Settings
from tests.support.recording import URL, Chunks, Model, Recording, recording

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT = {
    gen_ai.GEN_AI_INPUT_MESSAGES,
    gen_ai.GEN_AI_OUTPUT_MESSAGES,
    gen_ai.GEN_AI_SYSTEM_INSTRUCTIONS,
    gen_ai.GEN_AI_TOOL_DEFINITIONS,
}
KEY = "sk-proj-" + "abcdefgh12345678"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
REQUEST = {
    "model": "gpt-5-mini",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": f"What is this? My key is {KEY}."},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * 40}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ]},
        {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": {
            "name": "weather", "arguments": '{"city": "Kiel", "password": "hunter2"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "description": "It.", "parameters": SCHEMA}}],
}  # fmt: skip
INPUT = [
    {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
    {"role": "user", "parts": [
        {"type": "text", "content": "What is this? My key is sk-[REDACTED]."},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "bytes": 240},
        {"type": "uri", "modality": "image", "uri": "https://example.org/a.png"},
    ]},
    {"role": "assistant", "parts": [{"type": "tool_call", "id": "call_1", "name": "weather",
        "arguments": {"city": "Kiel", "password": "[REDACTED]"}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "rain"}]},
]  # fmt: skip
TOOLS = [{"type": "function", "name": "weather", "description": "It.", "parameters": SCHEMA}]
OUTPUT = [{"role": "assistant", "parts": [{"type": "text", "content": "Hello!"}], "finish_reason": "stop"}]


class Events:
    """A logger provider, and the events that it was told."""

    def __init__(self) -> None:
        self._exporter = InMemoryLogRecordExporter()
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self._exporter))

    @property
    def records(self) -> list[Any]:
        return [item.log_record for item in self._exporter.get_finished_logs()]


@pytest.fixture
def events() -> Iterator[Events]:
    found = Events()
    yield found
    found.provider.shutdown()


def step_span(recorded: Recording) -> dict[str, Any]:
    """What the only step's span says."""
    return dict(recorded.spans[recorded.step.id].attributes or {})


def call(model: Model | None = None) -> None:
    (model or Model()).sync.post(URL, json=REQUEST)


@pytest.mark.parametrize("mode", [None, *CONTENT_MODES, "true", "false", "span_only", "nonsense"])
def test_content_is_where_it_is_asked_for(
    mode: str | None, events: Events, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By default, and for a value that is none, nowhere."""
    if mode is not None:
        monkeypatch.setenv(VARIABLE, mode)
    with recording(logger_provider=events.provider) as recorded:
        call()
        spans = [dict(span.attributes or {}) for span in recorded.spans.values()]
    on_spans = mode in ("SPAN_ONLY", "SPAN_AND_EVENT", "true", "span_only")
    assert [CONTENT & span.keys() for span in spans if CONTENT & span.keys()] == (
        [CONTENT - {gen_ai.GEN_AI_SYSTEM_INSTRUCTIONS}] if on_spans else []
    )
    assert len(events.records) == (1 if mode in ("EVENT_ONLY", "SPAN_AND_EVENT", "true") else 0)
    assert ("nonsense" in caplog.text) == (mode == "nonsense")
    if not on_spans:
        assert "brief" not in json.dumps(spans)


def test_the_format_is_that_of_the_conventions(events: Events) -> None:
    with recording(logger_provider=events.provider, capture_content="SPAN_AND_EVENT") as recorded:
        call()
        told = step_span(recorded)
        step = recorded.step
    (event,) = events.records
    assert event.event_name == "gen_ai.client.inference.operation.details"
    assert f"{event.span_id:016x}" == step.id
    assert event.timestamp // 1000 == step.finished_at
    for name, expected in (
        (gen_ai.GEN_AI_INPUT_MESSAGES, INPUT),
        (gen_ai.GEN_AI_OUTPUT_MESSAGES, OUTPUT),
        (gen_ai.GEN_AI_TOOL_DEFINITIONS, TOOLS),
    ):
        assert json.loads(told[name]) == expected
        assert json.loads(json.dumps(event.attributes[name], default=dict)) == expected
    assert {name for name in told if not name.startswith("chatdebug.")} == set(event.attributes)
    for name in ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "server.address"):
        assert event.attributes[name] == told[name]


def test_instructions_that_stand_apart_are_told_apart() -> None:
    body = {"model": "claude", "max_tokens": 9, "system": "Be brief.", "messages": [{"role": "user", "content": "Hi"}]}
    whole = json.dumps(AnthropicMessages().whole("claude", "Hello!", usage=True)).encode()
    answer = httpx.Response(200, headers={"content-type": "application/json"}, stream=Chunks([whole]))
    with recording(capture_content="SPAN_ONLY") as recorded:
        Model(answer).sync.post("https://api.anthropic.com/v1/messages", json=body)
        told = step_span(recorded)
    assert json.loads(told[gen_ai.GEN_AI_SYSTEM_INSTRUCTIONS]) == [{"type": "text", "content": "Be brief."}]
    assert json.loads(told[gen_ai.GEN_AI_INPUT_MESSAGES]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Hi"}]}
    ]


def test_a_stream_is_told_as_far_as_it_came() -> None:
    with recording(capture_content="SPAN_ONLY") as recorded:
        with closing(Model().open()) as response:
            chunks = response.iter_raw()
            for _ in range(3):
                next(chunks)
        (message,) = json.loads(step_span(recorded)[gen_ai.GEN_AI_OUTPUT_MESSAGES])
    assert message["parts"] == [{"type": "text", "content": "ab"}]
    assert "finish_reason" not in message


def test_a_step_tells_its_last_attempt_and_what_finish_said() -> None:
    retried = httpx.Response(429, headers={"content-type": "application/json"}, stream=Chunks([b"{}"]))
    with recording(capture_content="SPAN_ONLY") as recorded:
        model = Model(retried)
        with chatdebug.step() as step:
            call(model)
            call(model)
        (message,) = json.loads(step_span(recorded)[gen_ai.GEN_AI_OUTPUT_MESSAGES])
        assert message["parts"] == OUTPUT[0]["parts"]
    with recording(capture_content="SPAN_ONLY") as recorded:
        with chatdebug.step() as step:
            call()
            step.finish(response={"answer": 42, "api_key": "hunter2"})
        (message,) = json.loads(step_span(recorded)[gen_ai.GEN_AI_OUTPUT_MESSAGES])
    assert message["parts"] == [{"type": "json", "content": {"answer": 42, "api_key": "[REDACTED]"}}]


@pytest.mark.parametrize(("scope", "told"), [("opentelemetry.instrumentation.genai.openai", 0), ("anthropic", 1)])
def test_nothing_is_written_onto_an_adopted_span(events: Events, scope: str, told: int) -> None:
    """An OpenTelemetry instrumentation tells the event itself; an SDK does not, so we do."""
    from otel_chatdebug.pipeline.recorder import active

    with recording(logger_provider=events.provider, capture_content="SPAN_AND_EVENT") as recorded:
        assert recorded.provider is not None
        assert active() is recorded.recorder
        tracer = recorded.provider.get_tracer(scope)
        with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}) as span:
            call_by_an_sdk()
        step = recorded.step
        assert step.id == f"{span.get_span_context().span_id:016x}"
        (own,) = [found for found in recorded.spans.values() if found.name == "chat"]
        assert dict(own.attributes or {}) == {"gen_ai.operation.name": "chat"}
    assert [f"{event.span_id:016x}" for event in events.records] == [step.id] * told


def call_by_an_sdk() -> None:
    import openai

    client = openai.OpenAI(api_key="k", base_url="https://api.openai.com/v1", http_client=openai_client())
    client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])


def openai_client() -> Any:
    import httpx2

    whole = OpenAIChat().whole("gpt-5-mini-2026", "Hello!", usage=True)
    return httpx2.Client(transport=httpx2.MockTransport(lambda request: httpx2.Response(200, json=whole)))


def test_a_long_history_is_told_from_its_end() -> None:
    """A span must fit into a message; what was left out is counted."""
    messages = [{"role": "user", "content": f"{number} " + "long " * 1800} for number in range(300)]
    with recording(capture_content="SPAN_ONLY") as recorded:
        Model().sync.post(URL, json={**REQUEST, "messages": messages})
        told = step_span(recorded)
    content = sum(len(value.encode()) for name, value in told.items() if name in CONTENT)
    assert 0.9 * call_content.MOST_CONTENT < content <= call_content.MOST_CONTENT
    kept = json.loads(told[gen_ai.GEN_AI_INPUT_MESSAGES])
    assert kept[-1]["parts"][0]["content"].startswith("299 ")
    assert told[call_content.OMITTED_MESSAGES] == 300 - len(kept)
    assert json.loads(told[gen_ai.GEN_AI_OUTPUT_MESSAGES]) == OUTPUT


def test_the_redactor_of_the_application_sees_it(events: Events) -> None:
    def redact(text: str, place: str) -> str:
        return text.replace("brief", "[LONG]")

    with recording(logger_provider=events.provider, capture_content="SPAN_AND_EVENT", redact=redact) as recorded:
        call()
        told = json.dumps(step_span(recorded))
    assert "[LONG]" in told
    shown = told + json.dumps(dict(events.records[0].attributes), default=dict)
    assert "brief" not in shown
    assert "hunter2" not in shown


def test_a_run_that_is_refused_tells_no_messages(events: Events) -> None:
    """Whoever has not asked for being recorded has not asked for their messages in traces either."""
    with recording(
        logger_provider=events.provider,
        capture_content="SPAN_AND_EVENT",
        enabled="opt_in",
        is_enabled=lambda chat_id, owner_id: chat_id == "mine",
    ) as recorded:
        for chat_id in ("mine", "yours"):
            with chatdebug.run(chat_id=chat_id), chatdebug.step() as step:
                call()
                step.finish(response="Hello!")
        told = [dict(span.attributes or {}) for span in recorded.spans.values()]
    by_chat = {one["gen_ai.conversation.id"]: CONTENT & one.keys() for one in told if one["chatdebug.record"] == "step"}
    assert {chat_id: bool(found) for chat_id, found in by_chat.items()} == {"mine": True, "yours": False}
    assert [event.attributes["gen_ai.conversation.id"] for event in events.records] == ["mine"]


@pytest.mark.parametrize("garbage", [None, 7, "text", [], {}, {"messages": 7}, {"messages": [None, 7, {"parts": [7]}]}])
def test_any_shape_is_taken(garbage: Any) -> None:
    """What an application hands to `finish` may be anything."""
    found = call_content.attributes(garbage, garbage, structured=True)
    assert found.keys() <= CONTENT
    json.dumps(found)


def test_what_protobuf_cannot_hold_is_made_such_as_it_can() -> None:
    deep: Any = 10**30
    for _ in range(40):
        deep = {"\ud800": [deep]}
    part = {"type": "tool_call", "id": None, "name": "f", "arguments": deep}
    request = {"messages": [{"role": "user", "parts": [part]}]}
    text = call_content.attributes(request, None, structured=False)[gen_ai.GEN_AI_INPUT_MESSAGES]
    text.encode()
    assert '"..."' in text


def test_without_it_calls_are_told_by_the_thread_that_made_them() -> None:
    """The default costs nothing: no thread in between, no event."""
    with recording() as recorded:
        assert not Settings().content_on_spans
        assert not Settings().content_in_events
        call()
        assert len(recorded._exporter.get_finished_spans()) == 3
