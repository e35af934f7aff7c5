"""Where the time of our code goes: a sampling profile of one variant, by function and by line.

A timer interrupts the main thread some thousand times a second, and each sample is booked on the innermost function of
ours on the stack, together with what that function calls in other packages; so a line that makes a span carries the
SDK's cost of it. Below the wrappers that forward a call, what is not ours is the application's own work. A tracing
profiler would make small functions look dear.

Where the inbox's own thread would fold the end of a stream, the main thread does it here, so that the samples see it.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, Final

import otel_chatdebug
from benchmarks.measure import run_block
from benchmarks.variants import PEERS, VARIANTS, Ours, Variant
from benchmarks.workload import Application
from otel_chatdebug import lifecycle

SECONDS: Final = 10.0
"""Of sampling, for each workload."""

INTERVAL: Final = 0.0003
"""Seconds between two samples."""

TOP: Final = 25
"""Functions that are printed; and for each of them at most `LINES` lines."""

LINES: Final = 4

PACKAGE: Final = str(Path(otel_chatdebug.__file__).parent)

FORWARDING: Final = frozenset({"call_method", "send_single_request", "__iter__", "close"})
"""Our functions inside of which the application's own work goes on."""


class Sampler:
    """Counts samples by the innermost line of ours."""

    def __init__(self) -> None:
        self.samples = 0
        self.lines: Counter[tuple[str, str, int]] = Counter()

    def sample(self, _: int, frame: FrameType | None) -> None:
        self.samples += 1
        foreign = False
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                if not (foreign and code.co_name in FORWARDING):
                    self.lines[code.co_filename[len(PACKAGE) + 1 :], code.co_qualname, frame.f_lineno or 0] += 1
                return
            foreign = True
            frame = frame.f_back

    def __enter__(self) -> Sampler:
        self._handler = signal.signal(signal.SIGALRM, self.sample)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)


def profile(name: str, *, seconds: float) -> None:
    """Prints the profile of both workloads, microseconds for a call."""
    variant = VARIANTS[name](Application(), PEERS)
    try:
        for workload, call in variant.application.workloads().items():
            cost = _cost(variant, call)
            sampler = _sample(variant, call, seconds)
            _print(f"{variant.label}: {workload}", sampler, cost)
    finally:
        variant.close()


def _cost(variant: Variant, call: Callable[[], None]) -> float:
    """Processor time of an instrumented call in microseconds, not slowed by samples: the best of some blocks."""
    return 1e6 * min(run_block(variant, call, 5, instrumented=True).cpu for _ in range(10))


def _sample(variant: Variant, call: Callable[[], None], seconds: float) -> Sampler:
    sampler = Sampler()
    if isinstance(variant, Ours):
        _fold_here()
    variant.switch_on()
    try:
        with variant.request():
            call()
            end = perf_counter() + seconds
            with sampler:
                while perf_counter() < end:
                    call()
                    if isinstance(variant, Ours):
                        lifecycle.flush()
    finally:
        variant.switch_off()
    return sampler


def _fold_here() -> None:
    """Stops the inbox's own thread for good: `lifecycle.flush` folds in the thread that calls it."""
    recorder: Any = lifecycle.arm()
    recorder.inbox.stop(5.0)
    recorder.on_start = None


def _print(title: str, sampler: Sampler, cost: float) -> None:
    each = cost / max(1, sampler.samples)
    functions: Counter[tuple[str, str]] = Counter()
    for (file, function, _), count in sampler.lines.items():
        functions[file, function] += count
    ours = functions.total() * each
    print(f"\n{title}: {cost:.0f} µs for a call, {ours:.0f} of them in otel_chatdebug ({sampler.samples} samples)")
    for (file, function), count in functions.most_common(TOP):
        print(f"{count * each:8.1f}  {file}  {function}")
        lines = Counter({line: n for (f, g, line), n in sampler.lines.items() if (f, g) == (file, function)})
        for line, n in lines.most_common(LINES):
            source = _source(file, line)
            print(f"{n * each:12.1f}      {line}: {source}")
    sys.stdout.flush()


def _source(file: str, line: int) -> str:
    if not line:  # between two instructions
        return ""
    return Path(PACKAGE, file).read_text().splitlines()[line - 1].strip()[:100]
