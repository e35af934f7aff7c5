"""What the read side takes with a million runs in the tables: ``python -m benchmarks.reading``.

Fills a database (SQLite in a temporary folder, or ``--url`` of an empty PostgreSQL database) with runs of many chats,
one of which has 10,000, each with a step and an attempt, and asks each query of `otel_chatdebug.tables.queries` many
times. ``--write`` keeps the result in benchmarks/READING.md. ``--keep FILE`` keeps the SQLite database, and uses it
again where it is there.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, Table, text

from otel_chatdebug.tables import database, migrations, queries, schema
from otel_chatdebug.tables.queries import RunFilter

REACH_MS: Final = 50.0
"""Milliseconds that a list of 50 runs may take, out of a million."""

ROUNDS: Final = 21
BATCH: Final = 10_000
START: Final = 1_780_000_000_000_000
"""When the first run starts; microseconds. One each second."""

LARGE_CHAT, LARGE_CHAT_RUNS = "large", 10_000
RUNS_PER_CHAT: Final = 20
RARE: Final = 100_003
"""One run in so many has a model, a kind and a text of its own."""

FILLING: Final = ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000")
"""Pragmas while an SQLite database is filled: a half of the time. The last one is in KiB."""

OPEN: Final = 20
"""Runs in progress: the newest."""


def fill(engine: Engine, runs: int) -> None:
    """The tables' rows, directly: what the writer would have written. Their indexes are made at the end, in one go."""
    migrations.upgrade(engine)
    started = time.monotonic()
    indexes = [index for table in schema.STATE_TABLES for index in table.indexes]
    with engine.begin() as connection:
        for index in indexes:
            index.drop(connection)
    write = _copy if engine.dialect.name == "postgresql" else _insert
    with write(engine) as put:
        for first in range(0, runs, BATCH):
            rows = list(_rows(range(first, min(first + BATCH, runs)), runs, engine.dialect.name))
            for place, table in enumerate(schema.STATE_TABLES):
                put(table, [row[place] for row in rows])
            done = first + len(rows)
            if sys.stderr.isatty() or done == runs:
                told = f"\r{done:,} runs in {time.monotonic() - started:.0f} s"
                print(told, end="", file=sys.stderr, flush=True)
    with engine.begin() as connection:
        for index in indexes:
            index.create(connection)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))  # as its autovacuum does
    print(f", with their indexes in {time.monotonic() - started:.0f} s", file=sys.stderr)


Put = Callable[[Table, list[dict[str, Any]]], None]


@contextmanager
def _insert(engine: Engine) -> Iterator[Put]:
    """Into SQLite: one transaction, which nobody has to survive."""
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        for pragma in FILLING:
            cursor.execute(f"PRAGMA {pragma}")
        statements: dict[str, str] = {}

        def put(table: Table, rows: list[dict[str, Any]]) -> None:
            names = list(rows[0])
            statement = statements.setdefault(
                table.name, f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            )
            cursor.executemany(statement, [tuple(row.values()) for row in rows])

        yield put
        connection.commit()
        connection.invalidate()  # the next one has the application's pragmas again


