"""What is recorded, in memory, and a model that is a function: for tests without a database and without sockets."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import httpx
from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from otel_chatdebug import lifecycle
from otel_chatdebug.capture.instrumentor import INSTRUMENTORS
from otel_chatdebug.demo.answers import OpenAIChat
from otel_chatdebug.pipeline.recorder import Recorder
from otel_chatdebug.records import AttemptContent, AttemptRecord, Record, RunRecord, StepContent, StepRecord, merge
from otel_chatdebug.redaction import Redact
from otel_chatdebug.settings import Settings
from otel_chatdebug.status import Status

R = TypeVar("R", bound=Record)

URL = "https://api.openai.com/v1/chat/completions"
BODY = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello?"}]}
ANSWER = OpenAIChat().whole("gpt-5-mini-2026", "Hello!", usage=True)


class Sink:
    """In place of the tables' writer: keeps what each record says, folded by the merge rule."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self.rows: dict[type[Record], dict[str, Record]] = {}

    def put(self, source: Any) -> None:
        self._queue.put(source)

    def flush(self, timeout: float = 0.0) -> bool:
        while True:
            try:
                source = self._queue.get_nowait()
            except Empty:
                return True
            source.queued = False
            for record in source.records():
                rows = self.rows.setdefault(type(record), {})
                known = rows.get(record.id)
                rows[record.id] = record if known is None else merge(known, record)

    def close(self, timeout: float = 0.0) -> bool:
        return self.flush()

    def forget(self) -> None:
        self.__init__()  # type: ignore[misc]


class Recording:
    """What was recorded so far. Every look folds and "writes" first."""

    def __init__(
        self, recorder: Recorder, sink: Sink, exporter: InMemorySpanExporter, provider: TracerProvider | None
    ) -> None:
        self.recorder = recorder
        self.provider = provider
        """The SDK's, for spans that are none of ours; None without an SDK."""
        self._sink = sink
        self._exporter = exporter

    @property
    def runs(self) -> list[RunRecord]:
        """In the order of their start."""
        return self._of(RunRecord)

    @property
    def steps(self) -> list[StepRecord]:
        return self._of(StepRecord)

    @property
    def attempts(self) -> list[AttemptRecord]:
        return self._of(AttemptRecord)

    @property
    def contents(self) -> list[StepContent | AttemptContent]:
        """Messages, headers and bodies."""
        lifecycle.flush()
        rows: list[Any] = [
            row for kind in (StepContent, AttemptContent) for row in self._sink.rows.get(kind, {}).values()
        ]
        return rows

    @property
    def run(self) -> RunRecord:
        """The only one."""
        (run,) = self.runs
        return run

    @property
    def step(self) -> StepRecord:
        (step,) = self.steps
        return step

    @property
    def attempt(self) -> AttemptRecord:
        (attempt,) = self.attempts
        return attempt

    @property
    def content(self) -> StepContent:
        """Of the only step."""
        lifecycle.flush()
        (content,) = self._sink.rows[StepContent].values()
        assert isinstance(content, StepContent)
        return content

    @property
    def attempt_content(self) -> AttemptContent:
        """Of the only attempt."""
        lifecycle.flush()
        (content,) = self._sink.rows[AttemptContent].values()
        assert isinstance(content, AttemptContent)
        return content

    def get(self, id: str) -> RunRecord | StepRecord:
        """The run or step with this id."""
        return next(row for row in (*self.runs, *self.steps) if row.id == id)

    def of_run(self, run: Any) -> list[StepRecord]:
        """The steps of a run (a handle or a record)."""
        return [step for step in self.steps if step.run_id == run.id]

    def of_step(self, step: Any) -> list[AttemptRecord]:
        return [attempt for attempt in self.attempts if attempt.step_id == step.id]

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """Those that have ended, by their id."""
        lifecycle.flush()
        found = {}
        for span in self._exporter.get_finished_spans():
            assert span.context is not None
            found[f"{span.context.span_id:016x}"] = span
        return found

    def ancestors(self, span_id: str) -> list[str]:
        """The ids of the spans above one, the nearest first, as far as they have ended."""
        found: list[str] = []
        span: ReadableSpan | None = self.spans[span_id]
        while span is not None and span.parent is not None:
            found.append(f"{span.parent.span_id:016x}")
            span = self.spans.get(found[-1])
        return found

    def _of(self, kind: type[R]) -> list[R]:
        lifecycle.flush()
        rows: list[Any] = list(self._sink.rows.get(kind, {}).values())
        return sorted(rows, key=lambda row: (row.started_at, getattr(row, "step_number", 0) or 0))


@contextmanager
def recording(
    *,
    sampler: Sampler | None = None,
    sdk: bool = True,
    classify: Callable[[BaseException | None], Status] | None = None,
    meter_provider: MeterProvider | None = None,
    is_enabled: Callable[[str | None, str | None], bool] | None = None,
    logger_provider: LoggerProvider | None = None,
    redact: Redact | None = None,
    **settings: Any,
) -> Iterator[Recording]:
    """Records within the block, with both libraries instrumented. ``sdk=False``: there is only the API."""
    lifecycle.disarm()
    sink, exporter = Sink(), InMemorySpanExporter()
    provider: TracerProvider | None = None
    if sdk:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = lifecycle.arm(
        Settings.load(**settings),
        tracer_provider=provider,
        meter_provider=meter_provider,
        logger_provider=logger_provider,
        classify=classify,
        is_enabled=is_enabled,
        redact=redact,
        writer=sink,
    )
    assert recorder is not None
    instrumentors = [make() for make in INSTRUMENTORS.values()]
    for instrumentor in instrumentors:
        instrumentor.instrument(skip_dep_check=True)
    try:
        yield Recording(recorder, sink, exporter, provider)
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
        lifecycle.disarm()


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in these chunks, for both kinds of client."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


def answer(status: int = 200, **headers: str) -> httpx.Response:
    """One in one piece; with a status of 400 or more that error."""
    body = ANSWER if status < 400 else OpenAIChat().error(status)
    data = json.dumps(body).encode()
    given = {"content-type": "application/json", "content-length": str(len(data)), **headers}
    return httpx.Response(status, headers=given, stream=Chunks([data]))


def stream(*, terminal: bool = True, error: bool = False) -> httpx.Response:
    """A streamed one of three deltas, each event a chunk; with ``error`` an error event after the first delta."""
    events = [
        piece.data for piece in OpenAIChat().stream("gpt-5-mini-2026", ["a", "b", "c"], usage=True, terminal=terminal)
    ]
    if error:
        events[2:2] = [OpenAIChat().error_event()]
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks(events))


class Model:
    """A model in this process. Each request takes the next of ``answers`` (an exception is raised), else a good one."""

    def __init__(self, *answers: httpx.Response | BaseException) -> None:
        self.answers = deque(answers)
        self.requests: list[httpx.Request] = []
        self.sync = httpx.Client(transport=httpx.MockTransport(self._handle))
        self.asynchronous = httpx.AsyncClient(transport=httpx.MockTransport(self._handle))

    def call(self) -> httpx.Response:
        """One call in one piece, by a bare client."""
        return self.sync.post(URL, json=BODY)

    async def acall(self) -> httpx.Response:
        return await self.asynchronous.post(URL, json=BODY)

    def open(self) -> httpx.Response:
        """A call whose body nobody has begun to read yet."""
        self.answers.append(stream())
        return self.sync.send(self.sync.build_request("POST", URL, json={**BODY, "stream": True}), stream=True)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answered = self.answers.popleft() if self.answers else answer()
        if isinstance(answered, BaseException):
            raise answered
        return answered
