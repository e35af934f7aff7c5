"""What instrumentation costs: ``python -m benchmarks.overhead`` (or ``make bench``) prints three tables.

Each variant is measured in a process of its own, plain against instrumented in turn (see `benchmarks.measure`), with
the calls of `benchmarks.workload`. The first table is on the peers' terms: spans and rows are made and then dropped.
The second has everything on for all: spans go by OTLP to a real collector, our rows also into SQLite. The third is for
otel-chatdebug alone, on the peers' terms: other SDKs, and a long stream (`benchmarks.others`).

The README of this folder is made by ``--write``. ``--profile VARIANT`` says which of our functions the time goes to.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import others, sampling
from benchmarks.measure import COMMON, OTHERS
from benchmarks.variants import ALL, PEERS, VARIANTS, missing
from benchmarks.workload import STREAM_CHUNKS
from tests.support.backends import BackendsMissing, Server, find_or_build, get
from tests.support.net import free_ports

ROOT: Final = Path(__file__).resolve().parents[1]
README: Final = ROOT / "benchmarks" / "README.md"
COLLECTOR_CONFIG: Final = ROOT / "benchmarks" / "collector.yaml"

REACH: Final = {"json": 1.24, "stream": 1.05}
"""What a call of ours may cost on the peers' terms, as a multiple of a plain one: the fastest peer that makes spans."""

PEER_VARIANTS: Final = ("httpx", "genai")

VERSIONS: Final = (
    "otel-chatdebug",
    "openai",
    "anthropic",
    "google-genai",
    "httpx2",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-httpx",
    "opentelemetry-instrumentation-genai-openai",
)

WORKER_TIMEOUT: Final = 1800.0
"""Seconds for one variant."""


@dataclass(frozen=True)
class Effort:
    """How much is measured: seconds of a block, and pairs of blocks for each workload."""

    seconds: float
    pairs: int


EFFORTS: Final = {PEERS: Effort(0.02, 100), ALL: Effort(0.2, 25)}
"""Many short blocks, since the machine's mood changes; longer ones where background threads are to be in their stride
(the writer gathers for 0.1 s)."""

OTHERS_EFFORT: Final = Effort(0.05, 25)

QUICK: Final = Effort(0.002, 2)

TITLES: Final = {
    PEERS: "On the peers' terms: spans to an exporter that drops them, our rows to a writer that drops them",
    ALL: "Everything on: spans by OTLP to a local collector, our rows also into SQLite",
}


class WorkerFailed(Exception):
    """A variant could not be measured; the message has the end of what its process said."""


