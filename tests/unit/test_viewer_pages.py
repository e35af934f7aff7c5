"""What the pages say, what they cost, and that any row can be shown. In process, without a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event
from starlette.testclient import TestClient

from otel_chatdebug import words
from otel_chatdebug.records import Record
from otel_chatdebug.settings import Settings
from otel_chatdebug.status import Status
from otel_chatdebug.viewer import content, live, rendering, transcript
from otel_chatdebug.viewer.app import make_app
from otel_chatdebug.viewer.auth import Access
from otel_chatdebug.viewer.store import Store
from otel_chatdebug.viewer.timeline import timeline
from tests.support import pages
from tests.support.pages import SECOND, WICKED
from tests.support.records import NOW, run_record, step_content, step_record

LIGHT = 150_000
"""Characters that a page has at most, whatever is in the tables."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with pages.tables(pages.sqlite_url(tmp_path)) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> Iterator[TestClient]:
    """A browser, as far as headers go, that may see everything."""
    given = Settings.load({}, database_url=pages.sqlite_url(tmp_path), trace_url="http://jaeger/trace/{trace_id}")
    app = make_app(given, Access(open=True), None)
    with TestClient(app, headers={"accept": "text/html"}) as client:
        yield client


def read(client: TestClient, path: str, status: int = 200) -> str:
    response = client.get(path)
    assert response.status_code == status, response.text
    return response.text


def rows(html: str) -> list[str]:
    return re.findall(r'<tr id="run-([^"]+)"', html)


def test_a_chat_of_ten_thousand_runs_is_a_light_page_at_both_of_its_ends(engine: Engine, client: TestClient) -> None:
    batch: list[Record] = []
    for number in range(10_000):
        summary = {"first_message": f"message {number} " + "x" * 150, "step_count": 1}
        batch.append(run_record(f"{number:032x}", chat_id="big", started_at=NOW + number * SECOND, summary=summary))
    pages.write(engine, *batch)
    statements: list[str] = []
    store = client.app.state.store  # type: ignore[attr-defined]
    event.listen(store.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    first = read(client, "/?chat=big")
    assert len(first) < LIGHT
    assert rows(first) == [f"{number:032x}" for number in range(9_999, 9_949, -1)]
    assert len(statements) < 15, "as many as for a small chat"
    older = re.search(r'href="([^"]*cursor[^"]*)" rel="next"', first)
    assert older
    second = read(client, older[1].replace("&amp;", "&"))
    assert rows(second)[0] == f"{9_949:032x}"
    assert rows(read(client, "/?chat=big&q=message+17+x")) == [f"{17:032x}"], "the oldest are found, too"
    assert len(read(client, "/chats")) < LIGHT


def test_a_step_of_a_megabyte_is_a_light_page_and_all_of_it_can_be_read(engine: Engine, client: TestClient) -> None:
    turn = pages.turn("aa01", at=NOW)
    said = [
        {"role": "user", "parts": [{"type": "text", "text": f"{number:04} " + "y" * 9_995}]} for number in range(100)
    ]
    turn[3] = step_content(
        "aa01s",
        run_id="aa01",
        normalized_request={"messages": said, "tools": [{"name": f"t{n}", "schema": "z" * 9_000} for n in range(100)]},
        normalized_response={"messages": said[:1]},
    )
    pages.write(engine, *turn)
    page = read(client, "/runs/aa01")
    assert len(page) < LIGHT
    assert "0099 y" in page, "the last messages"
    assert "0000 y" in page.partition("Output")[2], "the answer"
    seen = set(re.findall(r"(\d{4}) y", page.partition("Output")[0]))
    link = re.search(r'data-more="messages" href="([^"]+)"', page)
    while link:
        page = read(client, link[1].replace("&amp;", "&"))
        assert len(page) < 2 * LIGHT
        seen |= set(re.findall(r"(\d{4}) y", page))
        link = re.search(r'data-more="messages" href="([^"]+)"', page)
    assert seen == {f"{number:04}" for number in range(100)}
    assert read(client, "/runs/aa01/steps/aa01s/part?side=request&message=42&part=0") == "0042 " + "y" * 9_995
    read(client, "/runs/aa01/steps/aa01s/part?side=request&message=100&part=0", 404)
    read(client, "/runs/aa01/steps/aa01s/part?side=request&message=0&part=7", 404)
    assert "t99" in read(client, "/runs/aa01/steps/aa01s/tools")


def test_a_run_of_many_steps_shows_the_last_ones_first(engine: Engine, client: TestClient) -> None:
    steps = [step_record(f"s{number:04}", run_id="aa01", step_number=number) for number in range(1, 451)]
    pages.write(engine, run_record("aa01"), *steps)
    page = read(client, "/runs/aa01")
    assert "The last 200 of 450." in page
    assert 'id="step-s0450"' in page
    assert 'id="step-s0001"' not in page
    assert 'id="step-s0001"' in read(client, "/runs/aa01?steps=all")


def test_what_is_empty_says_what_to_do_next(engine: Engine, client: TestClient, tmp_path: Path) -> None:
    assert "otel-chatdebug demo" in read(client, "/")
    assert 'chat_id="my-chat"' in read(client, "/chats").replace("&#34;", '"')
    assert "Nothing is in progress" in read(client, "/progress")
    assert "This chat has no run" in read(client, "/?chat=nobody")
    assert "Clear the filter" in read(client, "/?q=nobody")
    assert "No chat's id contains that" in read(client, "/chats?q=nobody")
    pages.write(engine, run_record("aa01"), run_record("aa02", status=Status.COMPLETED, rank=3))
    assert "No model call yet" in read(client, "/runs/aa01")
    assert "made no model call" in read(client, "/runs/aa02")
    assert "There is no run nobody" in read(client, "/runs/nobody", 404)
    assert client.get("/runs/nobody", headers={"accept": "*/*"}).json()["error"].startswith("There is no run nobody")
    assert "begin with the first page" in read(client, "/?cursor=x", 400)
    assert "is no time: write 30m, 2h or 7d" in read(client, "/?since=yesterday")


def test_no_database_yet_is_a_page_that_waits_for_one(tmp_path: Path) -> None:
    url = pages.sqlite_url(tmp_path)
    app = make_app(Settings.load({}, database_url=url), Access(open=True), None)
    with TestClient(app, headers={"accept": "text/html"}) as client:
        page = read(client, "/")
        assert "Nothing is recorded yet" in page
        assert str(tmp_path) in page
        assert not (tmp_path / "chatdebug.db").exists()
        assert client.get("/changes").json()["changed"] is False
        with pages.tables(url) as engine:
            pages.write(engine, *pages.turn("aa01", at=NOW))
        assert rows(read(client, "/")) == ["aa01"]


def test_a_database_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "chatdebug.db").write_bytes(b"this is no database, " * 100)
    app = make_app(Settings.load({}, database_url=pages.sqlite_url(tmp_path)), Access(open=True), None)
    with TestClient(app, headers={"accept": "text/html"}) as client:
        assert "it is no SQLite database" in read(client, "/", 503).replace("the file is", "it is")


