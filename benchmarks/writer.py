"""What writing to the tables takes: ``python -m benchmarks.writer``, or ``make bench-writer``.

A finished attempt is a run, a step and an attempt that have ended, with headers, bodies and messages: five rows. The
writers of 1, 4 and 16 processes get as many of them as they take, into one SQLite file and into one PostgreSQL (that of
the tests); then a single one gets a tenth of the rate that is to be reached, while a reader looks for each row.

The last part asks what the user's call pays while the database is away: calls with the database there and with it
frozen take turns in one process, and their times are divided. What lists cost in tables with a million runs is in
benchmarks/READING.md. ``--write`` keeps the result in benchmarks/WRITING.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, func, select

from otel_chatdebug.records import AttemptContent, AttemptRecord, Record, RunRecord, StepContent, StepRecord
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, migrations, schema
from otel_chatdebug.tables.writer import Beat, Writer
from tests.support.postgres import Postgres, find

REACH: Final = 2000
"""Finished attempts a second."""

REACH_MS: Final = 250.0
"""Milliseconds from the end of an attempt to its visible row, at the 99th percentile, at a tenth of that load."""

PROCESSES: Final = (1, 4, 16)
WAITING: Final = 1_000
"""Attempts that a process lets wait in its writer's queue before it goes on."""

CALLS: Final = 100
"""In each turn with and without a database."""

LOOK_SECONDS: Final = 0.002
"""Between two looks of the reader."""

RESULT: Final = Path(__file__).with_name("WRITING.md")

REQUEST: Final = {
    "messages": [
        {"role": "system", "parts": [{"type": "text", "text": "You are helpful."}]},
        {"role": "user", "parts": [{"type": "text", "text": "What is the weather like in Berlin today? " * 5}]},
    ],
    "options": {"temperature": 0.3, "stream": True},
}
RESPONSE: Final = {
    "messages": [{"role": "assistant", "parts": [{"type": "text", "text": "It is rather sunny. " * 20}]}],
    "finish_reasons": ["stop"],
}
HEADERS: Final = [[f"x-header-{number}", "a value of some length"] for number in range(12)]


class Finished:
    """A finished attempt, as a source of the writer."""

    final = queued = True
    size = 16_384

    def __init__(self, replica: str, number: int, at: int) -> None:
        self.replica, self.number, self.at = replica, number, at

    def strip(self) -> None:
        """All of it or nothing: nothing is to be dropped here."""

    def records(self) -> list[Record]:
        at, id = self.at, f"{self.replica}{self.number:012x}"
        common: dict[str, Any] = {"updated_at": at, "replica_id": self.replica}
        chat = f"chat {self.number % 1000}"
        state: dict[str, Any] = {
            "status": Status.COMPLETED, "rank": 3, "started_at": at - 900_000, "finished_at": at, "chat_id": chat,
            "trace_id": id * 2, "span_id": id,
        }  # fmt: skip
        summary = {"first_message": "What is the weather", "step_count": 1, "total_input_tokens": 20}
        return [
            RunRecord(
                id=id, kind="chat_turn", provider="openai", model="gpt-5-mini", summary=summary, **state, **common
            ),
            StepRecord(
                id=id, run_id=id, step_number=1, operation="stream", provider="openai", model="gpt-5-mini",
                usage={"input_tokens": 20, "output_tokens": 40}, metadata={"finish_reasons": ["stop"]},
                **state, **common,
            ),
            AttemptRecord(
                id=id, step_id=id, run_id=id, number=1, end_reason="body_close", method="POST",
                url="https://api.openai.com/v1/chat/completions", path="/v1/chat/completions", response_status=200,
                bytes_received=5000, events=60, first_byte_at=at - 500_000, last_byte_at=at, duration_ms=900.0,
                **state, **common,
            ),
            AttemptContent(
                id=id, step_id=id, run_id=id, chat_id=chat, rank=1, request_headers=HEADERS, response_headers=HEADERS,
                request_body='{"model":"gpt-5-mini"}' * 20, response_body='data: {"x":1}\n\n' * 130, **common,
            ),
            StepContent(
                id=id, run_id=id, chat_id=chat, rank=1, normalized_request=REQUEST, normalized_response=RESPONSE,
                **common,
            ),
        ]  # fmt: skip


