"""What redaction costs: ``python -m benchmarks.redaction``; ``--write`` keeps the result in benchmarks/REDACTION.md.

Each piece is redacted many times in this process; the figure is the least processor time of this thread (what else the
machine does only adds). The pieces are those of the workload of `benchmarks.overhead`, and larger ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from otel_chatdebug.demo.answers import OpenAIChat
from otel_chatdebug.redaction import Redactor, UserRedactor

REPORT: Final = Path(__file__).resolve().parent / "REDACTION.md"

ROUNDS: Final = 200
"""Times that each piece is redacted; the least counts."""

HEADERS: Final = [
    ("host", "api.openai.com"), ("accept", "application/json"), ("content-type", "application/json"),
    ("user-agent", "OpenAI/Python 3.52.0"), ("x-stainless-lang", "python"), ("x-stainless-arch", "x64"),
    ("authorization", "Bearer none"), ("cookie", "a=b"), ("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
]  # fmt: skip
QUESTION: Final = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
HISTORY: Final = {
    "model": "gpt-5-mini",
    "messages": [{"role": "user", "content": f"{number}: " + "Why is the sky blue? " * 24} for number in range(100)],
}


def pieces() -> dict[str, tuple[str, Callable[[Redactor], Any]]]:
    """What is redacted, and how large it is."""
    answer = OpenAIChat().whole("gpt-5-mini", "Sunlight is scattered by the air. " * 6, usage=True)
    events = OpenAIChat().stream("gpt-5-mini", [f"word{n} " for n in range(500)], usage=True, terminal=True)
    stream = b"".join(event.data for event in events)
    secret = stream.replace(b"word7 ", b"sk-proj-" + b"abcd1234" * 2 + b" ")

    def size(value: Any) -> str:
        return f"{len(value if isinstance(value, bytes) else json.dumps(value).encode()):,}"

    def body(data: bytes) -> Callable[[Redactor], Any]:
        return lambda redactor: redactor.body(data, "text/event-stream", framed=True)

    return {
        "headers of a request": (size(HEADERS), lambda redactor: redactor.headers(HEADERS)),
        "a small request": (size(QUESTION), lambda redactor: redactor.json_body(QUESTION)),
        "a small answer": (size(answer), lambda redactor: redactor.json_body(answer)),
        "a request with 100 messages": (size(HISTORY), lambda redactor: redactor.json_body(HISTORY)),
        "a stream of 500 events (50,000 bytes are shown)": (size(stream), body(stream)),
        "the same, with a key in it": (size(secret), body(secret)),
    }


def least(action: Callable[[], Any], rounds: int) -> float:
    """Seconds of processor time."""
    found = float("inf")
    for _ in range(rounds):
        start = time.thread_time()
        action()
        found = min(found, time.thread_time() - start)
    return found


def measure(rounds: int) -> list[tuple[str, str, float]]:
    """``(piece, bytes, seconds)``."""
    redactor = Redactor()
    found = [
        (name, size, least(lambda redact=redact: redact(redactor), rounds))  # type: ignore[misc]
        for name, (size, redact) in pieces().items()
    ]
    hook = UserRedactor(lambda text, place: text)
    messages = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "x" * 3000}]}] * 100}
    start = time.perf_counter()
    for _ in range(rounds):
        hook.piece("normalized_request", messages)
    hook.close()
    found.append(
        (
            "the way to a redactor of your own and back, for 100 texts (wall)",
            "300,000",
            (time.perf_counter() - start) / rounds,
        )
    )
    return found


def as_table(found: list[tuple[str, str, float]]) -> str:
    rows = [f"| {name} | {size} | {seconds * 1e6:,.0f} µs |" for name, size, seconds in found]
    return "\n".join(["| what | bytes | takes |", "| --- | --- | --- |", *rows])


def as_report(found: list[tuple[str, str, float]]) -> str:
    machine = f"{os.cpu_count()} CPUs, {platform.platform()}, Python {platform.python_version()}"
    return f"""# What redaction costs

*Made by `python -m benchmarks.redaction --write`; not to be edited by hand.*

Processor time of the thread that writes, the least of {ROUNDS} rounds. No call waits for it: bodies and messages are
redacted when they are written.

Measured on {datetime.now(UTC):%Y-%m-%d}: {machine}, load average {os.getloadavg()[0]:.1f}.

{as_table(found)}
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.redaction", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"keep the result in {REPORT.name}")
    parser.add_argument("--quick", action="store_true", help="two rounds: only to see that it works")
    options = parser.parse_args(arguments)
    found = measure(2 if options.quick else ROUNDS)
    print(as_table(found))
    if options.write:
        REPORT.write_text(as_report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
