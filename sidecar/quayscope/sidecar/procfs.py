"""The few facts of /proc that the sidecar needs: who is whose child, since when, and at what cost.

Every function answers for a process that may end at any moment: None or an empty answer then, never an
error. OSError is raised only for want of our own descriptors or memory, which says nothing about the process.
Format of /proc/PID/stat: proc_pid_stat(5).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "TICK_NS",
    "Stat",
    "arguments",
    "children",
    "command_line",
    "cpu_clock",
    "cpu_ns",
    "descendants",
    "name",
    "pids",
    "stat",
]

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""Nanoseconds in a clock tick, the unit of times in /proc/PID/stat."""
_CPUCLOCK_SCHED = 2
_OUR_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_MAX_DESCENDANTS = 65_536
_MAX_ARGUMENTS = 32_768


class Stat(NamedTuple):
    """What /proc/PID/stat says.

    `cpu_ns` is user + system, `reaped_ns` that of children already waited for; `start_ticks` is in clock
    ticks since boot and tells a process from a later one under the same pid; `reaped_faults` are the page
    faults of the children waited for: it grows with each of them.
    """

    name: str
    state: str
    parent: int
    cpu_ns: int
    reaped_ns: int
    start_ticks: int
    threads: int = 1
    reaped_faults: int = 0


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in _OUR_TROUBLE:
            raise
        return None


def pids() -> Iterator[int]:
    """Yield the pid of every process that is visible."""
    with contextlib.suppress(OSError):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                yield int(entry.name)


def stat(pid: int) -> Stat | None:
    """Return the process's numbers, None when it is gone."""
    raw = _read(f"/proc/{pid}/stat")
    if raw is None:
        return None
    # The name is free text in parentheses: whatever follows the last one is numbers.
    head, _, tail = raw.rpartition(b")")
    fields = tail.split()
    try:
        user, system, reaped_user, reaped_system = (int(value) for value in fields[11:15])
        return Stat(
            name=head.partition(b"(")[2].decode(errors="replace"),
            state=fields[0].decode(),
            parent=int(fields[1]),
            cpu_ns=(user + system) * TICK_NS,
            reaped_ns=(reaped_user + reaped_system) * TICK_NS,
            start_ticks=int(fields[19]),
            threads=int(fields[17]),
            reaped_faults=int(fields[8]),
        )
    except (ValueError, IndexError):
        return None


def name(pid: int) -> str:
    """Return the kernel's name of the process, `` when it is gone."""
    return (_read(f"/proc/{pid}/comm") or b"").decode(errors="replace").rstrip("\n")


def command_line(pid: int) -> str:
    """Return the arguments joined by spaces; a program that rewrites its title shows the title."""
    raw = _read(f"/proc/{pid}/cmdline") or b""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def arguments(pid: int) -> list[str]:
    """Return the arguments one by one, of the first 32 kB; a program that rewrote its title has one: that."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read(_MAX_ARGUMENTS)
    except OSError as error:
        if error.errno in _OUR_TROUBLE:
            raise
        return []
    return [part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0")] if raw else []


def children(pid: int) -> list[int]:
    """Return the direct children of all of the process's threads."""
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for task in tasks:
        raw = _read(f"{task}/children")
        if raw is None:
            continue
        found.extend(int(entry) for entry in raw.split())
    if not found and not _has_children_file():
        # A kernel without CONFIG_PROC_CHILDREN: ask everybody for their parent.
        found = [other for other in pids() if (facts := stat(other)) is not None and facts.parent == pid]
    return found


def _has_children_file() -> bool:
    me = os.getpid()
    return Path(f"/proc/{me}/task/{me}/children").exists()


def descendants(pid: int) -> list[int]:
    """Return all processes below `pid`, parents before children, bounded."""
    found: list[int] = []
    pending = [pid]
    seen = {pid}
    while pending and len(found) < _MAX_DESCENDANTS:
        for child in children(pending.pop()):
            if child not in seen:
                seen.add(child)
                found.append(child)
                pending.append(child)
    return found


def cpu_clock(pid: int) -> int:
    """Return the id of the process's CPU clock, for clock_gettime(2)."""
    return (~pid << 3) | _CPUCLOCK_SCHED


def cpu_ns(pid: int) -> int | None:
    """Return the CPU time of all threads of the process, ended ones too; None when it is gone.

    Reads the process's CPU clock as clock_getcpuclockid(3) names it: exact to the nanosecond, permitted for
    any process, one system call. A zombie's clock is unreadable, like that of a process that is gone.
    """
    try:
        return time.clock_gettime_ns(cpu_clock(pid))
    except OSError:
        return None
