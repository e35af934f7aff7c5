"""A chat application with two lines more than it had: the import, and ``configure()``.

    OPENAI_API_KEY=... python examples/two_lines.py
    otel-chatdebug runs

``OPENAI_BASE_URL`` names another server that speaks OpenAI's protocol.
"""

from __future__ import annotations

import openai

import otel_chatdebug as chatdebug

chatdebug.configure()

client = openai.OpenAI()
stream = client.chat.completions.create(
    model="gpt-5-mini",
    messages=[{"role": "user", "content": "Why is the sky blue?"}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
