"""What the installed distribution tells pip, OpenTelemetry and type checkers about itself."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.resources import files

import pytest
from opentelemetry.instrumentation import dependencies
from packaging.requirements import Requirement

from otel_chatdebug import package

DISTRIBUTION = "otel-chatdebug"

ENTRY_POINTS = {
    ("console_scripts", "otel-chatdebug"),
    ("opentelemetry_instrumentor", "chatdebug_httpx"),
    ("opentelemetry_instrumentor", "chatdebug_httpx2"),
    ("opentelemetry_traces_exporter", "chatdebug"),
    ("opentelemetry_traces_exporter", "chatdebug_otlp"),
}


def test_every_entry_point_can_be_loaded() -> None:
    """`opentelemetry-instrument` only logs one that cannot, at debug level."""
    found = {(point.group, point.name): point for point in distribution(DISTRIBUTION).entry_points}

    assert set(found) == ENTRY_POINTS
    assert all(callable(point.load()) for point in found.values())


@pytest.mark.parametrize(
    ("installed", "loaded"),
    [(["httpx", "httpx2"], True), (["httpx"], True), (["httpx2"], True), ([], False)],
)
def test_our_instrumentors_are_loaded_where_httpx_or_httpx2_is_installed(
    installed: list[str], loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either is enough: the check that `opentelemetry-instrument` makes, by the extra `instruments-any`."""

    def version_here(name: str) -> str:
        if name.startswith("httpx") and name not in installed:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(dependencies, "version", version_here)

    conflict = dependencies.get_dist_dependency_conflicts(distribution(DISTRIBUTION))

    assert (conflict is None) is loaded


def test_the_instrumentors_ask_for_the_same_versions_as_the_distribution() -> None:
    requirements = [Requirement(text) for text in distribution(DISTRIBUTION).requires or []]
    either = {
        (item.name, str(item.specifier))
        for item in requirements
        if item.marker and item.marker.evaluate({"extra": "instruments-any"})
    }

    assert {(item.name, str(item.specifier)) for item in map(Requirement, package._instruments_any)} == either


def test_type_checkers_read_our_annotations() -> None:
    assert files("otel_chatdebug").joinpath("py.typed").is_file()
