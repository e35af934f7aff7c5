"""What a signal handler does, it does in the middle of whatever the main thread is at: of our own code, too."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

PATIENCE: Final = 30.0
"""Seconds that a process may take; a deadlock is what a longer wait would be."""

SHUT_DOWN_WHILE_DIGESTING: Final = """
import os, signal, sys

from otel_chatdebug import lifecycle
from otel_chatdebug.capture import attempt as attempts, received
from tests.support.recording import Model, recording

def stop(*_):
    print("shut down:", lifecycle.disarm(), flush=True)
    sys.exit(7)

def look_into(self, data, unwanted):
    if signal.getsignal(signal.SIGTERM) is not stop:
        signal.signal(signal.SIGTERM, stop)
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, data, unwanted)

original, received.Received._look_into = received.Received._look_into, look_into
attempts.DIGEST_SIZE = 1  # so each chunk is digested by whoever reads it
with recording() as recorded:
    response = Model().open()
    recorded.recorder.inbox.settle()
    response.read()
"""


def test_a_signal_handler_may_shut_down_while_its_thread_looks_into_a_body() -> None:
    """``signal.signal(SIGTERM, ...)`` with ``shutdown()`` in it is what servers do; the reader may be at any point."""
    done = subprocess.run(
        [sys.executable, "-c", SHUT_DOWN_WHILE_DIGESTING], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.stdout, done.returncode) == ("shut down: True\n", 7), done.stderr
