"""The whole sidecar beside a real Postgres: with every privilege, as a plain user, and with next to none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from quayscope.profile import Profile

_TRACE = "0123456789abcdef0123456789abcdef"
_COMMENT = f"/*quayscope:route='GET%20/api/v1/repository/<path>',trace='{_TRACE}',run='r1',phase='burst'*/ "
_BUSY = _COMMENT + "SELECT sum(hashtext(g::text)) FROM generate_series(1, 20000) g WHERE g <> 77"
_BUSY_TEXT = "select sum(hashtext(g::text)) from generate_series(?, ?) g where g <> ?"
_ENDPOINT = "GET /api/v1/repository/<path>"
_MEASURED_S = 3.0
_TOLERANCE = 0.15


def _of(profiles: Iterable[Profile], pid: int) -> tuple[int, int, Counter[str], set[str]]:
    """Samples, CPU, CPU by statement, and function names of one process."""
    samples = cpu = 0
    statements: Counter[str] = Counter()
    names: set[str] = set()
    for profile in profiles:
        for (stack, attributes), (count, cpu_ns) in profile.samples.items():
            if attributes.pid != pid:
                continue
            samples += count
            cpu += cpu_ns
            sql = [frame.function for frame in stack if frame.kind == "sql"]
            statements[sql[-1] if sql else ""] += cpu_ns
            names |= {frame.function for frame in stack if frame.kind == "native"}
    return samples, cpu, statements, names


def _flushed(receiver: Any, sampler: str, after_s: float, until: Callable[..., Any]) -> list[Profile]:
    """Wait for a window that ends after a Unix time, and return all of the sampler's CPU profiles."""

    def there() -> bool:
        return any(
            profile.start_ns + profile.duration_ns >= after_s * 1e9
            for profile in receiver.received.cpu(sampler)
        )

    until(there, 8.0, "the last window arrives")
    time.sleep(0.3)  # the other profiles of the same push
    found: list[Profile] = receiver.received.cpu(sampler)
    return found


def _own_server(postgres: Any) -> list[str]:
    return ["--postgres", str(postgres.pid), "--postgres-dsn", postgres.dsn]


@pytest.mark.alone
# Each of the two users with one of the two versions: the pairs bring nothing more.
@pytest.mark.parametrize(
    ("postgres", "plain"), [("18", False), ("16", True)], ids=["root", "plain"], indirect=["postgres"]
)
def test_cpu_samples_with_statements(
    plain: bool, postgres: Any, load: Any, run_sidecar: Any, receiver: Any, until: Callable[..., Any]
) -> None:
    """Both as root and as Postgres's own user: CPU as the scheduler counts it, by statement and function."""
    with load(postgres, _BUSY) as older:
        run_sidecar(*_own_server(postgres), plain=plain)
        with load(postgres, _BUSY) as newer:
            # From one whole window's start to a later one's end.
            start = time.time()
            start += 1.0 - start % 1.0
            time.sleep(start - time.time())
            before = (older.cpu_ns(), newer.cpu_ns())
            time.sleep(_MEASURED_S)
            used = (older.cpu_ns() - before[0], newer.cpu_ns() - before[1])
            profiles = _flushed(receiver, "perf", start + _MEASURED_S, until)
    measured = [
        profile for profile in profiles if start * 1e9 <= profile.start_ns < (start + _MEASURED_S - 0.1) * 1e9
    ]
    kernel = receiver.received.capabilities()["perf_kernel"][0]
    realtime = receiver.received.capabilities()["realtime_priority"][0]
    for backend, truth in zip((older, newer), used, strict=True):
        samples, cpu, statements, names = _of(measured, backend.pid)
        # However much of the machine it got.
        assert samples > 0.4 * 99 * truth / 1e9 > 10
        if kernel:
            assert abs(cpu / truth - 1) < _TOLERANCE
        else:
            # CPU in the kernel is not seen then; the capability says so.
            assert 0.4 * truth < cpu < (1 + _TOLERANCE) * truth
        # Without real-time priority it is read when there is a CPU for that, which may be after its end.
        assert statements[_BUSY_TEXT] > (0.7 if realtime else 0.1) * cpu
        assert names & {
            "ExecInterpExpr",
            "hash_bytes",
            "AllocSetAlloc",
            "ExecScan",
            "generate_series_step_int4",
        }
    sample_attributes = {attributes for profile in measured for _, attributes in profile.samples}
    assert any(
        (a.endpoint, a.run, a.phase, a.trace_id) == (_ENDPOINT, "r1", "burst", _TRACE)
        for a in sample_attributes
    )
    assert all(profile.losses.lost == 0 for profile in measured)
    # Statements of some ten milliseconds: most samples get theirs for certain, whatever the priority.
    taken = sum(count for profile in measured for count, _ in profile.samples.values())
    assert sum(profile.losses.unproven for profile in measured) < 0.5 * taken
    assert {profile.labels["service_name"] for profile in measured} == {"quay-database"}
    assert "client backend" in {profile.labels["role"] for profile in measured}
    kinds = {frame.kind for profile in measured for stack, _ in profile.samples for frame in stack}
    assert ("kernel" in kinds) == kernel
    assert kernel or plain


