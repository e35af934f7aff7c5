"""Who may see the pages: the token, the cookie, the Host, the Origin, and what a browser is told it may do."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount
from starlette.testclient import TestClient

from otel_chatdebug.settings import Settings
from otel_chatdebug.tables import database, migrations
from otel_chatdebug.viewer import auth, chatdebug_app, threads
from otel_chatdebug.viewer.app import make_app
from otel_chatdebug.viewer.auth import Access, Hosts

TOKEN = "the-token-of-the-test"
HERE = "http://127.0.0.1:8765"
HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database without rows."""
    url = f"sqlite:///{tmp_path_factory.mktemp('viewer') / 'tables.db'}"
    engine = database.open_engine(url)
    migrations.upgrade(engine)
    engine.dispose()
    return url


@pytest.fixture
def served(url: str) -> Iterator[Callable[..., TestClient]]:
    """Call it for a client of what ``serve`` serves."""
    clients = []

    def make(access: Access | None = None, host: str = "127.0.0.1", more: tuple[str, ...] = ()) -> TestClient:
        app = make_app(Settings.load({}, database_url=url), access or Access(TOKEN), Hosts.of(host, more))
        client = TestClient(app, base_url=HERE, follow_redirects=False)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.app.state.store.close()  # type: ignore[attr-defined]
        client.close()


def test_nothing_but_the_form_is_shown_without_the_token(served: Callable[..., TestClient]) -> None:
    client = served()
    for path in ("/", "/chats", "/progress", "/live", "/changes", "/no-such-page"):
        response = client.get(path, headers=HTML)
        assert response.status_code == 401, path
        assert "needs its token" in response.text
        assert TOKEN not in response.text
        assert client.get(path).json() == {"error": "A token is needed: Authorization: Bearer TOKEN."}
    assert client.get("/static/style.css").status_code == 200


def test_a_link_with_the_token_sets_a_cookie_and_leads_to_the_address_without_it(
    served: Callable[..., TestClient],
) -> None:
    client = served()
    response = client.get(f"/chats?q=a%26b&token={TOKEN}&cursor=")
    assert response.status_code == 303
    assert response.headers["location"] == "/chats?q=a%26b&cursor="
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert TOKEN not in cookie
    assert client.get("/", headers=HTML).status_code == 200


@pytest.mark.parametrize("wrong", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ö", "%00"])
def test_a_wrong_token_opens_nothing(wrong: str, served: Callable[..., TestClient]) -> None:
    client = served()
    assert client.get(f"/?token={wrong}").status_code == 401
    assert client.get("/", headers={"authorization": f"Bearer {wrong}".encode()}).status_code == 401
    client.cookies.set("chatdebug-8765", TOKEN if wrong == "x" else wrong.encode("ascii", "ignore").decode())
    assert client.get("/").status_code == 401, "the token is no cookie, either"


def test_programs_send_the_token_in_a_header(served: Callable[..., TestClient]) -> None:
    assert served().get("/changes", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_token_is_compared_in_constant_time(
    served: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []
    real = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda *both: compared.append(both) or real(*both))
    client = served()
    client.get("/?token=a")
    client.get("/", headers={"authorization": "Bearer b"})
    client.cookies.set("chatdebug-8765", "c")
    client.get("/")
    assert {given for given, _ in compared} >= {b"a", b"b", b"c"}


def test_the_form_takes_the_token_and_leads_back(served: Callable[..., TestClient]) -> None:
    client = served()
    page = client.get("/chats?q=x", headers=HTML).text
    next = re.search(r'name="next" value="([^"]*)"', page)
    assert next
    form = {"token": f" {TOKEN} ", "next": next[1]}
    assert client.post("/login", data=form).status_code == 401, "no browser says that our page sent it"
    wrong = client.post("/login", data=form | {"token": "x"}, headers={"origin": HERE, **HTML})
    assert wrong.status_code == 401
    assert "not the right one" in wrong.text
    response = client.post("/login", data=form, headers={"origin": HERE})
    assert (response.status_code, response.headers["location"]) == (303, "/chats?q=x")
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "next",
    ["//evil.example/", "https://evil.example/", "/\\evil.example", "evil", "", "/\r\nx: y", "javascript:alert(1)"],
)
def test_no_link_leads_away_after_the_form(next: str, served: Callable[..., TestClient]) -> None:
    response = served().post("/login", data={"token": TOKEN, "next": next}, headers={"origin": HERE})
    assert response.headers["location"] == "/"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8765", 200),
        ("127.0.0.2", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8765", 421),
        ("localhost.evil.example", 421),
        ("192.168.0.7:8765", 421),
        ("127.0.0.1:8765@evil.example", 400),
        ("127.0.0.1:port", 400),
        ("", 400),
    ],
)
def test_only_this_machine_s_names_are_answered(host: str, status: int, served: Callable[..., TestClient]) -> None:
    """A page elsewhere whose name leads here (DNS rebinding) gets nothing, even where no token is needed."""
    assert served(Access(open=True)).get("/", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("host", "status"), [("10.0.0.7:8765", 200), ("[fe80::1]", 200), ("debug.lan", 200), ("evil.example", 421)]
)
def test_a_server_for_others_answers_to_addresses_and_to_the_names_it_was_given(
    host: str, status: int, served: Callable[..., TestClient]
) -> None:
    client = served(host="0.0.0.0", more=("debug.lan",))
    assert client.get("/", headers={"host": host, "authorization": f"Bearer {TOKEN}"}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": HERE}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
    ],
)
def test_requests_from_other_sites_are_refused(
    headers: dict[str, str], status: int, served: Callable[..., TestClient]
) -> None:
    assert served(Access(open=True)).get("/", headers=headers).status_code == status


