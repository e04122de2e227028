"""Joins what the tiers measured into one report: a plain dictionary, the `--json` file.

Every figure is read from where it was measured: profiles, spans and metrics from the collector,
latencies from the load driver, true CPU from /proc and from the application's own account.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quayscope.load.demo.collector import CollectorClient
from quayscope.load.demo.database_time import database_time
from quayscope.load.demo.errors import DemoError

__all__ = ["Observed", "build", "share_overlap"]

NANO = 1e9
_AGENT = ("sampler=agent",)
CLIENT_READ = "Client:ClientRead"
"""A backend in this wait runs no statement: its transaction is open while the application is elsewhere."""


@dataclass
class Observed:
    """What the demo saw itself, beside what the collector holds. Times are Unix seconds."""

    start: float
    end: float
    load: dict[str, Any]
    worker_cpu_s: dict[int, float]
    truth_cpu_s: dict[str, float]
    application: str
    """Directory of the application's own code: its lines are named in the report."""
    database_service: str
    failures: list[dict[str, Any]] = field(default_factory=list)
    other_backends: set[int] = field(default_factory=set)
    """Pids of the database's backends that serve others than the registry."""


def build(collector: CollectorClient | None, observed: Observed) -> dict[str, Any]:
    """Return the whole report. Without a collector, what only it knows is empty and said to be missing."""
    report: dict[str, Any] = {
        "range": {"from": observed.start, "to": observed.end},
        "workers": [],
        "endpoints": [],
        "stalls": [],
        "statements": [],
        "waits": [],
        "database": {},
        "spans": 0,
        "cost_per_1000": {},
        "load": observed.load,
        "lost": {},
        "missing": [],
        "failures": list(observed.failures),
    }
    if collector is None:
        report["endpoints"] = _endpoints([], [], {}, observed, None)
        return report
    try:
        _fill(report, collector, observed)
    except DemoError as error:
        report["failures"].append({"part": "collector", "what": str(error), "log": []})
    return report


def _fill(report: dict[str, Any], collector: CollectorClient, observed: Observed) -> None:
    cpu = collector.breakdown("process_cpu", ("role", "pid", "endpoint"), _AGENT)
    blocked = collector.breakdown("block", ("endpoint", "sql"), _AGENT)
    requests = _request_counts(collector)
    sampler = _database_sampler(collector, observed.database_service)
    statements = (
        collector.breakdown(
            "process_cpu",
            ("sql", "endpoint"),
            (f"service_name={observed.database_service}", f"sampler={sampler}"),
        )
        if sampler
        else []
    )
    counters = _counters(collector)
    report["workers"] = _workers(cpu, observed.worker_cpu_s)
    report["endpoints"] = _endpoints(cpu, blocked, requests, observed, collector)
    report["stalls"] = [
        {
            "statement": row["sql"],
            "endpoint": row["endpoint"],
            "seconds": row["value"] / NANO,
            "count": row["samples"],
        }
        for row in blocked
    ]
    report["statements"] = _statements(statements, sampler)
    report["waits"] = _waits(collector, observed.database_service)
    report["database"] = database_time(collector, observed.database_service, observed.other_backends)
    report["spans"] = collector.span_count()
    report["cost_per_1000"] = _cost(counters, observed.load)
    report["lost"] = _losses(collector, counters)
    report["missing"] = _missing(collector)
    truth = {row["endpoint"]: row["truth_cpu_s"] for row in report["endpoints"]}
    seen = {row["endpoint"]: row["cpu_s"] for row in report["endpoints"]}
    report["cpu_share_overlap"] = share_overlap(seen, truth)


