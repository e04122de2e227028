"""Every request counted: endpoint, status, how long, busy, stalled; the telling ones kept one by one."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from typing import NamedTuple

from quayscope.agent.context import Request
from quayscope.agent.faults import add
from quayscope.agent.slots import MAX_KEYS, SlotLength, Slots

__all__ = ["BOUNDS_NS", "SUMS", "KeptRequest", "RequestCounter", "RequestKey"]

BOUNDS_NS = tuple(
    int(bound * 1e9) for bound in (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
)
"""Upper bounds of the buckets (semantic conventions for http.server.request.duration)."""
MAX_KEPT = 500
"""Requests kept one by one until they are written, at most once a second; more are counted."""
_BUCKETS = len(BOUNDS_NS) + 1
SUMS = 4
"""Where a row's buckets begin."""

RequestKey = tuple[str, int, str, str]
"""Endpoint, status, run, phase."""


class KeptRequest(NamedTuple):
    """One request that says more than its count; `why` is `failed`, `slow` or `sampled`."""

    endpoint: str
    status: int
    run: str
    phase: str
    start_ns: int
    duration_ns: int
    busy_ns: int
    stalled_ns: int
    trace_id: str
    span_id: str
    why: str


class RequestCounter:
    """Rows of [count, duration, busy, stalled, then the buckets of each], times in nanoseconds.

    A request is slow from `slow_ns`. Its slots are whole seconds, whatever a capture asks for.
    """

    def __init__(self, slow_ns: int) -> None:
        self._slow = slow_ns
        self.rows: Slots[RequestKey, list[int]] = Slots(SlotLength())
        self._kept: deque[KeptRequest] = deque()

    def finished(self, request: Request) -> None:
        """Count a request that has ended."""
        duration = time.perf_counter_ns() - request.started_ns
        add("requests")
        table = self.rows.now()
        key = (request.endpoint, request.status, request.run, request.phase)
        row = table.get(key)
        if row is None:
            if len(table) >= MAX_KEYS:
                add("records_dropped")
                return
            row = table[key] = [0] * (SUMS + 3 * _BUCKETS)
        row[0] += 1
        at = SUMS
        for index, nanoseconds in enumerate((duration, request.busy_ns, request.stalled_ns), 1):
            row[index] += nanoseconds
            row[at + bisect_left(BOUNDS_NS, nanoseconds)] += 1
            at += _BUCKETS
        if request.status >= 500 or not request.status:
            self._keep(request, duration, "failed")
        elif duration >= self._slow:
            self._keep(request, duration, "slow")
        elif request.span_id:
            self._keep(request, duration, "sampled")

    def take_kept(self) -> list[KeptRequest]:
        """Return the requests kept one by one, and forget them."""
        kept = self._kept
        return [kept.popleft() for _ in range(len(kept))]

    def forget(self) -> None:
        """In a child of the worker: gather nothing."""
        self.rows.clear()
        self._kept.clear()

    def _keep(self, request: Request, duration: int, why: str) -> None:
        if len(self._kept) >= MAX_KEPT:
            add("kept_dropped")
            return
        self._kept.append(
            KeptRequest(
                request.endpoint,
                request.status,
                request.run,
                request.phase,
                time.time_ns() - duration,
                duration,
                request.busy_ns,
                request.stalled_ns,
                request.trace(),
                request.span_id,
                why,
            )
        )
