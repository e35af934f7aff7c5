"""What this instrumentation instruments, by the convention of OpenTelemetry's instrumentations."""

from __future__ import annotations

_instruments: tuple[str, ...] = ()
_instruments_any = ("httpx >= 0.24", "httpx2 >= 2.0")
_supports_metrics = False
_semconv_status = "stable"
