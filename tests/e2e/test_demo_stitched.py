"""One endpoint through all tiers, on the live demo: what the graph adds up to is what each tier measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from e2e.demo_process import DemoProcess
from quayscope.load.demo.collector import CollectorClient
from quayscope.load.demo.registry.ledger import Account, read_ledgers

pytestmark = pytest.mark.e2e

N_PLUS_ONE = "GET /api/v1/repository"
WITHOUT_INDEX = "GET /api/v1/repository/<namespace>/<repository>/logs"
NANO = 1e9
_DATABASE = "service_name=quay-database"


class Live(NamedTuple):
    """A demo whose load is over and whose collector answers, and the registry's own accounts."""

    collector: CollectorClient
    accounts: dict[str, Account]
    report: dict[str, Any]


@pytest.fixture(scope="module")
def live(open_directory: Callable[[], Path], full: bool) -> Iterator[Live]:
    """A demo that stays up."""
    demo = DemoProcess(open_directory(), f"--duration={40 if full else 15}s", "--rate-scale=0.7")
    try:
        demo.wait_for_page(180)
        outcome = demo.outcome(0)
        within = outcome.report["range"]
        (folder,) = demo.temporary.glob("quayscope-demo-*")
        collector = CollectorClient(demo.page(), within["from"], within["to"])
        yield Live(collector, read_ledgers(folder), outcome.report)
    finally:
        demo.end()


def _stitched(live: Live, endpoint: str) -> dict[str, Any]:
    return live.collector.get("/api/v1/stitch", [("match", f"endpoint={endpoint}")])


def _nodes(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending += node["children"]


def _statements(root: dict[str, Any]) -> Counter[str]:
    """Nanoseconds of what stands below each statement's frame."""
    found = Counter[str]()
    for node in _nodes(root):
        if node["kind"] == "sql":
            found[node["name"]] += node["value"] - node["self"]
    return found


@pytest.mark.parametrize("endpoint", [N_PLUS_ONE, WITHOUT_INDEX])
def test_the_whole_is_what_was_measured(live: Live, endpoint: str) -> None:
    """Each call is the sum of its parts; the whole is the worker's CPU and waits, as the registry has it."""
    graph = _stitched(live, endpoint)
    for node in _nodes(graph["root"]):
        assert node["value"] == node["self"] + sum(child["value"] for child in node["children"]), node["name"]
        assert node["self"] >= 0
    assert graph["root"]["value"] == graph["total"] == graph["cpu"] + graph["stalled"] + graph["alone"]
    account = live.accounts[endpoint]
    (row,) = [row for row in live.report["endpoints"] if row["endpoint"] == endpoint]
    assert graph["cpu"] / NANO == pytest.approx(row["cpu_s"], abs=1e-6)
    assert graph["stalled"] / NANO == pytest.approx(row["stall_s"], abs=1e-6)
    measured = (graph["cpu"] + graph["stalled"]) / NANO
    print(
        f"{endpoint}: CPU {graph['cpu'] / NANO:.2f} s ({account.cpu_s:.2f} by its own account),"
        f" stalled {graph['stalled'] / NANO:.2f} s, together {measured:.2f} s of {account.wall_s:.2f} s"
    )
    assert graph["cpu"] / NANO == pytest.approx(account.cpu_s, rel=0.15, abs=0.15)
    # What a worker waits for a CPU outside of its statements is in neither.
    assert measured <= 1.1 * account.wall_s + 0.1
    assert measured >= 0.8 * account.wall_s
    assert graph["alone"] <= 0.02 * graph["total"]


@pytest.mark.parametrize("endpoint", [N_PLUS_ONE, WITHOUT_INDEX])
def test_the_databases_part_is_the_databases(live: Live, endpoint: str) -> None:
    """What stands below the statements is what the database's own profiles say of this endpoint."""
    graph = _stitched(live, endpoint)
    own = Counter[str]()
    for kind, sampler in (("process_cpu", "perf"), ("block", "sessions")):
        match = (_DATABASE, f"sampler={sampler}", f"endpoint={endpoint}")
        for row in live.collector.breakdown(kind, ("sql", "wait"), match):
            if row["sql"] and row["wait"] != "Client:ClientRead":
                own[row["sql"]] += row["value"]
    rows = {row["statement"]: row for row in graph["statements"]}
    for statement, spent in own.items():
        assert rows[statement]["cpu"] + rows[statement]["waiting"] == spent
    below = _statements(graph["root"])
    for statement, row in rows.items():
        shown = row["shown"]
        assert shown == min(row["cpu"] + row["waiting"], row["stalled"]) or not row["stalled"]
        # What was sampled without a stack stays the statement's own.
        assert 0.9 * shown <= below[statement] <= shown
    assert sum(own.values()) > 0


def test_what_is_weak_shows(live: Live) -> None:
    """A list that asks for each row again: few requests, very many runs of two statements. A missing index:
    one statement, and below it Postgres's own functions on a CPU.
    """
    many = _stitched(live, N_PLUS_ONE)
    asked = live.accounts[N_PLUS_ONE].requests
    counts = Counter[str]()
    for row in live.report["stalls"]:
        if row["endpoint"] == N_PLUS_ONE:
            counts[row["statement"]] += row["count"]
    one_by_one = [statement for statement, count in counts.items() if count >= 10 * asked]
    assert len(one_by_one) == 2, counts
    stalled = {row["statement"]: row["stalled"] for row in many["statements"]}
    assert sum(stalled[statement] for statement in one_by_one) > 0.5 * many["stalled"]
    scan = _stitched(live, WITHOUT_INDEX)
    heaviest = scan["statements"][0]
    assert " from logentry " in heaviest["statement"]
    assert heaviest["cpu"] > 0.8 * sum(row["cpu"] for row in scan["statements"])
    (frame,) = [
        node
        for node in _nodes(scan["root"])
        if node["kind"] == "sql" and node["name"] == heaviest["statement"]
    ]
    assert {node["kind"] for node in _nodes(frame)} & {"native"}
