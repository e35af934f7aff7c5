"""The web page: what was recorded, and what happens now, in a browser. ``otel-chatdebug serve``, or mounted::

    from otel_chatdebug.viewer import chatdebug_app

    app.mount("/debug", chatdebug_app(token=os.environ["DEBUG_TOKEN"]))

Reads the tables and knows nothing of capture. HTML is made here and read without a script; `static/` makes it live.
Needs the extra ``server``.

- `app`: the routes, composed; `auth`: who may see them; `store`: the database; `rendering`: templates and words
- `lists`, `run_page`, `content`, `deletion`: the pages; `timeline`: the waterfall's geometry; `live`: what changed
"""

from __future__ import annotations

try:
    import jinja2  # noqa: F401
    import starlette  # noqa: F401
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        f"The web page needs {exc.name}: pip install 'otel-chatdebug[server]'.", name=exc.name
    ) from None

from otel_chatdebug.viewer.app import chatdebug_app

__all__ = ["chatdebug_app"]
