"""The database's troubles and what was dropped: when it is tried again, and what is told about it, and how often."""

from __future__ import annotations

import logging
import time

from otel_chatdebug.tables import backlog, database
from otel_chatdebug.tables.database import Fault

logger = logging.getLogger("otel_chatdebug")

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 30.0
"""Seconds before the first retry, doubling up to the longest."""

LOCKED_MOST = 0.5
"""The longest where another connection holds the lock: it works, and it was waited for already."""

LOCKED_PATIENCE = 3
"""So many times in a row a lock is nothing to tell: several processes that start or write at once."""

TELL_SECONDS = 60.0
"""Drops and troubles of the database are told at most this often."""


class Troubles:
    """The writer's thread only."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.retry_at = 0.0
        """Nothing is tried before it (monotonic seconds)."""
        self._backoff = 0.0
        self._count = 0
        self._told = False
        self._told_at = float("-inf")
        self._told_drops = 0
        self._told_drops_at = float("-inf")

    def __bool__(self) -> bool:
        """It did not work the last time."""
        return self._count > 0

    def struck(self, fault: Fault, reason: str, *, hurry: bool) -> None:
        """The database is in trouble: it is left alone for a while, which is short where a close waits (``hurry``)."""
        now = time.monotonic()
        most = min(LOCKED_MOST, BACKOFF_MOST) if fault is Fault.LOCKED else BACKOFF_MOST
        self._backoff = BACKOFF_FIRST if hurry else min(max(2 * self._backoff, BACKOFF_FIRST), most)
        self.retry_at = now + self._backoff
        self._count += 1
        if fault is Fault.LOCKED and self._count <= LOCKED_PATIENCE:
            return
        if not self._told and now - self._told_at >= TELL_SECONDS:
            self._told, self._told_at = True, now
            logger.warning(
                "The debug tables in %s cannot be written: %s The application goes on; up to %d records wait, "
                "and it is tried again.",
                database.redacted(self._url),
                reason if reason.endswith("?") else f"{reason}.",
                backlog.MAX_QUEUE,
            )

    def over(self) -> bool:
        """It works. True when it did not the time before."""
        struck = self._count > 0
        self._backoff = self.retry_at = 0.0
        self._count = 0
        if self._told:
            self._told = False
            logger.info("The debug tables in %s are written again.", database.redacted(self._url))
        return struck

    def tell_drops(self, drops: int, *, last: bool = False) -> None:
        """Tells how many records were dropped since it was told last, now and then; at once where it is the ``last``
        chance."""
        now = time.monotonic()
        if drops == self._told_drops or (now - self._told_drops_at < TELL_SECONDS and not last):
            return
        logger.warning(
            "otel-chatdebug dropped %d records that the database did not take in time.", drops - self._told_drops
        )
        self._told_drops, self._told_drops_at = drops, now
