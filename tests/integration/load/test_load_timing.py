"""Arrivals come when they are due, and latency counts from then."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np

from quayscope.load.report import MAX_LATE_MS

BUSY_MS = 300.0
"""What a machine busy with other tests may add to the driver's lateness."""

GET = """
name: get
phases:
  - {{name: only, rate: {rate}, arrival: {arrival}, mix: [{{endpoint: "GET /x", path: "/x"}}]}}
"""


def get(rate: float, arrival: str = "constant") -> str:
    """A workload of one request."""
    return GET.format(rate=rate, arrival=arrival)


def test_constant_arrivals_keep_their_distance(server: Any, driver: Any) -> None:
    """The server sees the rate asked for, one request each 5 ms."""
    outcome = driver.run(get(200), "--duration=2s")
    at = np.array([row["at_ns"] for row in server.arrivals()]) / 1e6
    assert outcome.code == 0
    assert len(at) == 400
    assert abs(np.median(np.diff(at)) - 5.0) < 0.5
    # From first to last: 399 distances, with the odd late one at either end.
    assert abs((at[-1] - at[0]) - 399 * 5.0) < 150


def test_poisson_arrivals_have_the_rate_as_their_mean(server: Any, driver: Any) -> None:
    """They scatter like independent events: the distances' spread is as large as their mean."""
    outcome = driver.run(get(300, "poisson"), "--duration=2s")
    at = np.array([row["at_ns"] for row in server.arrivals()]) / 1e6
    gaps = np.diff(at)
    assert outcome.report["scheduled"] == len(at)
    assert abs(len(at) - 600) < 4 * 600**0.5
    # Constant arrivals would be near 0; a busy machine adds to it, test_load_schedule has the exact figure.
    assert 0.7 < gaps.std() / gaps.mean() < 3


def test_the_driver_says_how_late_it_was(server: Any, driver: Any) -> None:
    """Lateness is given for phase and run, and decides whether they are valid."""
    report = driver.run(get(100), "--duration=1.5s").report
    assert 0 <= report["late_p50_ms"] <= report["late_p99_ms"] < BUSY_MS
    assert report["valid"] == (report["late_p99_ms"] <= MAX_LATE_MS)
    assert report["phases"][0]["late_p99_ms"] == report["late_p99_ms"]
    assert report["phases"][0]["end"] - report["phases"][0]["start"] == 1.5


def test_a_frozen_server_shows_in_the_latencies(server: Any, driver: Any) -> None:
    """The server stands still for 1 s: requests due meanwhile count their wait; the driver is not late."""
    process = driver.start(get(100), "--duration=2.5s")
    wait_for_arrivals(server, 30)
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        time.sleep(1.0)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    outcome = driver.finish(process)
    assert outcome.code == 0, outcome.stderr
    # 40 % of the run: the wait of those due during the freeze runs evenly from 1 s down to 0.
    assert 850 < outcome.report["p99_ms"] < 1400
    assert 700 < outcome.report["p95_ms"] < outcome.report["p99_ms"]
    assert outcome.report["p50_ms"] < 300
    assert outcome.report["late_p99_ms"] < BUSY_MS
    assert outcome.report["valid"] == (outcome.report["late_p99_ms"] <= MAX_LATE_MS)


def test_a_stalled_driver_invalidates_the_phase(server: Any, driver: Any) -> None:
    """The driver itself stands still: what it missed is sent late, and the phase says so."""
    process = driver.start(get(100), "--duration=2s", "--strict")
    wait_for_arrivals(server, 30)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.6)
    os.kill(process.pid, signal.SIGCONT)
    outcome = driver.finish(process)
    assert outcome.code == 1
    assert outcome.report["sent"] == 200
    assert outcome.report["late_p99_ms"] > 300
    assert "the driver was late" in outcome.report["invalid_because"][0]
    assert "Traceback" not in outcome.stderr


def test_what_the_driver_is_far_too_late_for_is_counted(server: Any, driver: Any) -> None:
    """What was due more than 2 s before the driver woke up is missed, not sent in one burst."""
    process = driver.start(get(100), "--duration=1s")
    wait_for_arrivals(server, 10)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.6)
    os.kill(process.pid, signal.SIGCONT)
    report = driver.finish(process).report
    assert report["missed"] > 20
    assert report["errors"]["missed"] == report["missed"]
    assert report["sent"] + report["missed"] == report["scheduled"] == 100
    assert any("too slow" in why for why in report["invalid_because"])


def wait_for_arrivals(server: Any, count: int, seconds: float = 15.0) -> None:
    """Wait until so many requests have arrived."""
    deadline = time.monotonic() + seconds
    seen = 0
    while seen < count:
        assert time.monotonic() < deadline, f"{seen} of {count} requests arrived"
        time.sleep(0.05)
        seen += len(server.arrivals())
