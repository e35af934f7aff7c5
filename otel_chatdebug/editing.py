"""When a chat is edited, archived or deleted: what was recorded of the part that is gone goes, too.

`delete_chat` and `delete_after_message` do it once, in the caller's thread. A turn that is still running may write its
last rows after that, so `schedule_cleanup` repeats it in the background.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_chatdebug import lifecycle, repeating, storable
from otel_chatdebug.pipeline.recorder import active
from otel_chatdebug.settings import Settings
from otel_chatdebug.tables import beside, database
from otel_chatdebug.tables.counts import Deleted
from otel_chatdebug.tables.database import NoDatabase

if TYPE_CHECKING:
    from otel_chatdebug.tables.deletion import Deletion

logger = logging.getLogger("otel_chatdebug")

CLOCK_SKEW: Final = timedelta(seconds=30)
"""How far the clock of a replica may be behind the database's, see `cutoff_from`."""

TRIES: Final = 5
"""How often `schedule_cleanup` deletes, where nobody says otherwise."""

FIRST_DELAY: Final = 1.0
"""Seconds between the first try and the second; doubling from there, so that the fifth comes 15 s after the first."""

FLUSH_SECONDS: Final = 2.0
"""How long a deletion waits for what this process has recorded already to be written, at most."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cutoff_from(updated_at: datetime) -> datetime:
    """The ``started_before`` of an edit: 30 s (`CLOCK_SKEW`) before ``updated_at``, the database's time of the edit.

    Take ``updated_at`` from the transaction that made the edit (``now()`` in PostgreSQL), not from a process's clock.
    What started before the cut-off is deleted. A run's start is told by its own replica's clock, and the turn that
    replaces the one that was cut off may run on a replica whose clock is behind: it is safe as long as that is less
    than 30 s. What had started within the last 30 s before the edit survives; if its process has given it up, the sweep
    says so. A time without a time zone is a ``ValueError``: nobody can know which one was meant.
    """
    return _aware(updated_at, "updated_at") - CLOCK_SKEW


def delete_chat(chat_id: str, *, started_before: datetime | None = None, database_url: str | None = None) -> Deleted:
    """Deletes what was recorded of a chat: its runs with their steps, attempts and contents.

    ``started_before``: only of runs that started before it, see `cutoff_from`; default: all. A step of this chat within
    a run of another chat goes as well, and the rest of that run stays. Returns the numbers of what was deleted,
    ``(runs, steps, attempts)``: zeros where there was nothing, or no database yet. Runs of this process that are still
    open are not recorded any further. Another process notices with its next heartbeat that an open run of its own was
    deleted; until then it may write rows of it, see `schedule_cleanup`.

    Blocks while it talks to the database (in async code: ``await asyncio.to_thread(delete_chat, ...)``). Any thread.
    Raises what the database raises. ``database_url`` defaults to the one that is recorded into.
    """
    return _perform(_deletion(_what(chat_id, None, started_before)), _url(database_url))


def delete_after_message(
    chat_id: str, message_id: str | int, *, started_before: datetime | None = None, database_url: str | None = None
) -> Deleted:
    """Deletes what was recorded of a chat after one of its messages, which itself stays: the part that an edit cuts
    off.

    A run goes, whole, if it names a later message: as ``trigger_message_id`` or ``history_tip_message_id``, or in one
    of its steps as ``history_tip_message_id`` or ``assistant_message_id``. Runs that name none (a title, say) stay.

    Later is what has a higher number, where ids are numbers, or a name and a number (``msg-12``). Any other ids are in
    the order in which the chat's runs and steps first name them; ``message_id`` must be one that was named then, else
    nothing is deleted and a warning says so. All else as for `delete_chat`.
    """
    return _perform(_deletion(_what(chat_id, message_id, started_before)), _url(database_url))


class Cleanup(repeating.Repeated):
    """A deletion that is repeated in the background; made by `schedule_cleanup`. Any thread may look."""

    def __init__(self, what: _What, url: str, tries: int, delay: float) -> None:
        super().__init__(tries, delay)
        self._what = what
        self._url = url
        self._deletion: Deletion | None = None
        self._deleted = Deleted()

    @property
    def deleted(self) -> Deleted:
        """How many rows were deleted so far, by all tries together."""
        return self._deleted

    def perform(self) -> None:
        """One try."""
        if self._deletion is None:
            self._deletion = _deletion(self._what)
        self._deleted = self._deleted.plus(_perform(self._deletion, self._url))

    def failed(self, exc: Exception | None) -> None:
        """Tells of it."""
        logger.warning(
            "What was recorded of the chat %s could not be deleted: %s. `otel-chatdebug delete` does it.",
            self._what.chat_id,
            "this process ends" if exc is None else database.diagnose(exc)[1],
        )


def schedule_cleanup(
    chat_id: str,
    message_id: str | int | None = None,
    *,
    started_before: datetime,
    tries: int = TRIES,
    delay: float = FIRST_DELAY,
    database_url: str | None = None,
) -> Cleanup:
    """Has `delete_chat` (or with ``message_id`` `delete_after_message`) performed in the background, ``tries`` times.

    The first time at once, then after ``delay`` seconds, then after twice as many, and so on: by default after 0, 1, 3,
    7 and 15 s. A turn that is running in another process may write rows meanwhile, which the next time finds; what an
    earlier time found is removed again, whatever it looks like then. ``started_before`` has to be given, so that the
    turn that replaces the old one is never deleted: ``cutoff_from(updated_at)``.

    Returns at once, and never raises for the database: a time that fails is one of the ``tries``; if the last one
    fails, a warning says so. The handle has ``wait(timeout=None)``, which is True when all is done, ``done``,
    ``deleted`` and ``error``. `shutdown` performs what is pending once more, after the last rows of this process were
    written, and gives up what is not done within its 5 s; so does the exit of the interpreter.
    """
    if tries < 1 or delay < 0:
        raise ValueError("tries must be 1 or more, and delay 0 or more")
    cleanup = Cleanup(_what(chat_id, message_id, started_before), _url(database_url), tries, delay)
    repeating.repeater.add(cleanup)
    lifecycle.end_at_exit()  # also where nothing is recorded
    return cleanup


class _What(NamedTuple):
    chat_id: str
    message_id: str | None
    started_before: int | None
    """Microseconds since 1970."""


def _what(chat_id: str, message_id: str | int | None, started_before: datetime | None) -> _What:
    before = None
    if started_before is not None:
        before = (_aware(started_before, "started_before") - _EPOCH) // timedelta(microseconds=1)
    message = None if message_id is None else storable.name(str(message_id))
    return _What(storable.name(str(chat_id)), message, before)


def _aware(moment: datetime, name: str) -> datetime:
    if not isinstance(moment, datetime):
        raise TypeError(f"{name} is a datetime, not {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise ValueError(f"{name} has no time zone: give it one, as in {name}.replace(tzinfo=datetime.UTC)")
    return moment


def _url(database_url: str | None) -> str:
    recorder = active()
    if database_url is None and recorder is not None:
        return recorder.settings.database_url
    return Settings.load(database_url=database_url).database_url


def _deletion(what: _What) -> Deletion:
    from otel_chatdebug.tables.deletion import Deletion

    return Deletion(what.chat_id, message_id=what.message_id, started_before=what.started_before)


def _perform(deletion: Deletion, url: str) -> Deleted:
    from otel_chatdebug.tables.deletion import take_up_spooled

    # What is recorded already is written first. Else it would come after its deletion.
    lifecycle.flush(FLUSH_SECONDS)
    take_up_spooled(url)
    try:
        with beside.reading(url) as engine:
            deletion.find(engine)
    except NoDatabase:
        return Deleted()
    if deletion.unknown_message:
        logger.warning(
            "No row of the chat %s names the message %s, and the ids are no numbers: what comes after it cannot be "
            "told, and nothing of it is deleted.",
            deletion.chat_id,
            deletion.message_id,
        )
    if not deletion.runs and not deletion.steps:
        return Deleted()
    if lifecycle.disown(deletion.runs, deletion.steps):
        lifecycle.flush(FLUSH_SECONDS)
    with beside.opened(url) as engine:
        return deletion.apply(engine)
