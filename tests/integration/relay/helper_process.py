"""A helper as a worker starts it, and a worker's connection to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import quayscope.relay

ROOT = Path(quayscope.relay.__path__[0]).parents[1]
KEEPER = Path(__file__).with_name("keeper.py")
SECOND = 10**9
_PATH = f"import sys; sys.path[:] = [p for p in sys.path if p] + [{str(ROOT)!r}]; "
AS_STARTED = _PATH + "from quayscope.relay.program import main; main()"
DEADLINE_S = 20.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition to hold and return its value."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.02)
    return found


class HelperProcess:
    """A helper under a keeper. With `idle_s` it waits that long for workers, else as long as it does.

    `environment` are the variables of the helper beside the socket's and the lock's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        interpreter: str | Path = sys.executable,
        idle_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        before: str = "",
    ) -> None:
        self.socket = directory / "agent.sock"
        self.lock = directory / "agent.lock"
        self.log_file = directory / "agent.sock.log"
        code = AS_STARTED
        if idle_s is not None or before:
            patched = "" if idle_s is None else f"program.IDLE_S = {idle_s}; "
            code = f"{_PATH}from quayscope.relay import program; {before}{patched}program.main()"
        self._keeper = subprocess.Popen(
            [sys.executable, KEEPER, interpreter, code, self.lock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            env={
                "PATH": os.environ["PATH"],
                "HOME": os.environ.get("HOME", "/"),
                "QUAYSCOPE_SOCKET": str(self.socket),
                **(environment or {}),
            },
        )
        assert self._keeper.stdout is not None
        # Written once the process that was spawned is gone. The helper may have ended before that.
        self.spawn = self._line()
        self._ended: list[dict[str, Any]] = []
        while "spawner" not in self.spawn:
            self._ended.append(self.spawn)
            self.spawn = self._line()

    def _line(self) -> dict[str, Any]:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        assert line, "the keeper ended"
        found: dict[str, Any] = json.loads(line)
        return found

    @property
    def keeper_pid(self) -> int:
        return self._keeper.pid

    def pid(self) -> int:
        """Wait until it listens; its pid, as the kernel tells it."""

        def peer() -> int:
            with contextlib.suppress(OSError), self.connect() as connection:
                packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                return int(struct.unpack("3i", packed)[0])
            return 0

        return int(until(peer, f"the helper listens: {self.log()}"))

    def connect(self) -> socket.socket:
        """A connection as a worker has it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Blocking: with a timeout a full backlog would be an error instead of a wait.
            connection.connect(str(self.socket))
            connection.settimeout(DEADLINE_S)
        except OSError:
            connection.close()
            raise
        return connection

    def work(self, service: str = "quay-app", pid: int = 7, trace: str = "a" * 32) -> socket.socket:
        """Be a worker that has burned 5 ms and answered one slow request with a span; the connection."""
        self.pid()
        connection = self.connect()
        slot = (time.time_ns() // SECOND - 1) * SECOND
        about = ["GET /a", "b" * 16, trace, "r1", "pull"]
        buckets = [0] * 10 + [1] + [0] * 4
        records: list[dict[str, Any]] = [
            {"k": "hello", "v": 1, "pid": pid, "role": "web", "service": service, "start": 1, "labels": {}},
            {"k": "frame", "f": [[0, "main", "m.py", 1], [1, "work", "m.py", 2]]},
            {"k": "stacks", "t": slot, "s": [[5_000_000, 1, about, [0, 1]]]},
            {
                "k": "requests",
                "t": slot,
                "r": [["GET /a", 200, "r1", "pull", 1, 2 * SECOND, 5, 3, buckets, buckets, buckets]],
            },
            {
                "k": "kept",
                "r": [
                    ["GET /a", 200, "r1", "pull", slot - SECOND, 2 * SECOND, 5, 3, trace, "b" * 16, "slow"]
                ],
            },
            {
                "k": "spans",
                "scope": "t",
                "s": [[trace, "b" * 16, "", "GET /a", 2, slot - SECOND, slot, 0, {}]],
            },
            {"k": "counts", "t": slot, "c": {"samples": 1}, "m": {"hz": 100}},
        ]
        for record in records:
            connection.send(json.dumps(record).encode())
        return connection

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        os.kill(self.pid(), number)

    def ended(self) -> dict[str, Any]:
        """Wait for its end; `code` is its exit code, as its parent sees it."""
        if not self._ended:
            self._ended.append(self._line())
        return self._ended[0]

    def orphans(self) -> list[dict[str, Any]]:
        """Let the worker end too; each process that was left to the keeper, once all have ended."""
        output, _ = self._keeper.communicate(timeout=DEADLINE_S)
        return self._ended + [json.loads(line) for line in output.splitlines()]

    def locked(self) -> bool:
        """Whether the lock is held."""
        with open(self.lock, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def log(self) -> str:
        """What it wrote beside its socket."""
        try:
            return self.log_file.read_text()
        except OSError:
            return ""

    def kill(self) -> None:
        """End all of it, whatever it does."""
        path = Path(f"/proc/{self.keeper_pid}/task/{self.keeper_pid}/children")
        while self._keeper.poll() is None:
            for pid in path.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(0.1)
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                pipe.close()
