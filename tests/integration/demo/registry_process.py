"""A registry under gunicorn for tests: started, asked, and ended by pid."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quayscope.load.demo.registry.settings import DIRECTORY, DSN, WEAK


@dataclass(frozen=True)
class Answer:
    """What the registry answered; header names are lower case."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The content as JSON."""
        return json.loads(self.content)


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until `true()`; fails the test when it takes longer."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def environment(dsn: str, directory: Path, weak: str) -> dict[str, str]:
    """Return what the registry's programs are told."""
    return {**os.environ, DSN: dsn, DIRECTORY: str(directory), WEAK: weak}


def run_program(name: str, told: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one of the registry's programs to its end."""
    command = [sys.executable, "-m", f"quayscope.load.demo.registry.{name}"]
    return subprocess.run(command, env=dict(told), capture_output=True, text=True, timeout=120, check=False)


class RegistryProcess:
    """gunicorn with two gevent workers, as the demo runs it, but without an agent."""

    def __init__(self, dsn: str, directory: Path, weak: str = "") -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = (directory / "gunicorn.log").open("wb")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn"),
                "--config=python:quayscope.load.demo.registry.gunicorn_conf",
                f"--bind=127.0.0.1:{self.port}",
                "quayscope.load.demo.registry.app:app",
            ],
            env=environment(dsn, directory, weak),
            stdout=self._log,
            stderr=self._log,
        )
        wait_until(self._serves, 20)

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.ask("GET", "/v2/").status == 200 and len(self.workers()) == 2
        except OSError:
            return False

    def log(self) -> str:
        """Return what gunicorn wrote."""
        return (self.directory / "gunicorn.log").read_text()

    def workers(self) -> list[int]:
        """Return the workers' pids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def ask(
        self, method: str, path: str, content: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request on a connection of its own; bytes go as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = dict(headers or {})
        if content is not None and not isinstance(content, bytes):
            content = json.dumps(content).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, path, content, sent)
            answer = connection.getresponse()
            received = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, received, answer.read())
        finally:
            connection.close()

    def stop(self) -> int:
        """End it as an operator would; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._log.close()
