"""Where no sidecar listens: one helper a pod, started by whichever worker is first, nobody's child."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.agent.serving import Gunicorn, at_once, until
from integration.collector.running_collector import RunningCollector

Serve = Callable[..., Gunicorn]


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[RunningCollector]:
    """Where the helper sends to."""
    running = RunningCollector(tmp_path).start()
    yield running
    running.stop()


def helpers(socket: Path) -> list[int]:
    """Return the processes that were started to be a helper on this socket and go on."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
                if (
                    b"quayscope.relay.program" in command
                    and f"QUAYSCOPE_SOCKET={socket}".encode() in environment
                ):
                    found.append(int(entry.name))
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_one_helper_sends_for_all(serve: Serve, collector: RunningCollector, tmp_path: Path) -> None:
    """Two gunicorns with four workers have one helper, and what it makes reaches the collector."""
    environment = {
        "QUAYSCOPE_COLLECTOR": collector.http,
        "QUAYSCOPE_LABELS": "namespace=quay,pod=quay-0",
        "QUAYSCOPE_SERVICE_NAME": "helped",
        "QUAYSCOPE_TRACING": "auto",
        "OTEL_TRACES_SAMPLER": "always_on",
    }
    gunicorns = [serve("--preload", "--workers=2", environment=environment) for _ in "ab"]
    socket = tmp_path / "agent.sock"
    until(socket.exists, "a helper listens")
    (helper,) = until(lambda: (found := helpers(socket)) and len(found) == 1 and found, "there is one helper")
    try:
        workers = [pid for gunicorn in gunicorns for pid in gunicorn.workers()]
        assert len(workers) == 4
        assert parent(helper) not in [*workers, *(gunicorn.process.pid for gunicorn in gunicorns)]
        for gunicorn in gunicorns:
            at_once(*[lambda g=gunicorn: g.get_often("/heavy/x", 30)] * 2)
            for pid in gunicorn.workers():
                assert not [child for child in children(pid) if state(child) == "Z"]
        match = ["service_name=helped", "pod=quay-0", "endpoint=GET /heavy/<name>"]
        rows = until(
            lambda: collector.get("breakdown", type="process_cpu", by="pid", match=match)["rows"],
            "profiles arrive",
            25.0,
        )
        assert {int(row["pid"]) for row in rows} <= set(workers)
        assert collector.get("metrics", name="http.server.request.duration", match=match[:1])["series"]
        assert collector.get("spans")["count"] > 0
        for gunicorn in gunicorns:
            assert gunicorn.stop(signal.SIGTERM) == 0
            assert "Traceback" not in gunicorn.log()
        # And ends by itself once the workers are gone.
        until(lambda: not helpers(socket), "the helper ends", 25.0)
        assert not socket.exists()
    finally:
        for pid in helpers(socket):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def test_a_helper_that_dies_has_a_successor(
    serve: Serve, collector: RunningCollector, tmp_path: Path
) -> None:
    """A helper killed under load costs no request, and another one takes its place."""
    gunicorn = serve("--preload", environment={"QUAYSCOPE_COLLECTOR": collector.http})
    socket = tmp_path / "agent.sock"
    try:
        (first,) = until(lambda: socket.exists() and helpers(socket), "a helper listens")
        os.kill(first, signal.SIGKILL)
        assert gunicorn.get_often("/light/x", 200) == [200] * 200
        until(lambda: (found := helpers(socket)) and found != [first], "another helper")
        assert gunicorn.stop() == 0
    finally:
        for pid in helpers(socket):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
