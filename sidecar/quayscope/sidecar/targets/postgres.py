"""Finding the processes to watch: the postmaster, its backends and what each of them is.

Process titles: Postgres sets them as `postgres: [CLUSTER: ]WHAT ...`, see `init_ps_display` and
`GetBackendTypeDesc` in its sources; a client backend's is `USER DATABASE HOST ACTIVITY`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quayscope.sidecar import procfs

__all__ = [
    "CLIENT_BACKEND",
    "UNKNOWN_BACKEND",
    "BackendPids",
    "Postmaster",
    "backend_type",
    "find_postmasters",
    "postmaster_at",
]

CLIENT_BACKEND = "client backend"
UNKNOWN_BACKEND = "unknown"
"""A backend whose title could not be read before it ended."""

_PROGRAMS = ("postgres", "postmaster")
_BACKGROUND = (
    ("archiver", "archiver"),
    ("autovacuum launcher", "autovacuum launcher"),
    ("autovacuum worker", "autovacuum worker"),
    ("background writer", "background writer"),
    ("checkpointer", "checkpointer"),
    ("io worker", "io worker"),
    ("logger", "logger"),
    ("logical replication", "logical replication"),
    ("parallel worker", "parallel worker"),
    ("slotsync worker", "slotsync worker"),
    ("startup", "startup"),
    ("stats collector", "stats collector"),
    ("walreceiver", "walreceiver"),
    ("walsender", "walsender"),
    ("walsummarizer", "walsummarizer"),
    ("walwriter", "walwriter"),
)
_RELIST_S = 1.0
_TITLE = re.compile(r"postgres: +(?:[^ :]+: )?(.*)", re.DOTALL)
_CLIENT = re.compile(r"\S+ \S+ \S+")


@dataclass(frozen=True)
class Postmaster:
    """A running Postgres server.

    `start_ticks` tells it from a later process under the same pid; `data_directory` is as the server's own
    mount namespace names it, empty when it may not be read.
    """

    pid: int
    start_ticks: int
    data_directory: str

    def alive(self) -> bool:
        """Whether this very process still runs."""
        facts = procfs.stat(self.pid)
        return facts is not None and facts.start_ticks == self.start_ticks and facts.state not in "ZX"

    def backends(self) -> list[int]:
        """Return the pids of its processes: client backends and background ones."""
        return procfs.children(self.pid)


class BackendPids:
    """Turns the pids that a server knows its processes by into those that we see.

    They differ where the server lives in a pid namespace of its own below ours.
    """

    def __init__(self, server: Postmaster) -> None:
        self._server = server
        self._nested = _innermost_pid(server.pid) != server.pid
        self._known: dict[int, int] = {}
        self._listed_at = 0.0

    def resolve(self, own_pid: int) -> int | None:
        """Return our pid of a backend; None when it is no process of this server."""
        pid = self._known.get(own_pid)
        if pid is not None and self._is_ours(pid):
            return pid
        if not self._nested:
            if not self._is_ours(own_pid):
                return None
            self._known[own_pid] = own_pid
            return own_pid
        now = time.monotonic()
        if now - self._listed_at >= _RELIST_S:
            self._listed_at = now
            self._known = {_innermost_pid(pid): pid for pid in self._server.backends()}
        return self._known.get(own_pid)

    def own(self, pid: int) -> int:
        """Return the pid by which the server knows a process that we see as `pid`."""
        return _innermost_pid(pid) if self._nested else pid

    def _is_ours(self, pid: int) -> bool:
        facts = procfs.stat(pid)
        return facts is not None and facts.parent == self._server.pid


def _innermost_pid(pid: int) -> int:
    with (
        contextlib.suppress(OSError, ValueError),
        open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return pid


def backend_type(pid: int) -> str | None:
    """Return what the process is, from its title; None while it has set none, or when it is gone."""
    match = _TITLE.match(procfs.command_line(pid))
    if match is None:
        return None
    title = match.group(1)
    for prefix, kind in _BACKGROUND:
        if title.startswith(prefix):
            return kind
    return CLIENT_BACKEND if _CLIENT.match(title) else None


def _is_postgres(pid: int) -> bool:
    try:
        program = Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
    except OSError:
        # Another user's executable is not ours to read; its name is public.
        program = procfs.name(pid)
    return program in _PROGRAMS


def postmaster_at(pid: int) -> Postmaster | None:
    """Return the server whose postmaster is `pid`; None when no such process runs."""
    facts = procfs.stat(pid)
    if facts is None or facts.state in "ZX" or not _is_postgres(pid):
        return None
    try:
        directory = str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        directory = ""
    return Postmaster(pid, facts.start_ticks, directory)


def find_postmasters(candidates: Iterable[int] | None = None) -> list[Postmaster]:
    """Return every visible server, the longest running first.

    A postmaster is a process of Postgres whose parent is none. A fork that has not set its title yet, or a
    stand-alone backend, has no children: it is taken for one only when there is nothing else.
    """
    servers = {pid for pid in (procfs.pids() if candidates is None else candidates) if _is_postgres(pid)}
    found = []
    for pid in servers:
        facts = procfs.stat(pid)
        if facts is None or facts.parent in servers:
            continue
        server = postmaster_at(pid)
        if server is not None and "--single" not in procfs.command_line(pid):
            found.append(server)
    return sorted(found, key=lambda server: (not server.backends(), server.start_ticks, server.pid))
