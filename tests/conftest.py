"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
from opentelemetry.context import attach, get_current

from tests.support import leaks, net
from tests.support import postgres as postgresql
from tests.support.backends import Backends, BackendsMissing, Collector, Jaeger, find_or_build, required
from tests.support.postgres import Postgres, PostgresMissing

# No time limit for an example: tests assert nothing about the speed of a machine that others use at the same time.
hypothesis.settings.register_profile(
    "chatdebug", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("chatdebug")


NOT_OURS = ("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "openai")
"""The GenAI instrumentation is there for the tests that adopt its spans; `opentelemetry-instrument` would switch it
on in all the others, too."""

TERMINAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""What says how wide and colourful output is; pytest-xdist sets COLUMNS for its workers."""


def pytest_collection_finish() -> None:
    """All modules are loaded now and stay: the many collections of garbage that tests make need not look at them."""
    gc.collect()
    gc.freeze()


def _clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(*NOT_OURS)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests has settings and recordings of their own: none is read and none is touched."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _clear_environment(monkeypatch)
        for name in TERMINAL:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _nothing_stays_current() -> Iterator[None]:
    """A test that leaves a span or a run current fails by itself, and not those behind it."""
    before = get_current()
    yield
    after = get_current()
    if after != before:
        attach(before)
    assert after == before


@pytest.fixture
def chatdebug_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for this test's state, also for the processes it starts. The tables are in ``chatdebug.db`` in it.

    No other OTEL_* variable is set; what the test changes in the environment by ``monkeypatch`` is undone.
    """
    _clear_environment(monkeypatch)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("OTEL_CHATDEBUG_DATABASE_URL", f"sqlite:///{tmp_path / 'chatdebug.db'}")
    return tmp_path


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails the test if it leaves threads or descriptors. Ask for it first: later fixtures are undone before it."""
    with leaks.no_leaks():
        yield


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Call it for a TCP port of 127.0.0.1 that nobody listens on."""
    return net.free_port


@pytest.fixture(scope="session")
def backends() -> Backends:
    """The binaries of a real collector and a real Jaeger, built at first use."""
    try:
        return find_or_build()
    except BackendsMissing as missing:
        if required():
            pytest.fail(f"CHATDEBUG_REQUIRE_BACKENDS is set, but: {missing}")
        pytest.skip(f"no collector and Jaeger: {missing}")


@pytest.fixture(scope="session")
def jaeger(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A running Jaeger, shared by all tests: look for your own trace ids. To stop or kill one, make your own."""
    with Jaeger(backends, tmp_path_factory.mktemp("jaeger")) as server:
        yield server


@pytest.fixture(scope="session")
def collector(backends: Backends, jaeger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """A running collector with the root's collector-config.yaml, handing on to `jaeger`; shared as that is."""
    with Collector(backends, tmp_path_factory.mktemp("collector"), backend=jaeger.grpc_endpoint) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL, shared by all tests of this process: make your own databases in it.

    To stop, kill or freeze one, or to change what belongs to the whole server, make your own: `own_postgres`.
    """
    with _postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Callable[..., Postgres]]:
    """Call it for a PostgreSQL of the test's own, started; it is stopped and removed afterwards.

    Keyword arguments are settings of the server, see `tests.support.postgres.SETTINGS`.
    """
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(_postgres(**settings))


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database."""
    with postgres.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'chatdebug.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


def _postgres(**settings: str) -> Postgres:
    try:
        return Postgres(postgresql.find(), **settings)
    except PostgresMissing as missing:
        if required():
            pytest.fail(f"CHATDEBUG_REQUIRE_BACKENDS is set, but: {missing}")
        pytest.skip(f"no PostgreSQL: {missing}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take long come first: else one of them, begun as the last, has the others wait for it."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Figures that a test has recorded as ``said``, also where it passed in a process of its own."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "said" and report.when == "call":
                terminalreporter.write_line(str(value))
