"""What a run amounts to: quantiles and counts by phase and endpoint, and whether they are to be believed.

A plain dictionary, which is the `--json` file::

    {"run", "workload", "seed", "target", "trace_ratio", "started", "duration_s", "interrupted",
     "scheduled", "sent", "ok", "errors": {"502": N}, "reasons": {"timed out": N}, "dropped", "missed",
     "unanswered", "skipped", "late_p50_ms", "late_p99_ms", "valid", "invalid_because": [...],
     "phases": [{"name", "start", "end", "rate", "scheduled", <figures>, "late_p50_ms", "late_p99_ms",
                 "valid", "invalid_because", "endpoints": [{"endpoint", <figures>}]}],
     "endpoints": [{"endpoint", <figures>}]}

<figures>: `sent`, `ok`, `errors`, `p50_ms`, `p95_ms`, `p99_ms`, `max_ms` (None where nothing ended), and
`throughput`, ok answers a second. Latencies are of every request that ended, failed ones too, from the
intended start. `start`, `end`, `started` are Unix seconds.

`errors` counts by status, and `0` (no whole answer), `capture` (the status was right, a value that the flow
needs was missing), `target` (a captured value made no path), `dropped`, `missed`; `reasons` says why for `0`.
`scheduled` counts arrivals, `sent` requests: a flow's arrival is several. Without `dropped` and `missed`,
ok + errors + unanswered = sent. Only an interrupted run has `unanswered` requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quayscope.load.client import REASONS
from quayscope.load.engine import Engine, Settings
from quayscope.load.record import CAPTURE_MISSING, NOT_ON_TARGET, Columns, Record
from quayscope.load.schedule import Schedule, Stage
from quayscope.load.target import Target
from quayscope.load.workload import Workload

__all__ = ["MAX_DROPPED_SHARE", "MAX_LATE_MS", "MIN_SENT_SHARE", "build", "error_share"]

MAX_LATE_MS = 50.0
"""A phase whose arrivals were sent later than this (99th percentile) measured the driver, not the server."""
MAX_DROPPED_SHARE = 0.01
"""A phase that dropped more of its arrivals than this did not put the load on that it says."""
MIN_SENT_SHARE = 0.99
"""A phase that sent less of its arrivals than this ran at another rate than it says."""

Mask = npt.NDArray[np.bool_]


def build(
    workload: Workload, schedule: Schedule, target: Target, settings: Settings, engine: Engine
) -> dict[str, Any]:
    """Return the report of a run that has ended."""
    return _Report(workload, schedule, target, settings, engine).whole()


def error_share(report: dict[str, Any]) -> float:
    """Return the share of all that should have been sent and answered that failed, 0 to 1."""
    tried = report["sent"] + report["dropped"] + report["missed"]
    return sum(report["errors"].values()) / tried if tried else 0.0


class _Report:
    """Holds a run's columns while its parts are counted."""

    def __init__(
        self, workload: Workload, schedule: Schedule, target: Target, settings: Settings, engine: Engine
    ) -> None:
        self._workload = workload
        self._schedule = schedule
        self._target = target
        self._settings = settings
        self._engine = engine
        self._record: Record = engine.record
        self._columns = Columns(engine.record)
        self._endpoints = workload.endpoints()
        self._elapsed_s = max(0.0, (engine.ended_ns - engine.base_ns) / 1e9)

    def whole(self) -> dict[str, Any]:
        columns, record = self._columns, self._record
        every = np.ones(len(columns.ended), dtype=bool)
        late = self._lateness(every)
        phases = [
            self._phase(number, stage)
            for number, stage in enumerate(self._schedule.stages)
            if stage.start_s < self._elapsed_s
        ]
        invalid = [f"{phase['name']}: {why}" for phase in phases for why in phase["invalid_because"]]
        if not phases:
            invalid.append("interrupted before the first phase")
        return {
            "run": self._settings.run,
            "workload": self._workload.name,
            "seed": self._settings.seed,
            "target": self._target.base,
            "trace_ratio": self._settings.trace_ratio,
            "started": round(self._engine.started, 3),
            "duration_s": round(self._elapsed_s, 3),
            "interrupted": self._engine.interrupted,
            "scheduled": sum(phase["scheduled"] for phase in phases),
            **self._figures(every, None, None, self._elapsed_s),
            "reasons": self._reasons(),
            "dropped": record.dropped.total(),
            "missed": record.missed.total(),
            "unanswered": record.unanswered.total(),
            "skipped": record.skipped.total(),
            **late,
            "valid": not invalid,
            "invalid_because": invalid,
            "phases": phases,
            "endpoints": self._rows(every, None, self._elapsed_s),
        }

    def _phase(self, number: int, stage: Stage) -> dict[str, Any]:
        end_s = min(stage.end_s, self._elapsed_s)
        mask = self._columns.stage == number
        of_stage = self._schedule.due_ns[self._schedule.stage == number]
        scheduled = int(np.count_nonzero(of_stage <= end_s * 1e9))
        late = self._lateness(mask)
        invalid = self._doubts(number, scheduled, late["late_p99_ms"])
        return {
            "name": stage.phase.name,
            "start": round(self._engine.started + stage.start_s, 3),
            "end": round(self._engine.started + end_s, 3),
            "rate": round(stage.rate, 3),
            "scheduled": scheduled,
            **self._figures(mask, number, None, end_s - stage.start_s),
            **late,
            "valid": not invalid,
            "invalid_because": invalid,
            "endpoints": self._rows(mask, number, end_s - stage.start_s),
        }

    def _doubts(self, number: int, scheduled: int, late_p99_ms: float | None) -> list[str]:
        """Say why a phase's figures do not stand for the load that it names."""
        doubts = []
        if late_p99_ms is not None and late_p99_ms > MAX_LATE_MS:
            doubts.append(
                f"the driver was late: 99th percentile {late_p99_ms:.0f} ms, {MAX_LATE_MS:g} allowed"
            )
        missed = _of(self._record.missed, number, None)
        if scheduled and missed / scheduled > 1 - MIN_SENT_SHARE:
            doubts.append(
                f"the driver was too slow for {missed} of {scheduled} arrivals and did not send them"
            )
        dropped = _of(self._record.dropped, number, None)
        if scheduled and dropped / scheduled > MAX_DROPPED_SHARE:
            doubts.append(
                f"{dropped} of {scheduled} arrivals were dropped, {self._settings.max_in_flight} requests "
                "being in flight: the server is slower than the rate"
            )
        return doubts

    def _rows(self, mask: Mask, stage: int | None, seconds: float) -> list[dict[str, Any]]:
        rows = []
        for endpoint, name in enumerate(self._endpoints):
            figures = self._figures(mask & (self._columns.endpoint == endpoint), stage, endpoint, seconds)
            if figures["sent"] or figures["errors"]:
                rows.append({"endpoint": name, **figures})
        return rows

    def _figures(self, mask: Mask, stage: int | None, endpoint: int | None, seconds: float) -> dict[str, Any]:
        columns, record = self._columns, self._record
        ended = int(np.count_nonzero(mask))
        ok = int(np.count_nonzero(columns.ok[mask]))
        errors = self._errors(mask & (columns.ok == 0))
        for name, counter in (("dropped", record.dropped), ("missed", record.missed)):
            if count := _of(counter, stage, endpoint):
                errors[name] = count
        latency = (columns.ended[mask] - columns.intended[mask]) / 1e6
        return {
            "sent": ended + _of(record.unanswered, stage, endpoint),
            "ok": ok,
            "errors": errors,
            "throughput": round(ok / seconds, 3) if seconds > 0 else 0.0,
            **_quantiles(latency, {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "max_ms": 1.0}),
        }

    def _errors(self, mask: Mask) -> dict[str, int]:
        counts: Counter[str] = Counter()
        statuses, errors = self._columns.status[mask], self._columns.error[mask]
        for error, name in ((CAPTURE_MISSING, "capture"), (NOT_ON_TARGET, "target")):
            if count := int(np.count_nonzero(errors == error)):
                counts[name] = count
        values, numbers = np.unique(statuses[errors >= 0], return_counts=True)
        counts.update({str(value): int(count) for value, count in zip(values, numbers, strict=True)})
        return dict(sorted(counts.items()))

    def _reasons(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        values, numbers = np.unique(self._columns.error[self._columns.error > 0], return_counts=True)
        for value, count in zip(values, numbers, strict=True):
            counts[REASONS.get(int(value), f"libcurl error {value}")] += int(count)
        return dict(counts)

    def _lateness(self, mask: Mask) -> dict[str, float | None]:
        """Return how much later than due arrivals were sent; a flow's later requests are due when sent."""
        arrivals = mask & (self._columns.step == 0)
        late = (self._columns.sent[arrivals] - self._columns.intended[arrivals]) / 1e6
        return _quantiles(late, {"late_p50_ms": 0.5, "late_p99_ms": 0.99})


def _quantiles(values: npt.NDArray[np.float64], names: dict[str, float]) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(names)
    found: Sequence[float] = np.quantile(values, list(names.values())).tolist()
    return {name: round(value, 3) for name, value in zip(names, found, strict=True)}


def _of(counter: Counter[tuple[int, int]], stage: int | None, endpoint: int | None) -> int:
    """Sum a counter by (stage, endpoint); None stands for all."""
    return sum(
        count
        for (its_stage, its_endpoint), count in counter.items()
        if stage in (None, its_stage) and endpoint in (None, its_endpoint)
    )
