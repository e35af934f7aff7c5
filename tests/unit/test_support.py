"""What the other tests rely on does notice what it is there for."""

from __future__ import annotations

import asyncio
import os
import socket
import threading

import pytest

from tests.conftest import NOT_OURS
from tests.support.leaks import no_leaks


def test_a_thread_left_behind_is_noticed() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten")
    with pytest.raises(AssertionError, match="forgotten"), no_leaks(patience=0):
        thread.start()
    release.set()
    thread.join()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors can be listed on Linux only")
def test_a_descriptor_left_behind_is_noticed() -> None:
    opened: list[int] = []
    with pytest.raises(AssertionError, match=os.devnull), no_leaks(patience=0):
        opened.append(os.open(os.devnull, os.O_RDONLY))
    os.close(opened[0])


def test_what_is_closed_in_time_is_no_leak() -> None:
    """A thread that is about to end, and one socket opened for one that was closed."""
    first = socket.socket()
    with no_leaks():
        thread = threading.Thread(target=first.close)
        thread.start()
        second = socket.socket()
    thread.join()
    second.close()


def test_a_unit_test_cannot_reach_a_server_but_event_loops_work() -> None:
    async def connect() -> None:
        await asyncio.open_connection("127.0.0.1", 9)

    with pytest.raises(AssertionError, match="tests/integration"):
        asyncio.run(connect())


def test_nobodys_own_settings_reach_a_test() -> None:
    """But for the one that keeps an instrumentation of the tests' own off."""
    assert [name for name in os.environ if name.startswith("OTEL_")] == [NOT_OURS[0]]
