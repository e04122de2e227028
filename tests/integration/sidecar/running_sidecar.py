"""`quayscope sidecar` as a process that can be killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from integration.collector.running_collector import wait_for

__all__ = ["RunningSidecar"]


class RunningSidecar:
    """One sidecar in `directory`, its gateway on free ports, nothing but the gateway to do."""

    def __init__(self, directory: Path, *arguments: str, log_level: str = "info") -> None:
        self.directory = directory
        self.log_level = log_level
        self.arguments = arguments
        self.process: subprocess.Popen[bytes]
        self.ports: dict[str, int] = {}
        self.missing: set[str] = set()

    def start(self) -> RunningSidecar:
        """Start it and wait until it serves."""
        ready = self.directory / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "quayscope.cli.main", f"--log-level={self.log_level}"]
        command += ["sidecar", "--ready-file", str(ready)]
        command += ["--socket", str(self.directory / "socket"), "--postgres", "off"]
        command += ["--otlp-listen", "127.0.0.1:0", "--push-listen", "127.0.0.1:0", *self.arguments]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        wait_for(lambda: ready.exists() or self.process.poll() is not None, 20)
        assert self.process.poll() is None, self.log()
        said = json.loads(ready.read_text())
        self.ports = said["gateway"]
        self.missing = {name for name, permitted in said["capabilities"].items() if not permitted}
        return self

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def kill(self) -> None:
        """End it without a chance to write anything more."""
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> int:
        """End it in order; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)
