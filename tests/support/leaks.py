"""Threads and descriptors that somebody forgot."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 5.0
"""Seconds that a stopped thread or a closing socket may take to be gone."""


def open_descriptors() -> Counter[str]:
    """What this process has open: ``{target of the descriptor: how many}``. Empty where /proc is missing (macOS)."""
    found: Counter[str] = Counter()
    folder = "/proc/self/fd"
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        try:
            target = os.readlink(f"{folder}/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        # The number of a socket or pipe is new each time; one opened for one closed is no leak.
        found[target.split(":[")[0]] += 1
    return found


def _left_behind(threads: set[threading.Thread], descriptors: Counter[str]) -> str:
    new_threads = sorted(thread.name for thread in set(threading.enumerate()) - threads)
    new_descriptors = dict(open_descriptors() - descriptors)
    return f"threads {new_threads}, descriptors {new_descriptors}" if new_threads or new_descriptors else ""


@contextmanager
def no_leaks(patience: float = PATIENCE) -> Iterator[None]:
    """Fails if, ``patience`` seconds after the block, there are more threads or open descriptors than before it."""
    gc.collect()
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    gc.collect()
    deadline = time.monotonic() + patience
    while (left := _left_behind(threads, descriptors)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"left behind: {left}"
