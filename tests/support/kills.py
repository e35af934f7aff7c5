"""Processes that write to the tables and are killed, hundreds of them: `python -m tests.support.kills URL KILLS SEED`.

Importing takes a second and a fork a millisecond, so one process imports what is needed, opens nothing, and forks the
children. Each writes in its own thread, as an application does, and notes what it has told the writer, and the tenths
of a second that have passed for it, by a system call each: what was noted survives the kill. A machine that stands
still for a second makes nobody a second older.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from otel_chatdebug.tables import database, merge, migrations
from otel_chatdebug.tables.writer import Beat, Writer
from tests.support.records import attempt_content, attempt_record, ended_run, run_record, step_content, step_record
from tests.support.sources import Live

TICK = 0.1
"""Seconds between two notes of a child's time."""

TICKS_UNTIL_SAFE = 10
"""A second."""

LONGEST_LIFE = 2.0
"""Seconds that a child writes until it is killed, at most."""

KILLED_EARLY = 0.2
"""The share of children that are killed while they start: while they connect, or make the tables."""

LONGEST_START = 0.5
"""Seconds after the fork within which these are killed."""

AT_ONCE = 6
"""Children."""

PAUSE = 0.04
"""Seconds between two calls of a child."""


class Noted(NamedTuple):
    """What a killed child had told its writer."""

    safe: list[str]
    """Ids of attempts that had been final for more than a second."""
    young: list[str]


def write_until_killed(url: str, name: str, log: Path, ready: int) -> None:
    """A run that is never finished, and call after call, each final at once. Closes ``ready`` before the first."""
    notes = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    writer = Writer(url, replica_id=name, heartbeat_interval=0.3, beat=lambda: Beat(runs=[f"{name} open"]))
    writer.put(Live(run_record(f"{name} open")))
    # From here on the second counts. A first start also imports, and makes the tables; kills strike there, too.
    writer.flush(600)
    os.close(ready)

    def tick() -> None:
        while True:
            time.sleep(TICK)
            os.write(notes, b"tick\n")

    threading.Thread(target=tick, daemon=True).start()
    number = 0
    while True:
        id = f"{name}-{number}"
        step = {"run_id": id, "step_number": 1, "status": "completed", "rank": 3}
        attempt = {"run_id": id, "step_id": id, "status": "completed", "rank": 3}
        writer.put(
            Live(
                ended_run(id),
                step_record(id, **step),
                attempt_record(id, **attempt),
                attempt_content(id, run_id=id, step_id=id, response_body="x" * 500),
                step_content(id, run_id=id, normalized_request={"messages": []}),
                final=True,
            )
        )
        os.write(notes, id.encode() + b"\n")
        number += 1
        time.sleep(PAUSE)


def noted(log: Path) -> Noted:
    lines = log.read_text().splitlines() if log.exists() else []
    ticks = lines.count("tick")
    found = Noted([], [])
    for line in lines:
        if line == "tick":
            ticks -= 1
        else:
            (found.safe if ticks > TICKS_UNTIL_SAFE else found.young).append(line)
    return found


def main(url: str, kills: int, seed: int, folder: Path) -> None:
    chance = random.Random(seed)
    # As an application that has worked before, so that a child's first second is not spent on imports.
    migrations.upgrade(engine := database.open_engine("sqlite://"))
    with engine.begin() as connection:
        merge.write(connection, [ended_run()])
    engine.dispose()
    if url.startswith("postgresql"):
        database.open_engine(url).dispose()  # its driver; connects to nothing
    running: dict[int, tuple[int, float]] = {}
    """By the descriptor that tells when it is ready: each child, and when it is killed."""
    started = 0
    while started < kills or running:
        while started < kills and len(running) < AT_ONCE:
            name = f"child {started}"
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    write_until_killed(url, name, folder / f"{name}.log", writing)
                finally:
                    os._exit(1)
            os.close(writing)
            early = chance.random() < KILLED_EARLY
            ends = time.monotonic() + chance.uniform(0, LONGEST_START) if early else float("inf")
            running[reading] = (child, ends)
            started += 1
        waiting = [pipe for pipe, (_, ends) in running.items() if ends == float("inf")]
        next_end = min(ends for _, ends in running.values())
        timeout = None if next_end == float("inf") else max(0.0, next_end - time.monotonic())
        for pipe in select.select(waiting, [], [], timeout)[0]:
            running[pipe] = (running[pipe][0], time.monotonic() + chance.uniform(0, LONGEST_LIFE))
        for pipe, (child, ends) in list(running.items()):
            if time.monotonic() >= ends:
                os.kill(child, signal.SIGKILL)
                assert os.waitpid(child, 0)[1] == signal.SIGKILL, "a child has ended by itself"
                os.close(pipe)
                del running[pipe]
    safe, young = [], []
    for log in folder.glob("*.log"):
        found = noted(log)
        safe += found.safe
        young += found.young
    json.dump({"safe": safe, "young": young}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
