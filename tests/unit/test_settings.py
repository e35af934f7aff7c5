"""Settings: what a bad value in the environment means."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug import settings as settings_module
from otel_chatdebug.pipeline.recorder import active
from otel_chatdebug.settings import Settings


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "_told", set())


@pytest.mark.parametrize("value", ["optin", "opt-in", "false", "0", "nevr"])
def test_a_bad_value_for_who_is_recorded_records_nobody(value: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):  # once by each instrumentation
        settings = Settings.load({"OTEL_CHATDEBUG_ENABLED": value})
    assert not settings.recording
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert told.getMessage() == (
        f"OTEL_CHATDEBUG_ENABLED={value!r} is not valid (it takes one of always, opt_in, never); using never"
    )


@pytest.mark.parametrize(("value", "meant"), [(" OPT_IN ", "opt_in"), ("", "always"), ("Never", "never")])
def test_case_and_space_do_not_matter_and_nothing_is_the_default(
    value: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert Settings.load({"OTEL_CHATDEBUG_ENABLED": value}).enabled == meant
    assert not caplog.records


def test_any_other_bad_value_gives_one_warning_and_the_default(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.load({"OTEL_CHATDEBUG_STALE_AFTER": "soon", "OTEL_CHATDEBUG_RUN_PARENT": "child"})
    assert (settings.stale_after, settings.run_parent) == (300.0, "child")
    (told,) = caplog.records
    assert told.getMessage() == (
        "OTEL_CHATDEBUG_STALE_AFTER='soon' is not valid (it takes a number of seconds, 0.1 or more); "
        "using the default, 300.0"
    )


def test_what_code_says_goes_over_a_bad_value() -> None:
    assert Settings.load({"OTEL_CHATDEBUG_ENABLED": "optin"}, enabled="always").enabled == "always"
    with pytest.raises(ValueError, match="enabled is one of always, opt_in, never, not 'optin'"):
        Settings.load({}, enabled="optin")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"stale_after": -1}, ValueError, "a number of seconds from 0.1, not -1"),
        ({"stale_after": float("nan")}, ValueError, "not nan"),
        ({"stale_after": "x"}, TypeError, "a number of seconds, not 'x'"),
        ({"database_url": 5}, TypeError, "database_url is a text"),
        ({"allow_headers": "x-team"}, TypeError, "allow_headers is a tuple of names, not 'x-team'"),
        ({"secret_keys": (1,)}, TypeError, "secret_keys is a tuple of names"),
        ({"classify_error": 5}, TypeError, "classify_error is a plain function, not 5"),
        ({"redact": 5}, TypeError, "redact is a plain function, not 5"),
        ({"is_enabled": 5}, TypeError, "is_enabled is a plain function"),
        ({"tracer_provider": 5}, TypeError, "tracer_provider is a TracerProvider of OpenTelemetry, not 5"),
        ({"meter_provider": 5}, TypeError, "meter_provider is a MeterProvider"),
        ({"logger_provider": 5}, TypeError, "logger_provider is a LoggerProvider"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_one_clear_error_and_changes_nothing(
    given: dict[str, Any], error: type[Exception], says: str, chatdebug_home: Path
) -> None:
    chatdebug.configure()
    try:
        before = active()
        with pytest.raises(error, match=re.escape(says)):
            chatdebug.configure(**given)
        assert active() is before
        assert before is not None
        assert not before.closed
    finally:
        chatdebug.shutdown()


@pytest.mark.parametrize(
    ("value", "otlp", "others"),
    [
        ("", False, []),
        ("none", False, []),
        ("chatdebug", False, []),
        ("chatdebug_otlp", True, []),
        ("otlp,console", True, ["console"]),
        ("nonsense", False, ["nonsense"]),
    ],
)
def test_what_the_standard_exporter_setting_means(value: str, otlp: bool, others: list[str]) -> None:
    settings = Settings.load({"OTEL_TRACES_EXPORTER": value})
    assert (settings.wants_otlp, settings.other_exporters) == (otlp, others)
