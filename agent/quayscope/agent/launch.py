"""Where no sidecar listens: starts the relay's helper process, one a pod, whichever worker is first.

It must be no child of gunicorn's: a master that is the container's first process reaps it, and halts on the
exit codes 3 and 4. So it forks once more and is left behind; what is spawned here ends at once.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Mapping

from quayscope.agent.early import posix_spawn, waitpid
from quayscope.agent.faults import add
from quayscope.agent.settings import COLLECTOR, DEFAULT_SOCKET, PYROSCOPE, SOCKET

__all__ = ["LOCK_FD", "Helper", "find_socket"]

LOCK_FD = "QUAYSCOPE_LOCK_FD"
"""Tells the helper which descriptor is its lock."""
_AGAIN_S = 5.0
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - may lie in an archive
_CODE = (
    "import sys; sys.path[:] = [path for path in sys.path if path] + [{root!r}]; "
    "from quayscope.relay.program import main; main()"
)
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Helper:
    """Starts the helper where the environment says where to send to. Never waits."""

    def __init__(self, socket: str, environment: Mapping[str, str]) -> None:
        self._socket = socket
        self._wanted = bool(environment.get(COLLECTOR) or environment.get(PYROSCOPE))
        self._next_try = 0.0
        self._launching = 0

    def step(self, *, alone: bool) -> None:
        """Start one when nobody listens (`alone`) and no other worker is at it."""
        if self._launching:
            self._reap()
        elif self._wanted and alone and time.monotonic() >= self._next_try:
            self._next_try = time.monotonic() + _AGAIN_S
            self._start()

    def _start(self) -> None:
        # Who holds the lock is the helper, which inherits it, or the worker that is about to start one.
        lock = os.open(f"{self._socket}.lock", _OPEN, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            # Under another number it is passed on; under this one it closes in whatever else is started.
            passed = 3 if lock != 3 else 4
            self._launching = posix_spawn(
                sys.executable,
                [sys.executable, "-S", "-E", "-c", _CODE.format(root=_ROOT)],
                {**os.environ, LOCK_FD: str(passed), SOCKET: self._socket},
                file_actions=[(os.POSIX_SPAWN_DUP2, lock, passed)],
                setsigmask=[],
                setsigdef=[number for number in signal.valid_signals() if number not in _FIXED],
            )
            add("helpers_started")
        finally:
            os.close(lock)

    def _reap(self) -> None:
        try:
            pid, _ = waitpid(self._launching, os.WNOHANG)
        except ChildProcessError:
            pid = self._launching  # somebody who waits for all children was faster
        if pid:
            self._launching = 0


_FIXED = frozenset((signal.SIGKILL, signal.SIGSTOP))


def find_socket(environment: Mapping[str, str]) -> str:
    """Return where to listen and connect: the socket asked for, or where that folder cannot be, our own.

    Raises OSError where a folder by our name in /tmp is somebody else's.
    """
    given = environment.get(SOCKET)
    if given:
        return given
    folder = os.path.dirname(DEFAULT_SOCKET)  # noqa: PTH120
    if os.path.isdir(folder) or not (environment.get(COLLECTOR) or environment.get(PYROSCOPE)):  # noqa: PTH112
        return DEFAULT_SOCKET
    folder = f"/tmp/quayscope-{os.getuid()}"  # noqa: S108 - its owner and mode are checked
    try:
        os.mkdir(folder, 0o700)  # noqa: PTH102
    except FileExistsError:
        found = os.lstat(folder)
        if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
            raise
    return f"{folder}/agent.sock"
