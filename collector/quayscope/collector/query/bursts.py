"""Bursts in a metric: when, how often, and what the database did in them that it does not do otherwise."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from quayscope.collector.errors import BadRequest
from quayscope.collector.query.metrics import metrics
from quayscope.collector.query.request import Column, Matcher, TimeRange
from quayscope.collector.query.select import fetch, select
from quayscope.collector.store import Store
from quayscope.profile import BLOCK, PROCESS_CPU

__all__ = ["Burst", "Bursts", "bursts", "find_bursts"]

_NS = 10**9
_MAX_ROWS = 50
_MAX_SECONDS = 6 * 3600
_JOIN_S = 2
"""Seconds of calm that do not end a burst."""
_LEAST = 1.5
"""A burst's seconds are above this many times the usual: where everything is alike nothing is a burst."""
_PERIODIC = 0.25
"""Bursts are periodic where the middle half of the gaps between them lies within this of their median."""


class Burst(NamedTuple):
    """From one second to another (Unix, the end excluded), with the highest value between."""

    start: int
    end: int
    peak: float


class Bursts(NamedTuple):
    """`usual` is the median a second, `threshold` what a burst's seconds are above.

    `period_s` is the median from one burst's start to the next, None for fewer than three; `periodic` says
    whether they keep to it.
    """

    usual: float
    threshold: float
    found: list[Burst]
    period_s: float | None
    periodic: bool


def find_bursts(values: Mapping[int, float]) -> Bursts:
    """Find the bursts of a series of values by second.

    The threshold lies half-way between the median and what three in a hundred seconds are above, and not
    below one and a half times the median: a series that is always high has none.
    """
    if not values:
        return Bursts(0.0, 0.0, [], None, periodic=False)
    numbers = np.array(list(values.values()), dtype=np.float64)
    usual, high = float(np.median(numbers)), float(np.quantile(numbers, 0.97))
    threshold = max((usual + high) / 2, usual * _LEAST)
    found: list[Burst] = []
    for second in sorted(values):
        value = values[second]
        if value <= threshold or value <= 0:
            continue
        if found and second - found[-1].end < _JOIN_S:
            last = found.pop()
            found.append(Burst(last.start, second + 1, max(last.peak, value)))
        else:
            found.append(Burst(second, second + 1, value))
    gaps = [after.start - before.start for before, after in pairwise(found)]
    if len(gaps) < 2:
        return Bursts(usual, threshold, found, None, periodic=False)
    period = statistics.median(gaps)
    low, _, upper = statistics.quantiles(gaps, n=4)
    periodic = low >= period * (1 - _PERIODIC) and upper <= period * (1 + _PERIODIC)
    return Bursts(usual, threshold, found, period, periodic=periodic)


def bursts(store: Store, name: str, matchers: Sequence[Matcher], time_range: TimeRange) -> dict[str, Any]:
    """Return the bursts of one metric, and the statements and backends whose time lies in them.

    Counters count by what they grew a second; series that match are added up. Statements' time is what
    backends were seen to run or wait. Raises `BadRequest` for a metric without points, or too long a range.
    """
    if time_range.end_ns - time_range.start_ns > _MAX_SECONDS * _NS:
        raise BadRequest("more than six hours", next_step="ask for a shorter range")
    values = _by_second(store, name, matchers, time_range)
    if not values:
        raise BadRequest(
            f"{name[:80]} has no points there", next_step="/api/v1/metrics?name=* lists what has"
        )
    found = find_bursts(values)
    statements, backends = _who(store, found.found, time_range)
    return {
        "name": name,
        "usual": found.usual,
        "threshold": found.threshold,
        "period_s": found.period_s,
        "periodic": found.periodic,
        "bursts": [burst._asdict() for burst in found.found],
        "statements": statements,
        "backends": backends,
    }


def _by_second(
    store: Store, name: str, matchers: Sequence[Matcher], time_range: TimeRange
) -> dict[int, float]:
    sums: dict[int, float] = defaultdict(float)
    for metric in metrics(store, name, matchers, time_range):
        if metric["kind"].endswith("histogram"):
            continue
        for series in metric["series"]:
            points = series["points"]
            if metric["kind"] != "cumulative sum":
                for at, value in points:
                    sums[int(at)] += value
                continue
            for (before, low), (at, value) in pairwise(points):
                seconds = range(int(before) + 1, int(at) + 1) or range(int(at), int(at) + 1)
                grown = value - low if value >= low else value
                for second in seconds:
                    sums[second] += grown / len(seconds)
    return dict(sums)


def _who(
    store: Store, found: Sequence[Burst], time_range: TimeRange
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return statements and backends by their time in the bursts, falling, with their time outside."""
    inside = {second for burst in found for second in range(burst.start, burst.end)}
    by_statement: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    by_backend: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
    endpoints: dict[str, Counter[str]] = defaultdict(Counter)
    tries, strings = store.dictionaries.tries, store.dictionaries.strings
    nearest = tries.node_sql.array()
    for kind in (BLOCK, PROCESS_CPU):
        column = Column(kind, len(kind.values) - 1)
        wanted = [Matcher("sampler", "agent", negated=True), Matcher("sampler", "pyspy", negated=True)]
        selection = select(store, kind.name, wanted, time_range)
        rows = fetch(
            store,
            f"SELECT ts // {_NS} AS second, series, node, pid, endpoint, sum(v{column.at})::BIGINT AS value "  # noqa: S608 - columns and ids of our own
            f"FROM samples WHERE {selection.where} GROUP BY ALL",
            selection.parameters,
        )
        names = ("second", "series", "node", "pid", "endpoint", "value")
        for second, series, node, pid, endpoint, value in zip(
            *(rows[one].tolist() for one in names), strict=True
        ):
            frame = int(nearest[node])
            statement = tries.frames[frame].function if frame else ""
            if not statement:
                continue
            at = 0 if int(second) in inside else 1
            by_statement[statement][at] += value
            by_backend[pid, store.dictionaries.series[series].labels.get("role", "")][at] += value
            if at == 0 and strings[endpoint]:
                endpoints[statement][strings[endpoint]] += value
    statements = [
        {
            "statement": text,
            "in_bursts": times[0],
            "outside": times[1],
            "endpoints": [name for name, _ in endpoints[text].most_common(3)],
        }
        for text, times in by_statement.items()
    ]
    backends = [
        {"pid": pid, "role": role, "in_bursts": times[0], "outside": times[1]}
        for (pid, role), times in by_backend.items()
    ]
    return _largest(statements), _largest(backends)


def _largest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -int(row["in_bursts"]))[:_MAX_ROWS]
