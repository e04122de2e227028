"""Requests and counters of the workers, as OTLP metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from quayscope.relay.otlp import Histogram, HistogramPoint, Metric, NumberPoint, metric_request
from quayscope.relay.records import BOUNDS, Counts, RequestRow

__all__ = ["RequestMetrics"]

SECOND_NS = 1_000_000_000
Labels = tuple[tuple[str, str], ...]


class RequestMetrics:
    """Gathers rows and increments; `take` encodes what came since the last time."""

    def __init__(self) -> None:
        self._points = 0
        self._durations: dict[Labels, list[HistogramPoint]] = defaultdict(list)
        self._sums: dict[Labels, dict[str, list[NumberPoint]]] = defaultdict(lambda: defaultdict(list))

    def requests(self, labels: Mapping[str, str], slot_ns: int, rows: list[RequestRow]) -> None:
        """Add finished requests of one slot."""
        key = tuple(sorted(labels.items()))
        # The last nanosecond of the slot: a range query [from, to) must not take it for the next one.
        end = slot_ns + SECOND_NS - 1
        self._points += len(rows)
        for row in rows:
            about = {"endpoint": row.endpoint, "run": row.run, "phase": row.phase}
            self._durations[key].append(
                HistogramPoint(
                    row.buckets,
                    row.sum_ns / 1e9,
                    end,
                    slot_ns,
                    {**about, "http.response.status_code": row.status},
                )
            )
            sums = self._sums[key]
            sums["quayscope.request.busy"].append(NumberPoint(row.busy_ns / 1e9, end, slot_ns, about))
            sums["quayscope.request.stalled"].append(NumberPoint(row.stalled_ns / 1e9, end, slot_ns, about))

    def counts(self, labels: Mapping[str, str], prefix: str, record: Counts, pid: int) -> None:
        """Add increments of counters; `pid` 0 where they are no worker's."""
        about: dict[str, str | int] = {"pid": str(pid)} if pid else {}
        sums = self._sums[tuple(sorted(labels.items()))]
        self._points += len(record.counts)
        for name, count in record.counts.items():
            sums[f"{prefix}{name}"].append(
                NumberPoint(count, record.time_ns, max(0, record.time_ns - SECOND_NS), about)
            )

    def points(self) -> int:
        """Return how many rows and increments are held."""
        return self._points

    def take(self) -> list[bytes]:
        """Return one OTLP request a series and forget what is in them."""
        self._points = 0
        durations, self._durations = self._durations, defaultdict(list)
        sums, self._sums = self._sums, defaultdict(lambda: defaultdict(list))
        requests: list[bytes] = []
        for key in {**durations, **sums}:
            metrics: list[Metric | Histogram] = [
                Metric(name, "s" if name.startswith("quayscope.request.") else "1", "delta", points)
                for name, points in sums.get(key, {}).items()
            ]
            if key in durations:
                metrics.append(Histogram("http.server.request.duration", "s", BOUNDS, durations[key]))
            requests.append(metric_request(dict(key), metrics))
        return requests
