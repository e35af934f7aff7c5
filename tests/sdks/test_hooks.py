"""Each SDK's hook is taken off again, and one that no longer fits does no harm."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from otel_chatdebug.capture import sdks
from otel_chatdebug.demo.provider import Provider
from otel_chatdebug.status import Status
from tests.sdks.callers import CALLERS, GENAI, Caller, close, do, run
from tests.sdks.conftest import is_installed
from tests.support.recording import Recording

SYNC_CALLERS = [caller for caller in CALLERS if not caller.asynchronous]

HELD = {
    "openai": (["openai._base_client"], "SyncAPIClient.request"),
    "anthropic": (["anthropic._base_client"], "SyncAPIClient.request"),
    "groq": (["groq._base_client"], "SyncAPIClient.request"),
    "mistralai": (["mistralai.client.basesdk", "mistralai.basesdk"], "BaseSDK.do_request"),
    "google-genai": (["google.genai._api_client"], "BaseApiClient._request"),
    "interactions": (["google.genai._gaos.basesdk"], "BaseSDK.do_request")
    if is_installed("google.genai._gaos")
    else (["google.genai._interactions._base_client"], "SyncAPIClient.request"),
}
"""Where the hook of each SDK is: the module (the first that is there), and what of it another version may change."""


UNTOLD = ("conversations", "interactions") if GENAI >= 3 else ("conversations",)
"""APIs whose paths do not tell that they generate: without a hook nobody sees them. (Before version 3 the path of
interactions has ``v1beta`` in it, which is Google's.)"""


def held(caller: Caller) -> tuple[list[str], str]:
    return HELD.get(caller.api.name, HELD[caller.sdk])


def module_of(caller: Caller) -> Any:
    return importlib.import_module(next(name for name in held(caller)[0] if is_installed(name)))


@pytest.mark.parametrize("caller", SYNC_CALLERS, ids=str)
def test_without_hooks_nothing_of_ours_is_left(caller: Caller, provider: Provider, recorded: Recording) -> None:
    provider.script(caller.api.limited(), caller.api.whole())
    client = caller.client(provider.url, retries=1)
    module_of(caller)  # google-genai imports some only when it needs them
    patched = list(sdks._patched)
    assert any(owner.__module__ == module_of(caller).__name__ for owner, _ in patched if isinstance(owner, type))

    sdks.uninstrument()
    try:
        assert [name for owner, name in patched if is_ours(owner.__dict__[name])] == []
        run(ask(caller, client))
    finally:
        sdks.instrument()

    assert set(sdks._patched) >= set(patched)  # and what was imported meanwhile
    assert len(provider.requests) == 2
    seen = [] if caller.api.name in UNTOLD else [1, 1]  # by the hook on httpx alone
    assert [len(recorded.of_step(step)) for step in recorded.steps] == seen


def is_ours(function: Any) -> bool:
    return getattr(getattr(function, "__code__", None), "co_filename", "").endswith("capture/hooks.py")


@pytest.mark.parametrize("caller", SYNC_CALLERS, ids=str)
def test_a_version_that_does_not_fit_is_told_and_its_requests_are_recorded_all_the_same(
    caller: Caller,
    provider: Provider,
    recorded: Recording,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.script(caller.api.limited(), caller.api.whole())
    module = module_of(caller)
    sdks.uninstrument()
    try:
        owner_name, name = held(caller)[1].split(".")
        owner = getattr(module, owner_name)
        monkeypatch.setattr(owner, name, with_other_parameters(owner.__dict__[name]))
        sdks.instrument()
        (told,) = (record for record in caplog.records if module.__name__ in record.message)
        assert told.levelname == "WARNING"
        assert held(caller)[1] in told.message
        run(ask(caller, caller.client(provider.url, retries=1)))
    finally:
        sdks.uninstrument()
        monkeypatch.undo()
        sdks.instrument()

    if caller.api.name in UNTOLD:
        assert recorded.attempts == []
        return
    assert [attempt.response_status for attempt in recorded.attempts] == [429, 200]
    # Where the method that the application calls has a hook of its own, that still holds both.
    steps = [2] if caller.sdk in ("openai", "anthropic", "groq") else [1, 1]
    assert [len(recorded.of_step(step)) for step in recorded.steps] == steps
    assert recorded.steps[-1].status is Status.COMPLETED


def with_other_parameters(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return original(self, *arguments, **named)

    return method


async def ask(caller: Caller, client: Any) -> None:
    assert await do(caller.whole(client))
    await close(client)
