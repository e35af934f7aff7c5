"""The documentation says what the code does: generated sections, names, links, numbers. No sockets."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

import otel_chatdebug as chatdebug
from otel_chatdebug import editing
from otel_chatdebug.capture.states import MOVES, EndReason, Event, Move, State
from otel_chatdebug.lifecycle import SHUTDOWN_SECONDS
from otel_chatdebug.pipeline import permits
from otel_chatdebug.redaction import Redactor
from otel_chatdebug.scopes import Run
from otel_chatdebug.settings import Settings
from otel_chatdebug.tables import chores
from tests.support.markdown import ROOT, anchors, blocks, links

PAGES = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/why.md",
    "docs/frameworks.md",
    "docs/operations.md",
    "docs/secrets.md",
    "docs/telemetry.md",
    "docs/usage.md",
    "docs/web.md",
]

STANDARD_VARIABLES = {
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_",  # ..._*ENDPOINT
    "OTEL_METRICS_EXPORTER",
    "OTEL_LOGS_EXPORTER",
}
"""What the pages name and is OpenTelemetry's own, beside the settings."""


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    """docs/draw.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs/draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/why.md"])
def test_generated_sections_are_current(draw: ModuleType, page: str) -> None:
    """Else: python docs/draw.py."""
    assert draw.drawn(read(page), draw.SECTIONS[page]) == read(page)


def test_a_section_that_is_missing_is_told(draw: ModuleType) -> None:
    with pytest.raises(ValueError, match="settings"):
        draw.drawn("nothing", draw.SECTIONS["README.md"])


def test_the_diagrams_show_every_move_that_is_not_ignored(draw: ModuleType) -> None:
    """Between the two of them, and nothing else."""
    shown = set()
    for answer in (Event.STREAM_HEADERS, Event.BODY_HEADERS):
        for state, to, events in re.findall(r"(\w+) --> (\w+) : (.+)", draw.diagram(answer)):
            shown |= {(State[state], event, State[to]) for event in events.split(", ")}
    assert shown == {
        (state, draw.words(event), move.to) for (state, event), move in MOVES.items() if move != Move(state)
    }


def test_the_table_of_endings_has_every_way_to_end(draw: ModuleType) -> None:
    """Only the sweep tells of a process that died; the page says so in words."""
    told = set(re.findall(r"`(\w+)`", draw.endings()))
    assert {reason.value for reason in EndReason} - told == {"stale"}
    assert "`stale`" in read("docs/why.md")
    rows = draw.endings().splitlines()[2:]
    shown = sum(row.split("|")[1].count(",") + 1 for row in rows for _ in row.split("|")[2].split(","))
    assert shown == sum(move.ending is not None for move in MOVES.values())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("page", PAGES)
def test_variables_that_a_page_names_are_read(page: str) -> None:
    known = {variable for variable, _, _ in Settings.table()} | STANDARD_VARIABLES
    assert set(re.findall(r"\bOTEL_[A-Z_]+", read(page))) - known == set()
    config = read("collector-config.yaml")
    assert [name for name in re.findall(r"\bCHATDEBUG_[A-Z_]+_ENDPOINT", read(page)) if name not in config] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_a_page_names_are_there(page: str) -> None:
    made = set(re.findall(r"^(\w+):", read("Makefile"), re.M))
    named = set(re.findall(r"(?:^    |`)make (\w+)", read(page), re.M))
    assert named - made == set()


def test_the_readme_begins_with_the_two_commands_and_the_picture() -> None:
    """In this order, before anything else is explained."""
    text = read("README.md")
    places = [text.index(what) for what in ("make demo", "make test", "docs/demo.svg", "## ")]
    assert places == sorted(places)


def test_the_picture_is_what_the_demo_draws() -> None:
    """An SVG with the demo's five runs: each status, each model, and no address that is not of this machine."""
    root = ElementTree.parse(ROOT / "docs/demo.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext()).replace("\xa0", " ")
    assert text.count("chat_turn") == 4
    assert text.count("title_generation") == 1
    for word in ("completed", "error", "interrupted", "429", "gpt-5-mini", "claude-sonnet-5"):
        assert word in text
    shown = re.findall(r"http://([\w.]+)", text)
    assert shown
    assert set(shown) == {"127.0.0.1"}


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_use_only_public_names(page: str) -> None:
    """They parse, too; that they run is an integration test's matter."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "chatdebug":
                assert node.attr in chatdebug.__all__, block.heading


def test_numbers_in_the_readme_are_the_code_s() -> None:
    text = read("README.md")
    limit = inspect.signature(Redactor.body).parameters["limit"].default
    defaults = Settings()
    assert f"{limit:,} bytes of each body" in text
    assert f"rows for {defaults.retention_days:g} days" in text
    assert defaults.content_retention_days == defaults.retention_days
    assert f"up to {defaults.max_size // 1024**3} GiB" in text
    assert f"up to {SHUTDOWN_SECONDS:g} s" in text
    assert hasattr(Run, "attach")
    assert hasattr(Run, "finish")


def test_numbers_of_the_page_on_operations_are_the_code_s() -> None:
    text = read("docs/operations.md")
    defaults = Settings()
    for name in ("retention_days", "content_retention_days"):
        variable = Settings.__dataclass_fields__[name].metadata["variable"]
        assert f"| `{variable}` | {getattr(defaults, name):g} days |" in text
    pauses = sum(editing.FIRST_DELAY * 2**number for number in range(editing.TRIES - 1))
    assert editing.TRIES == 5
    assert f"five times within {pauses:g} s" in text
    assert f"is {editing.CLOCK_SKEW.total_seconds():g} s before the edit" in text
    assert f"its {SHUTDOWN_SECONDS:g} s" in text
    assert f"holds for\n  {permits.CACHE_SECONDS:g} s" in text
    assert permits.LOOKUP_SECONDS == 1  # "within a second"
    assert f"heartbeat ({chores.LONGEST_BEAT:g} s at most)" in text


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## \[{re.escape(chatdebug.__version__)}\]", read("CHANGELOG.md"), re.M)


def test_the_readme_is_what_pypi_shows() -> None:
    assert 'readme = "README.md"' in read("pyproject.toml")


def test_every_folder_of_the_package_is_in_contributing() -> None:
    """Where things live."""
    text = read("CONTRIBUTING.md")
    folders = sorted(path.parent.name for path in Path(ROOT / "otel_chatdebug").glob("*/__init__.py"))
    assert folders
    assert [folder for folder in folders if f"{folder}/" not in text] == []
