"""Tables by slot: what happened in one Unix second, until it is written."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

from quayscope.agent.faults import add

__all__ = ["MAX_KEYS", "Slots"]

K = TypeVar("K")
V = TypeVar("V")
MAX_KEYS = 20_000
"""Distinct keys a second; a busy worker has some hundreds. More are dropped and counted by the caller."""
MAX_SECONDS = 60
"""Seconds kept while nobody writes them: a worker blocked for longer loses the oldest, counted."""


class Slots(Generic[K, V]):
    """One dictionary a second. Used by a signal handler and one writer of the same thread, without locks."""

    def __init__(self) -> None:
        self._tables: dict[int, dict[K, V]] = {}

    def now(self) -> dict[K, V]:
        """Return the table of the running second."""
        second = int(time.time())
        table = self._tables.get(second)
        if table is None:
            if len(self._tables) >= MAX_SECONDS:
                oldest = self._tables.pop(min(list(self._tables)), None)
                add("records_dropped", len(oldest or ()))
            table = self._tables.setdefault(second, {})
        return table

    def take(self, *, everything: bool) -> list[tuple[int, dict[K, V]]]:
        """Remove and return (Unix second, its table) of the seconds that are over, or of all."""
        current = int(time.time())
        done = sorted(second for second in list(self._tables) if everything or second < current)
        # Copies: a thread that was interrupted between `now` and its addition may still hold a table.
        return [(second, dict(self._tables.pop(second))) for second in done]

    def waiting(self) -> list[K]:
        """Return the keys of all tables that were not taken yet."""
        return [key for table in list(self._tables.values()) for key in list(table)]

    def clear(self) -> None:
        """Forget everything: in a child of the worker, whose samples nobody writes."""
        self._tables.clear()
