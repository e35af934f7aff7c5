"""What a writer of the tables is handed, in its simplest form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from otel_chatdebug.records import AttemptContent, Record, StepContent


class Live:
    """A source: its records, or what raises instead."""

    def __init__(
        self,
        *records: Record,
        final: bool = False,
        queued: bool = True,
        before: Callable[[], object] = lambda: None,
        size: int = 0,
    ) -> None:
        self.final = final
        self.size = size
        self.queued = queued
        self.told = records
        self.before = before

    def records(self) -> Sequence[Record]:
        self.before()
        return self.told

    def strip(self) -> None:
        self.told = tuple(record for record in self.told if not isinstance(record, (StepContent, AttemptContent)))
        self.size = 0
