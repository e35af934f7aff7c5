"""Fixtures of the SDKs' tests, which run without those of the other tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from otel_chatdebug import faults
from otel_chatdebug.demo.provider import Provider
from tests.support.recording import Recording, recording

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask GitHub for a list of prices when it is imported

NEEDS = {
    "test_contract.py": (),
    "test_failures.py": ("openai",),
    "test_openai.py": ("openai",),
    "test_providers.py": ("openai", "anthropic"),
    "test_anthropic.py": ("anthropic",),
    "test_mistral.py": ("mistralai",),
    "test_genai.py": ("google.genai",),
    "test_litellm.py": ("litellm",),
    "test_frameworks.py": ("langchain_openai", "pydantic_ai"),
    "test_adoption.py": ("anthropic", "opentelemetry.instrumentation.genai.anthropic"),
}
"""What must be installed for each file; its tests are not there where it is not."""


def is_installed(name: str) -> bool:
    """Without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


collect_ignore = [file for file, names in NEEDS.items() if not all(map(is_installed, names))]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        yield server


@pytest.fixture
def recorded() -> Iterator[Recording]:
    """What is recorded; nothing of ours may fail meanwhile."""
    before = faults.counts()
    with recording() as found:
        yield found
    assert faults.counts() == before