def share_overlap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the sum over all keys of the smaller of the two shares: 1.0 when both divide alike."""
    whole_one, whole_other = sum(one.values()), sum(other.values())
    if whole_one <= 0 or whole_other <= 0:
        return 0.0
    keys = set(one) | set(other)
    return sum(min(one.get(key, 0.0) / whole_one, other.get(key, 0.0) / whole_other) for key in keys)


def _workers(rows: Iterable[Mapping[str, Any]], truth: Mapping[int, float]) -> list[dict[str, Any]]:
    profiled: dict[int, float] = defaultdict(float)
    attributed: dict[int, float] = defaultdict(float)
    roles: dict[int, str] = {}
    for row in rows:
        pid = int(row["pid"])
        profiled[pid] += row["value"] / NANO
        roles[pid] = row["role"]
        if row["endpoint"]:
            attributed[pid] += row["value"] / NANO
    return [
        {
            "pid": pid,
            "role": roles.get(pid, ""),
            "cpu_profiled_s": profiled[pid],
            "cpu_proc_s": truth.get(pid),
            "attributed_share": attributed[pid] / profiled[pid] if profiled[pid] else 0.0,
        }
        for pid in sorted(set(profiled) | set(truth))
    ]


def _endpoints(
    cpu: Iterable[Mapping[str, Any]],
    blocked: Iterable[Mapping[str, Any]],
    requests: Mapping[str, int],
    observed: Observed,
    collector: CollectorClient | None,
) -> list[dict[str, Any]]:
    seconds: dict[str, float] = defaultdict(float)
    stalled: dict[str, float] = defaultdict(float)
    worst: dict[str, tuple[float, str]] = {}
    for row in cpu:
        seconds[row["endpoint"]] += row["value"] / NANO
    for row in blocked:
        stalled[row["endpoint"]] += row["value"] / NANO
        worst[row["endpoint"]] = max(worst.get(row["endpoint"], (0.0, "")), (row["value"] / NANO, row["sql"]))
    latency = {row["endpoint"]: row for row in observed.load.get("endpoints", [])}
    names = (set(seconds) | set(stalled) | set(requests) | set(observed.truth_cpu_s) | set(latency)) - {""}
    rows = [
        {
            "endpoint": name,
            "requests": requests.get(name, 0),
            "p99_ms": latency.get(name, {}).get("p99_ms"),
            "cpu_s": seconds[name],
            "truth_cpu_s": observed.truth_cpu_s.get(name, 0.0),
            "stall_s": stalled[name],
            "stall_statement": worst.get(name, (0.0, ""))[1],
        }
        for name in names
    ]
    rows.sort(key=lambda row: (-row["cpu_s"], row["endpoint"]))
    if collector is not None:
        _name_lines(collector, rows, observed.application)
    return rows


def _name_lines(
    collector: CollectorClient, rows: list[dict[str, Any]], application: str, limit: int = 5
) -> None:
    """Add the application's heaviest line to the endpoints at the top by CPU, and by stalls."""
    for kind, figure, key in (("process_cpu", "cpu_s", "cpu_line"), ("block", "stall_s", "stall_line")):
        for row in sorted(rows, key=lambda row: -row[figure])[:limit]:
            if row[figure] > 0:
                tree = collector.flamegraph(kind, (*_AGENT, f"endpoint={row['endpoint']}"))
                row[key] = heaviest_line(tree, application)


def heaviest_line(root: Mapping[str, Any], application: str) -> str:
    """Return `file:line function` of the application's line that most of the tree's value ends under.

    Each stack counts for the frame nearest its leaf that lies in the `application` directory, so a line
    that calls a library owns the library's time; trees without such frames give the last Python frame.
    """
    own: dict[tuple[str, int, str], int] = defaultdict(int)
    pending: list[tuple[Mapping[str, Any], tuple[str, int, str] | None]] = [(root, None)]
    while pending:
        node, nearest = pending.pop()
        if node.get("kind") == "python" and (node["file"].startswith(application) or nearest is None):
            nearest = (node["file"], node["line"], node["name"])
        if nearest is not None:
            own[nearest] += node["self"]
        pending += [(child, nearest) for child in node.get("children", ())]
    if not own:
        return ""
    file, line, function = max(own, key=lambda key: own[key])
    return f"{file.rpartition('/')[2]}:{line} {function}"


def _request_counts(collector: CollectorClient) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for metric in collector.metrics("http.server.request.duration"):
        for series in metric["series"]:
            counts[series["attributes"].get("endpoint", "")] += sum(
                value["count"] for _, value in series["points"]
            )
    return dict(counts)


def _database_sampler(collector: CollectorClient, service: str) -> str:
    """Return the sampler that saw the database's CPU: perf where it was permitted, else activity."""
    weights: dict[str, int] = defaultdict(int)
    for series in collector.series("process_cpu"):
        if series["labels"].get("service_name") == service:
            weights[series["labels"].get("sampler", "")] += series["total"]
    return "perf" if weights.get("perf") else max(weights, key=lambda name: weights[name], default="")


