"""What an application hands to `finish` and `step`: objects of SDKs, and things that are no such values at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

import otel_chatdebug as chatdebug
from otel_chatdebug import Status
from otel_chatdebug.records import RunRecord, StepContent, StepRecord
from otel_chatdebug.wire.counted import token_counts
from tests.support.recording import Model, Recording, recording


@pytest.fixture
def record() -> Iterator[Recording]:
    with recording() as found:
        yield found


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class Answer(BaseModel):
    id: str
    absent: str | None = None
    usage: Usage


@dataclass
class Mine:
    text: str


def test_finish_takes_what_sdks_answer_with(record: Recording) -> None:
    """``finish(response=answer, usage=answer.usage)`` is what people write."""
    answer = Answer(id="a1", usage=Usage(prompt_tokens=7, completion_tokens=5))
    with chatdebug.run() as run:
        with chatdebug.step() as step:
            Model().call()
            assert step.finish(response=answer, usage=answer.usage)
        with chatdebug.step() as other:
            other.finish(response=[Mine("x")], usage={"input_tokens": 3, "cache_read_tokens": 2})
    first, second = record.steps
    assert first.usage is not None
    assert (first.usage["input_tokens"], first.usage["output_tokens"]) == (7, 5)
    assert second.usage == {"input_tokens": 3, "cache_read_tokens": 2}
    told = {row.id: row.normalized_response for row in record.contents if isinstance(row, StepContent)}
    assert told == {
        step.id: {"id": "a1", "usage": {"prompt_tokens": 7, "completion_tokens": 5}},
        other.id: [{"text": "x"}],
    }
    assert record.get(run.id).status is Status.COMPLETED


@pytest.mark.parametrize("odd", [{"input_tokens": "seven", "output_tokens": None}, "7", 7, [7], object()])
def test_what_is_no_usage_costs_no_other_word_and_no_run(
    record: Recording, odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with chatdebug.run() as run:
        with chatdebug.step(metadata=odd) as step:
            assert step.finish("error", usage=odd, metadata=odd, error="bad")
        with chatdebug.step() as next_step:
            next_step.finish(usage={"input_tokens": 4})
    row, whole = record.get(step.id), record.get(run.id)
    assert isinstance(row, StepRecord)
    assert isinstance(whole, RunRecord)
    assert (row.status, row.error, row.usage) == (Status.ERROR, {"type": "_OTHER", "message": "bad"}, None)
    assert whole.status is Status.COMPLETED
    assert whole.summary["total_input_tokens"] == 4
    assert isinstance(odd, dict) or "usage=" in caplog.text


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}},
            {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13, "cache_read_tokens": 2},
        ),
        (
            {"input_tokens": 9, "output_tokens": 4, "cache_read_input_tokens": 2, "cache_creation_input_tokens": None},
            {"input_tokens": 11, "output_tokens": 4, "total_tokens": 15, "cache_read_tokens": 2},
        ),
        (
            {"input_tokens": 9, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 1}},
            {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13, "reasoning_tokens": 1},
        ),
        (
            {"prompt_token_count": 9, "candidates_token_count": 4, "thoughts_token_count": 1},
            {"input_tokens": 9, "output_tokens": 5, "total_tokens": 14, "reasoning_tokens": 1},
        ),
        (
            {"input_tokens": 9, "output_tokens": 4.0, "total_tokens": True, "note": "x"},
            {"input_tokens": 9, "output_tokens": 4},
        ),
    ],
    ids=["openai chat", "anthropic", "openai responses", "google-genai", "ours"],
)
def test_counts_mean_the_same_whoever_names_them(given: dict[str, Any], counted: dict[str, int]) -> None:
    assert token_counts(given) == counted
