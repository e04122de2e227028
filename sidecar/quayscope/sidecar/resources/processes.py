"""The processes that are visible: whose child each is, and what it used since it was last looked at.

A process that has not run since the last look has used nothing: its CPU clock says so for a quarter of a
microsecond, and its files are not read again. Those of the others are held open: opening and closing one
costs three times as much as reading it. That is what makes a pod of 200 processes cheap.
Formats: proc_pid_io(5), and `sched-stats.rst` of the kernel for schedstat (nanoseconds).
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from quayscope.sidecar import procfs
from quayscope.sidecar.resources.tried import PROCESS_IO, Tried

__all__ = ["MOST_PROCESSES", "Process", "Processes", "Used"]

MOST_PROCESSES = 8192
"""As many are known; those beyond are counted as left out."""
_MOST_HELD = 2048
_SEEN_EVERY = 8
"""Without children a process has its stat read in one look of eight: only its threads may be more."""
_IO, _SCHEDSTAT = "io", "schedstat"
_MOST_BYTES = 1024
_THREADS_A_LOOK = 64
"""A process with more threads has their delays read by turns: they are sums, nothing is lost by that."""


@dataclass(slots=True)
class Used:
    """What a process used between two looks: bytes read from and written to disks, run-queue delay in ns."""

    read: int = 0
    written: int = 0
    delay_ns: int = 0


_NOTHING = Used()


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
    clock: int
    ran: bool = True
    ended: bool = False
    reaping: bool = False
    io: tuple[int, int] | None = None
    delays: dict[str, int] = field(default_factory=dict)
    owed: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes that its ended children were seen to read and write: the kernel adds them to its own."""
    files: dict[str, int] = field(default_factory=dict)
    """Descriptors of its files that are held open."""


class Processes:
    """Knows every visible process, `look` once a second; `left_out` counts those beyond the bound.

    Holds at most 2,048 descriptors, and at most a quarter of what RLIMIT_NOFILE allows.
    """

    def __init__(self) -> None:
        self._room = min(_MOST_HELD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._known: dict[int, Process] = {}
        self._children: dict[int, list[Process]] = {}
        self._looks = 0
        self._last_made: bytes | None = None
        self.left_out = 0

    def look(self) -> None:
        """Notice who came, went, and ran since the last look."""
        self._looks += 1
        last_made = _last_made()
        for process in list(self._known.values()):
            try:
                clock_ns = time.clock_gettime_ns(process.clock)
            except OSError:
                process.ran = not (process.ended and _is_there(process.pid))
                if process.ran:
                    self._update(process)
                continue
            before, process.clock_ns = process.clock_ns, clock_ns
            process.ran = clock_ns != before
            if process.parent not in self._known:
                if process.parent or process.ran:
                    self._update(process)
            elif process.ran and (
                process.pid in self._children or clock_ns < before or self._is_due(process)
            ):
                self._update(process)
        if last_made is None or last_made != self._last_made:
            self._list()
        self._last_made = last_made
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
        if not process.ran and process.delays and process.io is not None:
            return _NOTHING
        used = Used()
        if process.ran or (process.io is None and self._is_due(process)):
            self._read_io(process, used, tried)
        if process.ran or not process.delays:
            used.delay_ns = self._delay(process)
        return used

    def close(self) -> None:
        """Close what is held open."""
        for process in self._known.values():
            self._close(process)

    def _is_due(self, process: Process) -> bool:
        return process.met_at == self._looks or (process.pid + self._looks) % _SEEN_EVERY == 0

    def _list(self) -> None:
        with os.scandir("/proc") as entries:
            alive = {int(entry.name) for entry in entries if entry.name.isdigit()}
        new = sorted(alive - self._known.keys())
        room = MOST_PROCESSES - len(self._known)
        self.left_out = max(0, len(new) - room)
        for pid in new[:room]:
            self._add(pid)

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
                procfs.cpu_clock(pid),
            )

    def _update(self, process: Process) -> None:
        facts = procfs.stat(process.pid)
        if facts is None or facts.start_ticks != process.start_ticks:
            if self._known.pop(process.pid, None) is not None:
                self._forget(process)
            return
        process.parent, process.name, process.threads = facts.parent, facts.name, facts.threads
        process.reaping = facts.reaped_faults != process.reaped_faults
        process.reaped_ns, process.reaped_faults = facts.reaped_ns, facts.reaped_faults
        # A zombie has no clock, but what it used stands in its files until it is waited for.
        process.ended = facts.state == "Z"
        process.clock_ns = max(process.clock_ns, facts.cpu_ns) if process.ended else process.clock_ns

    def _close(self, process: Process) -> None:
        for descriptor in process.files.values():
            os.close(descriptor)
        self._room += len(process.files)
        process.files.clear()

    def _read(self, process: Process, name: str) -> bytes:
        """Return the contents of a file of a process; raises OSError."""
        held = process.files.get(name)
        if held is not None:
            return os.pread(held, _MOST_BYTES, 0)
        descriptor = os.open(f"/proc/{process.pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        if self._room > 0:
            self._room -= 1
            process.files[name] = descriptor
            return os.pread(descriptor, _MOST_BYTES, 0)
        try:
            return os.read(descriptor, _MOST_BYTES)
        finally:
            os.close(descriptor)

    def _forget(self, process: Process) -> None:
        self._close(process)
        parent = self._known.get(process.parent)
        if parent is not None and process.io is not None:
            parent.owed[0] += process.io[0]
            parent.owed[1] += process.io[1]

    def _read_io(self, process: Process, used: Used, tried: Tried) -> None:
        try:
            words = self._read(process, _IO).split()
            now = int(words[9]), int(words[11])  # read_bytes: N, write_bytes: N
        except ProcessLookupError:
            self._update(process)  # the one that was met has ended, whoever has its pid now
            return
        except (OSError, ValueError, IndexError) as error:
            if not isinstance(error, FileNotFoundError):
                tried.refused(
                    PROCESS_IO, "/proc/PID/io", error if isinstance(error, OSError) else "malformed"
                )
            return
        tried.worked(PROCESS_IO)
        if process.io is None and process.met_at == self._looks > 1:
            process.io = (0, 0)  # it began since the look before: all of it is new
        if process.io is not None:
            if now == process.io:
                return
            if not process.reaping:
                # Nobody was waited for (SIGCHLD is ignored): the kernel dropped the children's sums.
                process.owed[:] = 0, 0
            used.read = max(0, now[0] - process.io[0] - process.owed[0])
            used.written = max(0, now[1] - process.io[1] - process.owed[1])
            process.owed[:] = 0, 0
        process.io = now

    def _delay(self, process: Process) -> int:
        if process.threads == 1:
            with contextlib.suppress(OSError):
                return _grown(process, str(process.pid), self._read(process, _SCHEDSTAT))
            return 0
        grown = 0
        for thread, path in self._threads_due(process):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                grown += _grown(process, thread, file.read())
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


def _grown(process: Process, thread: str, schedstat: bytes) -> int:
    fields = schedstat.split()
    if len(fields) < 2 or not fields[1].isdigit():
        return 0
    now = int(fields[1])
    grown = max(0, now - process.delays.get(thread, 0))
    process.delays[thread] = now
    return grown


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _last_made() -> bytes | None:
    """Return the pid given out last: unless it changed nothing is new, and /proc need not be listed.

    The last field of /proc/loadavg, of our own pid namespace. Listing 200 processes takes 0.5 ms.
    """
    try:
        with open("/proc/loadavg", "rb") as file:
            return file.read().split()[-1]
    except (OSError, IndexError):
        return None