def _writer(url: str, replica: str) -> Writer:
    return Writer(url, replica_id=replica, heartbeat_interval=2.0, beat=Beat)


def _produce(url: str, replica: str, seconds: float, ready: Any, go: Any, told: Any) -> None:
    """In a process of its own: as many as the writer takes."""
    writer = _writer(url, replica)
    writer.put(Finished(replica, 0, time.time_ns() // 1000))
    writer.flush(60)
    ready.release()
    go.wait()
    number, cpu, ends = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < ends:
        if writer.stats.queue_length < WAITING:
            for _ in range(100):
                number += 1
                writer.put(Finished(replica, number, time.time_ns() // 1000))
        else:
            time.sleep(0.002)
    writer.flush(60)
    told.put((number, time.process_time() - cpu, writer.stats.dropped))
    writer.close()


def throughput(url: str, processes: int, seconds: float) -> tuple[float, float]:
    """Finished attempts a second, until all are written; microseconds of the writers' processor time for each."""
    context = multiprocessing.get_context("spawn")
    ready, go, told = context.Semaphore(0), context.Event(), context.Queue()
    children = [
        context.Process(target=_produce, args=(url, f"{number:04x}", seconds, ready, go, told))
        for number in range(processes)
    ]
    for child in children:
        child.start()
    for _ in children:
        ready.acquire()
    began = time.monotonic()
    go.set()
    results = [told.get() for _ in children]
    took = time.monotonic() - began
    for child in children:
        child.join()
    count = sum(number for number, _, _ in results)
    dropped = sum(lost for _, _, lost in results)
    if dropped:
        raise SystemExit(f"{dropped} records were dropped: nothing is measured this way")
    engine = create_engine(url)
    with engine.connect() as connection:
        there = connection.scalar(select(func.count()).select_from(schema.attempts))
    engine.dispose()
    if there != count + processes:
        raise SystemExit(f"{there} attempts are in the table, {count + processes} were written")
    return count / took, sum(cpu for _, cpu, _ in results) / count * 1e6


def _trickle(url: str, rate: float, seconds: float, ready: Any, go: Any) -> None:
    writer = _writer(url, "aaaa")
    writer.put(Finished("aaaa", 0, time.time_ns() // 1000))
    writer.flush(60)
    ready.release()
    go.wait()
    began = time.monotonic()
    for number in range(1, int(rate * seconds) + 1):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        writer.put(Finished("aaaa", number, time.time_ns() // 1000))
    writer.close(60)


def visibility(url: str, seconds: float) -> tuple[float, float, int]:
    """Milliseconds from the end of an attempt to its visible row: median and 99th percentile; how many were seen."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    child = context.Process(target=_trickle, args=(url, REACH / 10, seconds, ready, go))
    child.start()
    ready.acquire()
    engine = database.open_engine(url, read_only=True)
    attempts = schema.attempts
    late: list[float] = []
    cursor = f"aaaa{0:012x}"
    go.set()
    expected = int(REACH / 10 * seconds)
    while len(late) < expected:
        with engine.connect() as connection:
            rows = connection.execute(
                select(attempts.c.id, attempts.c.updated_at).where(attempts.c.id > cursor).order_by(attempts.c.id)
            ).all()
        now = time.time_ns() // 1000
        for id, at in rows:
            late.append((now - at) / 1000)
            cursor = id
        if not rows and not child.is_alive():
            raise SystemExit(f"{len(late)} of {expected} rows came")
        time.sleep(LOOK_SECONDS)
    child.join()
    engine.dispose()
    return statistics.median(late), statistics.quantiles(late, n=100)[98], len(late)


def away(server: Postgres, rounds: int) -> tuple[float, float, float]:
    """Calls while the database is frozen, divided by calls while it answers, in turns: median and quartiles."""
    import httpx

    import otel_chatdebug
    from otel_chatdebug import lifecycle

    answer = {"id": "x", "object": "chat.completion", "model": "gpt-5-mini", "choices": []}
    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=answer)))
    otel_chatdebug.configure(database_url=server.url(server.new_database()))

    def calls() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            client.post("http://127.0.0.1/v1/chat/completions", json=REQUEST)
        return time.perf_counter() - began

    calls()
    lifecycle.flush(60)
    ratios = []
    for _ in range(rounds):
        there = calls()
        lifecycle.flush(60)
        server.freeze()
        try:
            ratios.append(calls() / there)
        finally:
            server.thaw()
        lifecycle.flush(60)
    otel_chatdebug.shutdown()
    low, median, high = statistics.quantiles(ratios, n=4)
    return median, low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default 10)")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/WRITING.md")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    lines: list[str] = []
    with ExitStack() as stack:
        server = stack.enter_context(Postgres(find()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        numbers = iter(range(1000))
        new: dict[str, Callable[[], str]] = {
            "SQLite": lambda: f"sqlite:///{folder / f'{next(numbers)}.db'}",
            "PostgreSQL": lambda: server.url(server.new_database()),
        }
        for name, make in new.items():
            for processes in PROCESSES:
                _say(f"{name}, {processes} writers")
                url = make()
                engine = database.open_engine(url)
                migrations.upgrade(engine)
                engine.dispose()
                rate, cpu = throughput(url, processes, given.seconds)
                verdict = "" if processes > 1 else f" (reach {REACH:,}: {'reached' if rate >= REACH else 'missed'})"
                lines.append(f"| {name} | {processes} | **{rate:,.0f}**{verdict} | {cpu:.0f} |")
        lines.append("")
        lines += [
            f"## From the end of an attempt to its visible row, at {REACH // 10} attempts a second",
            "",
            "| | median | 99th percentile |",
            "|---|---|---|",
        ]
        for name, make in new.items():
            _say(f"{name}, visibility")
            median, last, count = visibility(make(), given.seconds)
            verdict = "reached" if last <= REACH_MS else "missed"
            lines.append(
                f"| {name} ({count} rows) | {median:.0f} ms | **{last:.0f} ms** (reach {REACH_MS:.0f}: {verdict}) |"
            )
        _say("a database that does not answer")
        median, low, high = away(server, 30)
        lines += [
            "",
            "## What a user's call pays while the database does not answer",
            "",
            "Model calls that are answered at once in this process, while PostgreSQL stands still, divided by calls",
            f"while it answers, in turns: **{median:.2f}** (the middle half: {low:.2f} to {high:.2f}).",
        ]
    _say("")
    text = _page(lines, load)
    print(text)
    if given.write:
        RESULT.write_text(text)


def _say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
    elif what:
        print(what, file=sys.stderr, flush=True)


def _page(lines: list[str], load: float) -> str:
    machine = f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    head = [
        "# What writing to the tables takes",
        "",
        "*Made by `make bench-writer ARGS=--write` (`benchmarks/writer.py`); not to be edited by hand.*",
        "",
        "A finished attempt is a run, a step and an attempt that have ended, with headers, bodies and messages: five",
        "rows. The processes share the processors with PostgreSQL, whose files are not forced to the disk here. What",
        "lists cost with a million runs in the tables is in [READING.md](READING.md).",
        "",
        f"Measured on {time.strftime('%Y-%m-%d')}: {machine}, load average {load:.1f} when it began.",
        "",
        "## Finished attempts a second",
        "",
        "| | processes that write | attempts a second | µs of their processor time each |",
        "|---|---|---|---|",
    ]
    return "\n".join(head + lines) + "\n"


if __name__ == "__main__":
    main()
