"""A chat server that streams: each turn is a run, with the chat's id and the first words of the user.

    OPENAI_API_KEY=... python examples/streaming_starlette.py
    curl --no-buffer --data 'Why is the sky blue?' http://127.0.0.1:8000/chats/my-chat
    otel-chatdebug runs --chat my-chat

Break curl off while it prints, and look again: the turn is interrupted. ``OPENAI_BASE_URL`` names another server that
speaks OpenAI's protocol; ``PORT`` another port. docs/frameworks.md has FastAPI, Flask and threads.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import openai
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

import otel_chatdebug as chatdebug

chatdebug.configure(service_name="streaming-starlette")
client = openai.AsyncOpenAI()


async def answer(chat_id: str, question: str) -> AsyncIterator[str]:
    # The run stands around the stream, so it lasts as long, and ends as the stream does.
    with chatdebug.run("chat_turn", chat_id=chat_id, first_message=question):
        stream = await client.chat.completions.create(
            model="gpt-5-mini",
            messages=[{"role": "user", "content": question}],
            stream=True,
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices:
                    yield chunk.choices[0].delta.content or ""


async def turn(request: Request) -> StreamingResponse:
    question = (await request.body()).decode()
    return StreamingResponse(answer(request.path_params["chat_id"], question), media_type="text/plain")


app = Starlette(routes=[Route("/chats/{chat_id}", turn, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
