"""litellm: what an application calls is one step, with all that litellm does for it.

That is its own retries (``num_retries``, of a function or of a `Router`), its fallbacks to other models, and the
retries of the SDKs that it uses. Its functions are attributes of the module: a reference that was taken before they
were wrapped (``from litellm import completion`` before ``configure()``) is not seen, and each of its requests is a step
then.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, Final

from otel_chatdebug.capture import hooks
from otel_chatdebug.capture.calls import Call, current_call
from otel_chatdebug.capture.sdks.patching import Patch, Patches, recording

MODULES: Final = ("litellm", "litellm.router")

FUNCTIONS: Final = (
    "completion",
    "acompletion",
    "text_completion",
    "atext_completion",
    "embedding",
    "aembedding",
    "responses",
    "aresponses",
)
"""Those that make a model call, of the module and of its ``Router``. Where one is missing it is done without."""

REQUIRED: Final = ("completion", "acompletion")
"""Those without which it is not the litellm that we know."""


def _open_call(args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
    found = recording()
    if found is None:
        return None
    recorder, context = found
    if current_call(context) is not None:
        return None
    model = kwargs.get("model")  # at which position else depends on the function; a request will tell it
    return Call(
        recorder,
        context,
        sdk=True,
        model=model if isinstance(model, str) else None,
        stream=kwargs.get("stream") is True,
    )


def _open_routed_call(router: Any, args: hooks.Arguments, kwargs: dict[str, Any]) -> Call | None:
    return _open_call(args, kwargs)


def patches(module: ModuleType) -> Patches:
    """The functions that are there. litellm changes so often that only the oldest of them are required."""
    if module.__name__ == "litellm":
        known = module.__dict__
        found = [
            Patch(module, name, partial(hooks.around_function, _open_call))
            for name in FUNCTIONS
            if callable(known.get(name)) and not isinstance(known[name], type)
        ]
        return found, [name for name in REQUIRED if name not in known]
    router = getattr(module, "Router", None)
    methods = router.__dict__ if isinstance(router, type) else {}
    around = partial(hooks.around_either_call, _open_routed_call)
    found = [Patch(router, name, around) for name in FUNCTIONS if callable(methods.get(name))]
    return found, [f"Router.{name}" for name in REQUIRED if name not in methods]