def test_every_filter_is_in_the_links_to_further_pages(engine: Engine, client: TestClient) -> None:
    for number in range(60):
        pages.write(engine, run_record(f"{number:02}", chat_id="a&b", kind="k=1", started_at=NOW + number))
    page = read(client, "/?chat=a%26b&kind=k%3D1&since=2020-01-01")
    older = re.search(r'href="([^"]*)" rel="next"', page)
    assert older
    again = read(client, older[1].replace("&amp;", "&"))
    assert len(rows(page)) == 50
    assert len(rows(again)) == 10
    assert all(part in older[1] for part in ("chat=a%26b", "kind=k%3D1", "since=2020-01-01"))


def test_a_run_links_to_its_trace(engine: Engine, client: TestClient) -> None:
    pages.write(engine, run_record("aa01", trace_id="ab" * 16), run_record("aa02"))
    assert f'href="http://jaeger/trace/{"ab" * 16}"' in read(client, "/runs/aa01")
    assert "http://jaeger" not in read(client, "/runs/aa02")


def test_hostile_content_is_escaped_in_every_page(engine: Engine, client: TestClient) -> None:
    """Whatever a template does: no tag of it is one, no attribute ends before its time."""
    id = pages.wicked(engine)
    paths = [
        "/",
        "/chats",
        f"/runs/{id}",
        f"/runs/{id}/steps/{id}s",
        f"/runs/{id}/attempts/{id}a",
        f"/runs/{id}/delete",
    ]
    paths += [f"/runs/{id}/steps/{id}s/tools", f"/runs/{id}/steps/{id}s/messages?before=9"]
    for path in paths:
        page = read(client, path)
        assert "alert(1)" in page
        assert "<script>alert" not in page
        assert not re.search(r"<(img|svg/|iframe)", page)
    for path in ("", "/request", "/response", "/curl"):
        response = client.get(f"/runs/{id}/attempts/{id}a{path}")
        assert response.headers["content-type"] == ("text/html" if not path else "text/plain") + "; charset=utf-8"


