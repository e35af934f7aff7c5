"""The benchmark works and says what it must. What it measures is never asserted: a machine has other things to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import redaction
from benchmarks.overhead import as_readme
from benchmarks.variants import ALL, PEERS, VARIANTS, missing
from tests.support.backends import Collector

ROOT = Path(__file__).resolve().parents[2]


def overhead(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.overhead", "--quick", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_rows(table: dict[str, Any]) -> None:
    """A row for each variant that is installed, with both workloads measured; the others say what is missing."""
    assert [row["variant"] for row in table["rows"]] == list(VARIANTS)
    for row in table["rows"]:
        if missing(VARIANTS[row["variant"]]) is not None:
            assert "not installed" in row["missing"]
            continue
        for workload in ("json", "stream"):
            measured = row[workload]
            assert measured["plain_us"] > 0
            assert measured["pairs"] >= 2
            for kind in ("wall", "cpu"):
                assert 0 < measured[kind]["low"] <= measured[kind]["median"] <= measured[kind]["high"]


@pytest.mark.slow
def test_the_quick_benchmark_has_a_row_for_each_variant_and_says_why_a_table_is_left_out() -> None:
    result = json.loads(overhead("--json").stdout)
    peers, everything = result["tables"]
    assert (peers["terms"], everything["terms"]) == (PEERS, ALL)
    assert_rows(peers)
    assert everything["rows"] == []
    assert "collector" in everything["missing"]
    assert result["versions"]["openai"]
    calls = result["others"]["calls"]
    assert {"a stream of 5,000 events", "anthropic, JSON", "anthropic, stream"} <= calls.keys()
    assert all(one["plain_us"] > 0 for one in calls.values())
    text = as_readme(result)
    for row in peers["rows"]:
        assert f"| {row['label']} |" in text
    assert "Left out: " in text


@pytest.mark.slow
@pytest.mark.backends
def test_with_a_collector_everything_on_is_measured_for_all(collector: Collector) -> None:
    """Each variant checks by itself that its spans were taken, or its rows written."""
    result = json.loads(overhead("--json", "--collector", collector.grpc_endpoint).stdout)
    assert_rows(result["tables"][1])


@pytest.mark.slow
def test_a_profile_names_our_functions_and_their_lines() -> None:
    said = overhead("--profile", "chatdebug").stdout
    for workload in ("json", "stream"):
        assert f"otel-chatdebug: {workload}: " in said
    assert "Recorder.start_span" in said


def test_what_redaction_costs_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert redaction.main(["--quick"]) == 0
    shown = capsys.readouterr().out
    for name in redaction.pieces():
        assert f"| {name} |" in shown
