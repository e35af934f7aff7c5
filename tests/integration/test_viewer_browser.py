"""The pages in a real Chromium, served by ``otel-chatdebug serve``: what a person sees and does on each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import expect

from otel_chatdebug.status import Status
from otel_chatdebug.tables import transfer
from tests.support import pages
from tests.support.apps import until
from tests.support.browser import WAIT, Watch, screenshot
from tests.support.pages import SECOND, TOKEN, WICKED, Served

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}

PAGES = {
    "runs": "/",
    "chat": "/?chat=chat-1",
    "chats": "/chats",
    "progress": "/progress",
    "run": "/runs/dd01",
    "run-failed": "/runs/aa02",
    "run-open": "/runs/cc01",
    "attempt": "/runs/dd01/attempts/dd01a",
    "tools": "/runs/dd01/steps/dd01s/tools",
    "delete": "/runs/dd01/delete",
    "nothing-found": "/?q=nobody+said+this",
    "no-such-page": "/no-such-page",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a few chats, and of one run that is hostile in every place."""
    url = pages.sqlite_url(tmp_path_factory.mktemp("pages"))
    with pages.tables(url) as engine:
        pages.sample(engine)
        pages.wicked(engine)
    with pages.served(url) as running:
        yield running


class Visit:
    """A page of a browser that has the cookie, and what it did that it must not."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.watch = Watch(page, origin)

    def go(self, path: str) -> None:
        self.page.goto(self.origin + path)
        self.settle()

    def settle(self) -> None:
        """Waits until nothing is being fetched into the page."""
        expect(self.page.locator("[data-loading]")).to_have_count(0, timeout=WAIT)


@pytest.fixture
def visit(browser: Any, server: Served) -> Iterator[Callable[..., Visit]]:
    """Call it for a `Visit`; what its page did that it must not fails the test."""
    contexts, visits = [], []

    def begin(**options: Any) -> Visit:
        context = browser.new_context(**{"viewport": WIDE, "timezone_id": "Asia/Tokyo", **options})
        context.set_default_timeout(WAIT)
        contexts.append(context)
        visits.append(Visit(context.new_page(), server.origin))
        visits[-1].go(f"/?token={TOKEN}")
        return visits[-1]

    yield begin
    for context in contexts:
        context.close()
    assert [fault for each in visits for fault in each.watch.faults] == []


@pytest.mark.slow
def test_every_page_in_every_look_and_readable_by_a_screen_reader(visit: Callable[..., Visit]) -> None:
    """A picture of each is kept; none scrolls sideways; axe finds nothing against WCAG 2.2 AA."""
    told = []
    for theme, name, size in (("light", "wide", WIDE), ("dark", "narrow", NARROW)):
        # The page's own policy forbids to bring axe in; all other tests have that policy.
        page = (it := visit(viewport=size, color_scheme=theme, bypass_csp=True)).page
        for title, path in PAGES.items():
            it.go(path)
            screenshot(page, f"{title}-{name}-{theme}")
            if page.evaluate("document.documentElement.scrollWidth") > size["width"]:
                told.append(f"{title}, {name}: scrolls sideways")
            page.evaluate(AXE.read_text("utf-8"))
            tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
            for rule in page.evaluate("tags => axe.run({runOnly: tags})", tags)["violations"]:
                told += [f"{title}, {name}, {theme}: {rule['id']} {node['html']}" for node in rule["nodes"]]
    assert told == []


def test_hostile_content_is_text_wherever_it_comes(visit: Callable[..., Visit], server: Served) -> None:
    """Scripts in messages, tools, headers, URLs, errors and ids: nothing runs or becomes an element, all is legible."""
    it = visit()
    page = it.page
    page.add_init_script(
        "document.addEventListener('securitypolicyviolation', e => console.error('CSP ' + e.blockedURI))"
    )
    it.go("/runs/ee01")
    for summary in page.query_selector_all("details:not([open]) > summary"):
        summary.click()
    page.wait_for_selector("pre.body:has-text('<html>')")
    it.settle()
    for summary in page.query_selector_all("details:not([open]) > summary"):
        summary.click()
    page.wait_for_selector("table.headers td")
    assert page.inner_text("main").count("<script>alert(1)</script>") > 40
    page.click("button[data-form$='side=raw'], button[data-form]:has-text('Raw')")
    screenshot(page, "hostile")
    places = ["/runs/ee01/delete", "/runs/ee01/steps/ee01s", "/runs/ee01/attempts/ee01a", "/", "/chats", "/progress"]
    places += ["/runs/ee01/attempts/ee01a/response", "/runs/ee01/attempts/ee01a/request?form=pretty"]
    places += ["/runs/ee01/steps/ee01s/tools", "/runs/ee01/steps/ee01s/part?message=0&part=0"]
    escaped = page.evaluate("text => encodeURIComponent(text)", WICKED)
    places += [
        f"/?chat={escaped}",
        f"/?q={escaped}",
        f"/?kind={escaped}&model={escaped}&since={escaped}&error={escaped}",
    ]
    places += [
        f"/{escaped}",
        f"/runs/{escaped}",
        f"/delete?chat={escaped}",
        f"/?cursor={escaped}",
        f"/chats?q={escaped}",
    ]
    for path in places:
        it.go(path)
        # ours are the two in the head, and the drawing of the waterfall
        assert page.locator("script:not(head > script[src*='/static/'])").count() == 0, path
        assert page.locator("img, iframe, object, embed, [onerror], [onload], main svg[onload]").count() == 0, path
        assert page.locator("a[href^='javascript'], main [style]").count() == 0, path
        if path.startswith(("/runs/ee01", "/?chat", "/delete", "/chats")) or path == "/":
            assert "<script>alert(1)</script>" in page.inner_text("body"), path


def test_a_body_opened_by_itself_is_no_page(visit: Callable[..., Visit]) -> None:
    """Even one that says that it is HTML."""
    it = visit()
    response = it.page.goto(f"{it.origin}/runs/ee01/attempts/ee01a/response")
    assert response.headers["content-type"].startswith("text/plain")
    assert response.headers["content-security-policy"].startswith("sandbox")
    assert it.page.locator("body > pre").count() == 1


def test_filters_take_effect_as_they_are_set_and_the_address_has_them(visit: Callable[..., Visit]) -> None:
    it = visit()
    page, rows = it.page, it.page.locator("#list tbody tr")
    assert rows.count() == 7
    page.select_option("select[name=status]", "error")
    expect(rows).to_have_count(2, timeout=WAIT)
    assert "status=error" in page.url
    page.fill("#search", "AA02")
    expect(rows).to_have_count(1, timeout=WAIT)
    assert "q=AA02" in page.url
    assert "What about aa02?" in page.inner_text("#list")
    assert "what went wrong in aa02" in page.inner_text("#list"), "the list says what failed"
    assert page.evaluate("document.activeElement.id") == "search", "whoever types goes on typing"
    page.go_back()
    expect(rows).to_have_count(7, timeout=WAIT)
    assert page.input_value("#search") == ""
    page.select_option("select[name=kind]", "title_generation")
    page.wait_for_selector("#list tbody tr:only-child:has-text('aa03')")
    page.click("#clear")
    expect(rows).to_have_count(7, timeout=WAIT)
    page.fill("#search", "no one said that")
    page.wait_for_selector("text=No run is like that")


def test_what_is_set_before_the_script_is_there_takes_effect_too(visit: Callable[..., Visit]) -> None:
    """A slow line brings the page first, and who is in a hurry types."""
    it = visit()
    page, rows, held = it.page, it.page.locator("#list tbody tr"), []
    page.route("**/static/main.js*", lambda route: held.append(route))
    for act, address, count in (
        (lambda: page.fill("#search", "AA02"), "q=AA02", 1),
        (lambda: page.select_option("select[name=status]", "error"), "status=error", 2),
    ):
        held.clear()
        page.goto(f"{it.origin}/", wait_until="commit")
        act()
        assert rows.count() == 7
        until(lambda: page.evaluate("true") and held)
        held[0].continue_()
        expect(rows).to_have_count(count, timeout=WAIT)
        assert address in page.url
    page.unroute_all()
    it.go("/?status=error&q=AA02")
    assert rows.count() == 1
    assert page.url.endswith("/?status=error&q=AA02"), "what the address says is nothing new"


def test_everything_can_be_reached_by_keys(visit: Callable[..., Visit]) -> None:
    it = visit()
    page = it.page
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    chosen = page.locator("tr.at")
    assert chosen.count() == 1
    href = chosen.locator("a.row-link").get_attribute("href")
    assert page.evaluate("document.activeElement.getAttribute('href')") == href
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{href}")
    page.keyboard.press("j")
    page.keyboard.press("o")
    page.wait_for_selector(".step.at:not([open])")
    page.keyboard.press("o")
    page.wait_for_selector(".step.at[open]")
    page.keyboard.press("u")
    page.wait_for_url("**/?chat=*")
    page.keyboard.press("c")
    page.wait_for_url("**/chats")
    page.keyboard.press("p")
    page.wait_for_url("**/progress")
    page.keyboard.press("r")
    page.wait_for_url(f"{it.origin}/")
    page.keyboard.press("/")
    page.keyboard.type("jj?t")
    assert page.input_value("#search") == "jj?t", "in a field a key is a letter"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.uncheck("#keys-on")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")
    page.keyboard.press("c")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 0, "they can be switched off"
    # The order of Tab: the link over the head of the page comes first.
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def test_a_theme_that_was_chosen_stays(visit: Callable[..., Visit]) -> None:
    page = (it := visit(color_scheme="light")).page

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = background()
    page.keyboard.press("t")  # light
    assert background() == light
    page.keyboard.press("t")  # dark
    dark = background()
    assert dark != light
    it.go("/chats")
    assert background() == dark
    page.emulate_media(color_scheme="dark")
    page.keyboard.press("t")  # as the system
    assert background() == dark
    page.emulate_media(color_scheme="light")
    assert background() == light


def test_the_waterfall_marks_first_chunks_pauses_and_ends_and_says_them(visit: Callable[..., Visit]) -> None:
    it = visit()
    it.go("/runs/dd01")
    page = it.page
    rows = page.locator(".bars li.row")
    assert rows.count() == 3
    said = [row.text_content() for row in rows.all()]
    assert "completed after 6.0 s, 2 attempts" in said[0]
    assert "error after 1.0 s" in said[1]
    assert "read to its end and closed" in said[1]
    assert "1.0 s after the attempt before, first chunk after 1.0 s" in said[2]
    assert "longest gap 1.0 s" in said[2]
    assert "stream read to its end" in said[2]
    bars = {row.get_attribute("id"): row for row in rows.all()}
    second = bars["bar-attempt-dd01a"]
    chart = second.locator("svg").bounding_box()
    first = second.locator("line.first").bounding_box()
    assert abs(first["x"] - (chart["x"] + chart["width"] / 2)) < 2, "3 s of 6"
    assert second.locator("line.pause").count() == 1
    gap = second.locator("rect.gap").bounding_box()
    assert abs(gap["x"] - (chart["x"] + chart["width"] * 4 / 6)) < 2, "from the fourth second"
    assert abs(gap["width"] - chart["width"] / 6) < 2, "for one"
    assert "✗ 1.0 s" in bars["bar-attempt-dd01r"].locator("text.end").text_content()
    second.locator("a").click()
    assert page.locator("details#step-dd01s[open]").count() == 1


def test_a_step_tells_all_of_it(visit: Callable[..., Visit]) -> None:
    it = visit()
    it.go("/runs/dd01")
    text = it.page.inner_text(".step[open]")
    for word in (
        "gpt-5-mini",
        "You are brief.",
        "calls weather (call_1)",
        '"city": "Bern"',
        "result of call_1",
        "rain",
        "image, image/png, 12.3 kB",
        "This about dd01.",
        "finished with stop",
        "Warning: deprecated: this model will go",
        "1,284",
        "tool choice",
        "parallel_tool_calls",
        "temperature",
        "rate_limit_exceeded: slow down",
        "stream read to its end",
    ):
        assert word in text, word
    it.page.click("summary:has-text('1 tool')")
    it.page.wait_for_selector("text=Tells the weather")
    assert '"properties"' in it.page.inner_text(".step[open]")


def test_headers_and_bodies_come_when_somebody_opens_them_and_can_be_copied(visit: Callable[..., Visit]) -> None:
    it = visit(permissions=["clipboard-read", "clipboard-write"])
    page = it.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    it.go("/runs/dd01")
    assert [url for url in asked if "/attempts/" in url] == []
    page.click("#attempt-dd01a > summary")
    page.wait_for_selector('pre.body:has-text(\'"model": "gpt-5-mini"\')')
    page.click("#attempt-dd01a summary:has-text('2 headers')")
    assert "[REDACTED]" in page.inner_text("#attempt-dd01a")
    pretty = page.inner_text("pre[id=body-request-dd01a]")
    page.click("section[aria-label=request] button:has-text('Raw')")
    expect(page.locator("pre[id=body-request-dd01a]")).not_to_have_text(pretty, timeout=WAIT)
    page.click("section[aria-label=request] button:has-text('Copy body')")
    page.wait_for_selector(".toast:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == '{"model": "gpt-5-mini", "messages": []}'
    page.click("button:has-text('Copy id')")
    until(lambda: page.evaluate("navigator.clipboard.readText()") == "dd01")


def test_what_hangs_is_told_with_where_and_since_when(visit: Callable[..., Visit]) -> None:
    it = visit()
    it.go("/progress")
    text = it.page.inner_text("main")
    assert "1 run in progress, 1 without anything new for 30.0 s or longer" in text
    assert re.search(r"streaming, nothing new for 1 min \d\d s|streaming, nothing new for \d+ min", text)
    assert "4.3 kB, 17 events" in text
    assert it.page.inner_text("#open-runs") == "1"
    it.page.click("a.row-link")
    it.page.wait_for_selector("#waiting:has-text('Step 1, attempt 1: streaming, nothing new for')")


def test_times_are_the_reader_s(visit: Callable[..., Visit]) -> None:
    it = visit()
    moment = it.page.locator("tbody time").first
    given = moment.get_attribute("datetime")
    hour = (int(given[11:13]) + 9) % 24
    assert re.search(rf"\b{hour:02}:{given[14:16]}:{given[17:19]}$", moment.inner_text())


def test_pages_are_readable_without_a_script(browser: Any, server: Served) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.origin}/?token={TOKEN}")
    page.select_option("select[name=status]", "error")
    page.click("button:has-text('Filter')")
    assert page.locator("#list tbody tr").count() == 2
    page.click("a.row-link:has-text('aa02')")
    assert "what went wrong in aa02" in page.inner_text("main")
    page.click("#attempt-aa02a > summary")
    page.click("text=Headers and bodies")
    page.click("text=Body by itself >> nth=0")
    assert "gpt-5-mini" in page.inner_text("body")
    context.close()


def test_deleting_asks_first_and_takes_no_form_of_another_site(browser: Any, tmp_path: Path) -> None:
    url = pages.sqlite_url(tmp_path)
    with pages.tables(url) as engine:
        at = pages.now()
        pages.write(engine, *pages.turn("aa01", at=at), *pages.turn("aa02", at=at - SECOND, status=Status.ERROR))
        pages.write(engine, *pages.turn("bb01", at=at, chat_id="chat/2 %ü"))
    context = browser.new_context()
    page = context.new_page()
    with pages.served(url) as server:
        page.goto(f"{server.origin}/?token={TOKEN}")
        # A page of another site sends the form, with whatever cookies the browser lets it send.
        form = f'<form id="f" method="post" action="{server.origin}/runs/aa01/delete"><input name="form_token"></form>'
        page.route("http://evil.example/", lambda route: route.fulfill(body=form, content_type="text/html"))
        page.goto("http://evil.example/")
        page.evaluate("document.getElementById('f').submit()")
        page.wait_for_selector("text=This request comes from another site.")
        for headers in ({}, {"origin": server.origin}):
            forged = context.request.post(
                f"{server.origin}/runs/aa01/delete", headers=headers, form={"form_token": "x"}
            )
            assert forged.status == 403
        page.goto(f"{server.origin}/runs/aa01")
        page.click("text=Delete…")
        assert "1 run, 1 step, 1 attempt" in page.inner_text("main")
        page.click("text=Keep")
        page.wait_for_url("**/runs/aa01")
        page.click("text=Delete…")
        page.click("#delete")
        page.wait_for_url(lambda url: url.endswith("/?chat=chat-1"))
        assert page.locator("#list tbody tr").count() == 1
        page.goto(f"{server.origin}/runs/aa01")
        assert "There is no run aa01" in page.inner_text("main")
        page.goto(f"{server.origin}/chats")
        page.click("a:has-text('chat/2 %ü')")
        page.click("text=Delete…")
        page.click("#delete")
        page.wait_for_url("**/chats")
        assert "chat/2" not in page.inner_text("main")
        assert "chat-1" in page.inner_text("main")
    context.close()


def test_a_run_and_a_chat_can_be_taken_along_as_files(visit: Callable[..., Visit], tmp_path: Path) -> None:
    """What ``otel-chatdebug export`` writes, and ``import`` takes."""
    it = visit()
    it.go("/runs/dd01")
    with it.page.expect_download() as one:
        it.page.keyboard.press("e")
    it.go("/?chat=chat-1")
    with it.page.expect_download() as all:
        it.page.click("text=Export")
    ids = []
    for download in (one.value, all.value):
        assert re.fullmatch(r"chatdebug-[\w-]+\.json", download.suggested_filename)
        path = tmp_path / download.suggested_filename
        download.save_as(path)
        ids.append([run.id for run in transfer.read_export(path.read_text("utf-8"))])
    assert ids == [["dd01"], ["dd01", "aa03", "aa02", "aa01"]]


def test_a_request_can_be_copied_as_curl(visit: Callable[..., Visit]) -> None:
    it = visit(permissions=["clipboard-read", "clipboard-write"])
    it.go("/runs/dd01")
    it.page.click("#attempt-dd01a > summary")
    it.page.click("button:has-text('Copy as curl')")
    it.page.wait_for_selector(".toast:has-text('Copied')")
    copied = it.page.evaluate("navigator.clipboard.readText()")
    assert "curl https://api.example.com/v1/chat/completions" in copied
    assert "$OPENAI_API_KEY" in copied
