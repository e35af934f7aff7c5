"""The instrumentors: `ChatDebugHTTPXInstrumentor` and `ChatDebugHTTPX2Instrumentor`.

They wrap ``Client.send`` (a call of a bare client) and ``Client._send_single_request`` (a physical request) and their
async twins on the class, so clients that were made earlier are seen, and every transport is: mock, ASGI, WSGI, mounts,
aiohttp bridges. Neither library is imported: one that is loaded is patched at once, another when the application
imports it; so a later ``httpx2.alias_httpx()`` still works. After it both names are one module, and a class is never
patched twice.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection
from functools import partial
from types import ModuleType
from typing import Any, Final

import wrapt
from opentelemetry.context import Context, attach, get_current
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # untyped

from otel_chatdebug import lifecycle
from otel_chatdebug.capture import calls, hooks, sdks
from otel_chatdebug.capture.attempt import Attempt
from otel_chatdebug.capture.body import body_classes
from otel_chatdebug.capture.calls import Call
from otel_chatdebug.faults import fault
from otel_chatdebug.package import _instruments_any
from otel_chatdebug.pipeline.recorder import active

logger = logging.getLogger("otel_chatdebug")


def _open_send(client: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
    """A call around one ``send``, where no other call is under way; it makes a step when it turns out a model's."""
    recorder = active()
    if recorder is None or recorder.closed:
        return None
    context = get_current()
    if calls.current_call(context) is not None or calls.suppressed(context):
        return None
    return Call(recorder, context, sdk=False, client=client)


def _begin(client: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> tuple[Attempt, Context] | None:
    try:
        return calls.begin_attempt(client, args[0] if args else kwargs["request"])
    except Exception:
        fault("beginning an attempt")
        return None


def _raised(attempt: Attempt, exc: BaseException) -> None:
    try:
        calls.raised(attempt, exc)
    except Exception:
        fault("an attempt that raised")
    if attempt.own_call is not None:
        hooks.leave(attempt.own_call, exc)


def _answered(attempt: Attempt, response: Any, body_class: Any) -> None:
    try:
        attempt.answered(response)
        if not response.is_closed:
            response.stream = body_class(response.stream, attempt)
    except Exception:
        fault("an attempt that was answered")
        attempt.out_of_sight()
    if attempt.own_call is not None:
        hooks.leave(attempt.own_call, None)


def _single_request(library: ModuleType, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    sync_body, _ = body_classes(library)

    def send_single_request(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        begun = _begin(self, args, kwargs)
        if begun is None:
            return wrapped(self, *args, **kwargs)
        attempt, context = begun
        token = attach(context)
        try:
            response = wrapped(self, *args, **kwargs)
        except BaseException as exc:
            hooks.detach(token)
            _raised(attempt, exc)
            raise
        hooks.detach(token)
        _answered(attempt, response, sync_body)
        return response

    return send_single_request


def _async_single_request(library: ModuleType, wrapped: Callable[..., Any]) -> Callable[..., Any]:
    _, async_body = body_classes(library)

    async def send_single_request(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        begun = _begin(self, args, kwargs)
        if begun is None:
            return await wrapped(self, *args, **kwargs)
        attempt, context = begun
        token = attach(context)
        try:
            response = await wrapped(self, *args, **kwargs)
        except BaseException as exc:
            hooks.detach(token)
            _raised(attempt, exc)
            raise
        hooks.detach(token)
        _answered(attempt, response, async_body)
        return response

    return send_single_request


_HOOKS: Final = (
    ("Client", "send", lambda library, wrapped: hooks.around_call(_open_send, wrapped)),
    ("AsyncClient", "send", lambda library, wrapped: hooks.around_async_call(_open_send, wrapped)),
    ("Client", "_send_single_request", _single_request),
    ("AsyncClient", "_send_single_request", _async_single_request),
)

_wanted: set[str] = set()
"""Names of the libraries whose instrumentor is on."""
_watched: set[str] = set()
_patched: dict[int, tuple[ModuleType, set[str]]] = {}
"""By the identity of a library's module: it, and the names of the instrumentors that want it patched."""


def _patch(library: ModuleType, name: str) -> None:
    known = _patched.get(id(library))
    if known is not None:  # after alias_httpx() both names are this module
        known[1].add(name)
        return
    missing = []
    for owner_name, method, make in _HOOKS:
        owner = getattr(library, owner_name, None)
        if isinstance(owner, type) and callable(owner.__dict__.get(method)):
            hooks.install(owner, method, partial(make, library))
        else:
            missing.append(f"{owner_name}.{method}")
    if missing:
        logger.warning(
            "%s %s has no %s that otel_chatdebug could wrap: what goes through it is not recorded",
            name,
            getattr(library, "__version__", "(unknown version)"),
            ", ".join(missing),
        )
    _patched[id(library)] = (library, {name})
    lifecycle.warm()


def _unpatch(name: str) -> None:
    for key, (library, names) in list(_patched.items()):
        names.discard(name)
        if names:
            continue
        del _patched[key]
        for owner_name, method, _ in _HOOKS:
            owner = getattr(library, owner_name, None)
            if isinstance(owner, type):
                hooks.remove(owner, method)


class _Instrumentor(BaseInstrumentor):  # type: ignore[misc]  # the base class has no types
    """Common to both libraries."""

    library: str

    def instrumentation_dependencies(self) -> Collection[str]:
        """The one library that this instrumentor patches."""
        return tuple(item for item in _instruments_any if item.split()[0] == self.library)

    def _instrument(self, **kwargs: Any) -> None:
        """``tracer_provider``, ``meter_provider``, ``logger_provider``: where spans, metrics and events go.

        Default: the global ones.
        """
        lifecycle.arm(
            tracer_provider=kwargs.get("tracer_provider"),
            meter_provider=kwargs.get("meter_provider"),
            logger_provider=kwargs.get("logger_provider"),
        )
        name = self.library
        _wanted.add(name)
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "AsyncClient"):
            _patch(module, name)
        if name not in _watched:
            # An import hook cannot be taken back, so it is set once and asks whether it is still wanted.
            _watched.add(name)
            wrapt.register_post_import_hook(lambda imported: self._imported(imported), name)
        sdks.instrument()

    def _imported(self, module: ModuleType) -> None:
        try:
            if self.library in _wanted:
                _patch(module, self.library)
        except Exception:  # it would come out of the application's import statement
            fault("patching a library that is imported")

    def _uninstrument(self, **kwargs: Any) -> None:
        _wanted.discard(self.library)
        _unpatch(self.library)
        if not _wanted:
            sdks.uninstrument()


class ChatDebugHTTPXInstrumentor(_Instrumentor):
    """Instruments httpx (entry point ``chatdebug_httpx``)."""

    library = "httpx"


class ChatDebugHTTPX2Instrumentor(_Instrumentor):
    """Instruments httpx2 (entry point ``chatdebug_httpx2``)."""

    library = "httpx2"


INSTRUMENTORS: Final[dict[str, type[_Instrumentor]]] = {
    "chatdebug_httpx": ChatDebugHTTPXInstrumentor,
    "chatdebug_httpx2": ChatDebugHTTPX2Instrumentor,
}
"""By entry point."""
