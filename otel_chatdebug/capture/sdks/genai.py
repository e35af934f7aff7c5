"""google-genai: ``_request`` and ``_async_request`` of its ``BaseApiClient``; one call of them holds all retries.

They are below ``generate_content``, which calls them once for each round of automatic function calling: so each round
is a step. A stream calls them when its first chunk is asked for, and not before.

Its async client sends through aiohttp where that is installed, and neither httpx library sees those requests.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

from otel_chatdebug.capture import hooks
from otel_chatdebug.capture.calls import Call, current_call, is_model_path
from otel_chatdebug.capture.sdks.patching import Patch, Patches, argument, recording, takes
from otel_chatdebug.capture.sdks.retries import NEVER, ListedRetries
from otel_chatdebug.wire.gemini import MODEL_IN_PATH
from otel_chatdebug.wire.reading import model_in

MODULES: Final = {"google.genai._api_client": "gcp.gemini"}
"""Module to patch, and the ``gen_ai.provider.name`` of its SDK."""

VERTEX: Final = "gcp.vertex_ai"
"""The ``gen_ai.provider.name`` of the same client where it speaks to Vertex AI."""

_OWNER: Final = "BaseApiClient"

_METHODS: Final = (("_request", hooks.around_call), ("_async_request", hooks.around_async_call))

_PARAMETERS: Final = ("http_request", "http_options", "stream")

_REQUEST, _OPTIONS, _STREAM = 0, 1, 2
"""Their positions, ``self`` not counted."""

_RETRIED_EXCEPTIONS: Final = ("TimeoutException", "ConnectError")
"""Of httpx and of httpx2; a connection that breaks later is not retried."""


def _opener(provider: str, module: ModuleType, *, asynchronous: bool) -> hooks.Opener:
    def open_call(sdk: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
        found = recording()
        if found is None:
            return None
        recorder, context = found
        if current_call(context) is not None or _unseen(sdk, asynchronous):
            return None
        request = argument(_REQUEST, "http_request", args, kwargs)
        path = urlsplit(request.url).path
        if not is_model_path(recorder, request.method.upper(), path):
            return None
        call = Call(
            recorder,
            context,
            sdk=True,
            path=path,
            provider=VERTEX if getattr(sdk, "vertexai", False) else provider,
            model=model_in(path, MODEL_IN_PATH),
            stream=argument(_STREAM, "stream", args, kwargs) is True,
        )
        call.retries = _retries(sdk, module, argument(_OPTIONS, "http_options", args, kwargs))
        return call

    return open_call


def _unseen(sdk: Any, asynchronous: bool) -> bool:
    """Whether its requests go through aiohttp, or ``requests``: a call without attempts would say that it sent none."""
    name = "_use_aiohttp" if asynchronous else "_use_google_auth_sync"
    ask = getattr(sdk, name, None)
    return bool(ask()) if callable(ask) else False


def _retries(sdk: Any, module: ModuleType, given: Any) -> ListedRetries | None:
    """The rules of ``retry_options``, of the call or else of the client; None where they cannot be told."""
    try:
        options = given.get("retry_options") if isinstance(given, dict) else getattr(given, "retry_options", None)
        options = options or sdk._http_options.retry_options
        if options is None:
            return NEVER
        if isinstance(options, dict):
            options = module.HttpRetryOptions(**options)
        attempts = options.attempts if options.attempts is not None else module._RETRY_ATTEMPTS
        codes = options.http_status_codes or module._RETRY_HTTP_STATUS_CODES
        return ListedRetries(codes, _RETRIED_EXCEPTIONS, max(1, attempts) - 1)
    except Exception:
        return None


def patches(module: ModuleType) -> Patches:
    """The methods, sync and async."""
    owner = getattr(module, _OWNER, None)
    found, missing = [], []
    for name, around in _METHODS:
        if isinstance(owner, type) and takes(owner.__dict__.get(name), _PARAMETERS):
            asynchronous = around is hooks.around_async_call
            opener = _opener(MODULES[module.__name__], module, asynchronous=asynchronous)
            found.append(Patch(owner, name, partial(around, opener)))
        else:
            missing.append(f"{_OWNER}.{name}")
    return found, missing
