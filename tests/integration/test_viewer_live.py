"""Pages that move while an application works: a real one, in another process, on both databases."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from otel_chatdebug.demo.provider import Behaviour, Provider
from tests.support import apps, net, pages
from tests.support.browser import WAIT, Watch, screenshot
from tests.support.markdown import blocks
from tests.support.pages import TOKEN, Served

STREAM = """
with chatdebug.run("chat_turn", chat_id="live", first_message="Tell me.") as run:
    say(f"run {run.id}")
    response = client.send(client.build_request("POST", URL, json={**BODY, "stream": True}), stream=True)
    response.read()
    response.close()
"""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Call it with a server for a page that has its cookie; what it did that it must not fails the test."""
    with ExitStack() as stack:
        watches = []

        def begin(server: Served, refused: str | None = None, path: str = "/") -> Any:
            context = stack.enter_context(browser.new_context(viewport={"width": 1280, "height": 900}))
            context.set_default_timeout(WAIT)
            page = context.new_page()
            if refused:
                page.route(refused, lambda route: route.fulfill(status=503))
            watches.append(Watch(page, server.origin))
            page.goto(f"{server.origin}{path}?token={TOKEN}")
            page.evaluate("window.neverReloaded = true")
            return page

        yield begin
        assert [fault for watch in watches for fault in watch.faults] == []


