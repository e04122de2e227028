"""Every request counted: endpoint, status, duration, busy and stalled time."""

from __future__ import annotations

import time
from bisect import bisect_left

from quayscope.agent.context import Request
from quayscope.agent.faults import add
from quayscope.agent.slots import MAX_KEYS, Slots

__all__ = ["BOUNDS_NS", "RequestCounter", "RequestKey"]

BOUNDS_NS = tuple(
    int(bound * 1e9) for bound in (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
)
"""Upper bounds of the duration buckets (semantic conventions for http.server.request.duration)."""

RequestKey = tuple[str, int, str, str]
"""Endpoint, status, run, phase."""


class RequestCounter:
    """Rows of [count, duration, busy, stalled, bucket counts ...], times in nanoseconds."""

    def __init__(self) -> None:
        self.rows: Slots[RequestKey, list[int]] = Slots()

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
            row = table[key] = [0] * (4 + len(BOUNDS_NS) + 1)
        row[0] += 1
        row[1] += duration
        row[2] += request.busy_ns
        row[3] += request.stalled_ns
        row[4 + bisect_left(BOUNDS_NS, duration)] += 1
