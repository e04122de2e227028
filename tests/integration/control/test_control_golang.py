"""Captures of a real Go program, through its own profiles."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.collector.running_collector import RunningCollector, wait_for
from integration.control.pods import Sidecar, begin, wait_attached, wait_over
from quayscope.profile import pprof

SOURCE = Path(__file__).parents[2] / "targets" / "profiled.go"


@pytest.fixture
def profiled(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program, computing."""
    go = shutil.which("go") or "/usr/local/go/bin/go"
    binary = tmp_path / "profiled"
    subprocess.run([go, "build", "-o", binary, SOURCE], check=True, timeout=150, cwd=tmp_path)
    process = subprocess.Popen([binary], stdout=subprocess.PIPE, env={**os.environ, "GOMAXPROCS": "1"})
    try:
        assert process.stdout is not None
        assert int(process.stdout.readline())
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_go_program(
    attached_collector: RunningCollector, profiled: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """CPU, goroutines and memory in one capture; its heap alone; and under Go's own paths."""
    sidecar = Sidecar(
        tmp_path, "go-0", attached_collector, "--postgres", "off", "--target", str(profiled.pid),
        "--go-every", "3600", "--go-cpu", "1",
    )  # fmt: skip
    try:
        wait_attached(attached_collector, "go-0", 1)
        found: list[dict[str, Any]] = []

        def captured() -> bool:
            # Where it serves its profiles is found within seconds; Go profiles for one caller at a time.
            _, answer, _ = begin(attached_collector, selector={"pod": "go-0"}, seconds=1, kinds=["go"])
            found.append(wait_over(attached_collector, answer["id"]))
            return "process_cpu" in found[-1]["types"]

        wait_for(captured, 30)
        shown = found[-1]
        assert {"process_cpu", "goroutine", "memory"} <= shown["types"].keys(), shown["failed"]
        (part,) = shown["parts"]
        assert (part["kind"], part["pid"]) == ("go", profiled.pid)
        path = f"/api/v1/captures/{shown['id']}/result?format=folded"
        assert b"main.spin" in attached_collector.request("GET", path)[1]
        # The heap: what was allocated in the window, not since the program began.
        _, answer, _ = begin(attached_collector, selector={"pod": "go-0"}, seconds=1, kinds=["memory"])
        heap = wait_over(attached_collector, answer["id"])
        assert set(heap["types"]) == {"memory"}, heap
        status, body, _ = attached_collector.request("GET", "/targets/go-0/debug/pprof/goroutine?seconds=1")
        assert status == 200, body
        names = {frame.function for stack, _ in pprof.decode(body).samples for frame in stack}
        assert "main.main" in names
        status, body, _ = attached_collector.request(
            "GET", "/targets/go-0/debug/pprof/profile", headers={"Sec-Fetch-Site": "cross-site"}
        )
        assert (status, b"another site" in body) == (403, True)
    finally:
        sidecar.stop()
