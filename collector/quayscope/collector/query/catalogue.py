"""What there is to ask about: types, labels and their values, series with their totals and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quayscope.collector.query.request import ATTRIBUTES, Column, Matcher, TimeRange
from quayscope.collector.query.select import fetch, number_list, select
from quayscope.collector.store import Store
from quayscope.profile import TYPES

__all__ = ["MAX_VALUES", "label_names", "label_values", "series_rows", "types"]

MAX_VALUES = 10_000
"""Values of one answer."""

_LOSSES = ("lost", "late", "truncated", "unproven", "unattributed")
_CLOCKS = (
    "coalesce(arg_max(clock_offset_ns, start_ns) FILTER (clock_error_ns >= 0), 0)::BIGINT AS clock_offset, "
    "greatest(max(clock_error_ns), 0)::BIGINT AS clock_error, "
    "count(*) FILTER (clock_error_ns < 0) AS clock_unknown"
)
"""The newest offset of the senders' clocks, the largest error, and of how many profiles neither is known."""
_OVERLAPS = "start_ns < ? AND (end_ns > ? OR start_ns >= ?)"


def _overlap(time_range: TimeRange) -> list[int]:
    return [time_range.end_ns, time_range.start_ns, time_range.start_ns]


def _active(store: Store, time_range: TimeRange) -> list[int]:
    """Return the series with a profile that overlaps the range."""
    found = fetch(store, f"SELECT DISTINCT series FROM profiles WHERE {_OVERLAPS}", _overlap(time_range))  # noqa: S608 - constant
    return sorted(found["series"].tolist())


def types(store: Store, time_range: TimeRange) -> list[dict[str, str]]:
    """Return every column of every profile type that has data in the range."""
    names = {store.dictionaries.series[number].type for number in _active(store, time_range)}
    return [
        {"id": type_id, "name": name, "value": value.type, "unit": value.unit}
        for name in sorted(names)
        for type_id, value in zip(TYPES[name].ids(), TYPES[name].values, strict=True)
    ]


def label_names(store: Store, time_range: TimeRange) -> list[str]:
    """Return the label names in the range, and the attributes that any sample has there."""
    names = {
        name for number in _active(store, time_range) for name in store.dictionaries.series[number].labels
    }
    found = fetch(
        store,
        "SELECT coalesce(max(endpoint), 0) AS endpoint, coalesce(max(run), 0) AS run, "
        "coalesce(max(phase), 0) AS phase, coalesce(max(pid), 0) AS pid, coalesce(max(link), 0) AS link "
        "FROM samples WHERE ts >= ? AND ts < ?",
        list(time_range),
    )
    for name in ATTRIBUTES:
        if found["link" if name in ("span_id", "trace_id") else name][0]:
            names.add(name)
    return sorted(names)


def label_values(store: Store, name: str, matchers: Sequence[Matcher], time_range: TimeRange) -> list[str]:
    """Return the values of a label or attribute among the series and samples that match, sorted."""
    selection = select(store, None, matchers, time_range)
    if name not in ATTRIBUTES:
        if selection.by_attribute:
            found = fetch(
                store,
                f"SELECT DISTINCT series FROM samples WHERE {selection.where}",  # noqa: S608 - ids of our own
                selection.parameters,
            )["series"].tolist()
        else:
            found = set(_active(store, time_range)) & set(selection.series)
        values = {store.dictionaries.series[number].labels.get(name, "") for number in found}
    elif name in ("span_id", "trace_id"):
        columns = "span, 0::UBIGINT AS low" if name == "span_id" else "trace_high AS span, trace_low AS low"
        rows = fetch(
            store,
            f"SELECT DISTINCT {columns} FROM links WHERE id IN "  # noqa: S608 - columns of our own
            f"(SELECT link FROM samples WHERE {selection.where}) LIMIT {MAX_VALUES}",
            selection.parameters,
        )
        pairs = zip(rows["span"].tolist(), rows["low"].tolist(), strict=True)
        values = {f"{high:016x}" if name == "span_id" else f"{high:016x}{low:016x}" for high, low in pairs}
        values = {value for value in values if value.strip("0")}
    else:
        ids = fetch(
            store,
            f"SELECT DISTINCT {name} AS id FROM samples WHERE {selection.where} LIMIT {MAX_VALUES}",  # noqa: S608 - a column of our own
            selection.parameters,
        )["id"].tolist()
        values = {str(number) for number in ids if number} if name == "pid" else _strings(store, ids)
    return sorted(values - {""})[:MAX_VALUES]


def _strings(store: Store, ids: Sequence[int]) -> set[str]:
    return {store.dictionaries.strings[number] for number in ids}


def series_rows(
    store: Store, column: Column | None, matchers: Sequence[Matcher], time_range: TimeRange
) -> list[dict[str, Any]]:
    """Return each matching series with its profiles, sums and losses; by falling total within a type.

    Without a column each series is summed over its type's last one. Losses are those of whole
    profiles: attribute matchers do not divide them. `clock` is what the sender's was behind ours, in seconds.
    """
    selection = select(store, column.type.name if column else None, matchers, time_range)
    sums = fetch(
        store,
        "SELECT series, sum(v0)::BIGINT AS v0, sum(v1)::BIGINT AS v1, sum(v2)::BIGINT AS v2, "  # noqa: S608 - ids of our own
        f"sum(v3)::BIGINT AS v3 FROM samples WHERE {selection.where} GROUP BY series",
        selection.parameters,
    )
    totals = {
        number: [int(sums[f"v{index}"][at]) for index in range(4)]
        for at, number in enumerate(sums["series"].tolist())
    }
    sql_losses = ", ".join(f"sum({name})::BIGINT AS {name}" for name in _LOSSES)
    profiles = fetch(
        store,
        f"SELECT series, count(*) AS profiles, {sql_losses}, {_CLOCKS} FROM profiles WHERE {_OVERLAPS} "  # noqa: S608 - ids of our own
        f"AND series IN {number_list(selection.series or [-1])} GROUP BY series",
        _overlap(time_range),
    )
    rows = []
    for at, number in enumerate(profiles["series"].tolist()):
        if selection.by_attribute and number not in totals:
            continue
        kind, labels = store.dictionaries.series[number]
        values = totals.get(number, [0] * 4)
        index = column.at if column else len(TYPES[kind].values) - 1
        rows.append(
            {
                "labels": labels,
                "type": TYPES[kind].ids()[index],
                "profiles": int(profiles["profiles"][at]),
                "samples": values[0],
                "total": values[index],
                "losses": {name: int(np.int64(profiles[name][at])) for name in _LOSSES},
                "clock": {
                    "offset": int(profiles["clock_offset"][at]) / 1e9,
                    "error": int(profiles["clock_error"][at]) / 1e9,
                    "unknown": int(profiles["clock_unknown"][at]),
                },
            }
        )
    return sorted(rows, key=lambda row: (row["type"], -row["total"], sorted(row["labels"].items())))