def _statements(rows: Iterable[Mapping[str, Any]], sampler: str) -> list[dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row["sql"]:
            continue
        entry = merged.setdefault(
            row["sql"],
            {"statement": row["sql"], "samples": 0, "cpu_s": 0.0, "endpoints": [], "sampler": sampler},
        )
        entry["samples"] += row["samples"]
        entry["cpu_s"] += row["value"] / NANO
        if row["endpoint"]:
            entry["endpoints"].append(row["endpoint"])
    return sorted(merged.values(), key=lambda entry: -entry["cpu_s"])


def _waits(collector: CollectorClient, service: str) -> list[dict[str, Any]]:
    """Return what statements waited for, and the time their transactions stood idle, as such."""
    rows = collector.breakdown("block", ("sql", "wait"), (f"service_name={service}",))
    return [
        {
            "statement": row["sql"],
            "wait": "idle in transaction" if row["wait"] == CLIENT_READ else row["wait"],
            "seconds": row["value"] / NANO,
        }
        for row in rows
        if row["wait"]
    ]


def _counters(collector: CollectorClient) -> dict[str, float]:
    """Return how much each of our own counters and the tiers' grew within the range."""
    grown: dict[str, float] = defaultdict(float)
    # By part: resources are quayscope.* too, and more points than the collector answers with at once.
    ours = (f"quayscope.{part}.*" for part in ("agent", "relay", "uplink"))
    for pattern in (*ours, "process.cpu.time", "postgresql.*"):
        for metric in collector.metrics(pattern):
            for series in metric["series"]:
                points = [value for _, value in series["points"] if isinstance(value, int | float)]
                if not points or metric["kind"] == "gauge":
                    continue
                name = metric["name"]
                if name == "process.cpu.time":
                    name = f"{name}:{series['attributes'].get('tier', '')}"
                cumulative = metric["kind"].startswith("cumulative")
                grown[name] += _growth(points) if cumulative else sum(points)
    return dict(grown)


def _growth(points: Sequence[float]) -> float:
    """Return the growth of a cumulative counter that may have been reset (a restarted server)."""
    return sum(max(0.0, after - before) for before, after in itertools.pairwise(points))


def _cost(counters: Mapping[str, float], load: Mapping[str, Any]) -> dict[str, Any]:
    thousands = load.get("ok", 0) / 1000
    if not thousands:
        return {}
    disk = ("io_reads", "io_writes", "io_extends", "io_fsyncs")
    totals: dict[str, float | None] = {
        "quay_cpu_s": counters.get("process.cpu.time:quay"),
        "postgres_cpu_s": counters.get("process.cpu.time:postgres"),
        "agent_cpu_s": _scaled(counters.get("quayscope.agent.cpu_ns"), 1e-9),
        "sidecar_cpu_s": counters.get("process.cpu.time:sidecar"),
        "statements": counters.get("quayscope.agent.statements"),
        "connections": counters.get("quayscope.agent.connections"),
        "disk_operations": (
            sum(counters.get(f"postgresql.{name}", 0.0) for name in disk)
            if any(f"postgresql.{name}" in counters for name in disk)
            else None
        ),
    }
    return {name: None if total is None else round(total / thousands, 4) for name, total in totals.items()}


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _losses(collector: CollectorClient, counters: Mapping[str, float]) -> dict[str, Any]:
    losses: dict[str, Any] = {}
    for kind in ("process_cpu", "block"):
        for series in collector.series(kind):
            sampler = series["labels"].get("sampler", "")
            held = losses.setdefault(f"{sampler}.{kind}", {"samples": 0})
            held["samples"] += series["samples"]
            for name, count in series["losses"].items():
                held[name] = held.get(name, 0) + count
    names = ("packets_dropped", "records_dropped", "spans_dropped", "faults")
    losses["agent"] = {name: int(counters.get(f"quayscope.agent.{name}", 0)) for name in names}
    losses["relay"] = {
        name: int(counters.get(f"quayscope.relay.{name}", 0)) for name in ("malformed", "truncated")
    }
    losses["uplink"] = {
        name: int(counters.get(f"quayscope.uplink.{name}", 0)) for name in ("dropped", "refused")
    }
    return losses


def _missing(collector: CollectorClient) -> list[dict[str, str]]:
    """Return what was not permitted, as each sidecar last said it."""
    latest: dict[str, dict[str, str]] = {}
    for metric in collector.metrics("quayscope.capability"):
        for series in sorted(
            metric["series"], key=lambda series: series["points"][-1][0] if series["points"] else 0
        ):
            attributes = series["attributes"]
            if not series["points"]:
                continue
            if series["points"][-1][1] >= 1:
                latest.pop(attributes.get("capability", ""), None)
            else:
                latest[attributes.get("capability", "")] = {
                    name: attributes.get(name, "") for name in ("capability", "detail", "remedy")
                }
    return list(latest.values())
