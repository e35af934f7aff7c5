"""A call of a real SDK under a run that is over: a background task that outlives the turn which started it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_chatdebug as chatdebug
from otel_chatdebug.demo.provider import Behaviour, Provider
from otel_chatdebug.tables import queries


@pytest.mark.parametrize("fails_first", [False, True], ids=["answered", "retried"])
def test_it_gets_an_auto_run_of_its_own_linked_to_the_one_that_is_over(
    fails_first: bool, database_url: str, chatdebug_home: Path
) -> None:
    spans = InMemorySpanExporter()
    tracing = TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    messages: Any = [{"role": "user", "content": "Hello?"}]

    async def turn(url: str) -> str:
        over = asyncio.Event()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=1) as client:

            async def summarise_later() -> None:
                await over.wait()
                await client.chat.completions.create(model="gpt-5-mini", messages=messages)

            with chatdebug.run(chat_id="c") as run:
                await client.chat.completions.create(model="gpt-5-mini", messages=messages)
                later = asyncio.create_task(summarise_later())
            over.set()
            await later
        return run.id

    chatdebug.configure(database_url=database_url, tracer_provider=tracing)
    try:
        with Provider() as provider:
            provider.script(Behaviour(), *([Behaviour(status=429, retry_after=0)] if fails_first else []), Behaviour())
            run_id = asyncio.run(turn(provider.url))
        assert chatdebug.flush(60)
    finally:
        chatdebug.shutdown()
        tracing.shutdown()
    engine = queries.open_for_reading(database_url)
    try:
        late, first = (queries.load_run(engine, run["id"]) for run in queries.list_runs(engine, queries.RunFilter()))
    finally:
        engine.dispose()
    assert (first["id"], first["kind"], first["status"]) == (run_id, "chat_turn", "completed")
    assert (late["kind"], late["status"], late["chat_id"]) == ("auto", "completed", None)
    assert [len(run["steps"]) for run in (first, late)] == [1, 1]
    assert len(late["steps"][0]["attempts"]) == 1 + fails_first
    by_id = {f"{span.context.span_id:016x}": span for span in spans.get_finished_spans() if span.context is not None}
    (link,) = by_id[late["span_id"]].links
    assert f"{link.context.trace_id:032x}" == run_id
    assert f"{link.context.span_id:016x}" == first["span_id"]
    # And its calls are below it, in its trace.
    assert {step["trace_id"] for step in late["steps"]} == {late["id"]}
