"""What the families of SDKs share: what a patch is, and whether a call of an SDK is to be recorded."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any, NamedTuple, TypeAlias

from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, Context, get_current

from otel_chatdebug.capture import hooks
from otel_chatdebug.capture.calls import Within, suppressed
from otel_chatdebug.pipeline.recorder import Recorder, active


class Patch(NamedTuple):
    """A method of a class, or a function of a module, and what goes around it."""

    owner: Any
    name: str
    wrapper: hooks.Wrapper


Patches: TypeAlias = tuple[list[Patch], list[str]]
"""What to patch, and the names of what is missing or not as expected."""


def recording() -> tuple[Recorder, Context] | None:
    """The recorder and the current context; None where nothing is recorded here.

    Where somebody else has suppressed HTTP instrumentation the call's requests will not be seen, so one that fails must
    not look like one that sent none.
    """
    recorder = active()
    if recorder is None or recorder.closed:
        return None
    context = get_current()
    if suppressed(context):
        return None
    within = context.get(_SUPPRESS_HTTP_INSTRUMENTATION_KEY)
    if within and not isinstance(within, Within):
        return None
    return recorder, context


def takes(function: Any, names: Collection[str]) -> bool:
    """Whether ``function`` has parameters of all these names."""
    try:
        return set(names) <= set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False


def argument(position: int, name: str, args: hooks.Arguments, kwargs: dict[str, Any]) -> Any:
    """An argument that may be given by position (``self`` not counted) or by name; None where it is not."""
    if name in kwargs:
        return kwargs[name]
    return args[position] if position < len(args) else None
