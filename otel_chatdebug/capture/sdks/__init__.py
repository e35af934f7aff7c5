"""Calls of the SDKs: what holds the retries of one logical model call together.

One module for each family of SDKs says what to wrap (its `patches`); this one wraps it. Nothing is imported: a module
that is loaded already is patched at once, any other when the application imports it. An SDK that does not look as its
family's module knows it is left alone, with one warning: its requests are recorded all the same, by the hook on httpx,
each as a step of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any, Final, Protocol

import wrapt

from otel_chatdebug.capture import hooks
from otel_chatdebug.capture.sdks import genai, litellm, speakeasy, stainless
from otel_chatdebug.capture.sdks.patching import Patches
from otel_chatdebug.faults import fault

logger = logging.getLogger("otel_chatdebug")


class Family(Protocol):
    """A module of this package: SDKs that are built alike."""

    @property
    def MODULES(self) -> Collection[str]:
        """The names of the SDKs' modules that hold something to wrap."""

    def patches(self, module: ModuleType) -> Patches:
        """What to wrap in ``module``, which is one of `MODULES`, and what of it is not as it should be."""


FAMILIES: Final[tuple[Family, ...]] = (stainless, speakeasy, genai, litellm)

_FAMILY_OF: Final = {name: family for family in FAMILIES for name in family.MODULES}

_patched: list[tuple[Any, str]] = []
_enabled = False
_watched: set[str] = set()


def instrument() -> None:
    """Patches the SDKs that are loaded, and has the others patched when they are imported. Idempotent."""
    global _enabled
    _enabled = True
    for name in _FAMILY_OF:
        module = sys.modules.get(name)
        if module is not None and not _is_being_imported(module):
            _patch_if_enabled(module)
        if name not in _watched:
            # An import hook cannot be taken back, so it is set once and asks whether it is still wanted.
            _watched.add(name)
            wrapt.register_post_import_hook(_patch_if_enabled, name)


def uninstrument() -> None:
    """Takes off every patch of `instrument`."""
    global _enabled
    _enabled = False
    while _patched:
        hooks.remove(*_patched.pop())


def _patch_if_enabled(module: ModuleType) -> None:
    try:
        if _enabled:
            _patch(module)
    except Exception:  # it would come out of the application's import statement
        fault("patching an SDK that is imported")


def _is_being_imported(module: ModuleType) -> bool:
    """Its import hook comes when it is whole."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _patch(module: ModuleType) -> None:
    found, missing = _FAMILY_OF[module.__name__].patches(module)
    for patch in found:
        hooks.install(patch.owner, patch.name, patch.wrapper)
        _patched.append((patch.owner, patch.name))
    if missing:
        logger.warning(
            "%s: %s is not what otel_chatdebug knows: each retry of this SDK is recorded as a step",
            module.__name__,
            ", ".join(missing),
        )
