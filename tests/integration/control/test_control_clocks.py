"""Two nodes whose clocks are three seconds apart: captures, continuous profiles and spans fall together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from integration.collector.running_collector import RunningCollector, wait_for
from integration.control.pods import begin, wait_attached, wait_over

pytestmark = pytest.mark.alone

SKEWED = Path(__file__).with_name("skewed_sidecar.py")
SHIFTS = {"behind": -1, "ahead": 2}
EVERY = 4
PULSES = f"""
import time
print("burns", flush=True)
while True:
    if int(time.time()) % {EVERY}:
        time.sleep(0.02)
"""
"""Uses CPU in one second of four."""


class Nodes(NamedTuple):
    """Two sidecars that watch one process. `since`: what they send is complete from that second on."""

    collector: RunningCollector
    sidecars: dict[str, subprocess.Popen[bytes]]
    since: int


@pytest.fixture(scope="module")
def nodes(attached_collector: RunningCollector) -> Iterator[Nodes]:
    """Both, attached."""
    target = subprocess.Popen([sys.executable, "-c", PULSES], stdout=subprocess.PIPE)
    assert target.stdout is not None
    assert target.stdout.readline() == b"burns\n"
    started = {
        pod: subprocess.Popen(
            [
                *(sys.executable, str(SKEWED), "--collector", attached_collector.http),
                *("--control", f"http://{attached_collector.grpc}", "--pod", pod),
                *("--pid", str(target.pid), "--", str(shift)),
            ],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for pod, shift in SHIFTS.items()
    }
    try:
        for pod in SHIFTS:
            assert wait_attached(attached_collector, pod, 1)["kinds"]
            wait_for(lambda pod=pod: off(attached_collector, pod) <= 0.1)
        wait_for(lambda: {row["labels"]["pod"] for row in rows(attached_collector)} == set(SHIFTS), 20)
        yield Nodes(attached_collector, started, int(time.time()) + 1)
    finally:
        for process in (*started.values(), target):
            process.terminate()
        for process in started.values():
            assert process.wait(10) == 0
            assert process.stdout is not None
            process.stdout.close()
        target.wait(10)
        target.stdout.close()


def used_in(collector: RunningCollector, second: int) -> dict[str, float]:
    """CPU seconds that each node saw in a second of Unix time."""
    found = collector.get(
        "breakdown", type="process_cpu", by="pod", match="service_name=worker", from_=second, to=second + 1
    )
    return {row["pod"]: row["value"] / 1e9 for row in found["rows"]}


def off(collector: RunningCollector, pod: str) -> float:
    """How wrong the collector is about a node's clock: the offset is what its own is ahead of the node's."""
    (found,) = [one for one in collector.get("targets")["pods"] if one["pod"] == pod]
    return abs(float(found["clock_offset"]) + SHIFTS[pod])


def rows(collector: RunningCollector) -> list[dict[str, Any]]:
    """The series of the process."""
    found = collector.get("series", type="process_cpu", match="service_name=worker")["series"]
    assert isinstance(found, list)
    return found


def test_captures_begin_together(nodes: Nodes) -> None:
    """Their parts begin together, and their times are moved to the collector's, within 100 ms."""
    _, answer, _ = begin(nodes.collector, selector={"role": "worker"}, seconds=1, kinds=["native"], rate=199)
    shown = wait_over(nodes.collector, answer["id"])
    assert (shown["state"], shown["failed"]) == ("done", []), shown
    true = {}
    for pod, process in nodes.sidecars.items():
        assert process.stdout is not None
        true[pod] = json.loads(process.stdout.readline())["started"]
    said = {part["pod"]: part["started"] for part in shown["parts"]}
    print({"true": true, "said": said})
    assert abs(true["ahead"] - true["behind"]) <= 0.1
    for pod, time_s in true.items():
        assert abs(said[pod] - time_s) <= 0.1
        assert abs(time_s - shown["start"]) <= 0.1


def test_continuous_profiles_fall_into_the_same_seconds(nodes: Nodes) -> None:
    """CPU used in one second of four is found in those seconds, of both nodes; what was moved is said."""
    until = nodes.since + 2 * EVERY
    # Windows come in their order: where a later second has arrived from both, all before it have.
    later = -(-until // EVERY) * EVERY
    wait_for(lambda: set(used_in(nodes.collector, later)) == set(SHIFTS), 40)
    seen: dict[str, dict[int, float]] = {pod: {} for pod in SHIFTS}
    for second in range(nodes.since, until):
        for pod, used in used_in(nodes.collector, second).items():
            seen[pod][second] = used
    print(seen)
    for each in seen.values():
        assert sum(each.values()) > 0.05
        assert sum(value for second, value in each.items() if second % EVERY) <= 0.2 * sum(each.values())
    for row in rows(nodes.collector):
        clock = row["clock"]
        assert abs(clock["offset"] + SHIFTS[row["labels"]["pod"]]) <= clock["error"] + 0.001
        assert 0 < clock["error"] <= 0.1
        assert clock["unknown"] == 0


def test_spans_begin_when_they_did(nodes: Nodes) -> None:
    """To 100 ms, though each node gave them its own times, in a range of time and by their trace."""
    wait_for(lambda: len(nodes.collector.get("spans", from_=nodes.since)["spans"]) >= 4)
    found = nodes.collector.get("spans", from_=nodes.since)["spans"]
    assert {span["service_name"] for span in found} == set(SHIFTS)
    for span in found:
        assert abs(span["start_ns"] - int(span["name"])) <= 10**8
        assert span["end_ns"] - span["start_ns"] == 10**6
        assert abs(span["clock"]["offset"] + SHIFTS[span["service_name"]]) <= 0.1
        (same,) = nodes.collector.get("spans", trace_id=span["trace_id"])["spans"]
        assert same == span
