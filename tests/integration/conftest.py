"""Fixtures of what needs processes and servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.backends import required
from tests.support.browser import BrowserMissing, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium: Playwright's ``Browser``.

    While it is there, Playwright has an event loop running in the tests' thread, and ``asyncio.run`` of any other test
    would fail: so it must end with its module.
    """
    try:
        with chromium() as running:
            yield running
    except BrowserMissing as missing:
        if required():
            pytest.fail(f"CHATDEBUG_REQUIRE_BACKENDS is set, but: {missing}")
        pytest.skip(f"no browser: {missing}")
