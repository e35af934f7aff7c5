"""Several processes and one database."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from otel_chatdebug.tables import writer

FIRST_START = """
import logging, sys
from otel_chatdebug.records import RunRecord, Source
from otel_chatdebug.status import Status
from otel_chatdebug.tables import migrations, queries
from otel_chatdebug.tables.writer import Beat, Writer

logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)

class Live:
    final = queued = True
    size = 0
    def records(self):
        return [RunRecord(id=sys.argv[2], rank=0, updated_at=1, replica_id="r", status=Status.IN_PROGRESS,
                          kind="auto", started_at=1)]

writer = Writer(sys.argv[1], replica_id="r", heartbeat_interval=9, beat=Beat)
print("ready", flush=True)
sys.stdin.readline()
writer.put(Live())
print(writer.flush(60), writer.close())
"""


def test_four_processes_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    path = tmp_path / "tables.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_START, f"sqlite:///{path}", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(writer.__file__).parents[2])},
        )
        for number in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert said == ["True True\n"] * 4
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = [id for (id,) in connection.execute("SELECT id FROM chat_debug_runs ORDER BY id")]
    assert found == ["0", "1", "2", "3"]
