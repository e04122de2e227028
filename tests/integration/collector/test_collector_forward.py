"""Forwarding to a receiver of push.v1: a second collector stands where a Pyroscope would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.collector.running_collector import RunningCollector, cpu_profile, wait_for

CPU = "process_cpu"
Start = Callable[..., RunningCollector]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start collectors by name; all are stopped in the end."""
    running: list[RunningCollector] = []

    def begin(name: str, *extra: str, listen: str = "127.0.0.1:0") -> RunningCollector:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        running.append(RunningCollector(directory, *extra, listen=listen).start())
        return running[-1]

    yield begin
    for one in running:
        one.stop()


def test_profiles_arrive_mapped(start: Start) -> None:
    """Endpoints become root frames, run, phase and pid are dropped, ids stay, sums are equal."""
    receiver = start("receiver")
    sender = start("sender", "--pyroscope", receiver.http)
    profile = cpu_profile()
    sender.push(profile, "f1")
    wait_for(lambda: sender.get("status")["forwarded"] == 1)
    answer = receiver.get("flamegraph", type=CPU)
    assert answer["total"] == profile.totals()[1]
    assert answer["losses"] == sender.get("flamegraph", type=CPU)["losses"]
    roots = {(child["name"], child["kind"]): child["value"] for child in answer["root"]["children"]}
    assert roots == {
        ("GET /api/v1/repository", "root"): 50_000_008,
        ("GET /v2/_catalog", "root"): 20_000_002,
        ("main", "python"): 5,
    }
    labels = receiver.get("labels")["labels"]
    assert labels == ["role", "sampler", "service_name", "span_id", "trace_id"]


def test_an_unreachable_receiver_delays_nothing_and_gets_it_later(start: Start) -> None:
    """Pushes are acknowledged at once while the receiver is away; it gets them when it is back."""
    receiver = start("receiver")
    address = receiver.http.partition("//")[2]
    receiver.stop()
    sender = start("sender", "--pyroscope", f"http://{address}")
    begun = time.monotonic()
    for number in range(5):
        sender.push(cpu_profile(number), f"f{number}")
    assert time.monotonic() - begun < 5
    wait_for(lambda: sender.get("status")["forward_retries"] > 0)
    assert sender.get("status")["forward_queue"] == 5
    receiver = start("receiver", listen=address)
    wait_for(lambda: sender.get("status")["forwarded"] == 5, 20)
    assert receiver.get("flamegraph", type=CPU)["total"] == sum(cpu_profile(n).totals()[1] for n in range(5))
    assert sender.get("status")["forward_queue"] == 0


def test_refusals_are_counted(start: Start) -> None:
    """What the receiver refuses for good is counted, one by one, and not tried again."""
    receiver = start("receiver")
    sender = start("sender", "--pyroscope", f"{receiver.http}/nosuch")
    for number in range(3):
        sender.push(cpu_profile(number), f"f{number}")
    wait_for(lambda: sender.get("status")["forward_refused"] == 3)
    counts = sender.get("status")
    assert (counts["forwarded"], counts["forward_queue"], counts["stored"]) == (0, 0, 3)
