"""Sidecars as pods have them, attached to a real collector, with real programs and load on them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg

from integration.agent.serving import Gunicorn
from integration.collector.running_collector import RunningCollector, wait_for

BURNING = """
import sys, time
def busy():
    return sum(n * n for n in range(3000))
def waiting():
    time.sleep(0.002)
print("burns", flush=True)
while True:
    busy(); waiting()
"""


class Sidecar:
    """`quayscope sidecar` of a pod, in a process of its own; `program` stands in for the command."""

    def __init__(
        self,
        directory: Path,
        pod: str,
        collector: RunningCollector,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "quayscope.cli.main", "sidecar"),
    ) -> None:
        self.pod = pod
        self._asked = False
        self.socket = directory / f"{pod}.sock"
        self.log_path = directory / f"{pod}.log"
        command = [sys.executable, *program, "--socket", str(self.socket), "--collector", collector.http]
        command += ["--control", f"http://{collector.grpc}", "--label", f"pod={pod}", "--window", "1"]
        command += ["--otlp-listen", "off", "--push-listen", "off", *arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONFAULTHANDLER": "1",
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    **(environment or {}),
                },
            )

    def log(self) -> str:
        """What it wrote."""
        return self.log_path.read_text()

    def begin_stop(self) -> None:
        """Ask it to end, once: an interpreter on its way out has no handler any more."""
        if not self._asked and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._asked = True

    def stop(self) -> None:
        """End it in order."""
        self.begin_stop()
        try:
            status = self.process.wait(8)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        assert status == 0, (status, self.log())
        assert "Traceback" not in self.log(), self.log()


def wait_attached(collector: RunningCollector, pod: str, targets: int) -> dict[str, Any]:
    """Wait until a pod is attached with so many targets and its clock is known; returns it."""
    found: list[dict[str, Any]] = []

    def attached() -> bool:
        found[:] = [
            one
            for one in collector.get("targets")["pods"]
            if one["pod"] == pod and len(one["targets"]) >= targets and one["round_trip"]
        ]
        return bool(found)

    wait_for(attached, 20)
    return found[0]


def begin(
    collector: RunningCollector, token: str = "", **asked: Any
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Ask for a capture: status, answer, headers."""
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    status, body, answered = collector.request(
        "POST", "/api/v1/captures", json.dumps(asked).encode(), headers
    )
    return status, json.loads(body), answered


def wait_over(collector: RunningCollector, name: str) -> dict[str, Any]:
    """Follow a capture's events to its end: what it looks like then, and when that was."""
    connection = http.client.HTTPConnection(collector.http.partition("//")[2], timeout=40)
    with contextlib.closing(connection):
        connection.request("GET", f"/api/v1/captures/{name}/events")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        shown: dict[str, Any] = {}
        while line := answer.readline():
            if line.startswith(b"data: "):
                shown = json.loads(line[6:])
    assert shown["state"] in ("done", "cancelled", "failed"), shown
    return {**shown, "seen_over": time.time()}


@contextlib.contextmanager
def burning(count: int = 1) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Python programs that use some CPU, without an agent."""
    started = [
        subprocess.Popen([sys.executable, "-c", BURNING], stdout=subprocess.PIPE) for _ in range(count)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == b"burns\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@contextlib.contextmanager
def load(*steps: Callable[[], object]) -> Iterator[None]:
    """Repeat each step on a thread of its own meanwhile."""
    stop = threading.Event()

    def run(step: Callable[[], object]) -> None:
        while not stop.wait(0.02):
            # A worker that a test kills takes its requests with it.
            with contextlib.suppress(OSError, http.client.HTTPException, psycopg.Error):
                step()

    threads = [threading.Thread(target=run, args=(step,), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(15)


def queries(dsn: str) -> Callable[[], object]:
    """A step that has a backend compute, and wait."""
    connections: list[psycopg.Connection[Any]] = []

    def step() -> None:
        if not connections or connections[0].closed:
            connections[:] = [psycopg.connect(dsn, autocommit=True)]
        connections[0].execute("SELECT sum(n) FROM generate_series(1, 60000) AS n WHERE n > 7")
        connections[0].execute("SELECT pg_sleep(0.02)")

    return step


def requests(gunicorn: Gunicorn) -> Callable[[], object]:
    """A step that has a worker compute."""
    return lambda: gunicorn.get("/heavy/x")
