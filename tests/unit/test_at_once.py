"""Several threads that begin something at the same moment share what they have to share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest
from opentelemetry import context

from otel_chatdebug.pipeline import live, opening
from otel_chatdebug.status import Status
from tests.support.recording import Model, Recording, recording

PATIENCE: Final = 10.0
"""Seconds that another thread may take."""


@pytest.fixture
def record() -> Iterator[Recording]:
    with recording() as made:
        yield made


def call_at_once(count: int) -> None:
    """Calls in threads of their own that have this one's context, as ``asyncio.to_thread`` gives it."""
    model, here = Model(), context.get_current()

    def work() -> None:
        token = context.attach(here)
        model.call()
        context.detach(token)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_calls_that_begin_at_once_below_one_local_root_share_its_auto_run(
    record: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked for the run, and found none, before either has made it."""
    both = threading.Barrier(2, timeout=PATIENCE)

    class Run(live.LiveRun):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            both.wait()

    monkeypatch.setattr(opening, "LiveRun", Run)
    assert record.provider is not None
    with record.provider.get_tracer("app").start_as_current_span("request") as root:
        call_at_once(2)
    assert record.run.id == f"{root.get_span_context().trace_id:032x}"
    assert (record.run.status, record.run.summary["step_count"]) == (Status.COMPLETED, 2)
    assert sorted(step.step_number or 0 for step in record.steps) == [1, 2]
    assert record.recorder.open_runs == {}
