"""The SDKs that Speakeasy generates: mistralai (1 to 3, with its variants for Azure and Google Cloud), and the client
of google-genai's interactions.

They have ``do_request`` and ``do_request_async`` on the base class of their ``basesdk``; one call of it holds all
retries. It gets the request ready-made, and sends the same object again and again.

mistralai's own spans (off by default) are one for each attempt, and that of an attempt that is retried never ends. So
where a call may be retried it has a step span of its own, with theirs below; where it cannot be, theirs is the step.
"""

from __future__ import annotations

import re
from functools import partial
from types import ModuleType
from typing import Any, Final

from otel_chatdebug.capture import hooks
from otel_chatdebug.capture.calls import Call, current_call, is_model_path
from otel_chatdebug.capture.sdks.patching import Patch, Patches, argument, recording, takes
from otel_chatdebug.capture.sdks.retries import NEVER, ListedRetries

MODULES: Final = {
    "mistralai.basesdk": "mistral_ai",
    "mistralai_azure.basesdk": "mistral_ai",
    "mistralai_gcp.basesdk": "mistral_ai",
    "mistralai.client.basesdk": "mistral_ai",
    "mistralai.azure.client.basesdk": "mistral_ai",
    "mistralai.gcp.client.basesdk": "mistral_ai",
    "google.genai._gaos.basesdk": "gcp.gemini",
}
"""Module to patch, and the ``gen_ai.provider.name`` of its SDK."""

PATHS: Final = {
    "mistral_ai": re.compile(r"/conversations(?:/[^/]+(?:/restart)?)?$"),
    "gcp.gemini": re.compile(r"/interactions$"),
}
"""Paths that generate, but not in every API: only the SDK tells whose they are."""

_OWNERS: Final = ("BaseSDK", "AsyncBaseSDK")
"""Classes that may have the methods; the second is google-genai's."""

_METHODS: Final = (("do_request", hooks.around_call), ("do_request_async", hooks.around_async_call))

_PARAMETERS: Final = ("hook_ctx", "request", "stream", "retry_config")

_REQUEST, _STREAM, _RETRY_CONFIG = 1, 3, 4
"""Their positions, ``self`` not counted. (The SDKs give them by name.)"""

_LIMITS: Final = {"backoff": "time", "attempt-count-backoff": "count"}
"""The strategies that retry, and what ends them; the second is google-genai's."""

_RETRIED_EXCEPTIONS: Final = ("NetworkError", "TimeoutException")
"""Of httpx and of httpx2; where connection errors are retried at all."""

_RETRIED_BY_FIRST: Final = ("ConnectError", "TimeoutException")
"""The same of mistralai 1, which has its `MODULES` directly below its packages."""


def _opener(provider: str, retried: tuple[str, ...]) -> hooks.Opener:
    def open_call(sdk: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
        found = recording()
        if found is None:
            return None
        recorder, context = found
        config = argument(_RETRY_CONFIG, "retry_config", args, kwargs)
        current = current_call(context)
        if current is not None:
            if current.sdk:
                current.retries = _retries(config, retried)
            return None
        request = argument(_REQUEST, "request", args, kwargs)
        path = request.url.path
        if not is_model_path(recorder, request.method, path) and not (
            request.method == "POST" and PATHS[provider].search(path)
        ):
            return None
        call = Call(
            recorder,
            context,
            sdk=True,
            path=path,
            provider=provider,
            stream=argument(_STREAM, "stream", args, kwargs) is True,
        )
        call.retries = _retries(config, retried)
        if config is not None:
            call.begin_step()
        return call

    return open_call


def _retries(config: Any, retried: tuple[str, ...]) -> ListedRetries | None:
    """The rules of ``retry_config``, a pair of a `RetryConfig` and status codes; None where they cannot be told."""
    if config is None:
        return NEVER
    try:
        settings, codes = config
        if settings.strategy not in _LIMITS:
            return NEVER
        codes = getattr(settings, "status_codes_override", None) or codes
        limit = (settings.max_retries or 0) if _LIMITS[settings.strategy] == "count" else None
        return ListedRetries(codes, retried if settings.retry_connection_errors else (), limit)
    except Exception:
        return None


def patches(module: ModuleType) -> Patches:
    """The methods, sync and async: of one class, or of two."""
    first = module.__name__.startswith("mistralai") and module.__name__.count(".") == 1
    opener = _opener(MODULES[module.__name__], _RETRIED_BY_FIRST if first else _RETRIED_EXCEPTIONS)
    found = [
        Patch(owner, method, partial(around, opener))
        for owner in (getattr(module, name, None) for name in _OWNERS)
        for method, around in _METHODS
        if isinstance(owner, type) and takes(owner.__dict__.get(method), _PARAMETERS)
    ]
    known = {patch.name for patch in found}
    return found, [f"BaseSDK.{method}" for method, _ in _METHODS if method not in known]
