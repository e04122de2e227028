"""The store as the other stages see it: hand work in, read with a cursor, close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb

from quayscope.collector.counters import Counters
from quayscope.collector.errors import StoreUnavailable
from quayscope.collector.limits import WAIT_S
from quayscope.collector.store.database import Database
from quayscope.collector.store.entries import Work
from quayscope.collector.store.writer import Writer
from quayscope.profile import Profile

__all__ = ["Store"]


def _nobody(profiles: Sequence[Profile]) -> None:
    """Nobody listens for stored profiles."""


class Store:
    """Profiles, spans and metrics under one directory; opened once a process.

    Raises `CannotOpenStore`. `on_stored` gets the profiles of each transaction once it is on disk.
    """

    def __init__(
        self,
        directory: Path,
        counters: Counters | None = None,
        on_stored: Callable[[Sequence[Profile]], None] = _nobody,
    ) -> None:
        self.counters = counters or Counters()
        self._database = Database(directory)
        self.dictionaries, next_message = self._database.load()
        self._writer = Writer(self._database, self.dictionaries, next_message, self.counters, on_stored)

    def keep(self, work: Work, timeout_s: float = WAIT_S) -> list[str]:
        """Store the work and return when it is on disk, with the texts of the entries a limit refused.

        Raises `Overloaded` or `StoreUnavailable`: nothing of it may be believed stored then.
        """
        self._writer.submit(work)
        if not work.ticket.wait(timeout_s):
            self.counters.add("timeouts")
            raise StoreUnavailable(f"not on disk within {timeout_s:g} s", next_step="send again")
        if work.ticket.error is not None:
            raise work.ticket.error
        return work.ticket.refused

    def reading(self) -> duckdb.DuckDBPyConnection:
        """Return this thread's cursor; raises `StoreUnavailable`."""
        return self._database.reading()

    def queue_depth(self) -> int:
        """Return how many requests wait for the writer."""
        return self._writer.depth()

    def size(self) -> int:
        """Return the bytes on disk."""
        return self._database.size()

    def close(self, timeout_s: float = WAIT_S) -> bool:
        """Write what waits, then close the file; return whether that was done within `timeout_s` seconds."""
        done = self._writer.close(timeout_s)
        if done:
            self._database.close()
        return done
