"""Settings: what a bad value in the environment means."""

from __future__ import annotations

import logging

import pytest

from otel_chatdebug import settings as settings_module
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
