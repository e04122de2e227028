"""A recording server in a process of its own, and the driver, in this process or as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quayscope.load.commands import load
from quayscope.profile import Failure


@dataclass
class Server:
    """The recording server, running."""

    process: subprocess.Popen[bytes]
    url: str

    def arrivals(self) -> list[dict[str, Any]]:
        """Take what arrived since this was last called."""
        with urllib.request.urlopen(f"{self.url}/log", timeout=10) as answer:
            rows: list[dict[str, Any]] = json.load(answer)
        return sorted(rows, key=lambda row: int(row["at_ns"]))


@dataclass
class Outcome:
    """What became of one run. `report` is empty where none was written."""

    code: int
    report: dict[str, Any]
    stdout: str
    stderr: str


class Driver:
    """Runs workloads against the server."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self.directory = directory
        self.url = url
        self.json = directory / "report.json"
        self._capsys = capsys

    def arguments(self, workload: str, *options: str) -> list[str]:
        """Return the arguments of `quayscope load`; a workload of several lines is written to a file."""
        if "\n" in workload:
            file = self.directory / "workload.yaml"
            file.write_text(workload)
            workload = str(file)
        return ["run", workload, f"--url={self.url}", f"--json={self.json}", *options]

    def run(self, workload: str, *options: str) -> Outcome:
        """Run the command in this process, as the command line would."""
        self._capsys.readouterr()
        code, message = 0, ""
        try:
            load.main(args=self.arguments(workload, *options), standalone_mode=False)
        except Failure as failure:
            code, message = failure.exit_code, f"{failure}\n{failure.next_step}"
        printed = self._capsys.readouterr()
        return Outcome(code, self._report(), printed.out, printed.err + message)

    def start(self, workload: str, *options: str, **more: Any) -> subprocess.Popen[str]:
        """Start the command as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "quayscope.cli.main", "load", *self.arguments(workload, *options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            **more,
        )

    def finish(self, process: subprocess.Popen[str], seconds: float = 20.0) -> Outcome:
        """Wait for a started command."""
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return Outcome(process.returncode, self._report(), stdout, stderr)

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.json.read_text()) if self.json.exists() else {}
        return report


def start_program(program: Path, ready: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server program that writes its port to `ready`."""
    process = subprocess.Popen([sys.executable, str(program), str(ready), *arguments])
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    return process, int(ready.read_text())


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests."""
    ready = tmp_path_factory.mktemp("server") / "port"
    process, port = start_program(Path(__file__).with_name("recording_server.py"), ready)
    yield Server(process, f"http://127.0.0.1:{port}")
    process.terminate()
    process.wait(10)


@pytest.fixture
def server(running_server: Server) -> Server:
    """The server, with nothing recorded yet."""
    running_server.arrivals()
    return running_server


@pytest.fixture
def driver(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Driver:
    """A driver aimed at the server."""
    return Driver(tmp_path, capsys, server.url)
