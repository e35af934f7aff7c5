"""Calls of the SDKs: what holds the retries of one logical model call together.

The Stainless family (openai, anthropic, groq and their kin) has one ``request`` method on ``SyncAPIClient`` and on
``AsyncAPIClient`` of its ``_base_client``; one call of it holds all retries, and its signature is the same in every
version looked at (openai 1 to 3, anthropic 0 to 2, groq 0 and 1). It is looked up on the class for each call, so
clients that were made earlier are seen, too.

Nothing is imported: a module that is loaded already is patched at once, any other when the application imports it.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any, Final

import wrapt
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, Context, get_current

from otel_chatdebug.capture import hooks
from otel_chatdebug.capture.calls import Call, Within, is_model_path, suppressed
from otel_chatdebug.faults import fault
from otel_chatdebug.pipeline.opening import CALL
from otel_chatdebug.pipeline.recorder import active

logger = logging.getLogger("otel_chatdebug")

STAINLESS: Final = {
    "openai._base_client": "openai",
    "anthropic._base_client": "anthropic",
    "groq._base_client": "groq",
}
"""Module to patch, and the ``gen_ai.provider.name`` of its SDK."""

RESOURCES: Final = {
    "openai.resources.chat.completions.completions": ("openai", ("Completions", "AsyncCompletions")),
    "openai.resources.responses.responses": ("openai", ("Responses", "AsyncResponses")),
    "openai.resources.completions": ("openai", ("Completions", "AsyncCompletions")),
    "openai.resources.embeddings": ("openai", ("Embeddings", "AsyncEmbeddings")),
    "anthropic.resources.messages.messages": ("anthropic", ("Messages", "AsyncMessages")),
    "groq.resources.chat.completions": ("groq", ("Completions", "AsyncCompletions")),
}
"""Where the methods are that an application calls: module, provider and classes. They check their arguments before
``request`` is called, and a call that they refuse is a step, too."""

METHODS: Final = ("create", "parse")
"""Those of `RESOURCES` that make a model call at once."""

_CLIENTS: Final = (("SyncAPIClient", hooks.around_call), ("AsyncAPIClient", hooks.around_async_call))

_PARAMETERS: Final = ("self", "cast_to", "options")
"""The first parameters of ``request``; where they are others, the hook no longer fits."""

_patched: list[tuple[type, str]] = []
_enabled = False
_watched: set[str] = set()


def _opener(provider: str) -> hooks.Opener:
    def open_call(sdk: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
        recorder = active()
        if recorder is None or recorder.closed:
            return None
        context = get_current()
        if suppressed(context) or _http_suppressed(context):
            return None
        options = kwargs["options"] if "options" in kwargs else args[1]
        current = context.get(CALL)
        if isinstance(current, Call):  # of the resource's method, which does not know the body yet
            if current.sdk and current.body is None and isinstance(options.json_data, Mapping):
                current.body = options.json_data
            return None
        # Options have the path below the base URL ("/chat/completions"), which is enough for patterns that are
        # searched.
        path = "/" + options.url.partition("?")[0].lstrip("/")
        if not is_model_path(recorder, options.method.upper(), path):
            return None
        body = options.json_data
        return Call(
            recorder,
            context,
            sdk=True,
            client=getattr(sdk, "_client", None),
            provider=provider,
            body=body if isinstance(body, Mapping) else None,
        )

    return open_call


def _resource_opener(provider: str) -> hooks.Opener:
    def open_call(resource: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
        recorder = active()
        if recorder is None or recorder.closed:
            return None
        context = get_current()
        if suppressed(context) or _http_suppressed(context) or isinstance(context.get(CALL), Call):
            return None
        model = kwargs.get("model")
        return Call(
            recorder,
            context,
            sdk=True,
            client=getattr(getattr(resource, "_client", None), "_client", None),
            provider=provider,
            model=model if isinstance(model, str) else None,
            stream=kwargs.get("stream") is True,
        )

    return open_call


def _http_suppressed(context: Context) -> bool:
    """By somebody else: its requests will not be seen, so a call that fails must not look like one that sent none."""
    within = context.get(_SUPPRESS_HTTP_INSTRUMENTATION_KEY)
    return bool(within) and not isinstance(within, Within)


def instrument() -> None:
    """Patches the SDKs that are loaded, and has the others patched when they are imported. Idempotent."""
    global _enabled
    _enabled = True
    for name in (*STAINLESS, *RESOURCES):
        module = sys.modules.get(name)
        if module is not None and not _is_being_imported(module):
            _patch(module)
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
    if module.__name__ in RESOURCES:
        _patch_resources(module, *RESOURCES[module.__name__])
        return
    opener = _opener(STAINLESS[module.__name__])
    missing = []
    for owner_name, around in _CLIENTS:
        owner = getattr(module, owner_name, None)
        if isinstance(owner, type) and _fits(owner.__dict__.get("request")):
            hooks.install(owner, "request", partial(around, opener))
            _patched.append((owner, "request"))
        else:
            missing.append(f"{owner_name}.request")
    if missing:
        logger.warning(
            "%s: %s is not what otel_chatdebug knows: each retry of this SDK is recorded as a step",
            module.__name__,
            ", ".join(missing),
        )


def _patch_resources(module: ModuleType, provider: str, owners: tuple[str, ...]) -> None:
    """What an SDK does not have (an older one has fewer methods, and other modules) is done without."""
    around = partial(hooks.around_either_call, _resource_opener(provider))
    for owner in (getattr(module, name, None) for name in owners):
        for method in METHODS:
            if isinstance(owner, type) and callable(owner.__dict__.get(method)):
                hooks.install(owner, method, around)
                _patched.append((owner, method))


def _fits(function: Any) -> bool:
    try:
        return tuple(inspect.signature(function).parameters)[:3] == _PARAMETERS
    except (TypeError, ValueError):
        return False
