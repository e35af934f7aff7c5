"""What `configure` tells a person who has to do something about it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug import configuration, lifecycle
from otel_chatdebug.pipeline.recorder import active

PATIENCE = 60.0
"""Seconds that another thread may take."""


@pytest.fixture(autouse=True)
def ended(chatdebug_home: Any) -> Iterator[None]:
    yield
    chatdebug.shutdown()


def test_where_neither_library_is_installed_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(configuration, "LIBRARIES", ("no_such_httpx", "no_such_httpx2"))
    chatdebug.configure()
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "Neither httpx nor httpx2 is installed" in record.message


def test_one_of_the_libraries_is_enough(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(configuration, "LIBRARIES", ("no_such_httpx", "httpx2"))
    chatdebug.configure()
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_of_two_threads_at_once_one_waits_and_what_the_last_one_says_is_in_force(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    under_way, go_on = threading.Event(), threading.Event()
    warm = lifecycle.warm

    def held_up() -> None:
        if not under_way.is_set():
            under_way.set()
            assert go_on.wait(PATIENCE)
        warm()

    monkeypatch.setattr(lifecycle, "warm", held_up)
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("first", "second")]
    first, second = (threading.Thread(target=chatdebug.configure, kwargs={"database_url": url}) for url in urls)
    first.start()
    assert under_way.wait(PATIENCE)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go_on.set()
    for thread in (first, second):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    recorder = active()
    assert recorder is not None
    assert recorder.settings.database_url == urls[1]
