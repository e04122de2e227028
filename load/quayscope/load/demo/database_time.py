"""The database's time for the registry: how much of it has its endpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from quayscope.load.demo.collector import CollectorClient

__all__ = ["database_time"]

NANO = 1e9
_SAMPLERS = {"process_cpu": ("perf", "activity"), "block": ("sessions", "activity")}
"""Which sampler's figures are taken, by profile type: the first that saw anything."""
_IDLE = "Client:ClientRead"
"""A backend in this wait runs no statement: it waits for the next."""


def database_time(collector: CollectorClient, service: str, others: Collection[int]) -> dict[str, Any]:
    """Return what backends of the registry spent within statements, on a CPU or waiting.

    `seconds` in all, `attributed_share` the part that has an endpoint, `endpoints` the seconds of each.
    `others` are the backends of other applications.
    """
    found: dict[str, float] = defaultdict(float)
    for kind, samplers in _SAMPLERS.items():
        for row in _rows(collector, kind, service, samplers):
            # Without a statement: it starts, reads the next message, sends results.
            if row["sql"] and row["wait"] != _IDLE and int(row["pid"] or 0) not in others:
                found[row["endpoint"]] += row["value"] / NANO
    total = sum(found.values())
    return {
        "seconds": total,
        "attributed_share": 1 - found.pop("", 0.0) / total if total else 0.0,
        "endpoints": dict(sorted(found.items())),
    }


def _rows(
    collector: CollectorClient, kind: str, service: str, samplers: Collection[str]
) -> list[dict[str, Any]]:
    for sampler in samplers:
        rows = collector.breakdown(
            kind,
            ("pid", "sql", "wait", "endpoint"),
            (f"service_name={service}", f"sampler={sampler}", "role=client backend"),
        )
        if rows:
            return rows
    return []
