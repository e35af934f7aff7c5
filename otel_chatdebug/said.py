"""What an application hands to ``finish()`` and ``step()``, made plain: JSON values, whatever objects they were.

SDKs answer with objects (pydantic models, dataclasses) that applications hand on as they are: ``finish(response=answer,
usage=answer.usage)``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from otel_chatdebug.storable import MAX_DEPTH
from otel_chatdebug.wire.counted import token_counts

logger = logging.getLogger("otel_chatdebug")


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """``value`` with pydantic models and dataclasses, at any depth, as dicts; all else as it is."""
    if value is None or isinstance(value, str | bytes | int | float) or not depth:
        return value
    if isinstance(value, Mapping):
        return {key: plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth - 1) for item in value]
    try:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
            return {name: plain(item, depth - 1) for name, item in fields}
        dump = getattr(type(value), "model_dump", None)
        if callable(dump):
            # By the names of the wire, and without what was not sent. Warnings are about an SDK's own types.
            return plain(dump(value, mode="json", by_alias=True, exclude_unset=True, warnings=False), depth - 1)
    except Exception:
        logger.debug("otel_chatdebug: %s cannot be read as JSON", type(value).__name__, exc_info=True)
    return value


def usage(given: Any) -> dict[str, int] | None:
    """Token counts by our names; None where ``given`` holds none."""
    return token_counts(_named(given, "usage") or {}) or None


def metadata(given: Any) -> dict[str, Any] | None:
    """As a dict; None where ``given`` is nothing of the kind."""
    return _named(given, "metadata")


def _named(given: Any, what: str) -> dict[str, Any] | None:
    values = plain(given)
    if values is None:
        return None
    if not isinstance(values, dict):
        # Not a TypeError: it is said at the end of a call, often in a `finally`, where it would hide what went wrong.
        logger.warning("%s=%s is no dict: it is not recorded, all else is.", what, type(given).__name__)
        return None
    return {str(key): value for key, value in values.items()}