def measure(
    name: str, terms: str, effort: Effort, endpoint: str | None, folder: Path, calls: str = COMMON
) -> dict[str, Any]:
    """One variant, in a process of its own whose environment says nothing of OpenTelemetry that we have not said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    environment["XDG_STATE_HOME"] = str(folder)
    environment["OTEL_CHATDEBUG_DATABASE_URL"] = f"sqlite:///{folder / f'{terms}-{name}.db'}"
    if endpoint is not None:
        environment["OTEL_TRACES_EXPORTER"] = "otlp"
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", name, terms, str(effort.seconds), str(effort.pairs), calls],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WORKER_TIMEOUT,
    )
    if done.returncode:
        raise WorkerFailed(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(terms: str, effort: Effort, endpoint: str | None, folder: Path) -> dict[str, Any]:
    """All variants on one of the two terms."""

    def row(name: str) -> dict[str, Any]:
        kind = VARIANTS[name]
        about = {"variant": name, "label": kind.label, "spans_per_call": kind.spans_per_call}
        reason = missing(kind)
        if reason is not None:
            return {**about, "missing": reason}
        print(f"{terms}: {kind.label}", file=sys.stderr)
        return about | measure(name, terms, effort, endpoint, folder)

    with ThreadPoolExecutor(os.cpu_count() if effort is QUICK else 1) as pool:  # one at a time where figures count
        return {"terms": terms, "title": TITLES[terms], "rows": list(pool.map(row, VARIANTS))}


def other_calls(quick: bool, folder: Path) -> dict[str, Any]:
    """The third table: by workload."""
    print("other SDKs, and a long stream", file=sys.stderr)
    missing_sdks = [name for name in others.SDKS if not others.is_installed(name)]
    effort = QUICK if quick else OTHERS_EFFORT
    return {"calls": measure("chatdebug", PEERS, effort, None, folder, OTHERS), "missing": missing_sdks}


@contextlib.contextmanager
def collector(folder: Path) -> Iterator[str]:
    """A collector that drops what it gets; its OTLP endpoint.

    Raises:
        BackendsMissing: there is none here and none can be built.
    """
    backends = find_or_build(lambda text: print(text, file=sys.stderr))
    grpc, health = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [str(backends.otelcol), "--config", str(COLLECTOR_CONFIG)]
    environment = {"BENCHMARK_OTLP_ENDPOINT": grpc, "BENCHMARK_HEALTH_ENDPOINT": health}
    with Server(command, environment, lambda: get(f"http://{health}/") is not None, folder / "otelcol.log"):
        yield f"http://{grpc}"


def everything_on(quick: bool, endpoint: str | None, folder: Path) -> dict[str, Any]:
    """The second table, or the reason why it is not there."""
    effort = QUICK if quick else EFFORTS[ALL]
    if endpoint is not None:
        return table(ALL, effort, endpoint, folder)
    left_out = {"terms": ALL, "title": TITLES[ALL], "rows": []}
    if quick:
        return {**left_out, "missing": "--quick starts no collector (--collector names one)"}
    try:
        with collector(folder) as started:
            return table(ALL, effort, started, folder)
    except BackendsMissing as exc:
        return {**left_out, "missing": str(exc)}


def versions() -> dict[str, str | None]:
    """Installed versions; None for what is not."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """The processor, how many of it, and how busy it is with other things."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 1),
    }


def as_text(result: dict[str, Any]) -> str:
    """The result as Markdown, which is also what is printed."""
    about = result["machine"]
    lines = [
        f"Measured on {result['date']}: {about['processor']}, {about['cpus']} CPUs, {about['system']},"
        f" load average {about['load']} when it began.",
        "",
        ", ".join(f"{name} {version or '(not installed)'}" for name, version in result["versions"].items()) + ".",
    ]
    for one in result["tables"]:
        lines += ["", f"## {one['title']}", ""]
        if "missing" in one:
            lines.append(f"Left out: {one['missing']}")
            continue
        lines += [
            "| | JSON call | added | wall | stream | added | wall | spans |",
            "|---|---|---|---|---|---|---|---|",
            *(_row(row) for row in one["rows"]),
        ]
        if one["terms"] == PEERS:
            lines += [
                "",
                f"Reach of otel-chatdebug: {REACH['json']} and {REACH['stream']} times plain. {_verdict(one)}",
            ]
        else:
            lines += ["", "Reach of otel-chatdebug: no dearer than the dearer of the two peers.", _verdict(one)]
    lines += [
        "",
        "## Other SDKs, and a long stream: otel-chatdebug on the peers' terms",
        "",
        "| | plain | with otel-chatdebug | added | wall | reach |",
        "|---|---|---|---|---|---|",
        *(_other(name, one) for name, one in result["others"]["calls"].items()),
        *(f"| {name} | not installed | | | | |" for name in result["others"]["missing"]),
    ]
    return "\n".join(lines) + "\n"


def _other(name: str, one: dict[str, Any]) -> str:
    reach = REACH["stream" if "stream" in name else "json"]
    verdict = "reached" if one["cpu"]["median"] <= reach else "missed"
    plain, added = f"{one['plain_us'] / 1000:.2f} ms", f"{one['added_us']:+.0f} µs"
    return f"| {name} | {plain} | {_spread(one['cpu'])} | {added} | {one['wall']['median']:.2f} | {reach}: {verdict} |"


def _row(row: dict[str, Any]) -> str:
    if "missing" in row:
        return f"| {row['label']} | {row['missing']} | | | | | | |"
    cells = [row["label"]]
    for name in REACH:
        one = row[name]
        cells += [_spread(one["cpu"]), f"{one['added_us']:+.0f} µs", f"{one['wall']['median']:.2f}"]
    return f"| {' | '.join(cells)} | {row['spans_per_call']} |"


