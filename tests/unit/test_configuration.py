"""What `configure` tells a person who has to do something about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug import configuration


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
