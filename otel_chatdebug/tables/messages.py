"""Which messages of a chat come after a given one.

An application's message ids may be numbers, numbers with a name before them, or anything else, and there is no table of
messages here. So numbers are compared as numbers; any others are in the order in which the chat's runs and steps first
mention them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBERED = re.compile(r"([^0-9]*)0*([0-9]+)")


class After:
    """Tells of an id whether its message comes after ``message_id``.

    ``mentions`` are the ids that the chat's rows name, in the order of the rows; an id may come repeatedly.
    """

    def __init__(self, message_id: str, mentions: Iterable[str | None]) -> None:
        self._number = _number(message_id)
        self._places: dict[str, int] = {}
        for id in mentions:
            if id is not None:
                self._places.setdefault(id, len(self._places))
        self._place = self._places.get(message_id)

    @property
    def known(self) -> bool:
        """Whether any other id can be compared with it: it is mentioned, or is a number as some others are."""
        return self._place is not None or any(self._comparable(_number(id)) for id in self._places)

    def __call__(self, id: str | None) -> bool:
        """None, and an id that cannot be compared, is not after it."""
        if id is None:
            return False
        number = _number(id)
        if self._comparable(number):
            return number > self._number  # type: ignore[operator]  # neither is None
        place = self._places.get(id)
        return place is not None and self._place is not None and place > self._place

    def _comparable(self, number: tuple[str, int, str] | None) -> bool:
        return number is not None and self._number is not None and number[0] == self._number[0]


def _number(id: str) -> tuple[str, int, str] | None:
    """``msg-012`` as something that sorts by its number (of any length): its name, the number's length, its digits."""
    found = _NUMBERED.fullmatch(id)
    return None if found is None else (found[1], len(found[2]), found[2])