def test_control_characters_become_visible(engine: Engine, client: TestClient) -> None:
    pages.write(engine, run_record("aa01", summary={"first_message": "a\x1b[31m\u202eb"}, model="m\x07"))
    page = read(client, "/runs/aa01")
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "␛[31m" in page


def test_a_form_without_its_own_token_deletes_nothing(engine: Engine, client: TestClient) -> None:
    pages.write(engine, *pages.turn("aa01", at=NOW))
    page = read(client, "/runs/aa01/delete")
    token = re.search(r'name="form_token" value="([^"]+)"', page)
    assert token
    origin = {"origin": "http://testserver"}
    for form, headers in (
        ({}, origin),
        ({"form_token": "x"}, origin),
        ({"form_token": token[1]}, {}),
        ({"form_token": token[1]}, {"origin": "http://evil.example"}),
        ({"form_token": token[1] + "x" * 70_000}, origin),
    ):
        assert client.post("/runs/aa01/delete", data=form, headers=headers).status_code == 403
        assert client.request("DELETE", "/runs/aa01/delete", headers=headers).status_code in (403, 405)
    assert rows(read(client, "/")) == ["aa01"]
    done = client.post("/runs/aa01/delete", data={"form_token": token[1]}, headers=origin, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/?chat=chat-1")
    assert rows(read(client, "/")) == []


def test_nothing_but_the_forms_takes_anything_but_reading(client: TestClient) -> None:
    for route in ("/", "/chats", "/progress", "/runs/x", "/live", "/changes", "/export"):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert client.request(method, route, headers={"origin": "http://testserver"}).status_code == 405, route


_WORDS = (
    "type role parts messages text content tools options truncated length tool_choice warnings arguments raw name id "
    "bytes media_type mode schema finish_reason"
)
_names = st.sampled_from(_WORDS.split())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | _names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | _names, inner, max_size=4),
    max_leaves=12,
)
shapes = json_values | st.dictionaries(_names, st.lists(json_values, max_size=3) | json_values, max_size=6)


@settings(max_examples=150)
@given(shapes, shapes)
def test_any_json_can_be_shown(request: Any, response: Any) -> None:
    """Rows may be of another version, or imported."""
    inside = {"sent": transcript.sent(request), "answer": transcript.answer(response)}
    transcript.tools(request)
    step: dict[str, Any] = {
        "id": "s",
        "attempts": [],
        "status": "completed",
        "started_at": "2026-01-01T00:00:00.000000Z",
    }
    template = rendering.environment.get_template("_step.html")
    template.render(
        step=step, run={"id": "r"}, inside=inside, link=lambda *a, **k: "/", now=datetime.now(UTC), end_words=str
    )


def test_pretty_bodies_are_json_line_by_line_where_they_are_streams() -> None:
    assert content.prettier('{"a":[1]}') == '{\n  "a": [\n    1\n  ]\n}'
    assert (
        content.prettier('event: x\ndata: {"a":1}\n\ndata: [DONE]') == 'event: x\ndata: {\n  "a": 1\n}\n\ndata: [DONE]'
    )
    for text in ("", "plain", '{"cut": "of', "data:", "[[[[" * 5000):
        assert content.prettier(text) == text


