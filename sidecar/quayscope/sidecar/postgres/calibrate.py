"""Finds a running server's layout and proves it, or refuses with the reason.

Nothing is taken from the version alone. Every process of the server names its own entry (`MyBEEntry`; 13,
which does not export it: the one word of its data that points to an entry with its pid) and its own PGPROC
(`MyProc`). From there the arrays are measured: each entry points to its own piece of two arrays of texts, and
each PGPROC to its own semaphore, so even spacing of those pointers gives the first, the size and the number
of the elements. The layout holds only if all processes agree on it, and with what the server says of itself
(`MaxBackends`, `track_activity_query_size`).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from quayscope.sidecar.postgres.enums import Names, names_of
from quayscope.sidecar.postgres.layout import (
    ACTIVITY_POINTER,
    APPLICATION_POINTER,
    APPLICATION_SIZE,
    ENTRIES_BEYOND,
    ENTRY_SIZES,
    EPOCH_US,
    LEADER_OFFSETS,
    PROCS_BEYOND,
    SEMAPHORE_POINTER,
    WAIT_OFFSET_13,
    Entry,
    Layout,
)
from quayscope.sidecar.postgres.memory import read_memory
from quayscope.sidecar.postgres.program import Program, Region, Unreadable, program_of, regions
from quayscope.sidecar.targets import Postmaster

__all__ = ["MAX_BACKENDS", "ReadMemory", "calibrate"]

MAX_BACKENDS = 16_384
"""Most backends of a server that is watched: `max_connections` and what Postgres adds to it."""
ReadMemory = Callable[[int, int, int], bytes]
"""Reads `size` bytes at an address of a process, fewer where it ends; raises OSError."""

_MAX_ASKED = 64
"""Processes that are asked; they all have to agree."""
_ATTEMPTS = 3
_PROC_SIZES = range(512, 1409, 8)
_MAX_SEMAPHORE = 4096
_MAX_DATA = 64 << 20
_DAY_US = 86_400_000_000


class _Process(NamedTuple):
    """What one process of the server says of itself; `wait` is 0 in 13."""

    pid: int
    own_pid: int
    entry: int
    proc: int
    wait: int


def calibrate(server: Postmaster, read: ReadMemory = read_memory) -> Layout:
    """Return the layout of a running server; takes some 30 ms of CPU the first time.

    Raises `Unreadable` when it cannot be read or does not agree.
    """
    program = program_of(server)
    needed = {"MaxBackends", "MyProc", "MyProcPid", "ProcGlobal", "pgstat_track_activity_query_size"}
    if program.major > 13:
        needed |= {"MyBEEntry", "my_wait_event_info"}
    missing = sorted(needed - program.addresses.keys())
    if missing:
        raise Unreadable(f"the executable of postmaster {server.pid} does not export {', '.join(missing)}")
    for attempt in range(1, _ATTEMPTS + 1):
        # Processes come and go, and write, while they are asked: what does not agree is asked again.
        try:
            return _Measure(server, program, read).layout()
        except Unreadable:
            if attempt == _ATTEMPTS:
                raise
        except OSError as error:
            if attempt == _ATTEMPTS:
                raise Unreadable(f"process_vm_readv: {error.strerror}") from error
        time.sleep(0.02)
    raise AssertionError("unreachable")


class _Measure:
    """One attempt at one server."""

    def __init__(self, server: Postmaster, program: Program, read: ReadMemory) -> None:
        self._server = server
        self._program = program
        self._read = read
        self._names = names_of(program.major)
        self._shared = [one for one in regions(server.pid) if one.permissions.startswith("rw-s")]
        if not self._shared:
            raise Unreadable(f"postmaster {server.pid} has no shared memory mapped")
        self._max_backends = self._int(program.addresses["MaxBackends"])
        if not 0 < self._max_backends <= MAX_BACKENDS:
            raise Unreadable(f"MaxBackends is {self._max_backends}, not 1 to {MAX_BACKENDS}")

    def layout(self) -> Layout:
        """Measure everything once."""
        processes = self._processes()
        if len(processes) < 2:
            raise Unreadable(f"only {len(processes)} processes of the server can be asked")
        segment = self._segment(processes[0].entry)
        anchor = processes[0].entry
        size = ENTRY_SIZES[self._program.major]
        activity_size = self._int(self._program.addresses["pgstat_track_activity_query_size"])
        first, slots = self._entries(anchor, size, activity_size, segment)
        procs = self._word(self._word(self._program.addresses["ProcGlobal"]))
        proc_size, proc_count = self._proc_array(procs, segment)
        proc_pid = self._proc_pid(processes)
        applications, activities = struct.unpack("<QQ", self._at(first + APPLICATION_POINTER, 16))
        layout = Layout(
            major=self._program.major,
            segment=(segment.start, segment.end),
            inode=segment.inode,
            entries=first,
            entry_size=size,
            slots=slots,
            applications=applications,
            activities=activities,
            activity_size=activity_size,
            procs=procs,
            proc_size=proc_size,
            proc_count=proc_count,
            proc_pid=proc_pid,
            proc_wait=self._proc_wait(processes),
            proc_leader=LEADER_OFFSETS[self._program.major],
        )
        for process in processes:
            _prove(layout, self._names, process, self._read, self._server.pid)
        return layout

    def _at(self, address: int, size: int, pid: int = 0) -> bytes:
        data = self._read(pid or self._server.pid, address, size)
        if len(data) != size:
            raise Unreadable(f"memory at {address:#x} ends too early")
        return data

    def _word(self, address: int, pid: int = 0) -> int:
        return int.from_bytes(self._at(address, 8, pid), "little")

    def _int(self, address: int, pid: int = 0) -> int:
        return int.from_bytes(self._at(address, 4, pid), "little", signed=True)

    def _segment(self, address: int) -> Region:
        for region in self._shared:
            if region.start <= address < region.end:
                return region
        raise Unreadable(f"{address:#x} is in no shared memory")

    def _is_shared(self, address: int) -> bool:
        return any(region.start <= address < region.end for region in self._shared)

    def _processes(self) -> list[_Process]:
        """Ask the server's processes; those that have no entry (yet, or at all) are left out."""
        found = []
        for pid in self._server.backends()[:_MAX_ASKED]:
            try:
                process = self._ask(pid)
            except OSError:
                continue  # it has ended
            if process is not None:
                found.append(process)
        return found

    def _ask(self, pid: int) -> _Process | None:
        addresses = self._program.addresses
        own_pid = self._int(addresses["MyProcPid"], pid)
        proc = self._word(addresses["MyProc"], pid)
        if not self._is_shared(proc) or own_pid <= 0:
            return None
        if self._program.major == 13:
            entry, wait = self._entry_13(pid, own_pid), 0
        else:
            entry = self._word(addresses["MyBEEntry"], pid)
            wait = self._word(addresses["my_wait_event_info"], pid)
        if not self._is_shared(entry) or self._int(entry + 4) != own_pid:
            return None
        return _Process(pid, own_pid, entry, proc, wait)

    def _entry_13(self, pid: int, own_pid: int) -> int:
        """Find the word of its data that points at an entry with its pid; 0 where there is not one alone."""
        wanted = struct.pack("<i", own_pid)
        found: set[int] = set()
        for start, end in self._program.data:
            data = self._read(pid, start, min(end - start, _MAX_DATA))
            for word in set(memoryview(data)[: len(data) & ~7].cast("Q")):
                if (
                    self._is_shared(word)
                    and word % 8 == 0
                    and self._read(self._server.pid, word + 4, 4) == wanted
                ):
                    found.add(word)
        return found.pop() if len(found) == 1 else 0

    def _entries(self, anchor: int, size: int, activity_size: int, segment: Region) -> tuple[int, int]:
        """Return the first entry and how many there are: as far as their pointers are evenly spaced."""
        wanted = self._max_backends + ENTRIES_BEYOND[self._program.major]
        room = wanted + 1
        low = anchor - min(room, (anchor - segment.start) // size) * size
        high = min(anchor + room * size, segment.end - (segment.end - anchor) % size)
        data = self._at(low, high - low)
        words = memoryview(data).cast("Q")
        applications = words[APPLICATION_POINTER // 8 :: size // 8].tolist()
        activities = words[ACTIVITY_POINTER // 8 :: size // 8].tolist()
        at = (anchor - low) // size
        application, activity = applications[at], activities[at]
        if not (self._is_shared(application) and self._is_shared(activity)):
            raise Unreadable("an entry's texts lie outside the shared memory")

        def even(index: int) -> bool:
            return (
                applications[index] == application + (index - at) * APPLICATION_SIZE
                and activities[index] == activity + (index - at) * activity_size
            )

        first = last = at
        while first > 0 and even(first - 1):
            first -= 1
        while last + 1 < len(applications) and even(last + 1):
            last += 1
        count = last - first + 1
        if count != wanted:
            raise Unreadable(
                f"{count}, not {wanted} evenly spaced entries of {size} bytes with texts of {activity_size}"
            )
        return low + first * size, count

    def _proc_array(self, procs: int, segment: Region) -> tuple[int, int]:
        """Return the size and the number of PGPROCs: as far as their semaphores are evenly spaced."""
        if not segment.start <= procs < segment.end:
            raise Unreadable("the PGPROC array lies outside the shared memory of the entries")
        wanted = self._max_backends + PROCS_BEYOND[self._program.major]
        room = wanted + 1
        data = self._at(procs, min(room * _PROC_SIZES[-1], (segment.end - procs) & ~7))
        words = memoryview(data).cast("Q")
        found = []
        for size in _PROC_SIZES:
            pointers = words[SEMAPHORE_POINTER // 8 :: size // 8].tolist()[:room]
            step = pointers[1] - pointers[0]
            if not (0 < step <= _MAX_SEMAPHORE and self._is_shared(pointers[0])):
                continue
            count = 2
            while count < len(pointers) and pointers[count] - pointers[count - 1] == step:
                count += 1
            if count == wanted:
                found.append((size, count))
        if len(found) != 1:
            raise Unreadable(f"{len(found)} sizes of PGPROC are possible for {wanted} of them: {found[:4]}")
        return found[0]

    def _proc_pid(self, processes: list[_Process]) -> int:
        """Return the offset of the pid in PGPROC (its latch's owner, which is the same process)."""
        possible = set(range(0, 128, 4))
        for process in processes:
            words = memoryview(self._at(process.proc, 128)).cast("i")
            possible &= {4 * index for index, word in enumerate(words) if word == process.own_pid}
        if not possible:
            raise Unreadable("no field of PGPROC holds the pid of its process")
        return max(possible)

    def _proc_wait(self, processes: list[_Process]) -> int:
        """Return the offset of wait_event_info: what `my_wait_event_info` points at, from 14 on."""
        if self._program.major == 13:
            return WAIT_OFFSET_13
        offsets = {process.wait - process.proc for process in processes}
        if len(offsets) != 1:
            raise Unreadable(f"wait_event_info at {len(offsets)} different offsets")
        return offsets.pop()


def _prove(layout: Layout, names: Names, process: _Process, read: ReadMemory, postmaster: int) -> None:
    """Check what one process shows under the layout; raises `Unreadable`."""
    slot, odd = divmod(process.entry - layout.entries, layout.entry_size)
    if odd or not 0 <= slot < layout.slots:
        raise Unreadable(f"process {process.pid} has its entry outside the array")
    index, odd = divmod(process.proc - layout.procs, layout.proc_size)
    if odd or not 0 <= index < layout.proc_count:
        raise Unreadable(f"process {process.pid} has its PGPROC outside the array")
    if not 0 < layout.proc_wait <= layout.proc_size - 4:
        raise Unreadable(f"wait_event_info at offset {layout.proc_wait} of {layout.proc_size}")
    entry = Entry(*layout.entry.unpack(read(postmaster, process.entry, layout.entry.size)))
    now_us = time.time_ns() // 1000 - EPOCH_US
    agrees = (
        entry.pid in (process.own_pid, 0)  # it may just have ended
        and layout.fits(slot, entry)
        and 0 < entry.backend_type < len(names.backend_types)
        and 0 <= entry.state < len(names.states)
        and 0 < entry.proc_start < now_us + _DAY_US
    )
    if not agrees:
        raise Unreadable(f"process {process.pid} has an entry that makes no sense")
    wait = int.from_bytes(read(postmaster, process.proc + layout.proc_wait, 4), "little")
    # Extensions and later minor releases have events of their own, in the classes that there are.
    if names.wait(wait).kind == "unknown" or (layout.major == 13 and not names.known_wait(wait)):
        raise Unreadable(f"process {process.pid} has the wait event {wait:#x}")
