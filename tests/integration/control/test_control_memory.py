"""Captures of Python's memory: what pyroscope-io pushes of a worker; others are named with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from integration.agent.serving import Gunicorn
from integration.collector.running_collector import RunningCollector, wait_for
from integration.control.pods import Sidecar, begin, burning, load, requests, wait_attached, wait_over
from quayscope.profile import pprof


class Served(NamedTuple):
    """A worker whose memory is pushed to its sidecar, and a program that pushes nothing."""

    collector: RunningCollector
    worker: int
    other: int


@pytest.fixture
def served(attached_collector: RunningCollector, tmp_path: Path) -> Iterator[Served]:
    """Both, in one pod, under load."""
    ready = tmp_path / "ready.json"
    with burning() as (other,):
        sidecar = Sidecar(
            tmp_path, "memory-0", attached_collector, "--postgres", "off", "--push-listen", "127.0.0.1:0",
            "--ready-file", str(ready), "--python", f"{other.pid}=worker", "--pyspy", "off",
        )  # fmt: skip
        gunicorn = None
        try:
            wait_for(ready.exists, 20)
            address = f"http://127.0.0.1:{json.loads(ready.read_text())['gateway']['push']}"
            gunicorn = Gunicorn(
                tmp_path,
                "--workers=1",
                environment={"QUAYSCOPE_SOCKET": str(sidecar.socket), "QUAYSCOPE_MEMORY": address},
            )
            with load(requests(gunicorn)):
                wait_attached(attached_collector, "memory-0", 2)
                (worker,) = gunicorn.workers()
                yield Served(attached_collector, worker, other.pid)
        finally:
            if gunicorn is not None:
                gunicorn.kill()
            sidecar.stop()


def test_memory_of_a_worker_and_why_not_of_another(served: Served) -> None:
    """The pushes that overlap the window, under the worker's labels; nothing is left out silently."""
    collector = served.collector

    def pushed() -> bool:
        found = collector.get("series", type="memory", match="service_name=quay-app")["series"]
        return bool(found)

    wait_for(pushed, 30)
    _, answer, _ = begin(collector, selector={"pod": "memory-0"}, seconds=1, kinds=["memory"])
    shown = wait_over(collector, answer["id"])
    assert shown["state"] == "done", shown
    (failed,) = shown["failed"]
    assert failed["pid"] == served.other
    assert "has pushed no memory profile to this sidecar: it needs an agent" in failed["error"]
    (part,) = [one for one in shown["parts"] if one["state"] == "done"]
    assert (part["pid"], part["kind"], part["labels"]["role"]) == (served.worker, "memory", "registry")
    assert part["started"] < shown["end"]
    assert shown["end"] <= part["ended"] <= shown["end"] + 12
    path = f"/api/v1/captures/{answer['id']}/result?type=memory"
    status, body, _ = collector.request("GET", path)
    assert status == 200
    memory = pprof.decode(body, name="memory")
    assert list(memory.totals()) == shown["types"]["memory"]
    assert max(memory.totals()) > 0
    assert {about.pid for _, about in memory.samples} == {served.worker}
    print(
        {"from": part["started"] - shown["start"], "to": part["ended"] - shown["end"], "of": memory.totals()}
    )
