"""A chat application that knows nothing of otel_chatdebug, and is recorded all the same:

    OTEL_TRACES_EXPORTER=chatdebug OPENAI_API_KEY=... opentelemetry-instrument python examples/zero_code.py
    otel-chatdebug runs

``OPENAI_BASE_URL`` names another server that speaks OpenAI's protocol.
"""

from __future__ import annotations

import openai

client = openai.OpenAI()
answer = client.chat.completions.create(
    model="gpt-5-mini",
    messages=[{"role": "user", "content": "Why is the sky blue?"}],
)
print(answer.choices[0].message.content)
