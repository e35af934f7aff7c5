"""Finding the step or the attempt that somebody names by its number, or by the beginning of its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from otel_chatdebug.words import clean


def one_of(rows: Sequence[dict[str, Any]], number: str, what: str, given: str | None) -> dict[str, Any]:
    """The row that is meant; the last one where none is given. ``number`` is the column of its number.

    Raises `click.ClickException` with the ones that there are.
    """
    if not rows:
        raise click.ClickException(f"It has no {what}.")
    if given is None:
        return rows[-1]
    by_number = [row for row in rows if str(row[number]) == given]
    found = by_number or [row for row in rows if given and row["id"].startswith(given.lower())]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{row[number] or '?'} ({row['id']})" for row in rows)
    said = f"Several {what}s have" if found else f"No {what} has"
    raise click.ClickException(clean(f"{said} the number or id {given!r}; there are: {known}."))
