"""Unit tests open no connections: what needs a server is an integration test."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NoReturn

import pytest


def _refuse(self: socket.socket, address: object) -> NoReturn:
    raise AssertionError(f"a unit test uses the socket {address}; move it to tests/integration")


@pytest.fixture(scope="module", autouse=True)
def _no_sockets() -> Iterator[None]:
    """Event loops keep working: their socket pair is neither bound nor connected."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("bind", "connect", "connect_ex"):
            monkeypatch.setattr(socket.socket, name, _refuse)
        yield
