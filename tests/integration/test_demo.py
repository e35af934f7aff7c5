"""The demo, as a newcomer starts it: a process of its own, real SDKs, rows in the database."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "otel_chatdebug.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        # A proxy that is not there: the demo must not be led to it.
        env={**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9", **environment},
    )


def runs() -> list[dict[str, Any]]:
    """All that was recorded, the oldest first."""
    listed = json.loads(command("runs", "--json").stdout)
    return [json.loads(command("show", run["id"], "--json").stdout) for run in reversed(listed)]


@pytest.mark.slow
def test_the_demo_records_what_it_shows(chatdebug_home: Path) -> None:
    """Five runs, of which each ended as the application says; the picture is one, and nothing else is left."""
    done = command("demo", "--svg", str(chatdebug_home / "demo.svg"), PATH=os.defpath)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    good, retried, cut, broken_off, title = runs()

    def attempts(run: dict[str, Any]) -> list[tuple[str, str, int]]:
        (step,) = run["steps"]
        return [(one["status"], one["end_reason"], one["response_status"]) for one in step["attempts"]]

    assert attempts(good) == [("completed", "body_close", 200)]
    assert [status for status, _, _ in attempts(retried)] == ["error", "completed"]
    assert [code for _, _, code in attempts(retried)] == [429, 200]
    assert attempts(cut) == [("error", "read_error", 200)]
    assert attempts(broken_off) == [("interrupted", "early_close", 200)]
    assert attempts(title) == [("completed", "body_close", 200)]
    assert [run["status"] for run in (good, retried, cut, title)] == ["completed", "completed", "error", "completed"]
    assert [run["kind"] for run in (good, title)] == ["chat_turn", "title_generation"]
    assert good["steps"][0]["usage"]["input_tokens"] == 1200
    for run in (good, retried, cut, broken_off, title):
        assert run["chat_id"] == "demo-chat"
        assert run["id"] in done.stdout
    # What it says to type next can be typed as it is: `make demo` puts nothing on the PATH.
    (show,) = re.findall(rf"^  (\S+ show {cut['id'][:8]})  ", done.stdout, re.MULTILINE)
    shown = subprocess.run(show, shell=True, capture_output=True, text=True, timeout=60)
    assert "Water takes away red light first." in shown.stdout, shown.stderr
    assert ElementTree.parse(chatdebug_home / "demo.svg").getroot().tag.endswith("svg")
    assert {path.name.partition(".db")[0] for path in chatdebug_home.iterdir()} == {"chatdebug", "demo.svg"}


@pytest.mark.parametrize("switch", [{"OTEL_CHATDEBUG_ENABLED": "never"}, {"OTEL_SDK_DISABLED": "true"}])
def test_the_demo_says_when_recording_is_off(chatdebug_home: Path, switch: dict[str, str]) -> None:
    done = command("demo", **switch)
    assert done.returncode == 1
    assert "switched off" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_sdk_is_one_sentence(chatdebug_home: Path, tmp_path: Path) -> None:
    """It names what to install."""
    code = (
        "import importlib.util as util, sys\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'anthropic' else real(name, package)\n"
        "from otel_chatdebug.cli import main\n"
        "main(['demo'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: The demo needs anthropic: pip install 'otel-chatdebug[demo]', or pip install anthropic.\n"
    )
