"""Counts of what happened: every loss and refusal has a name here and is shown under /api/v1/status."""

from __future__ import annotations

import threading

__all__ = ["NAMES", "Counters"]

NAMES = {
    "received": "profiles that arrived, in whatever state",
    "stored": "profiles on disk",
    "refused": "profiles not kept because a limit or the store said no",
    "malformed": "requests and profiles that could not be read",
    "clock_malformed": "requests whose word on their sender's clock could not be read; stored as they came",
    "duplicates": "profiles and messages that were on disk already, under the same ID",
    "truncated": "samples whose stack was deeper than the limit",
    "spans_received": "spans that arrived",
    "spans_stored": "spans on disk",
    "spans_refused": "spans not kept",
    "points_received": "metric data points that arrived",
    "points_stored": "metric data points on disk",
    "points_refused": "metric data points of a kind that is not kept, or not kept for a limit",
    "exemplars_stored": "exemplars of data points on disk",
    "exemplars_refused": "exemplars not kept: ill-formed, too many of one point, or their point is not kept",
    "overloaded": "requests turned away because the write queue was full",
    "timeouts": "requests whose commit did not come in time",
    "commits": "transactions on disk",
    "commit_failures": "transactions that failed and were tried again or given up",
    "foreign": "requests with another site's Host or Origin",
    "unauthenticated": "requests without a token, or with one that is not known",
    "forbidden": "requests whose token lacks the scope",
    "sidecars_attached": "control streams that were opened",
    "control_malformed": "control messages that could not be read",
    "control_unknown": "control messages of a kind that is not known here",
    "captures": "captures that were begun",
    "captures_triggered": "captures that a threshold began",
    "captures_failed": "captures of which nothing came",
    "capture_parts": "parts of captures that arrived",
    "capture_parts_late": "parts that arrived when nobody waited for them any more",
    "faults": "errors nobody foresaw; each is logged",
    "forwarded": "profiles that a Pyroscope accepted",
    "forward_refused": "profiles that a Pyroscope refused for good",
    "forward_dropped": "profiles dropped because the forward queue was full or the collector stopped",
    "forward_retries": "pushes to a Pyroscope that were tried again",
}
"""Every counter and what it counts."""


class Counters:
    """Counters by the names in `NAMES`; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(NAMES, 0)

    def add(self, name: str, count: int = 1) -> None:
        """Add `count` to the counter `name`, which must be in `NAMES`."""
        with self._lock:
            self._counts[name] += count

    def snapshot(self) -> dict[str, int]:
        """All counts of one moment."""
        with self._lock:
            return dict(self._counts)
