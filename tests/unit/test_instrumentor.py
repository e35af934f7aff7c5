"""The instrumentors keep the habits of OpenTelemetry's, patch each class once, and put back what they found."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from otel_chatdebug import attributes, lifecycle, package
from otel_chatdebug.capture import instrumentor as instrumentors
from otel_chatdebug.capture import sdks
from otel_chatdebug.capture.instrumentor import (
    INSTRUMENTORS,
    ChatDebugHTTPX2Instrumentor,
    ChatDebugHTTPXInstrumentor,
)
from otel_chatdebug.pipeline.recorder import active
from otel_chatdebug.version import __version__
from tests.support.recording import BODY, URL, Model, answer, recording

METHODS = [
    (owner, method)
    for library in (httpx, httpx2)
    for owner in (library.Client, library.AsyncClient)
    for method in ("send", "_send_single_request")
]
"""All that is patched of the two libraries."""


def methods() -> list[Any]:
    return [owner.__dict__[method] for owner, method in METHODS]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Whatever a test switches on is off afterwards."""
    yield
    for make in INSTRUMENTORS.values():
        if make().is_instrumented_by_opentelemetry:
            make().uninstrument()
    lifecycle.disarm()


def test_uninstrument_puts_back_the_very_same_functions() -> None:
    before = methods()

    with recording():
        during = methods()

    assert all(one is not other for one, other in zip(before, during, strict=True))
    assert all(one is other for one, other in zip(before, methods(), strict=True))


def test_what_is_patched_looks_as_before() -> None:
    """Signatures, names and documentation are what other tools and people go by."""
    import inspect

    before = [(inspect.signature(method), method.__name__, method.__doc__, method.__module__) for method in methods()]
    asynchronous = [inspect.iscoroutinefunction(method) for method in methods()]

    with recording():
        after = [(inspect.signature(one), one.__name__, one.__doc__, one.__module__) for one in methods()]
        assert [inspect.iscoroutinefunction(method) for method in methods()] == asynchronous

    assert after == before


def test_instrumenting_again_patches_nothing_again() -> None:
    with recording() as recorded:
        once = methods()
        for make in INSTRUMENTORS.values():
            make().instrument(skip_dep_check=True)
        Model().call()

        assert methods() == once
        assert len(recorded.attempts) == 1


def test_an_instrumentor_by_itself_leaves_the_other_library_alone() -> None:
    before = methods()
    ChatDebugHTTPX2Instrumentor().instrument(skip_dep_check=True)

    assert methods()[:4] == before[:4]
    assert all(one is not other for one, other in zip(methods()[4:], before[4:], strict=True))

    ChatDebugHTTPX2Instrumentor().uninstrument()
    assert all(one is other for one, other in zip(before, methods(), strict=True))


def test_uninstrumenting_one_leaves_the_other_at_work() -> None:
    with recording() as recorded:
        ChatDebugHTTPX2Instrumentor().uninstrument()
        Model().call()

        assert len(recorded.attempts) == 1
        ChatDebugHTTPX2Instrumentor().instrument(skip_dep_check=True)


def test_uninstrumenting_what_is_not_instrumented_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = methods()
    ChatDebugHTTPXInstrumentor().uninstrument()

    assert all(one is other for one, other in zip(before, methods(), strict=True))


def test_a_patch_that_somebody_has_wrapped_since_stays_and_is_inert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking ours out from under theirs would take theirs off."""
    with recording():
        ours = httpx.Client.__dict__["send"]

        def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
            return ours(self, *args, **kwargs)

        monkeypatch.setattr(httpx.Client, "send", theirs)

    assert httpx.Client.__dict__["send"] is theirs
    assert Model().call().status_code == 200
    assert active() is None
    monkeypatch.undo()
    httpx.Client.send = ours.__wrapped__  # type: ignore[method-assign]


def test_clients_that_were_made_before_are_seen() -> None:
    model = Model()
    with recording() as recorded:
        model.call()

        assert len(recorded.attempts) == 1


def test_after_uninstrument_nothing_is_recorded() -> None:
    model = Model()
    with recording() as recorded:
        for make in INSTRUMENTORS.values():
            make().uninstrument()
        model.call()

        assert recorded.attempts == []
        for make in INSTRUMENTORS.values():
            make().instrument(skip_dep_check=True)
        model.call()
        assert len(recorded.attempts) == 1


# -- the habits


@pytest.mark.parametrize("make", INSTRUMENTORS.values())
def test_they_are_instrumentors_as_opentelemetry_knows_them(make: Any) -> None:
    """One object each, with the switch that `opentelemetry-instrument` uses, and one library that it is for."""
    assert isinstance(make(), BaseInstrumentor)
    assert make() is make()
    assert not make().is_instrumented_by_opentelemetry
    (dependency,) = make().instrumentation_dependencies()
    assert dependency in package._instruments_any
    assert dependency.split()[0] == make.library
    assert get_dependency_conflicts(make().instrumentation_dependencies()) is None


def test_the_entry_points_name_them() -> None:
    found = {point.name: point.load() for point in entry_points(group="opentelemetry_instrumentor")}

    assert {name: found[name] for name in INSTRUMENTORS} == INSTRUMENTORS


def test_a_library_that_is_missing_is_no_error_where_the_check_is_made(caplog: pytest.LogCaptureFixture) -> None:
    """As `opentelemetry-instrument` does it: the instrumentor of an absent library switches nothing on."""

    class Absent(instrumentors._Instrumentor):
        library = "httpx"

        def instrumentation_dependencies(self) -> tuple[str, ...]:
            return ("a-library-that-nobody-has >= 1.0",)

    before = methods()
    Absent().instrument()

    assert not Absent().is_instrumented_by_opentelemetry
    assert all(one is other for one, other in zip(before, methods(), strict=True))


def test_spans_name_their_scope_its_version_and_the_schema() -> None:
    with recording() as recorded:
        Model().call()
        scopes = {span.instrumentation_scope for span in recorded.spans.values()}

    (scope,) = scopes
    assert scope is not None
    assert (scope.name, scope.version, scope.schema_url) == ("otel_chatdebug", __version__, attributes.SCHEMA_URL)


# -- libraries that come later, and libraries that do not fit


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A library as the two are, and its instrumentor; nobody has imported it yet."""
    module = ModuleType("httpx_of_tomorrow")
    module.__dict__.update(
        __version__="9.0",
        Client=type("Client", (httpx.Client,), dict(httpx.Client.__dict__)),
        AsyncClient=type("AsyncClient", (httpx.AsyncClient,), dict(httpx.AsyncClient.__dict__)),
        SyncByteStream=httpx.SyncByteStream,
        AsyncByteStream=httpx.AsyncByteStream,
    )
    return module


