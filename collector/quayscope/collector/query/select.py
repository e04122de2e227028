"""Which samples a question is about, as SQL over dense integers, and their sums per node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt

from quayscope.collector.errors import BadRequest, SamplersMixed, StoreUnavailable
from quayscope.collector.query.request import ATTRIBUTES, Column, Matcher, TimeRange
from quayscope.collector.store import Store

__all__ = [
    "Selection",
    "Sums",
    "fetch",
    "losses",
    "number_list",
    "present_series",
    "samplers_of",
    "select",
    "sums_by_node",
]

_STRING_COLUMNS = ("endpoint", "run", "phase")
_LOSSES = ("lost", "late", "truncated", "unproven", "unattributed")
Parameter = int | float | str | bytes


class Selection(NamedTuple):
    """Series ids that pass the label matchers, and the WHERE clause over `samples` with its parameters."""

    series: list[int]
    where: str
    parameters: list[Parameter]
    by_attribute: bool
    range: TimeRange


class Sums(NamedTuple):
    """The sum of one column per node; both arrays are aligned, nodes are distinct."""

    nodes: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]


def fetch(store: Store, sql: str, parameters: Sequence[Parameter] = ()) -> dict[str, npt.NDArray[Any]]:
    """Run a query on this thread's cursor and return its columns; raises `StoreUnavailable`."""
    try:
        return store.reading().execute(sql, list(parameters)).fetchnumpy()
    except (duckdb.ConversionException, duckdb.OutOfRangeException) as error:
        raise BadRequest("the sum does not fit 63 bits", next_step="ask for a shorter range") from error
    except duckdb.Error as error:
        raise StoreUnavailable(
            f"the store could not answer: {str(error).splitlines()[0][:200]}", next_step="ask again"
        ) from error


def number_list(numbers: Iterable[int]) -> str:
    """Return integers of our own as an SQL list: short ones are pushed into the scan, parameters are not."""
    return "(" + ",".join(map(str, numbers)) + ")"


def select(store: Store, kind: str | None, matchers: Sequence[Matcher], time_range: TimeRange) -> Selection:
    """Resolve matchers against the dictionaries. `kind` is a profile type's name; None: any type."""
    on_labels = [matcher for matcher in matchers if matcher.name not in ATTRIBUTES]
    series = [
        number
        for number, one in enumerate(list(store.dictionaries.series))
        if (kind is None or one.type == kind)
        and all(matcher.accepts(one.labels.get(matcher.name, "")) for matcher in on_labels)
    ]
    # The ids that match nothing still need a valid list.
    clauses = ["ts >= ?", "ts < ?", f"series IN {number_list(series or [-1])}"]
    parameters: list[Parameter] = [time_range.start_ns, time_range.end_ns]
    by_attribute = False
    for matcher in matchers:
        if matcher.name in ATTRIBUTES:
            by_attribute = True
            clause, values = _attribute(store, matcher)
            clauses.append(f"NOT ({clause})" if matcher.negated else clause)
            parameters += values
    return Selection(series, " AND ".join(clauses), parameters, by_attribute, time_range)


def _attribute(store: Store, matcher: Matcher) -> tuple[str, list[Parameter]]:
    if matcher.name in _STRING_COLUMNS:
        return f"{matcher.name} = ?", [store.dictionaries.string_ids.get(matcher.value, -1)]
    if matcher.name == "pid":
        return "pid = ?", [int(matcher.value or 0)]
    if not matcher.value:
        column = "span" if matcher.name == "span_id" else "trace_high | trace_low"
        unknown = f"SELECT id FROM links WHERE ({column}) = 0"  # noqa: S608 - a column of our own
        return f"(link = 0 OR link IN ({unknown}))", []
    if matcher.name == "span_id":
        sql, values = "SELECT id FROM links WHERE span = ?", [int(matcher.value, 16)]
    else:
        trace = int(matcher.value, 16)
        sql = "SELECT id FROM links WHERE trace_high = ? AND trace_low = ?"
        values = [trace >> 64, trace & 0xFFFFFFFFFFFFFFFF]
    # The few links of one request as literals let the scan skip row groups.
    links = fetch(store, sql, values)["id"].tolist()
    return f"link IN {number_list(links or [-1])}", []


def sums_by_node(store: Store, column: Column, selection: Selection) -> Sums:
    """Sum one column per node; raises `StoreUnavailable`."""
    value = f"sum(v{column.at})::BIGINT AS value"
    found = fetch(
        store,
        f"SELECT node, {value} FROM samples WHERE {selection.where} GROUP BY node",  # noqa: S608 - columns and ids of our own
        selection.parameters,
    )
    return Sums(found["node"].astype(np.int64), found["value"].astype(np.int64))


def present_series(store: Store, selection: Selection) -> list[int]:
    """Return the series that have samples in the selection."""
    found = fetch(
        store,
        f"SELECT DISTINCT series FROM samples WHERE {selection.where}",  # noqa: S608 - ids of our own
        selection.parameters,
    )
    return sorted(found["series"].tolist())


def samplers_of(store: Store, column: Column, series: Iterable[int]) -> list[str]:
    """Return the samplers of these series, sorted.

    Raises `SamplersMixed` where one service's CPU came from several: both may have seen the same time.
    """
    by_service: dict[str, set[str]] = {}
    for number in series:
        labels = store.dictionaries.series[number].labels
        by_service.setdefault(labels.get("service_name", ""), set()).add(labels.get("sampler", ""))
    if column.type.name == "process_cpu":
        for service, found in sorted(by_service.items()):
            if len(found) > 1:
                raise SamplersMixed(service, sorted(found))
    return sorted(set().union(*by_service.values()))


def losses(store: Store, selection: Selection) -> dict[str, int]:
    """Return the losses of every profile of the selected series that overlaps the range.

    Losses belong to whole profiles: attribute matchers do not divide them.
    """
    sums = ", ".join(f"coalesce(sum({name}), 0)::BIGINT AS {name}" for name in _LOSSES)
    found = fetch(
        store,
        f"SELECT {sums} FROM profiles WHERE start_ns < ? AND (end_ns > ? OR start_ns >= ?) "  # noqa: S608 - ours
        f"AND series IN {number_list(selection.series or [-1])}",
        [selection.range.end_ns, selection.range.start_ns, selection.range.start_ns],
    )
    return {name: int(found[name][0]) for name in _LOSSES}
