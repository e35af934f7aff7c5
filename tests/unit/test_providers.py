"""Who is asked, by the host of a request."""

from __future__ import annotations

import httpx
import pytest

from otel_chatdebug.capture.providers import provider_of_host
from tests.support.recording import ANSWER, BODY, recording


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("api.deepseek.com", "deepseek"),
        ("generativelanguage.googleapis.com", "gcp.gemini"),
        ("contoso.openai.azure.com", "azure.ai.openai"),
        ("contoso.services.ai.azure.com", "azure.ai.inference"),
        ("bedrock-runtime.eu-west-1.amazonaws.com", "aws.bedrock"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "aws.bedrock"),
        ("vpce-0a-1b.bedrock-runtime.us-east-1.vpce.amazonaws.com", "aws.bedrock"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "aws.bedrock"),
        ("bedrock-mantle.us-east-1.api.aws", "aws.bedrock"),
        ("aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("europe-west1-aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("aiplatform.eu.rep.googleapis.com", "gcp.vertex_ai"),
        ("us-south.ml.cloud.ibm.com", "ibm.watsonx.ai"),
        ("contoso.openai.azure.com.example.org", None),
        ("notopenai.azure.com", None),
        ("s3.eu-west-1.amazonaws.com", None),
        ("storage.googleapis.com", None),
        ("127.0.0.1", None),
    ],
)
def test_the_provider_of_a_host(host: str, provider: str | None) -> None:
    assert provider_of_host(host) == provider


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://contoso.openai.azure.com/openai/deployments/gpt/chat/completions", "azure.ai.openai"),
        ("https://gateway.example/v1/chat/completions", "openai"),
    ],
)
def test_a_bare_client_has_the_provider_of_its_host_or_the_maker_of_the_format(url: str, provider: str) -> None:
    with recording() as recorded:
        ask(url)
        (step,) = recorded.steps
    assert step.provider == provider


def ask(url: str) -> None:
    answer = httpx.MockTransport(lambda request: httpx.Response(200, json=ANSWER))
    with httpx.Client(transport=answer) as client:
        assert client.post(url, json=BODY).read()