def test_a_stream_is_seen_as_it_runs(
    database_url: str,
    chatdebug_home: Path,
    provider: Provider,
    visit: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The list gets the run, its page the text so far, and the end, without a reload and from another process."""
    monkeypatch.setenv("OTEL_CHATDEBUG_DATABASE_URL", database_url)
    held = Behaviour(chunks=12, stall_after=4)
    provider.script(held)
    with pages.served(database_url) as server:
        page = visit(server)
        expect(page.locator("h1, h2").first).to_have_text("Nothing is recorded yet", timeout=WAIT)
        with apps.started(STREAM, provider.url, OTEL_CHATDEBUG_STALE_AFTER="2") as app:
            run = app.wait_for("run")
            row = page.locator(f"#run-{run}")
            expect(row).to_contain_text("in progress", timeout=WAIT)
            expect(page.locator("#open-runs")).to_have_text("1", timeout=WAIT)
            row.locator("a.row-link").click()
            page.evaluate("window.neverReloaded = true")
            output = page.locator("section[aria-label=Output]")
            expect(output).to_contain_text("so far", timeout=WAIT)
            expect(output).to_contain_text("wörd4", timeout=WAIT)
            expect(page.locator("#waiting")).to_contain_text("streaming, nothing new for", timeout=WAIT)
            screenshot(page, f"live-{database_url.partition(':')[0]}")
            held.release()
            expect(page.locator("#run-status")).to_contain_text("completed", timeout=WAIT)
            expect(output).to_contain_text("wörd12", timeout=WAIT)
            expect(output).not_to_contain_text("so far", timeout=WAIT)
            expect(page.locator("#waiting")).to_have_count(0)
            expect(page.locator("#open-runs")).to_have_count(0, timeout=WAIT)
            expect(page.locator("#live")).to_have_text("live")
            assert "longest gap" in page.locator(".bars li.row").text_content(), "while it was held"
            assert page.evaluate("window.neverReloaded") is True
            assert app.ended().returncode == 0


def test_where_events_are_refused_the_page_asks(
    chatdebug_home: Path, provider: Provider, visit: Callable[..., Any]
) -> None:
    held = Behaviour(stall_after=2)
    provider.script(held)
    with pages.served(pages.sqlite_url(chatdebug_home)) as server:
        page = visit(server, refused="**/live")
        expect(page.locator("#live")).to_have_text("polling", timeout=WAIT)
        with apps.started(STREAM, provider.url) as app:
            row = page.locator(f"#run-{app.wait_for('run')}")
            expect(row).to_contain_text("in progress", timeout=WAIT)
            held.release()
            expect(row).to_contain_text("completed", timeout=WAIT)
            assert page.evaluate("window.neverReloaded") is True
            assert app.ended().returncode == 0


def test_what_a_person_has_opened_stays_open_while_the_page_moves(tmp_path: Path, visit: Callable[..., Any]) -> None:
    """Focus and folds of a run's page survive an update; what is new is there."""
    url = pages.sqlite_url(tmp_path)
    at = pages.now()
    with pages.tables(url) as engine, pages.served(url) as server:
        open_turn = pages.turn("aa01", at=at, status=pages.Status.IN_PROGRESS)
        pages.write(engine, *open_turn)
        page = visit(server)
        page.goto(f"{server.origin}/runs/aa01")
        page.click("#attempt-aa01a > summary")
        page.click("#attempt-aa01a summary:has-text('1 header') >> nth=0")
        page.click("#details > summary")
        page.focus("text=Export")
        pages.write(engine, *pages.turn("aa01", at=at))
        expect(page.locator("#run-status")).to_contain_text("completed", timeout=WAIT)
        assert page.locator("#attempt-aa01a[open] details[open], #details[open]").count() == 2
        assert page.evaluate("document.activeElement.textContent") == "Export"
        expect(page.locator("#attempt-aa01a .inside")).to_contain_text("stream read to its end", timeout=WAIT)


def test_a_server_that_is_stopped_does_not_wait_for_open_pages(tmp_path: Path, visit: Callable[..., Any]) -> None:
    url = pages.sqlite_url(tmp_path)
    with pages.tables(url), pages.served(url) as server:
        page = visit(server)
        expect(page.locator("#live")).to_have_text("live", timeout=WAIT)
        assert server.stop() == 0
        assert server.process.stderr is not None
        assert server.process.stderr.read() == ""
        expect(page.locator("#live")).to_have_text("no connection, trying again", timeout=WAIT)


def test_events_are_kept_alive_and_only_tell_of_what_was_asked_for(tmp_path: Path) -> None:
    url = pages.sqlite_url(tmp_path)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with pages.tables(url) as engine, pages.served(url) as server:
        client = httpx.Client(base_url=server.origin, headers=headers, trust_env=False, timeout=pages.PATIENCE)
        with client, client.stream("GET", "/live?chat=chat-1") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.iter_lines()
            assert next(line for line in lines if line.startswith("event")) == "event: hello"
            pages.write(engine, *pages.turn("aa01", at=pages.now(), chat_id="another"))
            assert next(line for line in lines if line.startswith(("event", ":"))) == ": still here"
            pages.write(engine, *pages.turn("aa02", at=pages.now()))
            assert next(line for line in lines if line.startswith(("event", ":"))) == "event: change"
        cursor = None
        for chat, changed in ((None, False), ("nobody", False), ("another", True)):
            pages.write(engine, *pages.turn(f"bb{cursor}", at=pages.now(), chat_id="another"))
            query = {name: value for name, value in (("cursor", cursor), ("chat", chat)) if value is not None}
            told = httpx.get(f"{server.origin}/changes", params=query, headers=headers, trust_env=False).json()
            assert told["changed"] is changed, (chat, told)
            cursor = told["cursor"]


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--host", "0.0.0.0"], {}, "takes a token of yours: --token, or better OTEL_CHATDEBUG_TOKEN"),
        (["--host", "::"], {}, "takes a token of yours"),
        (["--host", "example.com", "--no-token"], {"OTEL_CHATDEBUG_TOKEN": TOKEN}, "takes a token of yours"),
        (["--host", "0.0.0.0", "--token", " "], {}, "--token is empty"),
        (["--host", "no.such.host.invalid", "--token", "x"], {}, "cannot listen on no.such.host.invalid"),
    ],
)
def test_other_hosts_take_a_token(
    arguments: list[str], environment: dict[str, str], sentence: str, chatdebug_home: Path, monkeypatch: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = _serve(*arguments)
    assert done.returncode != 0
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_one_sentence(chatdebug_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = _serve("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "--port 0 takes any free port" in done.stderr


def test_it_listens_on_this_machine_alone_and_prints_a_link_that_opens_it(
    chatdebug_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pages.served(pages.sqlite_url(chatdebug_home), OTEL_CHATDEBUG_TOKEN="") as server:
        port = server.origin.rpartition(":")[2]
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        bound = {line[1].split(":")[0] for line in listening if int(line[1].split(":")[1], 16) == int(port)}
        assert bound == {"0100007F"}, "127.0.0.1 in the kernel's words"
        assert httpx.get(server.origin, trust_env=False).status_code == 401
        assert server.link.startswith(f"{server.origin}/?token=")
        with httpx.Client(trust_env=False, follow_redirects=True) as client:
            page = client.get(server.link, headers={"accept": "text/html"})
            assert page.status_code == 200
            assert str(page.url) == f"{server.origin}/"
            assert "Nothing is recorded yet" in page.text


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "otel_chatdebug.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=pages.PATIENCE, check=False)


def test_the_page_s_own_example_mounts_it_and_ends_with_its_server(
    chatdebug_home: Path, provider: Provider, visit: Callable[..., Any]
) -> None:
    """Links, scripts and updates below a path of another application, whose Ctrl-C waits for no open page."""
    (block,) = blocks("docs/web.md", "python")
    held = Behaviour(stall_after=2)
    provider.script(held)
    listen = "import uvicorn\nuvicorn.run(app, port=int(os.environ['PORT']), log_level='warning')\n"
    port = net.free_port()
    environment = {**os.environ, "DEBUG_TOKEN": TOKEN, "PORT": str(port)}
    process = subprocess.Popen([sys.executable, "-c", f"{block.code}\n{listen}"], env=environment)
    server = Served(f"http://127.0.0.1:{port}/debug/?token={TOKEN}", process)
    with process:
        try:
            apps.until(lambda: net.listens(port))
            page = visit(server, path="/debug/")
            expect(page.locator("#live")).to_have_text("live", timeout=WAIT)
            with apps.started(STREAM, provider.url) as app:
                row = page.locator(f"#run-{app.wait_for('run')}")
                expect(row).to_contain_text("in progress", timeout=WAIT)
                held.release()
                expect(row).to_contain_text("completed", timeout=WAIT)
                assert app.ended().returncode == 0
            row.locator("a.row-link").click()
            expect(page.locator("section[aria-label=Output]")).to_contain_text("wörd5", timeout=WAIT)
            page.click(".attempt-card > summary")
            expect(page.locator("pre.body").first).to_contain_text("gpt-5-mini", timeout=WAIT)
            assert server.stop() in (0, -signal.SIGINT, 130)
        finally:
            if process.poll() is None:
                process.kill()
