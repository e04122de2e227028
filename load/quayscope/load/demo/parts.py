"""The demo's processes: started together, watched, ended together, their logs at hand."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quayscope.load.demo.errors import DemoError

__all__ = ["Part", "Parts", "quayscope_command"]

STOP_SECONDS = 8.0
"""How long a part may take to end after SIGTERM before it is killed."""
TAIL_LINES = 15


def quayscope_command(*arguments: str) -> list[str]:
    """Return the command that runs a Quayscope part with this interpreter."""
    return [sys.executable, "-m", "quayscope.cli.main", *arguments]


@dataclass
class Part:
    """One process of the demo. `essential`: without it there is nothing to measure."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    essential: bool
    started: float = field(default_factory=time.time)
    ended: float | None = None
    stopping: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended without being asked to."""
        return self.ended is not None and not self.stopping

    def poll(self) -> int | None:
        """Notice an end; returns the exit status (negative: the signal) or None while it runs."""
        status = self.process.poll()
        if status is not None and self.ended is None:
            self.ended = time.time()
        return status

    def how_it_ended(self) -> str:
        """Say in words how the process ended."""
        status = self.process.returncode
        if status is None:
            return "is running"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-status).name}"
        return f"ended with exit code {status}"

    def tail(self) -> list[str]:
        """Return the last lines of its log."""
        if not self.log.exists():
            return []
        return self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]

    def signal(self, number: int) -> None:
        """Send a signal to the process's group; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Parts:
    """Starts parts and guarantees their end: use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parts: list[Part] = []

    def __enter__(self) -> Parts:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop whatever still runs."""
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        essential: bool = False,
        show_progress: bool = False,
    ) -> Part:
        """Start `command` in a session of its own, so that Ctrl-C reaches the demo alone.

        Its output goes to a log file; with `show_progress` its stderr goes to the terminal instead.
        """
        log = self.directory / f"{name}.log"
        output = log.open("ab")
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if show_progress else output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                cwd=self.directory,
            )
        except OSError as error:
            raise DemoError(f"{name} could not be started: {error}") from error
        finally:
            output.close()
        part = Part(name, process, log, essential)
        self.parts.append(part)
        return part

    def check(self) -> None:
        """Notice ended parts; raises `DemoError` when an essential one failed."""
        for part in self.parts:
            part.poll()
            if part.essential and part.failed:
                raise DemoError(
                    f"{part.name} {part.how_it_ended()}",
                    log=part.tail(),
                    next_step="see the lines of its log above",
                )

    def failed(self) -> list[Part]:
        """Return the parts that ended on their own, in order of starting."""
        for part in self.parts:
            part.poll()
        return [part for part in self.parts if part.failed]

    def wait_ready(self, part: Part, ready_file: Path, seconds: float = 30.0) -> dict[str, Any]:
        """Wait for the JSON that a part writes once it serves; raises `DemoError`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if ready_file.exists():
                content = json.loads(ready_file.read_text())
                assert isinstance(content, dict)
                return content
            if part.poll() is not None:
                raise DemoError(
                    f"{part.name} {part.how_it_ended()} before it was ready",
                    log=part.tail(),
                    next_step="see the lines of its log above",
                )
            time.sleep(0.05)
        raise DemoError(f"{part.name} was not ready within {seconds:.0f} s", log=part.tail())

    def stop(self) -> None:
        """End all parts, last started first; kill what has not ended in time."""
        for part in reversed(self.parts):
            if part.poll() is None:
                part.stopping = True
                part.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for part in reversed(self.parts):
            try:
                part.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                part.signal(signal.SIGKILL)
                part.process.wait()
            # A leader that is gone may leave members of its group: workers of a killed master.
            part.signal(signal.SIGKILL)
            part.poll()
