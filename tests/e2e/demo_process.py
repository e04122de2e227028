"""Runs `quayscope demo` as a person would, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plain_user import NOBODY, PlainPython, as_nobody
from quayscope.load.demo.processes import children

LAUNCHER = Path(__file__).parent.parent / "refuse_syscalls.py"


@dataclass
class Outcome:
    """How a demo ended and what it reported."""

    code: int
    report: dict[str, Any]
    stdout: str
    stderr: str
    left: list[Path]
    """What still lies in its temporary folder."""


class DemoProcess:
    """A running demo; `plain` runs it as a plain user, `refused` under a filter of system calls."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        plain: PlainPython | None = None,
        refused: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.json_file = directory / "out.json"
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        if plain and os.geteuid() == 0:
            for path in (directory, self.temporary):
                os.chown(path, NOBODY, NOBODY)
        python = plain.executable if plain else sys.executable
        command = [
            python,
            "-m",
            "quayscope.cli.main",
            "demo",
            f"--json={self.json_file}",
            "--port=0",
            *arguments,
        ]
        environment = plain.environment if plain else os.environ
        if refused:
            launcher = str(shutil.copy(LAUNCHER, directory))
            command = [python, launcher, *refused, "--", *command]
        self._stdout = (directory / "stdout").open("w")
        self._stderr = (directory / "stderr").open("w")
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,
            env={
                **environment,
                "TMPDIR": str(self.temporary),
                "HOME": str(directory),
            },
            **(as_nobody() if plain else {}),
        )

    def wait(self, seconds: float) -> Outcome:
        """Wait for the end; fails the test when it takes longer."""
        try:
            code = self.process.wait(seconds)
        finally:
            self.end()
        return self.outcome(code)

    def outcome(self, code: int) -> Outcome:
        """Read what it left."""
        report = json.loads(self.json_file.read_text()) if self.json_file.exists() else {}
        stdout = (self.directory / "stdout").read_text()
        stderr = (self.directory / "stderr").read_text()
        return Outcome(code, report, stdout, stderr, list(self.temporary.iterdir()))

    def end(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._stdout.close()
        self._stderr.close()

    def descendants(self) -> dict[int, str]:
        """Return the command line of every process below the demo."""
        found: dict[int, str] = {}
        pending = [self.process.pid]
        while pending:
            pid = pending.pop()
            for child in children(pid):
                found[child] = _command_line(child)
                pending.append(child)
        return found

    def find(self, *words: str, seconds: float = 30.0) -> int:
        """Return the pid below the demo whose command line has all `words`, once there is one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for pid, line in self.descendants().items():
                if all(word in line for word in words):
                    return pid
            time.sleep(0.05)
        raise AssertionError(f"no process with {words}: {self.descendants()}; {self.outcome(0).stderr}")

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Wait until stderr holds `text`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if text in (self.directory / "stderr").read_text():
                return
            assert self.process.poll() is None, self.outcome(0).stderr
            time.sleep(0.05)
        raise AssertionError(f"{text!r} was never said: {self.outcome(0).stderr}")

    def wait_for_page(self, seconds: float) -> None:
        """Wait until the load is over and the report said; the parts stay up."""
        deadline = time.monotonic() + seconds
        while "everything stays up" not in (self.directory / "stdout").read_text():
            assert self.process.poll() is None, self.outcome(0).stderr
            assert time.monotonic() < deadline, self.outcome(0).stderr
            time.sleep(0.1)

    def page(self) -> str:
        """Return the address of its page."""
        found = re.search(r"^flame graphs: (\S+)", (self.directory / "stdout").read_text(), re.MULTILINE)
        assert found is not None
        return found[1]


def alive(pids: Sequence[int]) -> list[int]:
    """Return those of `pids` that still run (zombies do not)."""
    running = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.append(pid)
    return running


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
