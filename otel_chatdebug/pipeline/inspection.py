"""What the runs of a chat are doing in this process, right now: for the snapshot of a chat that hangs.

Looks, and changes nothing. Any thread, while the process starts or ends, too. What an application may have written
(names of threads and tasks, lines of source, paths) is redacted as what goes to the tables is.
"""

from __future__ import annotations

import time
from typing import Any, TypedDict

from otel_chatdebug import storable
from otel_chatdebug.pipeline.live import LiveRun
from otel_chatdebug.pipeline.live_step import LiveStep
from otel_chatdebug.pipeline.recorder import Recorder, active
from otel_chatdebug.pipeline.whereabouts import Stack, Whereabouts


class LiveAttempt(TypedDict):
    """A request that is under way. Ages are in seconds, by this process's clock."""

    id: str
    number: int
    endpoint: str
    state: str
    """Of `otel_chatdebug.capture.states.State`, in lower case: ``waiting`` for headers, ``streaming``, ..."""
    response_status: int | None
    bytes_received: int
    events: int
    seconds_since_start: float
    seconds_since_last_byte: float | None
    """None before the first one."""


class LiveStepState(TypedDict):
    id: str
    number: int
    model: str | None
    seconds_since_start: float
    attempts: list[LiveAttempt]
    """Those that are open."""


class LiveRunState(TypedDict):
    id: str
    active_task_kind: str
    """The run's kind."""
    seconds_since_start: float
    steps: list[LiveStepState]
    """Those that are open."""
    stacks: list[Stack]
    """Of the tasks and threads that run it: where its scope was entered, and where its open requests are sent and
    read. Each once."""


class LiveState(TypedDict):
    """What one process knows of a chat."""

    replica_id: str
    runs: list[LiveRunState]


def inspect(chat_id: str) -> LiveState | None:
    """What this process is doing for a chat; None where it records nothing, or ends."""
    recorder = active()
    if recorder is None or recorder.closed:
        return None
    recorder.inbox.fold()
    chat_id = storable.name(chat_id)

    def look() -> list[tuple[LiveRun, list[tuple[LiveStep, list[Any]]]]]:
        # Of copies: where the turn was not to be had in time, somebody else folds while we look.
        return [
            (run, [(step, step.open_attempts) for step in run.open_steps])
            for run in list(recorder.open_runs.values())
            if run.permit.allowed
            and (run.chat_id == chat_id or any(step.chat_id == chat_id for step in run.open_steps))
        ]

    found: list[tuple[LiveRun, list[tuple[LiveStep, list[Any]]]]] = recorder.inbox.reading(look)
    return LiveState(replica_id=recorder.replica_id, runs=[_run(recorder, run, steps) for run, steps in found])


def _run(recorder: Recorder, run: LiveRun, steps: list[tuple[LiveStep, list[Any]]]) -> LiveRunState:
    places: list[Whereabouts] = []
    for place in (run.where, *(one.where for step, attempts in steps for one in (step, *attempts))):
        if not any(place.is_where(known) for known in places):
            places.append(place)
    now = time.time_ns()
    return LiveRunState(
        id=run.id,
        active_task_kind=run.kind,
        seconds_since_start=_seconds(run.started_ns, now),
        steps=[
            LiveStepState(
                id=step.id,
                number=step.number,
                model=step.model,
                seconds_since_start=_seconds(step.started_ns, now),
                attempts=[_attempt(recorder, attempt, now) for attempt in attempts],
            )
            for step, attempts in steps
        ],
        stacks=_stacks(recorder, places),
    )


def _stacks(recorder: Recorder, places: list[Whereabouts]) -> list[Stack]:
    stacks = [place.stack(recorder.redactor.text) for place in places]
    if recorder.redact is not None:  # after the lock that stacks are taken under: it is the application's code
        texts = [[stack["name"], *(frame["code"] for frame in stack["frames"])] for stack in stacks]
        for stack, (name, *lines) in zip(stacks, recorder.redact.piece("stack", texts), strict=True):
            stack["name"] = name
            for frame, line in zip(stack["frames"], lines, strict=True):
                frame["code"] = line
    return stacks


def _attempt(recorder: Recorder, attempt: Any, now: int) -> LiveAttempt:
    attempt.digest(wait=False)  # for the number of events
    last = attempt.last_byte_ns
    endpoint = attempt.endpoint_label
    if recorder.redact is not None:  # as in the run's row
        endpoint = recorder.redact.piece("summary", {"endpoint_label": endpoint})["endpoint_label"]
    return LiveAttempt(
        id=attempt.id,
        number=attempt.number,
        endpoint=endpoint,
        state=attempt.state.name.lower(),
        response_status=attempt.response_status,
        bytes_received=attempt.bytes_received,
        events=attempt.events,
        seconds_since_start=_seconds(attempt.started_ns, now),
        seconds_since_last_byte=None if last is None else _seconds(last, now),
    )


def _seconds(since: int, now: int) -> float:
    return max(0.0, (now - since) / 1e9)
