"""What the numbers in a server's shared memory mean: one table a major, under `data/`.

The tables are made from the public source by tests/postgres/tables.py, which documents how; a test compares
each with what the real servers answer. Stable branches append events but never renumber: a number that a
table does not know is shown as itself.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

__all__ = ["MAJORS", "Names", "Wait", "names_of"]

MAJORS = (13, 14, 15, 16, 17, 18)
"""What is watched; other majors are refused."""
_MAX_UNKNOWN = 1024
"""Unknown wait events that are remembered: extensions name a few, garbage any number."""


class Wait(NamedTuple):
    """A wait event: its class and its name, as `pg_stat_activity` shows them; both empty: no wait."""

    kind: str
    event: str


NO_WAIT = Wait("", "")


class Names:
    """The names of one major."""

    def __init__(self, major: int) -> None:
        path = resources.files(__package__).joinpath("data", f"{major}.json")
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.major = major
        self.states: tuple[str, ...] = tuple(table["states"])
        self.backend_types: tuple[str, ...] = tuple(table["backend_types"])
        self._classes: dict[int, str] = {int(code, 16): name for code, name in table["classes"].items()}
        self._waits: dict[int, Wait] = {0: NO_WAIT}
        for code, kind in self._classes.items():
            for number, event in enumerate(table["waits"].get(kind, ())):
                if event is not None:
                    self._waits[code << 24 | number] = Wait(kind, event)
        self._unknown: dict[int, Wait] = {}

    def known_wait(self, code: int) -> bool:
        """Whether a `wait_event_info` is one that this major's own code sets."""
        return code in self._waits

    def wait(self, code: int) -> Wait:
        """Return the class and the name of a `wait_event_info`; an unknown one's name is its number."""
        found = self._waits.get(code) or self._unknown.get(code)
        if found is None:
            found = Wait(self._classes.get(code >> 24, "unknown"), f"{code:#010x}")
            if len(self._unknown) < _MAX_UNKNOWN:
                self._unknown[code] = found
        return found


@cache
def names_of(major: int) -> Names:
    """Return the names of a major of `MAJORS`."""
    return Names(major)
