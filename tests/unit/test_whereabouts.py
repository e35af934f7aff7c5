"""Where work is under way: the frames of threads and of tasks, while they hang and when they are gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

from otel_chatdebug.pipeline.whereabouts import Stack, Whereabouts, here


def clean(code: str) -> str:
    return code.replace("hush", "[REDACTED]")


def functions(stack: Stack) -> list[str]:
    return [frame["function"].rpartition(".")[2] for frame in stack["frames"]]


def test_a_thread_is_seen_where_it_hangs_and_not_after_its_end() -> None:
    found: list[Whereabouts] = []
    told, hold = threading.Event(), threading.Event()

    def hanging() -> None:
        found.append(here())
        told.set()
        hold.wait()  # hush

    thread = threading.Thread(target=hanging, name="worker-7")
    thread.start()
    told.wait()
    stack = found[0].stack(clean)
    assert (stack["kind"], stack["name"], stack["state"]) == ("thread", "worker-7", "running")
    hanging_frame = next(frame for frame in stack["frames"] if frame["function"].endswith("hanging"))
    assert hanging_frame["file"] == __file__
    assert hanging_frame["code"] in ("hold.wait()  # [REDACTED]", "told.set()")
    hold.set()
    thread.join()
    assert found[0].stack(clean) == {"kind": "thread", "name": "worker-7", "state": "gone", "frames": []}
    del thread
    assert found[0].stack(clean)["state"] == "gone"


def test_a_task_is_followed_through_all_that_it_awaits() -> None:
    async def main() -> None:
        found: list[Whereabouts] = []
        told, hold = asyncio.Event(), asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            told.set()
            await hold.wait()

        async def reading() -> None:
            async for _ in chunks():
                pass

        async def turn() -> None:
            found.append(here())
            await reading()

        task = asyncio.create_task(turn(), name="turn-1")
        await told.wait()
        stack = found[0].stack(clean)
        assert (stack["kind"], stack["name"], stack["state"]) == ("task", "turn-1", "suspended")
        assert functions(stack) == ["turn", "reading", "chunks", "wait"]
        hold.set()
        await task
        assert found[0].stack(clean)["state"] == "gone"

    asyncio.run(main())


def test_a_task_that_runs_is_told_by_its_thread() -> None:
    async def main() -> None:
        mine = here()
        stack = mine.stack(clean)
        assert (stack["kind"], stack["state"]) == ("task", "running")
        assert "main" in functions(stack)

    asyncio.run(main())


def test_one_place_is_told_from_another() -> None:
    elsewhere: list[Whereabouts] = []
    thread = threading.Thread(target=lambda: elsewhere.append(here()))
    thread.start()
    thread.join()
    assert here().is_where(here())
    assert not here().is_where(elsewhere[0])
