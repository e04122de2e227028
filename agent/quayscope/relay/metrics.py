"""Requests, held-up hubs, counters and levels of the workers, as OTLP metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from quayscope.profile import Attributes
from quayscope.relay.otlp import Exemplar, Histogram, HistogramPoint, Metric, NumberPoint, metric_request
from quayscope.relay.records import BOUNDS, Counts, HubRow, KeptRow, RequestRow

__all__ = ["WorkerMetrics"]

SECOND_NS = 1_000_000_000
SHORTEST_SLOT_NS = 250_000_000
Labels = tuple[tuple[str, str], ...]


class _Answered(NamedTuple):
    """What the requests of one duration point share."""

    slot_ns: int
    endpoint: str
    status: int
    run: str
    phase: str


class _Series:
    """What the workers of one series said since the last flush."""

    def __init__(self) -> None:
        self.durations: list[tuple[_Answered, RequestRow]] = []
        self.kept: dict[_Answered, list[Exemplar]] = defaultdict(list)
        self.histograms: dict[str, list[HistogramPoint]] = defaultdict(list)
        self.sums: dict[str, list[NumberPoint]] = defaultdict(list)
        self.levels: dict[str, list[NumberPoint]] = defaultdict(list)

    def metrics(self) -> list[Metric | Histogram]:
        made: list[Metric | Histogram] = [
            Metric(name, _unit(name), "delta", points) for name, points in self.sums.items()
        ]
        made += [Metric(name, "1", "gauge", points) for name, points in self.levels.items()]
        made += [Histogram(name, "s", BOUNDS, points) for name, points in self.histograms.items()]
        durations = [
            _duration(about, row.buckets, row.sum_ns, self.kept.pop(about, ()))
            for about, row in self.durations
        ]
        # The others' point left with an earlier flush, or comes with a later one. A point that counts
        # nothing carries them: it is of the same series, and adds nothing to any sum.
        nothing = (0,) * (len(BOUNDS) + 1)
        durations += [_duration(about, nothing, 0, exemplars) for about, exemplars in self.kept.items()]
        if durations:
            made.append(Histogram("http.server.request.duration", "s", BOUNDS, durations))
        return made


class WorkerMetrics:
    """Gathers rows, increments and levels; `take` encodes what came since the last time."""

    def __init__(self) -> None:
        self._points = 0
        self._series: dict[Labels, _Series] = defaultdict(_Series)

    def requests(self, labels: Mapping[str, str], slot_ns: int, rows: Sequence[RequestRow]) -> None:
        """Add finished requests of one slot, which is a second long."""
        series = self._of(labels)
        end = _last(slot_ns, SECOND_NS)
        self._points += len(rows)
        for row in rows:
            series.durations.append((_Answered(slot_ns, row.endpoint, row.status, row.run, row.phase), row))
            about = {"endpoint": row.endpoint, "run": row.run, "phase": row.phase}
            for name, spent_ns, buckets in (
                ("quayscope.request.busy", row.busy_ns, row.busy_buckets),
                ("quayscope.request.stalled", row.stalled_ns, row.stalled_buckets),
            ):
                if buckets:
                    series.histograms[name].append(
                        HistogramPoint(buckets, spent_ns / 1e9, end, slot_ns, about)
                    )
                else:
                    series.sums[name].append(NumberPoint(spent_ns / 1e9, end, slot_ns, about))

    def kept(self, labels: Mapping[str, str], rows: Iterable[KeptRow]) -> None:
        """Add single requests: exemplars of the duration of their kind, in the second that they ended in."""
        series = self._of(labels)
        for row in rows:
            end = row.start_ns + row.duration_ns
            about = _Answered(end - end % SECOND_NS, row.endpoint, row.status, row.run, row.phase)
            series.kept[about].append(
                Exemplar(
                    row.duration_ns / 1e9,
                    end,
                    row.trace_id,
                    row.span_id,
                    {"why": row.why, "busy": row.busy_ns / 1e9, "stalled": row.stalled_ns / 1e9},
                )
            )
            self._points += 1

    def hub(self, labels: Mapping[str, str], slot_ns: int, rows: Iterable[HubRow]) -> None:
        """Add time in which a hub could not run; the slot may be shorter than a second."""
        stalled: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        for row in rows:
            about = row.about or Attributes()
            sums = stalled[about.endpoint, about.run, about.phase]
            sums[0] += row.delay_ns
            sums[1] += row.waiting_ns
        series = self._of(labels)
        # How long the slot is does not travel; the shortest there is lies in it either way.
        end = _last(slot_ns, SHORTEST_SLOT_NS)
        for (endpoint, run, phase), sums in stalled.items():
            shared = {"endpoint": endpoint, "run": run, "phase": phase}
            for name, spent_ns in zip(("quayscope.hub.stalled", "quayscope.hub.waiting"), sums):
                series.sums[name].append(NumberPoint(spent_ns / 1e9, end, slot_ns, shared))
                self._points += 1

    def counts(self, labels: Mapping[str, str], prefix: str, record: Counts, pid: int) -> None:
        """Add increments of counters, and levels as they stand; `pid` 0 where they are no worker's."""
        about: dict[str, str | int] = {"pid": str(pid)} if pid else {}
        series = self._of(labels)
        self._points += len(record.counts) + len(record.levels)
        for name, count in record.counts.items():
            series.sums[f"{prefix}{name}"].append(
                NumberPoint(count, record.time_ns, max(0, record.time_ns - SECOND_NS), about)
            )
        for name, level in record.levels.items():
            series.levels[f"{prefix}{name}"].append(NumberPoint(level, record.time_ns, 0, about))

    def _of(self, labels: Mapping[str, str]) -> _Series:
        return self._series[tuple(sorted(labels.items()))]

    def points(self) -> int:
        """Return how many rows, increments and levels are held."""
        return self._points

    def take(self) -> list[bytes]:
        """Return one OTLP request a series and forget what is in them."""
        self._points = 0
        held, self._series = self._series, defaultdict(_Series)
        return [metric_request(dict(labels), series.metrics()) for labels, series in held.items()]


def _duration(
    about: _Answered, buckets: Sequence[int], sum_ns: int, exemplars: Sequence[Exemplar]
) -> HistogramPoint:
    attributes: dict[str, str | int] = {
        "endpoint": about.endpoint,
        "run": about.run,
        "phase": about.phase,
        "http.response.status_code": about.status,
    }
    end = _last(about.slot_ns, SECOND_NS)
    return HistogramPoint(buckets, sum_ns / 1e9, end, about.slot_ns, attributes, exemplars)


def _last(slot_ns: int, length_ns: int) -> int:
    # The last nanosecond of the slot: a range query [from, to) must not take it for the next one.
    return slot_ns + length_ns - 1


def _unit(name: str) -> str:
    return "s" if name.startswith(("quayscope.request.", "quayscope.hub.")) else "1"