def run_of(*attempts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A run with one step; times in seconds."""
    step = {"id": "s", "step_number": 1, "model": "m", "operation": None, "attempts": [row(**one) for one in attempts]}
    step |= row(start=0, end=more.get("end"), status=more.get("status", "completed"))
    return {"steps": [step], **row(start=0, end=more.get("end"), status=more.get("status", "completed"))}


def row(
    start: float,
    end: float | None,
    status: str = "completed",
    first: float | None = None,
    last: float | None = None,
    gap: tuple[float, float] | None = None,
    **more: Any,
) -> dict[str, Any]:
    def at(seconds: float | None) -> str | None:
        return None if seconds is None else (BEGIN + timedelta(seconds=seconds)).isoformat()

    found = {"started_at": at(start), "finished_at": at(end), "first_byte_at": at(first), "last_byte_at": at(last)}
    found |= {"longest_gap_at": at(gap[0]) if gap else None, "longest_gap_ms": gap[1] * 1000 if gap else None}
    return (
        {"id": "a", "step_id": "s", "number": 1, "response_status": 200, "end_reason": None, "status": status}
        | found
        | more
    )


BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_waterfall_has_one_axis_with_first_chunks_gaps_pauses_and_ends() -> None:
    run = run_of(
        {"start": 0, "end": 2, "status": "error", "response_status": 429},
        {"start": 4, "end": 10, "first": 5, "last": 8, "gap": (6, 1)},
        end=10,
    )
    step, refused, answered = timeline(run, BEGIN + timedelta(seconds=99)).bars
    assert (step.kind, step.x, step.width) == ("step", 0, 100)
    assert (refused.x, refused.width, refused.first, refused.status) == (0, 20, None, "error")
    assert (answered.x, answered.width, answered.first) == (40, 60, 50)
    assert answered.pause
    assert (answered.pause.x, answered.pause.width) == (20, 20)
    assert [(gap.x, gap.width) for gap in answered.gaps] == [(60, 10), (80, 20)]
    assert "longest gap 1.0 s" in answered.words
    assert "silent before its end for 2.0 s" in answered.words


def test_what_is_open_goes_on_until_now() -> None:
    run = run_of({"start": 0, "end": None, "status": "in_progress", "first": 1, "last": 2}, status="in_progress")
    (bar,) = timeline(run, BEGIN + timedelta(seconds=20)).bars
    assert (bar.kind, bar.width, bar.first, bar.is_open) == ("both", 100, 5, True)
    assert "nothing came for 18.0 s" in bar.words
    assert [(gap.x, gap.width) for gap in bar.gaps] == [(10, 90)]


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=5), st.floats(-10, 1e7))
def test_nothing_is_drawn_beyond_the_axis_whatever_the_clocks_say(times: list[float], now: float) -> None:
    attempts = [{"start": at, "end": None if at > now else now, "first": at / 2, "last": at * 2} for at in times]
    found = timeline(run_of(*attempts, end=max(times)), BEGIN + timedelta(seconds=now))
    for bar in found.bars:
        spans = [(bar.x, bar.width), *((gap.x, gap.width) for gap in bar.gaps)]
        assert all(0 <= x <= 100 and width >= 0 and x + width <= 100.01 for x, width in spans)
    assert 1 <= len(found.ticks) <= 12
    assert all(0 <= x <= 100 for x, _ in found.ticks)


def test_the_script_says_durations_as_the_server_does() -> None:
    """Both count, one after the other: times.js is read as text here, and run in the browser's tests."""
    script = (Path(rendering.__file__).parent / "static" / "times.js").read_text("utf-8")
    for number in ("0.9995", "59.95"):
        assert number in script
    assert words.duration(0.9994) == "999 ms"


def test_a_feed_tells_only_whom_it_concerns_and_looks_once_for_all(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    store = Store(pages.sqlite_url(tmp_path))
    feed = live.Feed(store)
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))

    def look(number: int, **page: Any) -> tuple[int, bool]:
        return feed.since(number, page.get("chat"), page.get("run"))

    number = feed.now()
    assert look(number) == (number, False)
    pages.write(engine, *pages.turn("aa01", at=pages.now()))
    assert look(number) == (number, False), "it has just looked"
    clock[0] += live.LOOK
    assert look(number) == (number + 1, True)
    asked = len(statements)
    for page, changed in (({"chat": "chat-1"}, 1), ({"chat": "x"}, 0), ({"run": "aa01"}, 1), ({"run": "aa02"}, 0)):
        assert look(number, **page) == (number + 1, bool(changed)), page
    assert len(statements) == asked
    clock[0] += 1000
    assert look(number + 1, run="aa02")[1] is True, "after a long time without anybody nobody knows what changed"
    store.close()


def test_json_of_an_error_has_no_markup(client: TestClient) -> None:
    told = client.get(f"/runs/{WICKED.replace('/', '')}", headers={"accept": "application/json"})
    assert json.loads(told.text)["error"]
    assert told.headers["content-type"] == "application/json"
