"""Every request counted: endpoint, status, how long, busy, stalled; the telling ones kept one by one."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from quayscope.agent.context import Request
from quayscope.agent.faults import add
from quayscope.agent.slots import MAX_KEYS, SECOND_NS

__all__ = ["BOUNDS_NS", "SUMS", "KeptRequest", "RequestCounter", "RequestKey"]

BOUNDS_NS = tuple(
    int(bound * 1e9) for bound in (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
)
"""Upper bounds of the buckets (semantic conventions for http.server.request.duration)."""
MAX_KEPT = 500
"""Requests kept one by one until they are written, at most once a second; more are counted."""
MAX_ENDED = 50_000
"""Requests put down and not yet counted: ten seconds of 5,000 a second."""
COUNTED_A_STEP = 50
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
    """Rows of [count, duration, busy, stalled, then the buckets of each], times in nanoseconds, by second.

    A request that ends is only put down; it is counted when rows are taken, many in one go: right after a
    request everything is cold, and counting costs ten times as much. A request is slow from `slow_ns`.
    """

    def __init__(self, slow_ns: int) -> None:
        self._slow = slow_ns
        self._ended: deque[tuple[Request, int, int]] = deque()
        self._rows: dict[int, dict[RequestKey, list[int]]] = {}
        self._kept: list[KeptRequest] = []

    def finished(self, request: Request) -> None:
        """Put down a request that has ended now."""
        if len(self._ended) < MAX_ENDED:
            duration = time.perf_counter_ns() - request.started_ns
            self._ended.append((request, time.time_ns(), duration))
        else:
            add("records_dropped")

    def count(self) -> Iterator[None]:
        """Count those put down, some a step."""
        ended = self._ended
        while ended:
            for _ in range(min(len(ended), COUNTED_A_STEP)):
                self._count(*ended.popleft())
            yield

    def take(self, *, everything: bool) -> list[tuple[int, dict[RequestKey, list[int]]]]:
        """Remove and return (Unix nanoseconds, table) of the seconds that are over, or of all."""
        now = time.time_ns() // SECOND_NS * SECOND_NS
        done = sorted(second for second in self._rows if everything or second < now)
        return [(second, self._rows.pop(second)) for second in done]

    def take_kept(self) -> list[KeptRequest]:
        """Return the requests kept one by one, and forget them."""
        kept, self._kept = self._kept, []
        return kept

    def forget(self) -> None:
        """In a child of the worker: gather nothing."""
        self._ended.clear()
        self._rows.clear()
        self._kept.clear()

    def _count(self, request: Request, ended_ns: int, duration: int) -> None:
        add("requests")
        endpoint, run, phase = request.about()
        table = self._rows.setdefault(ended_ns // SECOND_NS * SECOND_NS, {})
        key = (endpoint, request.status, run, phase)
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
            self._keep(request, ended_ns, duration, "failed")
        elif duration >= self._slow:
            self._keep(request, ended_ns, duration, "slow")
        elif request.span_id:
            self._keep(request, ended_ns, duration, "sampled")

    def _keep(self, request: Request, ended_ns: int, duration: int, why: str) -> None:
        if len(self._kept) >= MAX_KEPT:
            add("kept_dropped")
            return
        endpoint, run, phase = request.about()
        self._kept.append(
            KeptRequest(
                endpoint,
                request.status,
                run,
                phase,
                ended_ns - duration,
                duration,
                request.busy_ns,
                request.stalled_ns,
                request.trace(),
                request.span_id,
                why,
            )
        )
