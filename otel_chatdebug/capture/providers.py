"""Who is asked: ``gen_ai.provider.name``, as the semantic conventions spell it.

The host knows best: one SDK reaches many providers. Then the client's class, which tells where a host cannot (a proxy
before Azure or Bedrock); then the SDK; then the wire format, whose maker is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Final, cast

from opentelemetry.semconv._incubating.attributes.gen_ai_attributes import GenAiProviderNameValues as Names

BY_HOST: Final = {
    "api.openai.com": Names.OPENAI.value,
    "api.anthropic.com": Names.ANTHROPIC.value,
    "api.groq.com": Names.GROQ.value,
    "api.mistral.ai": Names.MISTRAL_AI.value,
    "generativelanguage.googleapis.com": Names.GCP_GEMINI.value,
    "api.deepseek.com": Names.DEEPSEEK.value,
    "api.x.ai": Names.X_AI.value,
    "api.cohere.com": Names.COHERE.value,
    "api.perplexity.ai": Names.PERPLEXITY.value,
}

BY_END_OF_HOST: Final = (
    (r"\.openai\.azure\.(?:com|us|cn)", Names.AZURE_AI_OPENAI.value),
    (r"\.(?:services|models|inference)\.ai\.azure\.com", Names.AZURE_AI_INFERENCE.value),
    # bedrock-runtime.eu-west-1.amazonaws.com (in a private network with vpce.), bedrock-mantle.eu-west-1.api.aws
    (r"\bbedrock-[a-z-]+\.[a-z0-9-]+\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)", Names.AWS_BEDROCK.value),
    (r"\baiplatform\.(?:[a-z0-9-]+\.rep\.)?googleapis\.com", Names.GCP_VERTEX_AI.value),
    (r"\.ml\.cloud\.ibm\.com", Names.IBM_WATSONX_AI.value),
)
"""Of hosts that hold a region, or the name of a customer's resource."""

_FINDERS: Final = tuple((re.compile(pattern + r"\Z"), provider) for pattern, provider in BY_END_OF_HOST)

BY_CLIENT: Final = {
    "BaseAzureClient": Names.AZURE_AI_OPENAI.value,
    "BaseFoundryClient": Names.AZURE_AI_INFERENCE.value,
    "BaseBedrockClient": Names.AWS_BEDROCK.value,
    "BaseMantleClient": Names.AWS_BEDROCK.value,
    "BedrockOpenAI": Names.AWS_BEDROCK.value,
    "AsyncBedrockOpenAI": Names.AWS_BEDROCK.value,
    "BaseVertexClient": Names.GCP_VERTEX_AI.value,
}
"""Classes of the openai and anthropic SDKs, or those above them."""


@lru_cache(maxsize=256)
def provider_of_host(host: str) -> str | None:
    """The provider at ``host``; None for one that is not known, as that of a gateway."""
    known = BY_HOST.get(host)
    if known is not None:
        return known
    return next((provider for pattern, provider in _FINDERS if pattern.search(host)), None)


def provider_of_client(client: Any) -> str | None:
    """The provider that ``client``, of an SDK, is made for; None for the SDK's own."""
    return _provider_of_class(cast("Hashable", type(client)))


@lru_cache(maxsize=64)
def _provider_of_class(client: Hashable) -> str | None:
    bases = cast("type", client).__mro__
    return next((BY_CLIENT[base.__name__] for base in bases if base.__name__ in BY_CLIENT), None)
