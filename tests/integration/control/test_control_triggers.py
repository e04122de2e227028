"""Captures that a threshold begins, on a real collector: once, with why, and with the minute before."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration.collector.running_collector import RunningCollector, cpu_profile, wait_for
from integration.control.test_control_access import ENVIRONMENT
from integration.control.test_control_stream import FakeSidecar
from quayscope.collector.control.triggers import read_rule
from quayscope.collector.errors import BadRequest
from quayscope.profile import pprof
from quayscope.profile.control import (
    Answer,
    Part,
    Register,
    StartCapture,
    Target,
    Welcome,
    encode_from_sidecar,
)
from quayscope.relay.otlp import Histogram, HistogramPoint, metric_request


def requests(endpoint: str, status: str, counts: list[int]) -> bytes:
    """Durations of requests of the last seconds: up to 1 s, up to 5 s, longer."""
    now = time.time_ns()
    about = {"endpoint": endpoint, "http.response.status_code": status}
    point = HistogramPoint(counts, float(sum(counts)), now - 10**9, now - 2 * 10**9, about)
    return metric_request(
        {"service_name": "quay-app"}, [Histogram("http.server.request.duration", "s", (1.0, 5.0), [point])]
    )


def test_a_slow_endpoint_begins_a_capture(tmp_path: Path) -> None:
    """Above the threshold, with enough requests, and not again at once."""
    running = RunningCollector(tmp_path, "--trigger", "errors=0.5", "--trigger", "p99=2").start()
    target = Target(1, "python", {"service_name": "quay-app", "pod": "quay-0"})
    peer = FakeSidecar(running.grpc, encode_from_sidecar(Register("i", "1", {"pod": "quay-0"}, (target,))))
    try:
        assert isinstance(peer.hear(), Welcome)
        profile = cpu_profile()
        running.push(profile, "one")
        for body in (
            requests("GET /fast", "200", [100, 0, 0]),
            requests("GET /rare", "500", [0, 0, 5]),
            requests("GET /slow", "200", [90, 10, 0]),
        ):
            assert running.post("/v1/metrics", body, "application/x-protobuf")[0] == 200
        command = peer.hear()
        assert isinstance(command.body, StartCapture)
        assert command.body.duration_ns == 10 * 10**9
        part = Part(command.id, 0, target, "python")
        peer.say(encode_from_sidecar(Answer(command.id, "accepted", "", (part,))))
        done = part._replace(profiles=(pprof.encode(profile),), types=("process_cpu",), samplers=("agent",))
        peer.say(encode_from_sidecar(done))
        wait_for(lambda: running.get(f"captures/{command.id}")["state"] == "done")
        shown = running.get(f"captures/{command.id}")
        assert shown["by"] == "trigger p99"
        assert shown["why"] == "p99 5 > 2: quay-app GET /slow"
        status, body, _ = running.request("GET", f"/api/v1/captures/{command.id}/result?when=before")
        assert status == 200
        earlier = pprof.decode(body)
        assert list(earlier.totals()) == shown["before"]["process_cpu"] == list(profile.totals())
        assert {stack[0].function for stack, _ in earlier.samples} == {"quay-app"}
        assert running.get("status")["captures_triggered"] == 1
    finally:
        peer.close()
        assert running.stop() == 0


def test_a_trigger_that_is_none() -> None:
    """Is refused with the names there are."""
    for text in ("p98=3", "p99", "p99=fast", "p99=-1", "p99=nan"):
        with pytest.raises(BadRequest):
            read_rule(text)
    ran = subprocess.run(
        [sys.executable, "-m", "quayscope.cli.main", "collector", "--trigger", "p98=3"],
        capture_output=True, text=True, timeout=30, env=ENVIRONMENT,
    )  # fmt: skip
    assert (ran.returncode, "p99, errors, throttled, sessions, hub" in ran.stderr) == (2, True)
