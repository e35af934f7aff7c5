"""The documentation's pages, for tests: their code blocks and their links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The repository."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    heading: str
    """The last heading above it."""
    language: str
    code: str


def blocks(page: str, language: str) -> list[Block]:
    """The blocks of ``page`` (a path in the repository) in that language, in their order."""
    found, heading = [], ""
    for match in re.finditer(
        r"^(?:#+ (?P<heading>[^\n]+)|```(?P<language>\w*)\n(?P<code>.*?)^```)$",
        (ROOT / page).read_text("utf-8"),
        re.M | re.S,
    ):
        if match["heading"]:
            heading = match["heading"]
        elif match["language"] == language:
            found.append(Block(heading, language, match["code"]))
    return found


def links(page: str) -> list[str]:
    """The targets of the links and pictures of ``page``."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: str) -> set[str]:
    """What can stand behind a ``#`` in a link to ``page``, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