@contextmanager
def _copy(engine: Engine) -> Iterator[Put]:
    """Into PostgreSQL."""
    with closing(engine.raw_connection()) as connection:

        def put(table: Table, rows: list[dict[str, Any]]) -> None:
            cursor: Any = connection.cursor()
            with cursor.copy(f"COPY {table.name} ({', '.join(rows[0])}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(tuple(row.values()))

        yield put
        connection.commit()


def _rows(numbers: range, total: int, dialect: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """A run, a step and an attempt for each number; values as the driver takes them."""
    time_of, json_of = (
        schema.converter(column, dialect) or str for column in (schema.runs.c.started_at, schema.runs.c.error)
    )
    failure = json_of({"type": "rate_limit_error", "message": "too many requests"})
    for number in numbers:
        rare = number % RARE == RARE // 2
        is_open = number >= total - OPEN
        failed = number % 50 == 7
        large = total // 2 <= number < total // 2 + LARGE_CHAT_RUNS
        at = time_of(START + number * 1_000_000)
        end = None if is_open else time_of(START + number * 1_000_000 + 900_000)
        common = {
            "chat_id": LARGE_CHAT if large else f"chat {number // RUNS_PER_CHAT}",
            "status": "in_progress" if is_open else "error" if failed else "completed",
            "rank": 0 if is_open else 2 if failed else 3,
            "source": 2,
            "replica_id": "replica",
            "started_at": at,
            "updated_at": end or at,
            "heartbeat_at": at,
            "finished_at": end,
            "changed_at": end or at,
            "error": failure if failed else None,
        }
        run, step = f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:016x}", f"{number:016x}"
        question = "Where is the needle in the haystack?" if rare else f"Question {number}: why is the sky blue?"
        summary = {"first_message": question, "step_count": 1, "total_input_tokens": 12, "total_output_tokens": 34}
        yield (
            {
                **common,
                "id": run,
                "kind": "rare_kind" if rare else ("chat_turn", "title_generation")[number % 2],
                "model": "rare-model" if rare else ("gpt-5-mini", "claude-sonnet-5")[number % 2],
                "provider": "openai",
                "summary": json_of(summary),
            },
            {**common, "id": step, "run_id": run, "step_number": 1, "model": "gpt-5-mini"},
            {
                **common,
                "id": f"{number + 2**60:016x}",
                "step_id": step,
                "run_id": run,
                "number": 1,
                "bytes_received": 1000,
                "events": 10,
            },
        )


def tasks(engine: Engine) -> dict[str, Callable[[], object]]:
    """What a person or a page asks for; the cursors that some of them need are made here."""
    newest = queries.list_runs(engine)
    middle = datetime.fromtimestamp(START / 1e6, UTC) + timedelta(seconds=_count(engine) // 2)
    half_way = queries.list_runs(engine, RunFilter(until=middle))
    some = newest[25]["id"]

    def runs(**conditions: Any) -> Callable[[], object]:
        bounded = 50_000 if {"text", "error"} & conditions.keys() or len(conditions) > 1 else None
        return lambda: queries.list_runs(engine, RunFilter(**conditions), most_scanned=bounded)

    caught_up = queries.Follower(engine)
    caught_up.poll()
    return {
        "50 runs, the newest": runs(),
        "50 runs, the next page": lambda: queries.list_runs(engine, cursor=newest.older),
        "50 runs, in the middle": lambda: queries.list_runs(engine, cursor=half_way.older),
        "50 runs, the page before": lambda: queries.list_runs(
            engine, cursor=queries.list_runs(engine, cursor=half_way.older, limit=1).newer
        ),
        "50 runs of a small chat": runs(chat_id="chat 7"),
        "50 runs of a chat with 10,000": runs(chat_id=LARGE_CHAT),
        "50 runs with a common status": runs(status="completed"),
        "50 runs with a rare status": runs(status="in_progress"),
        "50 runs of a rare kind": runs(kind="rare_kind"),
        "50 runs of a rare model": runs(model="rare-model"),
        "50 runs of a common model that failed": runs(model="claude-sonnet-5", status="error"),
        "50 runs by text that many have": runs(text="SKY"),
        "50 runs by an error that some have": runs(error="rate_limit"),
        "text that few have, 50,000 runs searched": runs(text="needle"),
        "50 chats": lambda: queries.list_chats(engine),
        "kinds and models": lambda: queries.facets(engine),
        "a run with its steps": lambda: queries.load_run(engine, some),
        "an id by its beginning": lambda: queries.find(engine, some[:12]),
        "what is in progress": lambda: queries.list_waiting(engine),
        "a chat's snapshot": lambda: queries.load_chat(engine, "chat 7"),
        "the snapshot of a chat with 10,000": lambda: queries.load_chat(engine, LARGE_CHAT),
        "what changed, where nothing did": caught_up.poll,
    }


def measure(engine: Engine) -> list[tuple[str, float, float]]:
    """``(task, median, slowest)`` in milliseconds, in ``ROUNDS`` rounds after one that warms up."""
    found = []
    for name, task in tasks(engine).items():
        task()
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            task()
            times.append((time.perf_counter() - began) * 1000)
        found.append((name, statistics.median(times), max(times)))
    return found


def _count(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM chat_debug_runs")).scalar_one())


def report(engine: Engine, found: list[tuple[str, float, float]]) -> str:
    name = engine.dialect.name
    with engine.connect() as connection:
        query = "SELECT sqlite_version()" if name == "sqlite" else "SHOW server_version"
        version = connection.execute(text(query)).scalar_one()
    lines = [
        f"## {_count(engine):,} runs on {'SQLite' if name == 'sqlite' else 'PostgreSQL'} {version}",
        "",
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} CPUs, {platform.platform()}, Python "
        f"{platform.python_version()}, load average {os.getloadavg()[0]:.1f}.",
        "",
        "| asked for | median | slowest |",
        "|---|---|---|",
        *(f"| {task} | {middle:.1f} ms | {slowest:.1f} ms |" for task, middle, slowest in found),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--url", help="an empty PostgreSQL database")
    parser.add_argument("--keep", type=Path, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/READING.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = (options.keep or Path(folder) / "reading.db").resolve()
        url = options.url or f"sqlite:///{path}"
        if options.url or not path.exists():
            writing = database.open_engine(url)
            fill(writing, options.runs)
            writing.dispose()
        engine = queries.open_for_reading(url)
        try:
            told = report(engine, measure(engine))
        finally:
            engine.dispose()
    print(told)
    if options.write:
        _write(told)


def _write(told: str) -> None:
    """Replaces the section of this database, and keeps the other's."""
    page = Path(__file__).with_name("READING.md")
    title = told.split(" on ")[1].split()[0]
    head, *sections = page.read_text("utf-8").split("\n## ") if page.exists() else [INTRODUCTION]
    kept = [f"## {section}" for section in sections if f" runs on {title}" not in section.splitlines()[0]]
    page.write_text("\n".join([head.rstrip("\n") + "\n", *sorted([told, *kept], reverse=True)]), "utf-8")


INTRODUCTION: Final = f"""# What reading costs

*Made by `python -m benchmarks.reading --write`; not to be edited by hand.*

Each query of the read side, {ROUNDS} times, in one process with a warm cache. The reach is {REACH_MS:.0f} ms for a
list of 50 runs out of a million. A search for text looks at runs one by one; it is told to give up after 50,000 and
says where it stopped, so it takes the same time however many there are.
"""


if __name__ == "__main__":
    main()
