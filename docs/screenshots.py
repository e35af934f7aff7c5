"""Draws the two pictures of the web page that the README shows: ``python docs/screenshots.py``.

They show what a small application really did: real SDKs against the demo's provider, the real server, a real Chromium.
Run it again when the pages look different.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import openai  # noqa: TID251

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import otel_chatdebug as chatdebug  # noqa: E402
from otel_chatdebug.demo import app as demo  # noqa: E402
from otel_chatdebug.demo.provider import Behaviour, Provider  # noqa: E402
from tests.support import pages  # noqa: E402
from tests.support.browser import chromium  # noqa: E402

SIZE = {"width": 1180, "height": 10}
ANSWER = (
    "Bern will be rainy in the morning, then dry with some sun, and about 14 degrees in the afternoon. "
    "Take an umbrella if you leave before noon."
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def weather_turn(provider: Provider) -> str:
    """A turn of two calls: one refused, tried again and answered with a pause; then the title. The run's id."""
    client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="demo")
    held = Behaviour(text=ANSWER, stall_after=12, delay=0.03)
    provider.script(Behaviour(status=429, retry_after=0.6), held, Behaviour(text="An umbrella for Bern", delay=0.02))
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    messages = [
        {"role": "system", "content": "You are brief and friendly."},
        {"role": "user", "content": "Do I need an umbrella in Bern today?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"morning": "rain", "afternoon": "sun", "high": 14}'},
    ]
    with chatdebug.run("chat_turn", chat_id="weather", first_message="Do I need an umbrella in Bern today?") as run:
        stream = client.chat.completions.create(
            model="gpt-5-mini",
            messages=messages,  # type: ignore[arg-type]
            tools=[TOOL],  # type: ignore[list-item]
            temperature=0.3,
            stream=True,
            stream_options={"include_usage": True},
        )
        for count, _chunk in enumerate(stream):
            if count == 10:
                held.wait_held()
                pause = Behaviour()  # nothing ends this wait but its time
                pause.wait_held(0.9)
                held.release()
        client.chat.completions.create(model="gpt-5-nano", messages=[{"role": "user", "content": "A title, please."}])
    client.close()
    return run.id


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = pages.sqlite_url(Path(folder))
        demo.main(url, lambda _: None)
        chatdebug.configure(database_url=url)
        with Provider() as provider:
            run = weather_turn(provider)
            chatdebug.shutdown()
        os.environ.pop("OTEL_CHATDEBUG_TOKEN", None)
        with pages.served(url) as server, chromium() as browser:
            for name, path, theme in (("runs", "/", "light"), ("run", f"/runs/{run}", "dark")):
                context = browser.new_context(viewport=SIZE, color_scheme=theme, timezone_id="UTC")
                page = context.new_page()
                page.goto(f"{server.origin}/?token={pages.TOKEN}")
                page.goto(server.origin + path)
                if name == "run":  # its first step, which was refused at first
                    page.goto(server.origin + str(page.locator(".bars a").first.get_attribute("href")))
                page.wait_for_selector("#live[data-state=live]")
                target = ROOT / "docs" / f"web-{name}.png"
                page.screenshot(path=str(target), full_page=True)
                print(f"{target.relative_to(ROOT)}: {target.stat().st_size // 1000} kB")
                context.close()


if __name__ == "__main__":
    main()
