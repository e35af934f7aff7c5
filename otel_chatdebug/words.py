"""The words in which the terminal and the web page tell what was recorded: pure functions, plain text.

Whatever was recorded is somebody else's text. It may hold terminal escapes, or signs that turn the direction of
writing, so every word of it passes through `clean`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]
"""A run, a step or an attempt: column names to values, times as ISO 8601 strings."""

QUIET_AFTER = 5.0
"""Seconds without a byte after which an open stream is called quiet. Counters are written every few seconds."""

SO_FAR = " so far"

STATUS_SIGNS = {"completed": "✓", "error": "✗", "interrupted": "■", "in_progress": "●"}

END_REASONS = {
    "transport_error": "no answer came",
    "cancelled": "cancelled by the application",
    "sse_eof": "stream read to its end",
    "body_close": "read to its end and closed",
    "early_close": "closed before its end",
    "close_error": "closing it failed",
    "read_error": "reading it failed",
    "abandoned": "dropped by the application, neither read to its end nor closed",
    "run_end": "left half read when the run ended",
    "shutdown": "still open when the process ended",
    "stale": "its process died: no heartbeat any more",
}
"""In words, for the ``end_reason`` column."""

WHERE = {
    "waiting_for_headers": "waiting for an answer: no headers yet",
    "waiting_for_body": "headers came, no byte of the body yet",
    "streaming": "in the middle of the body",
    "unclosed": "the body has ended, the application has not closed it",
    "before_attempt": "a step began, no request was sent yet",
    "between_attempts": "between two attempts: the last one failed, the next has not begun",
    "before_step": "the run began, no model call yet",
    "between_steps": "between two steps: no model call is open, the application does other work",
}
"""In words, where something in progress stands; by `otel_chatdebug.tables.queries.Where`."""

CAUSES = {
    "connect_timeout": "connect timeout: no connection in time",
    "read_timeout": "read timeout: nothing came for too long",
    "write_timeout": "write timeout: the request could not be sent in time",
    "pool_timeout": "pool timeout: no connection of the client became free in time",
    "timeout": "timeout",
    "dns": "DNS: the host's name could not be resolved",
    "tls": "TLS: no secure connection could be made",
    "connection_refused": "refused: nobody listens there",
    "unreachable": "no way to the host",
    "proxy": "the proxy refused or failed",
    "connect": "no connection could be made",
    "disconnected": "the other side closed the connection",
    "connection_reset": "the connection was reset",
    "protocol": "what came is not HTTP",
    "decoding": "the answer's content coding is broken",
}
"""In words, for the ``cause`` of an error."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(value: object) -> str:
    """Text that is safe to print: control characters become visible signs; tabs and newlines stay.

    Besides ESC and its kin of C0 and C1 that covers what turns the direction of writing, which can make a line read
    as another one, and lone surrogates, which no encoding takes.
    """
    return _CONTROL.sub(_visible, str(value).replace("\r\n", "\n"))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures: ESC is ␛
    return "␡" if code == 0x7F else "�"


def one_line(value: object) -> str:
    """`clean`, with all white space as single spaces."""
    return " ".join(clean(value).split())


def clean_json(text: str) -> str:
    """JSON whose strings hold no raw control character beyond ASCII's, which `json.dumps` has escaped already."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}" if ord(match[0]) > 0x1F else match[0], text)


def moment(value: str | None) -> datetime | None:
    """A time of a row."""
    return datetime.fromisoformat(value) if value else None


def duration(seconds: float) -> str:
    """In the unit that suits: 12 ms, 1.5 s, 2 min 05 s, 3 h 10 min."""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def lasted(row: Row, now: datetime) -> str:
    """From start to finish, or to now with "so far"."""
    start, end = moment(row.get("started_at")), moment(row.get("finished_at"))
    if start is None:
        return ""
    if end is None:
        return duration((now - start).total_seconds()) + SO_FAR if row.get("status") == "in_progress" else ""
    return duration((end - start).total_seconds())


def where_text(where: str) -> str:
    """Where something in progress stands, in words."""
    return WHERE.get(where, one_line(where))


def size(count: int) -> str:
    """Bytes, in powers of 1000."""
    amount, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" or amount >= 99.5 else f"{amount:.1f} {units[0]}"


def short_count(count: int) -> str:
    """A number in few characters: 950, 1.2k, 3.4M."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1_000_000:.3g}M"


def plural(count: int, noun: str) -> str:
    """``1 event``, ``1,200 events``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def usage_text(usage: Row | None) -> str:
    """``1,200 in (1,024 cached) → 84 out (64 reasoning)``; empty where nothing is known."""
    if not usage:
        return ""

    def side(name: str, total: str, parts: dict[str, str]) -> str:
        if usage.get(total) is None:
            return ""
        inner = ", ".join(f"{usage[key]:,} {word}" for key, word in parts.items() if usage.get(key))
        return f"{usage[total]:,} {name}" + (f" ({inner})" if inner else "")

    read = side("in", "input_tokens", {"cache_read_tokens": "cached", "cache_creation_tokens": "newly cached"})
    written = side("out", "output_tokens", {"reasoning_tokens": "reasoning"})
    return " → ".join(part for part in (read, written) if part)


def error_text(error: Any) -> str:
    """``type: message (code ..., status ...)``."""
    if not error:
        return ""
    if not isinstance(error, Mapping):
        return one_line(error)
    head = ": ".join(one_line(error[key]) for key in ("type", "message") if error.get(key))
    more = _failure_words(error) + [
        f"{one_line(key).replace('_', ' ')} {one_line(value)}" + (" s" if _is_seconds(key, value) else "")
        for key, value in error.items()
        if key not in _TOLD_IN_WORDS and value not in (None, "") and str(value) != str(error.get("type"))
    ]
    return f"{head} ({', '.join(more)})" if more else head


_TOLD_IN_WORDS = frozenset({"type", "message", "cause", "bytes_received", "events", "retryable", "retries_left"})
"""Keys of an error that `error_text` does not tell one by one."""


def _failure_words(error: Row) -> list[str]:
    """What a request failed of and after how much of its answer, and whether its SDK sends such a request again."""
    words = []
    cause, received = error.get("cause"), error.get("bytes_received")
    if cause:
        words.append(CAUSES.get(str(cause), one_line(cause)))
    if received:
        events = error.get("events")
        words.append(f"after {plural(received, 'byte')}" + (f" and {plural(events, 'event')}" if events else ""))
    if error.get("retryable") is not None:
        left = error.get("retries_left")
        if not error["retryable"]:
            words.append("the SDK does not retry it")
        elif left == 0:
            words.append("the SDK has no retry left")
        else:
            words.append("the SDK retries it" + ("" if left is None else f", {left} left"))
    return words


def failed_attempts(attempts: Sequence[Row]) -> list[str]:
    """The attempts that failed, in one line each: ``attempt 1: 429 requests: Rate limit reached (...)``."""
    lines = []
    for attempt in attempts:
        if attempt.get("status") != "error":
            continue
        status = attempt.get("response_status")
        shown = f"{status} " if status is not None else ""
        error = {key: value for key, value in (attempt.get("error") or {}).items() if key != "status_code"}
        lines.append(f"attempt {attempt.get('number') or '?'}: {shown}{error_text(error)}")
    return lines


def _is_seconds(key: str, value: object) -> bool:
    """A ``retry-after`` header holds seconds or a date."""
    return key == "retry_after" and str(value).replace(".", "", 1).isdigit()
