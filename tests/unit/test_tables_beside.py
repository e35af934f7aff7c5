"""Connections beside the writer's are never open while somebody forks."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from otel_chatdebug.tables import beside
from otel_chatdebug.tables.database import DatabaseError

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def fork(told: threading.Event) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    told.set()
    os.waitpid(child, 0)


def test_a_fork_waits_until_they_are_closed_and_new_ones_wait_for_the_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "FORK_SECONDS", 60.0)
    forked, entered = threading.Event(), threading.Event()
    forking = threading.Thread(target=fork, args=(forked,))

    def enter() -> None:
        with beside.opened(f"sqlite:///{tmp_path / 'tables.db'}"):
            entered.set()

    entering = threading.Thread(target=enter)
    with beside.opened(f"sqlite:///{tmp_path / 'tables.db'}") as engine, engine.connect():
        forking.start()
        assert not forked.wait(0.2)
        entering.start()
        assert not entered.wait(0.2)
    assert forked.wait(60)
    assert entered.wait(60)
    forking.join()
    entering.join()


def test_a_fork_does_not_wait_for_ever_and_the_child_can_open_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'tables.db'}"
    monkeypatch.setattr(beside, "FORK_SECONDS", 0.05)
    with beside.opened(url):
        pass  # SQLAlchemy is loaded: else a fork waits longer
    with beside.opened(url):
        child = os.fork()
        if not child:
            with beside.opened(url) as engine, engine.connect() as connection:
                answer = connection.exec_driver_sql("SELECT 7").scalar_one()
            os._exit(answer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_fork_waits_for_imports_until_a_database_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that could not be opened may have imported half of them."""
    door = beside._Door()
    monkeypatch.setattr(beside, "_door", door)
    with pytest.raises(DatabaseError), beside.reading(f"sqlite:///{tmp_path / 'nothing.db'}"):
        pass
    assert not door.loaded
    with beside.opened(f"sqlite:///{tmp_path / 'tables.db'}"):
        assert door.loaded