def test_every_response_tells_the_browser_to_trust_nothing_but_our_files(served: Callable[..., TestClient]) -> None:
    client = served()
    opened = {"authorization": f"Bearer {TOKEN}"}
    for path, headers in (("/", opened), ("/", HTML), ("/none", opened), ("/static/main.js", {}), ("/", {"host": "x"})):
        response = client.get(path, headers=headers)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cache-control"] == ("no-cache" if "static" in path else "no-store")
        assert "<script>" not in response.text
        assert not re.search(r"\son\w+=|\sstyle=", response.text)


def test_a_mounted_application_has_its_links_below_its_path(url: str) -> None:
    app = Starlette(routes=[Mount("/admin/debug", chatdebug_app(url, token=TOKEN))])
    client = TestClient(app, base_url=HERE, follow_redirects=False)
    response = client.get(f"/admin/debug/?token={TOKEN}")
    assert response.headers["location"] == "/admin/debug/"
    assert "Path=/admin/debug" in response.headers["set-cookie"]
    page = client.get("/admin/debug/").text
    links = re.findall(r'(?:href|src|action)="([^"#]+)', page)
    assert links
    assert [link for link in links if not link.startswith("/admin/debug/")] == []
    assert client.get("/admin/debug/static/main.js").status_code == 200


def is_admin(request: Request) -> bool:
    return request.headers.get("x-user") == "admin"


async def is_admin_later(request: Request) -> bool:
    return is_admin(request)


@pytest.mark.parametrize("allow", [is_admin, is_admin_later])
def test_an_application_may_say_itself_who_may_see_the_pages(url: str, allow: Any) -> None:
    client = TestClient(chatdebug_app(url, allow=allow))
    assert client.get("/", headers={"x-user": "admin"}).status_code == 200
    assert client.get("/", headers={"x-user": "other"}).status_code == 401
    said = client.get("/", headers={"x-user": "other", **HTML}).text
    assert "not open to you" in said
    assert 'name="token"' not in said, "there is no token that it could take"


def test_an_allow_that_blocks_holds_nobody_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "HOOK_SECONDS", 0.05)
    hold, asked = threading.Event(), []

    def allow(request: Request) -> bool:
        asked.append(threading.current_thread().name)
        if "x-hang" in request.headers:
            hold.wait()
        return True

    client = TestClient(chatdebug_app(url, allow=allow))
    assert client.get("/", headers={"x-hang": "1"}).status_code == 401
    hold.set()
    assert client.get("/").status_code == 200
    assert all(name.startswith("AnyIO worker") for name in asked)


def test_an_allow_that_raises_opens_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    def breaks(request: Request) -> bool:
        raise RuntimeError("a secret of the application")

    def forbids(request: Request) -> bool:
        raise HTTPException(403, "Only for the night shift.")

    assert TestClient(chatdebug_app(url, allow=breaks)).get("/").status_code == 401
    assert "allow raised RuntimeError" in caplog.text
    assert "a secret" not in caplog.text
    answer = TestClient(chatdebug_app(url, allow=forbids)).get("/")
    assert (answer.status_code, answer.json()) == (403, {"error": "Only for the night shift."})


SNAPSHOT = "/api/experimental/chats/a%252Fb%3Fc/debug/snapshot"


def test_what_opens_the_pages_opens_no_snapshot_but_for_the_token(url: str) -> None:
    admin = {"x-user": "admin"}
    answer = TestClient(chatdebug_app(url, allow=is_admin)).get(SNAPSHOT, headers=admin)
    assert answer.status_code == 403
    assert "authorize=" in answer.json()["error"]
    client = TestClient(chatdebug_app(url, allow=is_admin, token=TOKEN))
    assert client.get(SNAPSHOT, headers=admin).status_code == 401
    assert client.get(SNAPSHOT, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 404, "no such chat"
    client = TestClient(chatdebug_app(url, token=TOKEN, authorize=lambda *_: False))
    assert client.get(SNAPSHOT, headers={"authorization": f"Bearer {TOKEN}"}).json() == {
        "error": "There is no such chat."
    }


def test_a_snapshot_opens_in_a_browser_by_one_link_as_the_pages_do(url: str) -> None:
    app = Starlette(routes=[Mount("/debug", chatdebug_app(url, token=TOKEN))])
    client = TestClient(app, base_url=HERE, follow_redirects=False)
    path = f"/debug{SNAPSHOT}"
    assert client.get(path).json() == {"error": "A token is needed: Authorization: Bearer TOKEN."}
    form = client.get(f"{path}?x=1", headers=HTML)
    assert form.status_code == 401
    assert f'name="next" value="{path}?x=1"' in form.text
    assert client.get(f"{path}?token=wrong").status_code == 401
    link = client.get(f"{path}?x=1&token={TOKEN}")
    assert (link.status_code, link.headers["location"]) == (303, f"{path}?x=1"), "the chat's id as it came"
    assert client.get(link.headers["location"]).status_code == 404, "let in: there is no such chat"


def test_without_a_token_one_is_made_and_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(chatdebug_app(url))
    token = re.search(r"\?token=(\S+)\.", caplog.text)
    assert token
    assert client.get("/").status_code == 401
    assert client.get("/", headers={"authorization": f"Bearer {token[1]}"}).status_code == 200


def test_the_token_of_the_environment_is_used_and_shown_nowhere(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_CHATDEBUG_TOKEN", TOKEN)
    assert TestClient(chatdebug_app(url)).get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert TOKEN not in repr(Settings.load())
