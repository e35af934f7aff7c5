"""The status of runs, steps and attempts, its priority, and how an exception becomes one."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """How far a run, a step or an attempt has got, in rising priority.

    ``in_progress < interrupted < error < completed``: a later word of a lower priority never undoes an earlier
    one, so a tardy safety net that says ``interrupted`` cannot hide a success. The value is what stands in the
    ``status`` columns and in the span attribute ``chatdebug.status``.
    """

    IN_PROGRESS = "in_progress"
    INTERRUPTED = "interrupted"
    ERROR = "error"
    COMPLETED = "completed"

    @property
    def priority(self) -> int:
        """0 to 3; the ``rank`` of a run's or a step's record."""
        return _PRIORITY[self]


_PRIORITY = {
    Status.IN_PROGRESS: 0,
    Status.INTERRUPTED: 1,
    Status.ERROR: 2,
    Status.COMPLETED: 3,
}


class Outcome(StrEnum):
    """What came of touching or finishing something. True where it was done, false for each reason why it was not."""

    RECORDED = "recorded"
    NOT_FOUND = "not found"
    OTHER_CHAT = "belongs to another chat"
    ALREADY_FINISHED = "already finished"
    """With a status that has a higher priority than what was said now."""
    NOT_RECORDING = "nothing is recorded"
    """Recording is off, was shut down, or the database cannot be used."""

    def __bool__(self) -> bool:
        return self is Outcome.RECORDED


class RunKind(StrEnum):
    """The kinds of run that have a name of their own. Any other string is welcome as a kind, too."""

    CHAT_TURN = "chat_turn"
    COMPACTION = "compaction"
    TITLE_GENERATION = "title_generation"
    QUICKGEN = "quickgen"
    AUTO = "auto"
    """A run that nobody declared: the model calls below one local root span, or a single call without one."""


def classify_error(exc: BaseException | None) -> Status:
    """The status of a scope that was left by ``exc``. ``None`` is a normal end: ``completed``.

    A ``BaseException`` that is no ``Exception`` (``CancelledError`` of asyncio or trio, ``GeneratorExit``,
    ``KeyboardInterrupt``) says that somebody did not want the answer any more: ``interrupted``. ``SystemExit``
    with a code other than 0 or None is an error, and so is all else, ``TimeoutError`` included.

    Never raises. Called by whatever thread or task leaves the scope.
    """
    if exc is None:
        return Status.COMPLETED
    if isinstance(exc, SystemExit):
        return Status.INTERRUPTED if exc.code in (None, 0) else Status.ERROR
    return Status.ERROR if isinstance(exc, Exception) else Status.INTERRUPTED
