"""Our faults stay ours: an error inside our code is counted and logged once, and never reaches the user's call."""

from __future__ import annotations

import logging
import os
import sys
import threading

logger = logging.getLogger("otel_chatdebug")

_told: set[tuple[str, type[BaseException] | None]] = set()
_counts: dict[str, int] = {}
_lock = threading.Lock()


def fault(where: str) -> None:
    """Counts the exception that is being handled, and logs it with its traceback at debug level, once per place and
    type.

    Called from an ``except Exception`` block of our own code. It logs, so it must not be called by a finalizer.
    """
    key = (where, sys.exc_info()[0])
    with _lock:
        _counts[where] = _counts.get(where, 0) + 1
        first = key not in _told
        _told.add(key)
    if first:
        logger.debug("otel_chatdebug failed in %s; the application is not affected", where, exc_info=True)


def count(where: str) -> None:
    """Counts what has gone wrong and is told otherwise."""
    with _lock:
        _counts[where] = _counts.get(where, 0) + 1


def counts() -> dict[str, int]:
    """How many faults there were so far, by place."""
    with _lock:
        return dict(_counts)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
