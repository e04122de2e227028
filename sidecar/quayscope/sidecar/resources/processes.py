"""The processes that are visible: whose child each is, and what it used since it was last looked at.

A process that has not run since the last look has used nothing: its CPU clock says so for a quarter of a
microsecond, and its files are not read again. That is what makes a pod of 200 processes cheap.
Formats: proc_pid_io(5), and `sched-stats.rst` of the kernel for schedstat (nanoseconds).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from quayscope.sidecar import procfs
from quayscope.sidecar.resources.tried import PROCESS_IO, Tried

__all__ = ["MOST_PROCESSES", "Process", "Processes", "Used"]

MOST_PROCESSES = 8192
"""As many are known; those beyond are counted as left out."""
_THREADS_A_LOOK = 64
"""A process with more threads has their delays read by turns: they are sums, nothing is lost by that."""


@dataclass
class Used:
    """What a process used between two looks: bytes read from and written to disks, run-queue delay in ns."""

    read: int = 0
    written: int = 0
    delay_ns: int = 0


@dataclass(slots=True)
class Process:
    """One process. `clock_ns` is its own CPU, `reaped_ns` that of the children it waited for."""

    pid: int
    name: str
    parent: int
    start_ticks: int
    threads: int
    reaped_ns: int
    reaped_faults: int
    clock_ns: int
    met_at: int
    ran: bool = True
    io: tuple[int, int] | None = None
    delays: dict[str, int] = field(default_factory=dict)
    owed: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes that its ended children were seen to read and write: the kernel adds them to its own."""


class Processes:
    """Knows every visible process, `look` once a second; `left_out` counts those beyond the bound."""

    def __init__(self) -> None:
        self._known: dict[int, Process] = {}
        self._children: dict[int, list[Process]] = {}
        self._looks = 0
        self.left_out = 0

    def look(self) -> None:
        """Notice who came, went, and ran since the last look."""
        self._looks += 1
        with os.scandir("/proc") as entries:
            alive = {int(entry.name) for entry in entries if entry.name.isdigit()}
        for pid in [pid for pid in self._known if pid not in alive]:
            self._forget(self._known.pop(pid))
        new = sorted(alive - self._known.keys())
        room = MOST_PROCESSES - len(self._known)
        self.left_out = max(0, len(new) - room)
        for process in list(self._known.values()):
            self._update(process)
        for pid in new[:room]:
            self._add(pid)
        self._children = {}
        for process in self._known.values():
            self._children.setdefault(process.parent, []).append(process)

    def get(self, pid: int) -> Process | None:
        """Return the process, None when it is not known."""
        return self._known.get(pid)

    def chosen(self, pids: Iterable[int]) -> list[Process]:
        """Return those of `pids` that are known."""
        return [process for pid in pids if (process := self._known.get(pid)) is not None]

    def tree(self, root: int) -> list[Process]:
        """Return the process and all below it, parents before children; empty when it is not known."""
        found = self.chosen([root])
        for process in found:
            # Grows while it is walked: a child is appended after its parent was met. A process is the child
            # of one, so this ends.
            found += self._children.get(process.pid, ())
        return found

    def used(self, process: Process, tried: Tried) -> Used:
        """Return what the process used since this was last asked; at first its I/O so far is none of ours.

        Ask once a look, after it. The delay is that of all its living threads, from the first time on.
        """
        used = Used()
        if process.ran or process.io is None:
            self._read_io(process, used, tried)
        if process.ran or not process.delays:
            used.delay_ns = self._delay(process)
        return used

    def _add(self, pid: int) -> None:
        clock_ns = procfs.cpu_ns(pid)
        facts = procfs.stat(pid)
        if facts is not None:
            self._known[pid] = Process(
                pid,
                facts.name,
                facts.parent,
                facts.start_ticks,
                facts.threads,
                facts.reaped_ns,
                facts.reaped_faults,
                facts.cpu_ns if clock_ns is None else clock_ns,
                self._looks,
            )

    def _update(self, process: Process) -> None:
        clock_ns = procfs.cpu_ns(process.pid)
        parent_left = process.parent != 0 and process.parent not in self._known
        process.ran = clock_ns != process.clock_ns
        if not (process.ran or parent_left):
            return
        facts = procfs.stat(process.pid)
        if facts is None:
            return  # ended since the listing: the next one lacks it
        if facts.start_ticks != process.start_ticks:
            # Already another process, which is met at the next look.
            self._forget(self._known.pop(process.pid))
            return
        process.parent, process.name, process.threads = facts.parent, facts.name, facts.threads
        if process.owed != [0, 0] and facts.reaped_faults == process.reaped_faults:
            # Nobody was waited for (a parent that ignores SIGCHLD): the kernel dropped the children's sums.
            process.owed = [0, 0]
        process.reaped_ns, process.reaped_faults = facts.reaped_ns, facts.reaped_faults
        # A zombie has no clock, but what it used stands in its files until it is waited for.
        process.clock_ns = max(process.clock_ns, facts.cpu_ns) if clock_ns is None else clock_ns

    def _forget(self, process: Process) -> None:
        parent = self._known.get(process.parent)
        if parent is not None and process.io is not None:
            parent.owed[0] += process.io[0]
            parent.owed[1] += process.io[1]

    def _read_io(self, process: Process, used: Used, tried: Tried) -> None:
        try:
            with open(f"/proc/{process.pid}/io", "rb") as file:
                lines = file.read().split(b"\n")
            now = int(lines[4][12:]), int(lines[5][13:])  # read_bytes: N, write_bytes: N
        except (OSError, ValueError, IndexError) as error:
            if isinstance(error, PermissionError):
                tried.refused(PROCESS_IO, "/proc/PID/io", error)
            return
        tried.worked(PROCESS_IO)
        if process.io is None and process.met_at == self._looks > 1:
            process.io = (0, 0)  # it began since the look before: all of it is new
        if process.io is not None:
            used.read = max(0, now[0] - process.io[0] - process.owed[0])
            used.written = max(0, now[1] - process.io[1] - process.owed[1])
        process.owed = [0, 0]
        process.io = now

    def _delay(self, process: Process) -> int:
        if process.threads == 1:
            paths: Iterable[tuple[str, str]] = [(str(process.pid), f"/proc/{process.pid}/schedstat")]
        else:
            paths = self._threads_due(process)
        grown = 0
        for thread, path in paths:
            with contextlib.suppress(OSError, ValueError, IndexError), open(path, "rb") as file:
                now = int(file.read().split()[1])
                grown += max(0, now - process.delays.get(thread, 0))
                process.delays[thread] = now
        return grown

    def _threads_due(self, process: Process) -> Iterator[tuple[str, str]]:
        directory = f"/proc/{process.pid}/task"
        try:
            with os.scandir(directory) as entries:
                threads = [entry.name for entry in entries]
        except OSError:
            return
        if len(process.delays) > len(threads):
            process.delays = {name: process.delays[name] for name in threads if name in process.delays}
        turns = -(-len(threads) // _THREADS_A_LOOK)
        for name in threads:
            if int(name) % turns == self._looks % turns:
                yield name, f"{directory}/{name}/schedstat"
