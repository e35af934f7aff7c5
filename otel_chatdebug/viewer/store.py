"""The database behind the pages: opened when it is first asked, and again when it was not there."""

from __future__ import annotations

import threading
import weakref

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from otel_chatdebug.tables import database, queries


class Unavailable(Exception):
    """The tables cannot be read now; the message is a sentence. ``empty``: nobody has recorded anything yet."""

    def __init__(self, sentence: str, *, empty: bool = False) -> None:
        super().__init__(sentence)
        self.empty = empty


class Store:
    """Opens the database for reading, once it is there: a page may be open before the first call is recorded.

    Any thread. `close` can be repeated; what is left open is closed when this is collected, or at exit.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._closing: weakref.finalize[[], Store] | None = None

    @property
    def engine(self) -> Engine:
        """An engine that only reads. Raises `Unavailable`."""
        with self._lock:
            if self._engine is None:
                self._engine = self._open()
                self._closing = weakref.finalize(self, self._engine.dispose)
            return self._engine

    def close(self) -> None:
        """Closes the database. Who asks later opens it again."""
        with self._lock:
            self._engine = None
            if self._closing is not None:
                self._closing()

    def _open(self) -> Engine:
        try:
            return queries.open_for_reading(self.url)
        except queries.NoDatabase as exc:
            raise Unavailable(str(exc), empty=True) from None
        except (SQLAlchemyError, OSError, database.DatabaseError) as exc:
            raise Unavailable(sentence(exc)) from None


def sentence(exc: Exception) -> str:
    """What the database raised, for a person."""
    if isinstance(exc, (database.DatabaseError, Unavailable)):
        return str(exc)
    return f"The database cannot be used: {database.diagnose(exc)[1]}."
