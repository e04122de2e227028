"""What each tier measured of one endpoint, selected for stitching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quayscope.collector.errors import BadRequest
from quayscope.collector.query.request import ATTRIBUTES, Column, Matcher, TimeRange
from quayscope.collector.query.select import (
    Selection,
    losses,
    number_list,
    present_series,
    samplers_of,
    select,
    sums_by_node,
)
from quayscope.collector.query.stitch import Stitched, stitch
from quayscope.collector.query.tree import FlameNode, flame_tree, merge
from quayscope.collector.store import Store
from quayscope.profile import BLOCK, PROCESS_CPU

__all__ = ["MOST_NODES", "all_tiers"]

MOST_NODES = 50_000
"""Calls of one tier's tree that are stitched, the largest; what is folded stands as "(other)"."""
_WORKER = "agent"
_COARSE = "activity"
"""The sampler that polls a view: it stands in where a finer one saw nothing."""
_SHARED = ("namespace", "cluster", *(name for name in ATTRIBUTES if name not in ("pid", "span_id")))
"""What is the same in both tiers, so that a matcher narrows both; others narrow the workers alone."""


def all_tiers(store: Store, matchers: Sequence[Matcher], time_range: TimeRange) -> dict[str, Any]:
    """Return the stitched tree of the endpoint that `matchers` name, with each tier's figures.

    Raises `BadRequest` without one endpoint, `SamplersMixed` where a tier's CPU came from two samplers.
    """
    named = [one for one in matchers if one.name == "endpoint" and one.value and not one.negated]
    if len(named) != 1:
        raise BadRequest("one endpoint is needed", next_step="match=endpoint=GET /api/v1/repository")
    cpu, stalls = Column(PROCESS_CPU, len(PROCESS_CPU.values) - 1), Column(BLOCK, len(BLOCK.values) - 1)
    mine = [*matchers, Matcher("sampler", _WORKER, False)]
    shared = [one for one in matchers if one.name in _SHARED]
    theirs = [*shared, Matcher("sampler", _WORKER, True)]
    tiers: dict[str, dict[str, Any]] = {}
    trees: list[FlameNode] = []
    for name, column, wanted in (
        ("cpu", cpu, mine),
        ("stalled", stalls, mine),
        ("database_cpu", cpu, theirs),
        ("database_waiting", stalls, theirs),
    ):
        selection = _finest(store, select(store, column.type.name, wanted, time_range))
        series = present_series(store, selection)
        samplers = samplers_of(store, column, series)
        tree, folded = _tree(store, column, selection)
        trees.append(tree)
        tiers[name] = {
            "value": tree["value"],
            "samplers": samplers,
            "folded": folded,
            "losses": losses(store, selection._replace(series=series)),
        }
    return {**_answer(stitch(*trees), named[0].value), "tiers": tiers}


def _tree(store: Store, column: Column, selection: Selection) -> tuple[FlameNode, int]:
    tries = store.dictionaries.tries
    return flame_tree(tries, merge(tries, sums_by_node(store, column, selection)), MOST_NODES)


def _finest(store: Store, selection: Selection) -> Selection:
    """Leave the coarse sampler out where another saw the same service."""
    labels = {number: store.dictionaries.series[number].labels for number in present_series(store, selection)}
    fine = {one.get("service_name") for one in labels.values() if one.get("sampler") != _COARSE}
    kept = [
        number
        for number, one in labels.items()
        if one.get("sampler") != _COARSE or one.get("service_name") not in fine
    ]
    only = f"series IN {number_list(kept or [-1])}"
    return selection._replace(series=kept, where=f"{selection.where} AND {only}")


def _answer(found: Stitched, endpoint: str) -> dict[str, Any]:
    root = {**found.root, "name": endpoint}
    return {
        "unit": "nanoseconds",
        "total": root["value"],
        "cpu": found.cpu,
        "stalled": found.stalled,
        "alone": found.alone,
        "idle_in_transaction": found.idle,
        "statements": [row._asdict() for row in found.statements],
        "root": root,
    }