class Tomorrow(instrumentors._Instrumentor):
    library = "httpx_of_tomorrow"

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        return ()


@pytest.fixture
def tomorrow() -> Iterator[Tomorrow]:
    made = Tomorrow()
    yield made
    if made.is_instrumented_by_opentelemetry:
        made.uninstrument()
    instrumentors._watched.discard("httpx_of_tomorrow")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_library_without_the_methods_that_we_wrap_gives_exactly_one_warning(
    library: Any, tomorrow: Tomorrow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An instrumentation that silently sees nothing looks like an application that made no calls."""
    del library.Client._send_single_request
    del library.AsyncClient._send_single_request
    monkeypatch.setitem(sys.modules, "httpx_of_tomorrow", library)

    tomorrow.instrument(skip_dep_check=True)

    (warning,) = warnings(caplog)
    assert "httpx_of_tomorrow 9.0" in warning
    assert "Client._send_single_request, AsyncClient._send_single_request" in warning


def test_a_library_that_is_loaded_gives_no_warning(
    library: Any, tomorrow: Tomorrow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "httpx_of_tomorrow", library)

    tomorrow.instrument(skip_dep_check=True)

    assert warnings(caplog) == []
    with recording() as recorded:
        transport = httpx.MockTransport(lambda request: answer())
        library.Client(transport=transport).post(URL, json=BODY)
        assert len(recorded.attempts) == 1


def test_a_library_that_fails_to_be_patched_is_imported_all_the_same(
    library: Any, tomorrow: Tomorrow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an import hook raises would come out of the application's import statement."""
    tomorrow.instrument(skip_dep_check=True)
    del library.SyncByteStream

    tomorrow._imported(library)


class _Client:
    def request(self, cast_to: Any, options: Any, *, stream: bool = False) -> Any: ...


def sdk(**more: Any) -> ModuleType:
    module = ModuleType("openai._base_client")
    module.__dict__.update(
        {
            "SyncAPIClient": type("SyncAPIClient", (), dict(_Client.__dict__)),
            "AsyncAPIClient": type("AsyncAPIClient", (), dict(_Client.__dict__)),
            **more,
        }
    )
    return module


@pytest.fixture
def _sdks_on() -> Iterator[None]:
    sdks.instrument()
    yield
    sdks.uninstrument()


@pytest.mark.usefixtures("_sdks_on")
@pytest.mark.parametrize(
    "broken",
    [
        {"SyncAPIClient": None, "AsyncAPIClient": None},
        {"SyncAPIClient": type("C", (), {}), "AsyncAPIClient": type("C", (), {})},
        {"SyncAPIClient": type("C", (_Client,), {}), "AsyncAPIClient": type("C", (_Client,), {})},
        {"SyncAPIClient": type("C", (), {"request": lambda self, method: None}), "AsyncAPIClient": None},
        {"SyncAPIClient": type("C", (), {"request": 7}), "AsyncAPIClient": 8},
    ],
    ids=["no classes", "no method", "inherited", "other parameters", "nothing of the kind"],
)
def test_an_sdk_that_our_hook_does_not_fit_gives_exactly_one_warning(
    broken: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """And its import goes well."""
    sdks._patch_if_enabled(sdk(**broken))

    (warning,) = warnings(caplog)
    assert "openai._base_client: SyncAPIClient.request, AsyncAPIClient.request" in warning


def test_an_sdk_is_patched_when_it_is_imported_and_put_back(caplog: pytest.LogCaptureFixture) -> None:
    module: Any = sdk()
    before = module.SyncAPIClient.request
    sdks.instrument()

    sdks._patch_if_enabled(module)
    assert module.SyncAPIClient.__dict__["request"] is not before

    sdks.uninstrument()
    assert module.SyncAPIClient.__dict__["request"] is before
    assert warnings(caplog) == []


def test_the_package_imports_neither_library_and_no_sdk() -> None:
    """A later ``httpx2.alias_httpx()`` must work, and an application without httpx2 must run."""
    import subprocess

    program = """
import sys
import otel_chatdebug
otel_chatdebug.configure(database_url="sqlite:///:memory:")
with otel_chatdebug.run("chat_turn"), otel_chatdebug.step():
    pass
otel_chatdebug.shutdown()
print([name for name in ("httpx", "httpx2", "openai", "anthropic", "groq") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )

    assert done.stdout.strip() == "[]", done.stderr
