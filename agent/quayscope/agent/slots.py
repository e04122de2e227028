"""Tables by slot: what happened in one Unix second, until it is written."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

__all__ = ["Slots"]

K = TypeVar("K")
V = TypeVar("V")
MAX_KEYS = 20_000
"""Distinct keys a second; a busy worker has some hundreds. More are dropped and counted by the caller."""


class Slots(Generic[K, V]):
    """One dictionary a second. Used by a signal handler and one writer of the same thread, without locks."""

    def __init__(self) -> None:
        self._tables: dict[int, dict[K, V]] = {}

    def now(self) -> dict[K, V]:
        """Return the table of the running second."""
        second = int(time.time())
        table = self._tables.get(second)
        if table is None:
            table = self._tables[second] = {}
        return table

    def take(self, *, everything: bool) -> list[tuple[int, dict[K, V]]]:
        """Remove and return the (Unix second, table) pairs of seconds that are over, or all."""
        current = int(time.time())
        done = [second for second in list(self._tables) if everything or second < current]
        return [(second, self._tables.pop(second)) for second in sorted(done)]
