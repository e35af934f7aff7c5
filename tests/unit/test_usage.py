"""docs/usage.md says how each provider's counts map; the code does just that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from otel_chatdebug.wire import registry
from otel_chatdebug.wire.types import Facts, Usage
from tests.support.markdown import ROOT

COUNTS = list(Usage.__slots__)


@dataclass
class Row:
    provider: str
    format: registry.Format
    place: str
    cells: dict[str, str]

    def __str__(self) -> str:
        return re.split(r"[:;,]", self.provider)[0]

    def fields(self) -> list[str]:
        """The names on the wire, in the order in which they come."""
        return list(dict.fromkeys(name for cell in self.cells.values() for name in re.findall(r"`([\w.]+)`", cell)))


def rows() -> Iterator[Row]:
    lines = [line for line in (ROOT / "docs/usage.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    titles = [cell.strip(" `") for cell in lines[0].strip("|").split("|")]
    assert set(COUNTS) <= set(titles)
    for line in lines[2:]:
        cells = dict(zip(titles, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
        assert "https://" in cells["source"]
        found = re.fullmatch(r"`([\w.]+)`, in (?:`([\w.-]+)`|the body)", cells["read as"])
        assert found is not None, cells["read as"]
        format = next(format for format in registry.FORMATS if format.name == found[1])
        yield Row(cells["provider"], format, found[2] or "", {name: cells[name] for name in COUNTS})


ROWS = list(rows())


def put(body: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for key in outer:
        body = body.setdefault(key, {})
    body[last] = value


def read(row: Row, values: dict[str, Any]) -> Usage | None:
    invoked = row.format.name == "bedrock.invoke"
    body: dict[str, Any] = {} if invoked else {"choices": [], "candidates": [], "output": {}}
    for name, value in values.items():
        put(body, ".".join(filter(None, (row.place, name))), value)
    facts = Facts()
    if invoked:
        row.format.read_event(facts, None, body)
    else:
        row.format.read_json(facts, body)
    return facts.usage


def some_counts(row: Row) -> dict[str, Any]:
    """A number for each name, so that no sum looks like another."""
    values = {name: 10**place * (place + 1) for place, name in enumerate(row.fields(), 1)}
    if row.provider.startswith("xAI"):
        values["total_tokens"] = (
            values["prompt_tokens"] + values["completion_tokens"] + values["completion_tokens_details.reasoning_tokens"]
        )
    return values


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_counts_are_read_as_the_page_says(row: Row) -> None:
    values = some_counts(row)
    expected: dict[str, int | None] = {}
    for name, cell in row.cells.items():
        named = re.findall(r"`([\w.]+)`", cell)
        expected[name] = sum(values[field] for field in named) if named else None
    if row.cells["total_tokens"] == "sum":
        expected["total_tokens"] = (expected["input_tokens"] or 0) + (expected["output_tokens"] or 0)
    usage = read(row, values)
    assert {name: getattr(usage, name) for name in COUNTS} == expected


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("nonsense", [None, "7", -1, True, 1.5, [], {}], ids=str)
def test_a_count_that_is_none_is_null_and_never_made_up(row: Row, nonsense: Any) -> None:
    usage = read(row, dict.fromkeys(row.fields(), nonsense))
    assert usage is None or usage.as_dict() is None


def test_every_format_that_counts_has_a_row() -> None:
    without = {"openai.completions", "gemini.embeddings"}  # told in the page's words
    assert {row.format.name for row in ROWS} == {format.name for format in registry.FORMATS} - without


def test_vertex_counts_the_texts_that_it_embeds() -> None:
    format = registry.find("/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict")
    assert format is not None
    facts = Facts()
    entry = {"embeddings": {"values": [0.1], "statistics": {"token_count": 4}}}
    format.read_json(facts, {"predictions": [entry, entry]})
    assert facts.usage == Usage(input_tokens=8, total_tokens=8)
