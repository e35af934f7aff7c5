"""Our style sheet, scripts and icon, from memory.

Starlette's `StaticFiles` reads them in the threads that an application's own endpoints share: where its chats hang in
all of those, the page that is to show it would come without its style and scripts. There are some ten, of a few kB.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER: Final = Path(__file__).with_name("static")

MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Said here, and not by the machine's own table: a script that is called something else is not run."""


class File(NamedTuple):
    """One of them, as it is sent."""

    content: bytes
    media_type: str
    etag: str


@cache
def files() -> dict[str, File]:
    """All of them, by name. Read once in each process."""
    return {path.name: _read(path) for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


async def static(request: Request) -> Response:
    """A file; 304 where the browser has it already."""
    found = files().get(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    headers = {"etag": found.etag}
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers=headers, media_type=found.media_type)


ROUTES = [Route("/static/{name}", static)]
