"""The one thread that writes: takes what waits, commits it as one transaction, then acknowledges.

A failed transaction is rolled back, its work is put back and tried again; when that fails too, the
waiting clients are told to send again. Either way nothing is acknowledged that is not on disk.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import duckdb

from quayscope.collector.counters import Counters
from quayscope.collector.errors import CollectorError, Overloaded, StoreUnavailable
from quayscope.collector.limits import COMMIT_INTERVAL_S, QUEUE_BYTES, QUEUE_REQUESTS
from quayscope.collector.store.database import Database
from quayscope.collector.store.dictionaries import Dictionaries
from quayscope.collector.store.entries import Work
from quayscope.collector.store.staging import Staged, stage
from quayscope.profile import Profile

__all__ = ["Writer"]

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_RETRY_S = 0.25


class Writer:
    """Owns the write connection and the dictionaries.

    `on_stored` is called with the profiles of each transaction after it is on disk; it must not block.
    """

    def __init__(
        self,
        database: Database,
        dictionaries: Dictionaries,
        next_message: int,
        counters: Counters,
        on_stored: Callable[[Sequence[Profile]], None],
    ) -> None:
        self._database = database
        self._dictionaries = dictionaries
        self._next_message = next_message
        self._counters = counters
        self._on_stored = on_stored
        self._waiting: deque[Work] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue work, whose ticket is resolved later.

        Raises `Overloaded`, or `StoreUnavailable` while closing.
        """
        with self._changed:
            if self._closing:
                raise StoreUnavailable("the collector is stopping", next_step="send again to the next one")
            if len(self._waiting) >= QUEUE_REQUESTS or (
                self._waiting and self._waiting_bytes + work.size > QUEUE_BYTES
            ):
                self._counters.add("overloaded")
                raise Overloaded("the write queue is full", next_step="send again later")
            self._waiting.append(work)
            self._waiting_bytes += work.size
            self._changed.notify()

    def depth(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    def close(self, timeout_s: float) -> bool:
        """Write what waits and end the thread; whether that was done within `timeout_s` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        last_commit = 0.0
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                # The interval counts from the last commit: a lone request does not wait for company.
                due = last_commit + COMMIT_INTERVAL_S
                while not self._closing and (now := time.monotonic()) < due:
                    self._changed.wait(due - now)
                works = list(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
            last_commit = time.monotonic()
            self._write(works)

    def _write(self, works: list[Work]) -> None:
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_RETRY_S)
            try:
                staged = stage(works, self._dictionaries, self._next_message)
                self._commit(staged)
            except (duckdb.Error, CollectorError) as error:
                failure = error
                self._counters.add("commit_failures")
                reason = str(error).splitlines()[0][:200]
                log.error("commit failed", extra={"attempt": attempt + 1, "reason": reason})
                self._recover()
            except Exception as error:  # the store's one border: its only writer must live on
                failure = error
                self._counters.add("faults")
                log.exception("writer fault")
                self._recover()
                break
            else:
                self._acknowledge(works, staged)
                return
        for work in works:
            self._counters.add("refused", len(work.profiles))
            self._counters.add("spans_refused", sum(entry.spans for entry in work.spans))
            points = [point for entry in work.metrics for point in entry.points]
            self._counters.add("points_refused", len(points))
            self._counters.add("exemplars_refused", sum(len(point.exemplars) for point in points))
            refusal = StoreUnavailable("the store could not keep this", next_step="send again later")
            refusal.__cause__ = failure
            work.ticket.resolve(refusal)

    def _commit(self, staged: Staged) -> None:
        connection = self._database.writing()
        connection.execute("BEGIN")
        staged.rows.insert(connection)
        connection.execute("COMMIT")

    def _recover(self) -> None:
        """End the failed transaction; where the database answers no more, open it again.

        Opening again ends running queries, so it is the last resort: a failed INSERT leaves a
        transaction to roll back, a failed COMMIT leaves none, and both leave a database that works.
        """
        try:
            connection = self._database.writing()
            with contextlib.suppress(duckdb.TransactionException):
                connection.execute("ROLLBACK")
            connection.execute("SELECT version FROM meta").fetchall()
        except (duckdb.Error, CollectorError):
            try:
                self._database.reopen()
            except CollectorError as error:
                log.error("store is unavailable", extra={"reason": str(error)[:200]})

    def _acknowledge(self, works: list[Work], staged: Staged) -> None:
        dictionaries = self._dictionaries
        for pending in (
            dictionaries.new_series,
            dictionaries.new_strings,
            dictionaries.new_metric_series,
            dictionaries.new_links,
            dictionaries.tries.new_frames,
            dictionaries.tries.new_nodes,
        ):
            pending.clear()
        for key in staged.keys:
            dictionaries.remember(key)
        self._next_message += staged.messages
        self._counters.add("commits")
        for name, count in staged.counts.items():
            self._counters.add(name, count)
        for work in works:
            work.ticket.resolve()
        if staged.profiles:
            self._on_stored(staged.profiles)
