"""Where a trace is to be seen."""

from __future__ import annotations

import pytest

from otel_chatdebug import trace_links
from otel_chatdebug.settings import Settings

RUN = {"trace_id": "ab" * 16, "span_id": "cd" * 8}


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("http://localhost:16686", f"http://localhost:16686/trace/{'ab' * 16}"),
        ("http://jaeger/ui/", f"http://jaeger/ui/trace/{'ab' * 16}"),
        ("https://h/t?id={trace_id}&s={span_id}", f"https://h/t?id={'ab' * 16}&s={'cd' * 8}"),
        (trace_links.EXAMPLES["Jaeger"], f"http://localhost:16686/trace/{'ab' * 16}"),
        (
            trace_links.EXAMPLES["Tempo in Grafana"],
            trace_links.EXAMPLES["Tempo in Grafana"].replace("{trace_id}", "ab" * 16),
        ),
    ],
)
def test_the_address_of_a_trace_goes_by_the_template(template: str, url: str) -> None:
    assert trace_links.trace_url(trace_links.check(template), RUN) == url


def test_without_a_template_or_a_trace_there_is_none() -> None:
    assert trace_links.trace_url("", RUN) is None
    assert trace_links.trace_url("http://h/{trace_id}", {"trace_id": None}) is None


def test_an_id_from_elsewhere_cannot_leave_its_place() -> None:
    assert trace_links.trace_url("http://h/{trace_id}", {"trace_id": "../x?\x1b"}) == "http://h/..%2Fx%3F%1B"


@pytest.mark.parametrize("bad", ["localhost:16686", "file:///{trace_id}", "javascript:alert({trace_id})"])
def test_what_is_no_address_is_a_bad_value(bad: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="trace_id"):
        trace_links.check(bad)
    assert Settings.load({"OTEL_CHATDEBUG_TRACE_URL": bad}).trace_url == ""
    assert "OTEL_CHATDEBUG_TRACE_URL" in caplog.text
