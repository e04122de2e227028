"""`quayscope now` against a demo that runs: what a person does who sees something odd in it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from e2e.demo_process import DemoProcess
from quayscope.profile import pprof

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

SECONDS = 10
TOLD = re.compile(r"quayscope now --collector (http://127\.0\.0\.1:\d+)")


class Demo(NamedTuple):
    """A demo under load, and the collector that it told of."""

    folder: Path
    url: str

    def targets(self) -> list[dict[str, Any]]:
        """What can be captured."""
        with urllib.request.urlopen(f"{self.url}/api/v1/targets", timeout=10) as answer:
            pods = json.load(answer)["pods"]
        return [target for pod in pods for target in pod["targets"]]


@pytest.fixture(scope="module")
def demo(open_directory: Callable[[], Path]) -> Iterator[Demo]:
    """A demo that fires its load for longer than the tests take."""
    running = DemoProcess(open_directory(), "--duration=120s")
    running.wait_for("firing")
    # Lines are folded to the width of the terminal.
    told = TOLD.search(" ".join((running.directory / "stderr").read_text().split()))
    assert told
    yield Demo(running.directory, told[1])
    running.process.send_signal(signal.SIGINT)
    running.process.wait(25)
    running.end()


def ask(demo: Demo, method: str, path: str, document: object = None) -> Any:
    """Ask the collector; its answer, the last event where it answers with events."""
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(f"{demo.url}/api/v1/{path}", body, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = [line.removeprefix(b"data: ") for line in answer if not line.startswith(b"event: ")]
    return json.loads([line for line in lines if line.strip()][-1])


def test_workers_and_database_in_one_profile(demo: Demo) -> None:
    """Two workers and Postgres, 10 s: one profile within 12 s, begun within 50 ms, the sum of its parts."""
    pids = [
        target["pid"]
        for target in demo.targets()
        if target["kind"] == "postgres" or target["labels"].get("role") == "web"
    ]
    assert len(pids) == 3
    called = time.time()
    begun = ask(demo, "POST", "captures", {"selector": {"pid": pids}, "seconds": SECONDS})
    shown = ask(demo, "GET", f"captures/{begun['id']}/events")
    took = time.time() - called
    print({"after the call": round(took, 2), "skew": shown["start_skew"], "totals": shown["types"]})
    assert (shown["state"], shown["failed"]) == ("done", [])
    assert {part["pid"] for part in shown["parts"]} == set(pids)
    assert took <= SECONDS + 2
    assert shown["start_skew"] <= 0.05
    for kind, totals in shown["types"].items():
        parts = [one["totals"] for part in shown["parts"] for one in part["profiles"] if one["type"] == kind]
        assert totals == [sum(column) for column in zip(*parts, strict=True)], kind
    assert min(shown["types"]["process_cpu"]) > 0
    with urllib.request.urlopen(f"{demo.url}/api/v1/captures/{begun['id']}/result", timeout=20) as answer:
        merged = pprof.decode(answer.read())
    assert list(merged.totals()) == shown["types"]["process_cpu"]
    frames = {(frame.kind, frame.function) for stack, _ in merged.samples for frame in stack}
    assert {"root", "python", "sql"} <= {kind for kind, _ in frames}
    assert {("root", "quay-app"), ("root", "quay-database")} <= frames


def test_a_person_captures_what_runs(demo: Demo) -> None:
    """`quayscope now` as the demo says it takes everything there is, and writes a page of it."""
    done = subprocess.run(
        [sys.executable, "-m", "quayscope.cli.main", "now", "--collector", demo.url, "--seconds=2", "--json"],
        cwd=demo.folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(demo.folder)},
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert {part["pid"] for part in shown["parts"]} == {target["pid"] for target in demo.targets()}
    assert {part["kind"] for part in shown["parts"]} == {"python", "postgres"}
    # What has an agent or a database's watch is always there; py-spy may miss one that slept for 2 s.
    assert [one for one in shown["failed"] if one["pid"] != housekeeping(demo)] == []
    page = (demo.folder / shown["file"]).read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "quay-database" in page


def housekeeping(demo: Demo) -> int:
    """The background worker, in which no agent lives."""
    return next(int(one["pid"]) for one in demo.targets() if one["labels"].get("role") == "housekeeping")
