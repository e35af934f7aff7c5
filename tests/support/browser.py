"""A real Chromium, for the tests of the pages: found or installed, started, and watched for what no page may do.

``python -m tests.support.browser`` installs Debian's where none is found; ``make test`` does so first. Playwright
brings none of its own: the browser is the machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.backends import ROOT, required

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = (
    "--headless",
    "--no-sandbox",  # tests run as root in containers, too
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

INSTALL_TIMEOUT = 900.0
"""Seconds for apt-get; 120 MB are fetched."""

ARTEFACTS = ROOT / ".artefacts"
"""Screenshots of a test run. Git ignores it."""

WAIT = 60_000.0
"""Milliseconds until something must be seen on a page, on a machine that is busy with other things."""


class BrowserMissing(Exception):
    """There is no Chromium and none can be installed here; the message says why."""


def find() -> str | None:
    """The path of a Chromium. The variable CHATDEBUG_CHROMIUM names one that is used as it is."""
    if given := os.environ.get("CHATDEBUG_CHROMIUM"):
        return given
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def find_or_install() -> str:
    """The path of a Chromium, installed by apt-get where there is none and this is root on Debian or its kin.

    Raises:
        BrowserMissing: neither found nor installed.
    """
    if path := find():
        return path
    advice = "Install one (apt-get install chromium), or name one in CHATDEBUG_CHROMIUM."
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise BrowserMissing(f"No Chromium was found, and it can only be installed as root by apt-get. {advice}")
    print("Installing Chromium (once; 120 MB)", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Without a font a page shows no text. The lists of packages may be old, or none may be there at all.
    install = [apt, "install", "-y", "-q", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
    for command in ([apt, "update", "-q"], install):
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise BrowserMissing(f"{' '.join(command)}: {exc}. {advice}") from exc
        if done.returncode:
            raise BrowserMissing(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]} {advice}")
    if path := find():
        return path
    raise BrowserMissing(f"apt-get has installed a Chromium that is not on the path. {advice}")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium with a fresh profile: Playwright's ``Browser``. Ends with the block.

    Raises `BrowserMissing`, also where Playwright is not installed.
    """
    path = find_or_install()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as exc:
        raise BrowserMissing(f"Playwright is not installed ({exc}): pip install -e '.[dev]'") from exc
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What a page did that no page may do: errors, dialogs, requests to elsewhere, and what the CSP stopped."""

    def __init__(self, page: Any, origin: str) -> None:
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(f"script error: {error}"))
        page.on("dialog", self._dialog)
        page.on("console", self._console)
        page.on("request", lambda request: self._request(request.url, origin))

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message: Any) -> None:
        # A status that a test asks for is told on the console, too.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(f"console: {message.text}")

    def _request(self, url: str, origin: str) -> None:
        if not url.startswith((f"{origin}/", "data:", "blob:", "about:")):
            self.faults.append(f"request to {url}")


def screenshot(page: Any, name: str) -> Path:
    """A picture of the whole page, kept as an artefact."""
    ARTEFACTS.mkdir(exist_ok=True)
    path = ARTEFACTS / f"{name}.png"
    page.screenshot(path=str(path), full_page=True)
    return path


def main() -> int:
    try:
        path = find_or_install()
    except BrowserMissing as missing:
        print(f"No browser here; the tests of the pages {'fail' if required() else 'are skipped'}. {missing}")
        return 1 if required() else 0
    print(f"Browser: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
