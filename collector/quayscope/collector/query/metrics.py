"""Metric series, their points, and the exemplars beside them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from quayscope.collector.errors import BadRequest
from quayscope.collector.query.request import Matcher, TimeRange
from quayscope.collector.query.select import fetch, number_list
from quayscope.collector.store import Store

__all__ = ["MAX_EXEMPLARS", "MAX_POINTS", "deltas", "metrics", "one_metric"]

MAX_POINTS = 200_000
"""Points of one answer; more are refused, since a cut series would look like one that ended."""
MAX_EXEMPLARS = 10_000
"""Exemplars of one answer, the newest; how many of a series are left out is said."""

_NS = 1e9
_LOOK_BACK_NS = 90 * 10**9
"""How long before a range its first point may lie: a counter that stands still is sent once a minute."""
_SUMS = ("cumulative sum", "delta sum")


def one_metric(store: Store, name: str, matchers: Sequence[Matcher], time_range: TimeRange) -> dict[str, Any]:
    """Return one metric's series. Of a name sent as several kinds or units the newest-seen one is shown.

    Raises `BadRequest` for too many points.
    """
    found = metrics(store, name, matchers, time_range)
    if not found:
        return {"name": name, "unit": "", "kind": "", "series": []}
    return found[-1]


def metrics(
    store: Store, pattern: str, matchers: Sequence[Matcher], time_range: TimeRange
) -> list[dict[str, Any]]:
    """Return every metric of that name (or prefix, where `pattern` ends in `*`) with data in the range.

    One object a (name, unit, kind), by name and then by first appearance; points by time.
    Raises `BadRequest` for too many points.
    """
    prefix = pattern.removesuffix("*")
    known = list(store.dictionaries.metric_series)
    chosen = [
        number
        for number, one in enumerate(known)
        if (one.name.startswith(prefix) if prefix != pattern else one.name == pattern)
        and all(matcher.accepts(one.attributes.get(matcher.name, "")) for matcher in matchers)
    ]
    rows = fetch(
        store,
        'SELECT ts, series, value, "count" AS observations, buckets FROM points WHERE ts >= ? AND ts < ? '  # noqa: S608 - ids of our own
        f"AND series IN {number_list(chosen or [-1])} ORDER BY series, ts LIMIT {MAX_POINTS + 1}",
        list(time_range),
    )
    if len(rows["ts"]) > MAX_POINTS:
        raise BadRequest(
            f"more than {MAX_POINTS} points match", next_step="ask for a shorter range or match more"
        )
    points: dict[int, list[list[Any]]] = {}
    columns = (rows[name].tolist() for name in ("ts", "series", "value", "observations"))
    for time_ns, number, value, observations, packed in zip(*columns, rows["buckets"], strict=True):
        one = known[number]
        shown: Any = value
        if one.kind.endswith("histogram"):
            packed = bytes(packed)
            buckets = list(struct.unpack(f"<{len(packed) // 8}q", packed))
            shown = {"count": observations, "sum": value, "bounds": list(one.bounds), "buckets": buckets}
        points.setdefault(number, []).append([time_ns / _NS, shown])
    exemplars = _exemplars(store, [n for n in chosen if known[n].kind.endswith("histogram")], time_range)
    answer: dict[tuple[str, str, str], dict[str, Any]] = {}
    for number in sorted(points.keys() | exemplars.keys()):
        one = known[number]
        key = (one.name, one.unit, one.kind)
        metric = answer.setdefault(key, {"name": one.name, "unit": one.unit, "kind": one.kind, "series": []})
        metric["series"].append(
            {"attributes": one.attributes, "points": points.get(number, []), **exemplars.get(number, {})}
        )
    return sorted(answer.values(), key=lambda metric: str(metric["name"]))


def deltas(
    store: Store, pattern: str, matchers: Sequence[Matcher], time_range: TimeRange
) -> list[dict[str, Any]]:
    """Return by how much each counter of that name (or prefix) grew in the range, by falling growth.

    A series' growth is the sum of its steps: a step down is a counter that began anew, and counts as what it
    reads. The last point before the range is where it starts; a series that has none starts at its first.
    Gauges and histograms are left out. Raises `BadRequest` for too many points.
    """
    earlier = TimeRange(max(0, time_range.start_ns - _LOOK_BACK_NS), time_range.end_ns)
    rows = []
    for metric in metrics(store, pattern, matchers, earlier):
        for series in metric["series"] if metric["kind"] in _SUMS else ():
            grown = _growth(series["points"], time_range.start_ns / _NS, of_deltas=metric["kind"] == _SUMS[1])
            if grown:
                rows.append(
                    {"name": metric["name"], "unit": metric["unit"], **series["attributes"], "value": grown}
                )
    return sorted(rows, key=lambda row: (row["name"], -row["value"]))


def _growth(points: Sequence[Sequence[float]], start_s: float, *, of_deltas: bool) -> float:
    if of_deltas:
        return sum(value for at, value in points if at >= start_s)
    grown, before = 0.0, None
    for at, value in points:
        if before is not None and at >= start_s:
            grown += value - before if value >= before else value
        before = value
    return grown


def _exemplars(store: Store, chosen: Sequence[int], time_range: TimeRange) -> dict[int, dict[str, Any]]:
    """Return what is shown of each series' exemplars, by time; series without any are left out."""
    where = f"WHERE ts >= ? AND ts < ? AND series IN {number_list(chosen or [-1])}"
    counted = fetch(
        store,
        f"SELECT series, count(*) AS n FROM exemplars {where} GROUP BY series",  # noqa: S608 - ids of our own
        list(time_range),
    )
    present = dict(zip(counted["series"].tolist(), counted["n"].tolist(), strict=True))
    if not present:
        return {}
    rows = fetch(
        store,
        "SELECT ts, series, value, span, trace_high, trace_low, attributes FROM exemplars "  # noqa: S608 - the same
        f"{where} ORDER BY ts DESC LIMIT {MAX_EXEMPLARS}",
        list(time_range),
    )
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in present}
    columns = ("ts", "series", "value", "span", "trace_high", "trace_low", "attributes")
    for time_ns, number, value, span, high, low, attributes in zip(
        *(rows[name].tolist() for name in columns), strict=True
    ):
        trace = high << 64 | low
        found[number].append(
            {
                "time": time_ns / _NS,
                "value": value,
                "trace_id": f"{trace:032x}" if trace else "",
                "span_id": f"{span:016x}" if span else "",
                "attributes": json.loads(attributes),
            }
        )
    shown: dict[int, dict[str, Any]] = {}
    for number, newest in found.items():
        shown[number] = {"exemplars": newest[::-1]}
        if omitted := present[number] - len(newest):
            shown[number]["exemplars_omitted"] = omitted
    return shown
