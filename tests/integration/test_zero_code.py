"""An application that knows nothing of us, or little: `opentelemetry-instrument`, `configure()` around its imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_chatdebug.demo.provider import Behaviour, Provider
from tests.support.apps import PATIENCE, rows

APPLICATION = """
import os
import httpx
import openai
from opentelemetry import trace

client = openai.OpenAI(
    api_key="k", base_url=os.environ["MODEL_URL"] + "/v1", http_client=openai.DefaultHttpxClient(trust_env=False)
)
MESSAGES = [{"role": "user", "content": "Hello?"}]

with trace.get_tracer("the application").start_as_current_span("turn"):
    client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES)
    for _ in client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES, stream=True):
        pass
with httpx.Client(trust_env=False) as bare:
    bare.post(os.environ["MODEL_URL"] + "/v1/chat/completions", json={"model": "m", "messages": MESSAGES})
    bare.get(os.environ["MODEL_URL"] + "/v1/models")
"""
"""Two calls of an SDK in a span of its own (the first of them refused once), a bare call, and one of no model."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


def application(
    home: Path, url: str, code: str = APPLICATION, *, instrument: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = home / "app.py"
    path.write_text(code)
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument"))] if instrument else []
    no_others = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"} if instrument else {}
    return subprocess.run(
        [*command, sys.executable, str(path)],
        env={**os.environ, "MODEL_URL": url, **no_others, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def spans(output: str) -> list[dict[str, Any]]:
    """What the console exporter wrote."""
    decoder = json.JSONDecoder()
    found = []
    at = output.find("{")
    while at >= 0:
        span, end = decoder.raw_decode(output, at)
        found.append(span)
        at = output.find("{", end)
    return found


def assert_rows(home: Path) -> None:
    assert rows(home, "runs", "kind, status") == [("auto", "completed")] * 2
    assert rows(home, "steps", "status, operation, model") == [
        ("completed", "generate", "gpt-5-mini"),
        ("completed", "stream", "gpt-5-mini"),
        ("completed", "generate", "m"),
    ]
    assert rows(home, "attempts", "status, response_status, number") == [
        ("error", 429, 1),
        ("completed", 200, 2),
        ("completed", 200, 1),
        ("completed", 200, 1),
    ]
    turn, bare = rows(home, "runs", "id, trace_id")
    assert turn[0] == turn[1]
    assert bare[0] == bare[1]


@pytest.mark.parametrize("exporter", ["none", "console", "chatdebug"])
def test_opentelemetry_instrument_records_an_application_that_knows_nothing_of_us(
    exporter: str, chatdebug_home: Path, provider: Provider
) -> None:
    provider.script(Behaviour(status=429, retry_after=0.01))
    done = application(chatdebug_home, provider.url, instrument=True, OTEL_TRACES_EXPORTER=exporter)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "refused" not in done.stderr
    assert_rows(chatdebug_home)
    if exporter != "console":
        return
    found = {span["context"]["span_id"].removeprefix("0x"): span for span in spans(done.stdout)}
    ours = {id: span for id, span in found.items() if "chatdebug.record" in span["attributes"]}
    kinds = [span["attributes"]["chatdebug.record"] for span in ours.values()]
    assert sorted(kinds) == ["attempt"] * 4 + ["run"] + ["step"] * 3
    attempts = dict(rows(chatdebug_home, "attempts", "id, step_id"))
    for id, step in attempts.items():
        assert found[id]["parent_id"].removeprefix("0x") == step
    (turn,) = [id for id, span in found.items() if span["name"] == "turn"]
    steps = rows(chatdebug_home, "steps", "id, trace_id")
    assert [found[id]["parent_id"].removeprefix("0x") == turn for id, _ in steps] == [True, True, False]
    assert all(found[id]["context"]["trace_id"].removeprefix("0x") == trace for id, trace in steps)
    # The stock instrumentation spans the request that is no model call, and no other.
    assert sorted(span["name"] for id, span in found.items() if id not in ours) == ["GET", "turn"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_CHATDEBUG_ENABLED", "never"),
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "chatdebug_httpx,chatdebug_httpx2"),
    ],
)
def test_the_switches_work_there_too(variable: str, value: str, chatdebug_home: Path, provider: Provider) -> None:
    done = application(
        chatdebug_home, provider.url, instrument=True, **{"OTEL_TRACES_EXPORTER": "none", variable: value}
    )
    assert done.returncode == 0, done.stderr
    assert rows(chatdebug_home, "runs") == []
    assert len(provider.requests) == 4


CONFIGURE = "import otel_chatdebug\notel_chatdebug.configure()\n"


@pytest.mark.parametrize("place", ["before the imports", "after the clients are made"])
def test_configure_may_come_before_or_after_the_sdks(place: str, chatdebug_home: Path, provider: Provider) -> None:
    """And a newcomer, who has set nothing, sees no "connection refused" and no other word but where the tables are."""
    provider.script(Behaviour(status=429, retry_after=0.01))
    head, body = APPLICATION.split("MESSAGES = ", 1)
    code = CONFIGURE + APPLICATION if place == "before the imports" else head + CONFIGURE + "MESSAGES = " + body
    done = application(chatdebug_home, provider.url, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_rows(chatdebug_home)


def test_exporter_none_switches_only_otlp_off(chatdebug_home: Path, provider: Provider) -> None:
    provider.script(Behaviour(status=429, retry_after=0.01))
    done = application(
        chatdebug_home,
        provider.url,
        CONFIGURE + APPLICATION,
        OTEL_TRACES_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_rows(chatdebug_home)


def test_a_collector_that_is_not_there_does_not_harm_the_tables(chatdebug_home: Path, provider: Provider) -> None:
    provider.script(Behaviour(status=429, retry_after=0.01))
    done = application(
        chatdebug_home, provider.url, CONFIGURE + APPLICATION, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9"
    )
    assert done.returncode == 0
    assert_rows(chatdebug_home)


JOINS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, SpanProcessor

class Watch(SpanProcessor):
    names = []
    def on_end(self, span):
        self.names.append(span.name)
    def shutdown(self):
        print("shut down")

provider = TracerProvider()
provider.add_span_processor(Watch())
trace.set_tracer_provider(provider)

import otel_chatdebug
otel_chatdebug.configure()
assert trace.get_tracer_provider() is provider
with otel_chatdebug.run():
    pass
otel_chatdebug.shutdown()
with trace.get_tracer("application").start_as_current_span("afterwards"):
    pass
print(*Watch.names)
"""


def test_a_global_provider_that_is_there_is_joined_and_shut_down_by_its_owner_only(chatdebug_home: Path) -> None:
    done = application(chatdebug_home, "", JOINS)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["chat_turn afterwards", "shut down"]  # the latter by its own exit handler
    assert rows(chatdebug_home, "runs", "status") == [("completed",)]


ALIAS = """
import sys
import otel_chatdebug
otel_chatdebug.configure()
assert "httpx" not in sys.modules and "httpx2" not in sys.modules
import httpx2
httpx2.alias_httpx()
import httpx
assert httpx is httpx2
import os
with httpx.Client(trust_env=False) as client:
    for _ in range(2):
        client.post(os.environ["MODEL_URL"] + "/v1/chat/completions", json={"model": "m"})
import openai
sdk = openai.OpenAI(
    api_key="k", base_url=os.environ["MODEL_URL"] + "/v1", http_client=openai.DefaultHttpxClient(trust_env=False)
)
sdk.chat.completions.create(model="m", messages=[])
"""


@pytest.mark.parametrize("again", ["", "otel_chatdebug.configure()\n"], ids=["once", "configured-again"])
def test_httpx2_may_be_aliased_after_configure_and_each_request_is_one_attempt(
    again: str, chatdebug_home: Path, provider: Provider
) -> None:
    done = application(chatdebug_home, provider.url, ALIAS.replace("import os\n", again + "import os\n"))
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(chatdebug_home, "attempts", "status") == [("completed",)] * 3
    assert len(rows(chatdebug_home, "steps")) == 3
    assert len(provider.requests) == 3


def test_both_instrumentors_and_the_stock_one_give_one_attempt_per_request(
    chatdebug_home: Path, provider: Provider
) -> None:
    code = APPLICATION.replace(
        "client = openai", "import otel_chatdebug\notel_chatdebug.configure(http_spans=True)\nclient = openai"
    )
    provider.script(Behaviour(status=429, retry_after=0.01))
    done = application(chatdebug_home, provider.url, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert_rows(chatdebug_home)