def test_almost_nothing_permitted(
    postgres16: Any, load: Any, run_sidecar: Any, receiver: Any, until: Callable[..., Any]
) -> None:
    """Without perf events: statements, CPU and waits by the server's word, and what is missing."""
    with load(postgres16, _BUSY) as busy, load(postgres16, _COMMENT + "SELECT pg_sleep(0.5)"):
        run_sidecar(
            *_own_server(postgres16),
            *("--python", f"{os.getpid()}=tests"),
            plain=True,
            refuse=("perf_event_open", "process_vm_readv", "ptrace"),
        )
        start = time.time()
        start += 1.0 - start % 1.0
        time.sleep(start - time.time())
        before = busy.cpu_ns()
        time.sleep(_MEASURED_S)
        used = busy.cpu_ns() - before
        profiles = _flushed(receiver, "activity", start + _MEASURED_S, until)
        until(lambda: receiver.received.capabilities().get("py_spy"), 15.0, "py-spy is refused")
    measured = [
        profile for profile in profiles if start * 1e9 <= profile.start_ns < (start + _MEASURED_S - 0.1) * 1e9
    ]
    _, cpu, statements, _ = _of(measured, busy.pid)
    assert abs(cpu / used - 1) < _TOLERANCE
    assert statements[_BUSY_TEXT] > 0.9 * cpu
    assert receiver.received.cpu("perf") == []

    blocks = [profile for profile in receiver.received.profiles if profile.type.name == "block"]
    waits: Counter[tuple[str, str]] = Counter()
    for profile in blocks:
        if start * 1e9 <= profile.start_ns < (start + _MEASURED_S - 0.1) * 1e9:
            for (stack, _), (_, delay) in profile.samples.items():
                waits[stack[-2].function, stack[-1].function] += delay
    assert abs(waits["select pg_sleep(?)", "Timeout:PgSleep"] / 1e9 - _MEASURED_S) < 0.1 * _MEASURED_S

    held = receiver.received.capabilities()
    for name in ("perf_user", "perf_kernel", "process_vm_readv"):
        permitted, attributes = held[name]
        assert not permitted
        assert "EPERM" in attributes["detail"]
        assert "seccomp" in attributes["remedy"]
    assert not held["py_spy"][0]
    assert held["py_spy"][1]["detail"]
    assert held["pg_stat_activity"][0]
    assert held["postgres_process"][0]


_WORKER = """
import time
def heavy(end):
    total = 0
    while time.process_time() < end:
        total += sum(range(100))
    return total
while True:
    heavy(time.process_time() + 0.05)
    time.sleep(0.05)
"""


@pytest.mark.alone
def test_tiers_counters_and_a_python_without_an_agent(
    postgres16: Any, load: Any, run_sidecar: Any, receiver: Any, until: Any, cpu_of: Callable[[int], int]
) -> None:
    """Cumulative metrics that only grow, and one capture of py-spy weighted with measured CPU."""
    with subprocess.Popen([sys.executable, "-c", _WORKER]) as worker, load(postgres16, "SELECT 1"):
        try:
            before, began = cpu_of(worker.pid), time.monotonic()
            run_sidecar(
                *_own_server(postgres16),
                *("--quay-pid", str(os.getpid()), "--label", "pod=p1", "--window", "10"),
                *("--python", f"{worker.pid}=housekeeping"),
            )
            (capture,) = until(lambda: receiver.received.cpu("pyspy"), 25.0, "the capture arrives")
            rate = (cpu_of(worker.pid) - before) / (time.monotonic() - began)
        finally:
            worker.kill()
    _check_capture(capture, rate)
    metrics = receiver.received.metrics
    tiers = {attributes["tier"] for attributes, _, _ in metrics["process.cpu.time"]}
    assert tiers == {"quay", "postgres", "sidecar"}
    for name in ("commits", "rollbacks", "sessions", "blocks_read", "blocks_hit"):
        assert {attributes["database"] for attributes, _, _ in metrics[f"postgresql.{name}"]} >= {"postgres"}
    assert metrics["postgresql.io_reads"]
    assert {value for _, value, _ in metrics["quayscope.sidecar.faults"]} == {0}
    for tier in tiers:
        values = [value for attributes, value, _ in metrics["process.cpu.time"] if attributes["tier"] == tier]
        assert values == sorted(values)
        assert len(values) >= 3
        assert values[-1] > 0
    commits = [
        value
        for attributes, value, _ in metrics["postgresql.commits"]
        if attributes["database"] == "postgres"
    ]
    assert commits[-1] > commits[0]


def _check_capture(profile: Profile, rate: float) -> None:
    assert profile.labels == {
        "service_name": "quay-app",
        "role": "housekeeping",
        "sampler": "pyspy",
        "pod": "p1",
    }
    heavy = sum(
        cpu
        for (stack, _), (_, cpu) in profile.samples.items()
        if any(frame.function == "heavy" for frame in stack)
    )
    total = profile.totals()[1]
    assert heavy > 0.8 * total
    assert abs(total / profile.duration_ns / (rate / 1e9) - 1) < 0.3
    assert {frame.kind for stack, _ in profile.samples for frame in stack} == {"python"}


def test_postgres_and_collector_come_and_go(
    make_server: Any, load: Any, run_sidecar: Any, receiver: Any, until: Callable[..., Any]
) -> None:
    """A server that was away is found again under another pid; a collector that was away gets what waited."""
    server = make_server("16")
    process = run_sidecar(*_own_server(server))
    with load(server, _BUSY):
        until(lambda: receiver.received.cpu("perf"), 8.0, "samples before")
    first = server.pid
    receiver.status = 503
    server.stop()
    time.sleep(1.2)
    server.start()
    assert server.pid != first
    with load(server, _BUSY) as again:
        time.sleep(3.0)
        receiver.status = 200
        until(lambda: _of(receiver.received.cpu("perf"), again.pid)[0] > 50, 15.0, "samples after")
        until(lambda: receiver.received.capabilities()["pg_stat_activity"][0], 15.0)
    assert process.poll() is None
    assert len(set(receiver.received.push_ids)) == len(receiver.received.push_ids)