def _spread(spread: dict[str, float]) -> str:
    return f"**{spread['median']:.2f}** ({spread['low']:.2f} to {spread['high']:.2f})"


def _verdict(one: dict[str, Any]) -> str:
    """How far otel-chatdebug is from its reach."""
    rows = {row["variant"]: row for row in one["rows"] if "missing" not in row}
    said = []
    for name, reach in REACH.items():
        if one["terms"] == ALL:
            reach = max(rows[peer][name]["cpu"]["median"] for peer in PEER_VARIANTS if peer in rows)
        median = rows["chatdebug"][name]["cpu"]["median"]
        said.append(f"{name} {median:.2f} of {reach:.2f}: {'reached' if median <= reach else 'missed'}")
    return f"Now: {', '.join(said)}."


def as_readme(result: dict[str, Any]) -> str:
    """The README of this folder."""
    first = next(row for row in result["tables"][0]["rows"] if "json" in row)
    plain = {name: f"{first[name]['plain_us'] / 1000:.2f} ms" for name in REACH}
    return f"""# What instrumentation costs

*Made by `make bench ARGS=--write` (`benchmarks/overhead.py`); not to be edited by hand.*

Two calls of the real openai SDK are made again and again, answered in this process and at once: a small JSON POST
({plain["json"]} without instrumentation) and a stream of {STREAM_CHUNKS} chunks ({plain["stream"]}). No network is
waited for, so the shares are the largest there are: beside a model that answers after a second, all of them vanish.

Each row is a process of its own, in which blocks of plain and of instrumented calls take turns. A figure is the median
of the blocks' ratios, instrumented by plain (in brackets: the middle half of them), in processor time: that of all
threads, until all is written and exported, so what is done later or elsewhere is in it. *Added* is the median of the
differences for one call. *Wall* is the ratio of the time that the application waits for its calls; it means something
only where the machine had nothing else to do. The calls are made inside of one local root span for each block, as
below a web framework.

{as_text(result)}
## How to read it

- The row "nothing" compares plain blocks with plain blocks: differences of its size are noise.
- The floor makes two spans with the bare OpenTelemetry SDK, for the call and the request, and keeps the bytes of the
  body. It looks at nothing and writes nothing.
- The stock httpx instrumentation makes a span for each request; it ends with the headers, and nothing of the body is
  seen. That of GenAI makes a span for each call, with tokens and finish reasons, and sees no request and no retry.
- otel-chatdebug makes both, keeps the bodies, and keeps a row for each run, step and attempt while they change.
- Which of our functions the time goes to says `make bench ARGS='--profile chatdebug'`.
- Redaction is part of *everything on*; what it costs by itself stands in [REDACTION.md](REDACTION.md).
- The tables by themselves: [how many attempts a second they take](WRITING.md), and how soon a row is there;
  [what a list or a search takes](READING.md) with a million runs.
- Why a reach is missed: [PROFILE.md](PROFILE.md).
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few calls, to see that it works; figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/README.md")
    parser.add_argument("--collector", metavar="URL", help="OTLP (gRPC) endpoint of a collector that runs already")
    parser.add_argument("--profile", choices=VARIANTS, metavar="VARIANT", help="where the time goes: %(choices)s")
    options = parser.parse_args()
    if options.profile:
        sampling.profile(options.profile, seconds=1.0 if options.quick else sampling.SECONDS)
        return 0
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "quick": options.quick,
        "reach": REACH,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            result["tables"] = [
                table(PEERS, QUICK if options.quick else EFFORTS[PEERS], None, folder),
                everything_on(options.quick, options.collector, folder),
            ]
            result["others"] = other_calls(options.quick, folder)
        except WorkerFailed as exc:
            print(exc, file=sys.stderr)
            return 1
    print(json.dumps(result, indent=2) if options.json else as_text(result), end="\n" if options.json else "")
    if options.write:
        README.write_text(as_readme(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
