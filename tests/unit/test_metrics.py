"""The metrics about ourselves say what the writer counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_chatdebug import faults, lifecycle
from otel_chatdebug.pipeline import metrics
from otel_chatdebug.settings import Settings
from otel_chatdebug.tables.writer import WriterStats


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(api, "get_meter", provider.get_meter)
    yield reader
    provider.shutdown()


def observed(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    found: dict[str, Any] = {}
    for resource in data.resource_metrics if data else []:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name] = [point.value for point in metric.data.data_points]
    return found


def test_each_count_of_the_writer_is_observed(reader: InMemoryMetricReader) -> None:
    stats = WriterStats(
        written=7, spooled=4, dropped=2, failed=0, queue_length=3, queue_size=9, last_write_seconds=0.25
    )
    metrics.observe("test", lambda: stats)
    found = observed(reader)
    assert found[metrics.WRITTEN] == [7]
    assert found[metrics.DROPPED] == [2]
    assert found[metrics.QUEUE] == [3]
    assert found[metrics.QUEUE_SIZE] == [9]
    assert found[metrics.SPOOLED] == [4]
    assert found[metrics.LATENCY] == [0.25]


def test_nothing_is_observed_while_nothing_is_recorded(reader: InMemoryMetricReader) -> None:
    metrics.observe("test", lambda: None)
    found = observed(reader)
    assert not found.keys() & {metrics.WRITTEN, metrics.DROPPED, metrics.QUEUE, metrics.LATENCY}


def test_a_fault_is_observed_by_its_place(reader: InMemoryMetricReader) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        faults.fault("test_metrics")
    metrics.observe("test", lambda: None)
    assert faults.counts()["test_metrics"] in observed(reader)[metrics.FAULTS]


def test_what_is_armed_is_observed(
    reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch, chatdebug_home: Any
) -> None:
    monkeypatch.setattr(lifecycle, "_observed", False)
    lifecycle.disarm()
    lifecycle.arm(Settings.load())
    try:
        assert observed(reader)[metrics.WRITTEN] == [0]
    finally:
        lifecycle.disarm()
    assert metrics.WRITTEN not in observed(reader)
