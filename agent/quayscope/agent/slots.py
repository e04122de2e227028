"""Tables by slot: what happened in one second (in a capture a quarter of one), until it is written."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

from quayscope.agent.faults import add

__all__ = ["MAX_KEYS", "SECOND_NS", "SlotLength", "Slots", "add_to", "is_over"]

K = TypeVar("K")
V = TypeVar("V")
SECOND_NS = 1_000_000_000
MAX_KEYS = 20_000
"""Distinct keys a slot; a busy worker has some hundreds. More are dropped and counted by the caller."""
_KEEP_S = 5
_WINDOW_S = 10
MAX_SLOTS = 60
"""Slots kept while nobody writes them: a worker blocked for longer loses the oldest, counted."""


class SlotLength:
    """How long a slot is, in nanoseconds: one object that all tables look at, so that it changes for all."""

    def __init__(self, ns: int = SECOND_NS) -> None:
        self.ns = ns

    def start(self) -> int:
        """Return the running slot's start, in Unix nanoseconds."""
        now = time.time_ns()
        return now - now % self.ns


def is_over(since: int, everything: bool) -> bool:
    """Whether what has waited for a stack since that Unix second is to be written without one of its own.

    After five seconds, and at the end of its ten-second window at the latest: it goes into the second in
    which it began, and must not come too late for it.
    """
    now = int(time.time())
    return everything or since < now - _KEEP_S or since // _WINDOW_S < now // _WINDOW_S


class Slots(Generic[K, V]):
    """One dictionary a slot. Used by a signal handler and one writer of the same thread, without locks."""

    def __init__(self, length: SlotLength) -> None:
        self._length = length
        self._tables: dict[int, dict[K, V]] = {}

    def now(self) -> dict[K, V]:
        """Return the running slot's table."""
        return self.at(self._length.start())

    def at(self, start: int) -> dict[K, V]:
        """Return the table of the slot that begins at `start`, which may have been taken before."""
        table = self._tables.get(start)
        if table is None:
            if len(self._tables) >= MAX_SLOTS:
                oldest = self._tables.pop(min(list(self._tables)), None)
                add("records_dropped", len(oldest or ()))
            table = self._tables.setdefault(start, {})
        return table

    def take(self, *, everything: bool) -> list[tuple[int, dict[K, V]]]:
        """Remove and return (Unix nanoseconds, table) of the slots that are over, or of all."""
        current = self._length.start()
        done = sorted(start for start in list(self._tables) if everything or start < current)
        # Copies: a thread that was interrupted between `now` and its addition may still hold a table.
        return [(start, dict(self._tables.pop(start))) for start in done]

    def clear(self) -> None:
        """Forget everything: in a child of the worker, whose samples nobody writes."""
        self._tables.clear()


def add_to(table: dict[K, list[int]], key: K, nanoseconds: int, count: int) -> None:
    """Add to a row of [nanoseconds, count]; a new one for which there is no room is dropped and counted."""
    row = table.get(key)
    if row is not None:
        row[0] += nanoseconds
        row[1] += count
    elif len(table) < MAX_KEYS:
        table[key] = [nanoseconds, count]
    else:
        add("records_dropped")
