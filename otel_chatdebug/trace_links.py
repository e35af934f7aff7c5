"""Where a trace is to be seen: the address in Jaeger, Tempo or another page, by the template in the settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

TRACE_ID, SPAN_ID = "{trace_id}", "{span_id}"

EXAMPLES = {
    "Jaeger": "http://localhost:16686/trace/{trace_id}",
    "Tempo in Grafana": (
        "http://localhost:3000/explore?schemaVersion=1&panes="
        '{"a":{"datasource":"tempo","queries":[{"refId":"A","query":"{trace_id}"}],'
        '"range":{"from":"now-7d","to":"now"}}}'
    ),
}
"""Templates that work where these back ends run with their defaults. Grafana takes its braces as they are."""


def check(template: str) -> str:
    """The template, with the path of Jaeger where it is only an address. Raises ``ValueError`` with what it takes."""
    template = template.strip()
    if template and not re.match(r"https?://[^/\s]", template, re.I):
        raise ValueError("a URL of http or https, with {trace_id} in it")
    if template and TRACE_ID not in template:
        template = f"{template.rstrip('/')}/trace/{TRACE_ID}"
    return template


def trace_url(template: str, row: Mapping[str, Any]) -> str | None:
    """The address of a run's, step's or attempt's trace; None without a template, or where the row has no trace.

    Also replaces ``{span_id}``. Ids are quoted: a row may come from anywhere.
    """
    trace_id = row.get("trace_id")
    if not template or not trace_id:
        return None
    url = template.replace(TRACE_ID, quote(str(trace_id), safe=""))
    return url.replace(SPAN_ID, quote(str(row.get("span_id") or ""), safe=""))
