"""The SDKs that Stainless generates: openai, anthropic, groq, and google-genai's older client of its interactions.

They have one ``request`` method on ``SyncAPIClient`` and on ``AsyncAPIClient`` of their ``_base_client``; one call of
it holds all retries, and its signature is the same in every version looked at (openai 1 to 3, anthropic 0 to 2, groq 0
and 1). It is looked up on the class for each call, so clients that were made earlier are seen, too.

The methods that an application calls (``create``, ``parse``) check their arguments before ``request`` is called; they
are wrapped as well, so that a call that they refuse is a step with its error.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any, Final

from otel_chatdebug.capture import hooks
from otel_chatdebug.capture.calls import Call, current_call, is_model_path
from otel_chatdebug.capture.providers import provider_of_client
from otel_chatdebug.capture.sdks.patching import Patch, Patches, recording
from otel_chatdebug.capture.sdks.retries import StainlessRetries

CLIENTS: Final = {
    "openai._base_client": "openai",
    "anthropic._base_client": "anthropic",
    "groq._base_client": "groq",
    "google.genai._interactions._base_client": "gcp.gemini",
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
"""Where the methods are that an application calls: module, provider and classes."""

METHODS: Final = ("create", "parse")
"""Those of `RESOURCES` that make a model call at once."""

MODULES: Final = (*CLIENTS, *RESOURCES)

INTERACTIONS: Final = "/interactions"
"""The end of a path that generates, but not in every API: only the SDK tells that it is Gemini's."""

_WRAPPED: Final = (("SyncAPIClient", hooks.around_call), ("AsyncAPIClient", hooks.around_async_call))

_PARAMETERS: Final = ("self", "cast_to", "options")
"""The first parameters of ``request``; where they are others, the hook no longer fits."""


def _opener(provider: str, longest_wait: float | None) -> hooks.Opener:
    def open_call(sdk: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
        found = recording()
        if found is None:
            return None
        recorder, context = found
        options = kwargs["options"] if "options" in kwargs else args[1]
        name = provider_of_client(sdk) or provider
        current = current_call(context)
        if current is not None:
            if current.sdk:
                current.inner = context
                current.retries = _retries(sdk, options, longest_wait)
                # Of the resource's method, which does not know the body yet.
                if current.provider == name and current.body is None and isinstance(options.json_data, Mapping):
                    current.body = options.json_data
            return None
        # Options have the path below the base URL ("/chat/completions"), which is enough for patterns that are
        # searched.
        path = "/" + options.url.partition("?")[0].lstrip("/")
        method = options.method.upper()
        if not is_model_path(recorder, method, path) and not (
            provider == "gcp.gemini" and method == "POST" and path.endswith(INTERACTIONS)
        ):
            return None
        body = options.json_data
        call = Call(
            recorder,
            context,
            sdk=True,
            client=getattr(sdk, "_client", None),
            provider=name,
            body=body if isinstance(body, Mapping) else None,
        )
        call.retries = _retries(sdk, options, longest_wait)
        return call

    return open_call


def _retries(sdk: Any, options: Any, longest_wait: float | None) -> StainlessRetries | None:
    """The rules by which ``request`` will retry; None where they cannot be told."""
    try:
        return StainlessRetries(options.get_max_retries(sdk.max_retries), longest_wait)
    except Exception:
        return None


def _resource_opener(provider: str) -> hooks.Opener:
    def open_call(resource: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
        found = recording()
        if found is None:
            return None
        recorder, context = found
        if current_call(context) is not None:
            return None
        model = kwargs.get("model")
        sdk = getattr(resource, "_client", None)
        return Call(
            recorder,
            context,
            sdk=True,
            client=getattr(sdk, "_client", None),
            provider=provider_of_client(sdk) or provider,
            model=model if isinstance(model, str) else None,
            stream=kwargs.get("stream") is True,
        )

    return open_call


def patches(module: ModuleType) -> Patches:
    """``request`` of both clients, or the methods of a resource: of those, what an SDK does not have (an older one has
    fewer methods, and other modules) is done without."""
    if module.__name__ in RESOURCES:
        provider, owners = RESOURCES[module.__name__]
        around = partial(hooks.around_either_call, _resource_opener(provider))
        return [
            Patch(owner, method, around)
            for owner in (getattr(module, name, None) for name in owners)
            for method in METHODS
            if isinstance(owner, type) and callable(owner.__dict__.get(method))
        ], []
    opener = _opener(CLIENTS[module.__name__], getattr(module, "MAX_RETRY_AFTER_DELAY", None))
    found, missing = [], []
    for owner_name, around_call in _WRAPPED:
        owner = getattr(module, owner_name, None)
        if isinstance(owner, type) and _fits(owner.__dict__.get("request")):
            found.append(Patch(owner, "request", partial(around_call, opener)))
        else:
            missing.append(f"{owner_name}.request")
    return found, missing


def _fits(function: Any) -> bool:
    try:
        return tuple(inspect.signature(function).parameters)[:3] == _PARAMETERS
    except (TypeError, ValueError):
        return False
