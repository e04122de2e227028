"""The main job, as root, as a plain user, and with almost nothing permitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.demo_process import DemoProcess, Outcome
from plain_user import PlainPython

pytestmark = pytest.mark.e2e

WAYS = {"root": (), "plain": (), "refused": ("perf_event_open", "process_vm_readv")}
"""How the demo is run, and the system calls that are refused to it."""


@pytest.fixture(scope="module", params=list(WAYS))
def outcome(
    request: pytest.FixtureRequest,
    open_directory: Callable[[], Path],
    full: bool,
    plain_python: PlainPython,
) -> tuple[str, Outcome]:
    """One finished demo a way of running it."""
    demo = DemoProcess(
        open_directory(),
        f"--duration={30 if full else 15}s",
        "--exit",
        plain=None if request.param == "root" else plain_python,
        refused=WAYS[request.param],
    )
    result = demo.wait(180)
    print(result.stdout)
    return request.param, result


def test_the_demo_runs_to_its_end(outcome: tuple[str, Outcome]) -> None:
    """It exits 0, every load phase is valid, and nothing failed."""
    _, result = outcome
    assert result.code == 0, result.stderr
    assert result.report["failures"] == []
    load = result.report["load"]
    assert load["ok"] > 0
    assert sum(load["errors"].values()) == 0


def test_workers_cpu_is_complete(outcome: tuple[str, Outcome], full: bool) -> None:
    """Each worker's profiled CPU is within 15 % of the kernel's, nine tenths of it with an endpoint.

    In a short run on a busy machine, where few requests are served, a worker's start is more than a tenth.
    """
    _, result = outcome
    workers = result.report["workers"]
    assert len(workers) >= 2
    for worker in workers:
        assert worker["cpu_proc_s"] > 0.5, worker
        assert 0.85 <= worker["cpu_profiled_s"] / worker["cpu_proc_s"] <= 1.15, worker
        assert worker["attributed_share"] >= (0.9 if full else 0.8), worker
        assert worker["role"] == "web"


def test_endpoints_agree_with_the_applications_own_account(outcome: tuple[str, Outcome], full: bool) -> None:
    """The endpoints' CPU shares overlap the application's own by nine tenths; what used CPU has its line."""
    _, result = outcome
    endpoints = result.report["endpoints"]
    assert len([row for row in endpoints if row["requests"]]) >= 8
    assert result.report["cpu_share_overlap"] >= 0.9
    assert all(row["p99_ms"] is not None for row in endpoints if row["requests"]), endpoints
    # The report names the lines of the five that used most; on a busy machine a start is one of them.
    heaviest = [row for row in endpoints if "cpu_line" in row]
    assert len(heaviest) >= (5 if full else 3), endpoints
    assert all(".py:" in row["cpu_line"] for row in heaviest if row["cpu_s"] >= 0.1), heaviest


def test_stalls_and_statements_are_named(outcome: tuple[str, Outcome]) -> None:
    """Stalled time has its statement and endpoint; Postgres's CPU has its statement; no literal shows."""
    way, result = outcome
    stalls = [row for row in result.report["stalls"] if row["seconds"] > 0]
    assert len({row["statement"] for row in stalls}) >= 4
    assert all(row["endpoint"] for row in stalls[:4])
    statements = [row for row in result.report["statements"] if row["samples"] > 0 and row["cpu_s"] > 0]
    assert len(statements) >= 3
    assert {row["sampler"] for row in statements} == {"activity" if way == "refused" else "perf"}
    assert sum(bool(row["endpoints"]) for row in statements) >= 3
    for row in (*stalls, *statements):
        assert "'" not in row["statement"].replace("''", "")


def test_database_time_has_its_endpoint(outcome: tuple[str, Outcome]) -> None:
    """Of the database's time within the registry's statements at least 95 % has an endpoint.

    Where shared memory may not be read, what ends a transaction has none, and ten looks a second meet the
    longer statements alone. The one that its own worker waited longest for is met in every way.
    """
    way, result = outcome
    database = result.report["database"]
    assert database["seconds"] > 0.5
    assert len(database["endpoints"]) >= (3 if way == "refused" else 8)
    waited = max((row for row in result.report["stalls"] if row["statement"]), key=lambda row: row["seconds"])
    assert waited["endpoint"] in database["endpoints"], waited
    if way != "refused":
        assert database["attributed_share"] >= 0.95, database


def test_spans_and_costs_are_there(outcome: tuple[str, Outcome], full: bool) -> None:
    """Spans were stored, and the cost of a thousand requests is known for each tier."""
    _, result = outcome
    assert result.report["spans"] >= (500 if full else 250)
    cost = result.report["cost_per_1000"]
    for name in ("quay_cpu_s", "postgres_cpu_s", "statements", "connections", "disk_operations"):
        assert cost[name] is not None
    assert cost["statements"] > 1000
    assert cost["quay_cpu_s"] > 0


def test_what_is_missing_is_said(outcome: tuple[str, Outcome]) -> None:
    """Root has every way of sampling; with system calls refused each missing thing has its line."""
    way, result = outcome
    missing = {row["capability"]: row for row in result.report["missing"]}
    if way == "root":
        # Outside of a container the database has no cgroup of its own: it is sampled task by task.
        assert {name for name in missing if name.startswith("perf")} <= {"perf_cgroup", "perf_all_cpu"}, (
            missing
        )
        assert not missing.keys() & {"process_vm_readv", "shared_memory", "pg_stat_activity", "py_spy"}
    if way == "refused":
        assert len(missing) >= 3
        for row in missing.values():
            assert row["detail"]
            assert row["remedy"]
            assert f"missing: {row['capability']}: " in result.stdout


def test_nothing_stays_behind(outcome: tuple[str, Outcome]) -> None:
    """The page's address was said, and no file of the demo is left in the temporary folder."""
    _, result = outcome
    assert "flame graphs: http://127.0.0.1:" in result.stdout
    assert result.left == []
