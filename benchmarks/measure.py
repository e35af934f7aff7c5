"""Measures one variant in this process: blocks of calls, plain and instrumented in turn.

``python -m benchmarks.measure VARIANT TERMS SECONDS PAIRS CALLS`` prints JSON; CALLS is ``common``
(`benchmarks.workload`) or ``others`` (`benchmarks.others`). A process of its own for each variant, since
a tracer provider is there for life and a patch that was taken off may leave traces; and both sides in that one process,
since two processes differ more (hash seeds, memory layout) than what is to be measured.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter, process_time
from typing import Any, Final

from benchmarks.others import OtherApplication
from benchmarks.variants import VARIANTS, Variant
from benchmarks.workload import Application

COMMON, OTHERS = "common", "others"
"""Which calls are measured."""

WARM_UP: Final = 0.15
"""Share of a block's calls that are made before its clock starts: patching a class makes the interpreter forget what it
has learned about it."""


@dataclass(frozen=True)
class Block:
    """Seconds for each call of one block."""

    cpu: float
    """Processor time of all threads, until everything is written and exported. Nothing is waited for in a call, so that
    is what it takes on an idle machine; it hides nothing that is done later, and bears a machine that is not idle."""
    wall: float
    """The calls alone, as the application sees them; whatever else the machine does slows them."""


@dataclass(frozen=True)
class Spread:
    """The median of a sample, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Result:
    """One workload of one variant."""

    plain_us: float
    """Processor time of a call: the median of the plain blocks, microseconds."""
    added_us: float
    """Processor time that instrumentation adds to a call: the median of the differences, microseconds."""
    cpu: Spread
    """Instrumented divided by the plain block beside it."""
    wall: Spread
    calls_per_block: int
    pairs: int


def run_block(variant: Variant, call: Callable[[], None], calls: int, *, instrumented: bool) -> Block:
    if instrumented:
        variant.switch_on()
    try:
        with variant.request():
            for _ in range(warm_up(calls)):
                call()
            variant.drain()
            gc.collect()
            cpu, wall = process_time(), perf_counter()
            for _ in range(calls):
                call()
            wall = perf_counter() - wall
        variant.drain()
        cpu = process_time() - cpu
    finally:
        if instrumented:
            variant.switch_off()
    return Block(cpu / calls, wall / calls)


def warm_up(calls: int) -> int:
    """Calls before the clock starts."""
    return max(1, round(calls * WARM_UP))


def calls_for(call: Callable[[], None], seconds: float) -> int:
    """How many plain calls take about ``seconds``."""
    call()
    once = []
    for _ in range(3):
        start = process_time()
        call()
        once.append(process_time() - start)
    return max(1, round(seconds / min(once)))


def measure(variant: Variant, *, seconds: float, pairs: int) -> dict[str, Any]:
    """All workloads, in ``pairs`` pairs of blocks of about ``seconds`` each."""
    results: dict[str, Any] = {}
    instrumented_calls = 0
    for name, call in variant.application.workloads().items():
        calls = calls_for(call, seconds)
        run_block(variant, call, calls, instrumented=True)
        instrumented_calls += calls + warm_up(calls)
        plain: list[Block] = []
        instrumented: list[Block] = []
        for pair in range(pairs):
            sides = [(plain, False), (instrumented, True)]
            for blocks, on in sides if pair % 2 else reversed(sides):  # neither side is always the first
                blocks.append(run_block(variant, call, calls, instrumented=on))
            instrumented_calls += calls + warm_up(calls)
        both = list(zip(instrumented, plain, strict=True))
        results[name] = asdict(
            Result(
                plain_us=1e6 * statistics.median(block.cpu for block in plain),
                added_us=1e6 * statistics.median(one.cpu - other.cpu for one, other in both),
                cpu=Spread.of([one.cpu / other.cpu for one, other in both]),
                wall=Spread.of([one.wall / other.wall for one, other in both]),
                calls_per_block=calls,
                pairs=pairs,
            )
        )
    variant.check(instrumented_calls)
    spans = variant.spans()
    if spans is not None:
        roots = 2 * (pairs + 1) - 1 if variant.local_root else 0  # one for each block; the first pair has no plain one
        found = (spans - roots * len(results)) / instrumented_calls
        assert found == variant.spans_per_call, f"{found} spans for a call, not {variant.spans_per_call}"
    return results


def main() -> None:
    name, terms, seconds, pairs, calls = sys.argv[1:]
    application = OtherApplication() if calls == OTHERS else Application()
    variant = VARIANTS[name](application, terms)
    try:
        results = measure(variant, seconds=float(seconds), pairs=int(pairs))
    finally:
        variant.close()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
