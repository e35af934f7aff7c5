"""A span processor of the user's may take as long as it likes: the tables do not wait for it."""

from __future__ import annotations

import threading
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

import otel_chatdebug as chatdebug
from otel_chatdebug import lifecycle
from otel_chatdebug.records import RunRecord
from otel_chatdebug.status import Status
from tests.support.recording import Model, recording

PATIENCE: Final = 10.0
"""Seconds that another thread may take."""


class Stuck(SpanProcessor):
    """One that exports at once, to a collector that is gone."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()

    def on_end(self, span: ReadableSpan) -> None:
        self.entered.set()
        self.released.wait(3 * PATIENCE)


def test_a_shutdown_tells_the_tables_and_ends_in_time_while_a_span_processor_is_stuck() -> None:
    stuck = Stuck()
    with recording() as recorded:
        assert recorded.provider is not None
        run = chatdebug.run()
        with run.attach():
            Model().call()
        recorded.provider.add_span_processor(stuck)
        ending = threading.Thread(target=lambda: lifecycle.disarm(0.5), daemon=True)
        ending.start()
        try:
            ending.join(PATIENCE)
            assert not ending.is_alive()
            row = recorded._sink.rows[RunRecord][run.id]
            assert isinstance(row, RunRecord)
            assert row.status is Status.INTERRUPTED
            assert stuck.entered.wait(PATIENCE)
        finally:
            stuck.released.set()
            ending.join(PATIENCE)


def test_the_writers_thread_ends_no_spans() -> None:
    """It beats, and looks at what has come; what is user code in that is left to another thread."""
    stuck = Stuck()
    with recording() as recorded:
        assert recorded.provider is not None
        response = Model().open()
        lifecycle.flush()
        recorded.provider.add_span_processor(stuck)
        inbox = recorded.recorder.inbox
        for attempt in recorded.recorder.open_attempts.values():
            attempt.in_call = True  # type: ignore[attr-defined]  # so the inbox's thread is not woken
        response.read()
        writer = threading.Thread(target=lifecycle._beat, daemon=True)
        writer.start()
        try:
            writer.join(PATIENCE)
            assert not writer.is_alive()
            assert stuck.entered.wait(PATIENCE)
            assert inbox._thread is not None
            assert inbox._performing == {inbox._thread.ident}
        finally:
            stuck.released.set()
            writer.join(PATIENCE)
