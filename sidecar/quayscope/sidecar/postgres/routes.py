"""Two ways to the same shared memory: mapped where that is permitted, else one system call a look.

Mapping goes through /proc/PID/map_files, which takes CHECKPOINT_RESTORE or SYS_ADMIN (proc_pid_map_files(5));
process_vm_readv(2) takes the same user, or SYS_PTRACE. The arrays are the same, and so is what they show.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple, Protocol

from quayscope.sidecar.postgres.layout import APPLICATION_SIZE, ENTRY_HEAD, TIMES_SIZE, Layout
from quayscope.sidecar.postgres.memory import IoVec, held_readv, process_vm_readv, read_memory
from quayscope.sidecar.targets import Postmaster

__all__ = ["Copy", "Look", "MappedMemory", "Parts", "ReadMemory", "SharedMemory", "cut_text"]

_WORD = 4
_HEAD = 8
_VECTOR = 16
_NEAR = 8
"""PGPROCs that are copied along rather than left out, of some 900 bytes each."""
_SHORT = 8
"""Bytes of an activity's text whose `rest` is read: what ends a transaction is no longer."""
_MAX_LOOK = 4 << 20
"""Bytes that one call copies of changed slots."""
_MAX_VECTORS = 1024
"""UIO_MAXIOV: stretches that one call may name."""

Parts = tuple[int, bytes, bytes, bytes, bytes, int]
"""Of one slot, read in this order: the counter's lowest byte, the counter and pid, the head of the entry, its
text, counter and pid again, and the lowest byte. They belong together where the counter is the same before
and after, and even; its lowest byte tells most that do not in no time."""
Copy = Callable[[], Parts]
"""Reads one slot's parts. Raises OSError or ValueError when they are gone."""


class Look(NamedTuple):
    """One slot, its parts read in this order; each `counter` is 8 bytes, the slot's counter and pid.

    The times are the head of the entry again, up to its last time. `rest` is what lies behind a short
    activity's end, up to the next zero.
    """

    entry: bytes
    entry_counter: bytes
    wait: int
    application: bytes
    activity: bytes
    times: bytes
    counter: bytes
    application_again: bytes
    rest: bytes = b""

    def steady(self) -> bool:
        """Whether all parts belong together.

        Nobody wrote meanwhile: then they do. A backend that runs many short statements inside one (a
        function, a loop) writes its entry each microsecond, though nothing in it changes that is read here:
        then the entry and its times have to be whole, of the same activity and state, and the name the same
        before and after.
        """
        first, last = self.entry[:_HEAD], self.counter
        if first[0] & 1 or last[0] & 1:
            return False
        return first == last or (
            first == self.entry_counter
            and self.times[:_HEAD] == last
            and self.times[_WORD:] == self.entry[_WORD:TIMES_SIZE]
            and self.application == self.application_again
        )


class SharedMemory(Protocol):
    """A server's arrays. Every method raises OSError when they are gone."""

    route: str

    def tick(self, procs: Sequence[int]) -> tuple[tuple[int, ...], bytes]:
        """Return the `wait_event_info` of those PGPROCs, then the counter and pid of every slot."""

    def look(self, wanted: Sequence[tuple[int, int]]) -> list[Look]:
        """Read slots whole, each with its PGPROC: pairs of both indices."""

    def copier(self, slot: int, size: int) -> Copy:
        """Return what reads one slot with `size` bytes of its text, with all made ready that can be."""

    def find(self, server_pid: int) -> int | None:
        """Return the slot of a process; for one that has just come."""

    def proc_pids(self) -> list[int]:
        """Return the pid in each PGPROC, 0 where it is free."""

    def leader(self, proc: int) -> int:
        """Return the address of the PGPROC that leads this one's group, 0: none."""

    def close(self) -> None:
        """Let go of the memory."""


class _InUse:
    """Which slots are looked at each tick.

    A server gives its slots to connections from the front, or in turn: those up to the highest in use and
    some beyond, and those at the end (autovacuum, workers, auxiliary processes) are looked at each tick; the
    idle rest between them each tenth. Where a server has few slots, all are.
    """

    _RESCAN = 10
    _BEYOND = 64
    _TAIL = 160

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._tail = max(0, slots - self._TAIL)
        self._high = slots
        self._ticks = 0

    def stretches(self) -> list[tuple[int, int]]:
        """Return the slots of this tick, first to last."""
        self._ticks += 1
        front = self._high + self._BEYOND
        if self._ticks % self._RESCAN == 0 or front >= self._tail:
            return [(0, self._slots)]
        return [(0, front), (self._tail, self._slots)]

    def found(self, heads: bytes, stretches: list[tuple[int, int]]) -> None:
        """Take in what the tick found."""
        end = min(stretches[0][1], self._tail)
        whole = len(stretches) == 1
        first = 0 if whole else self._high
        pids = memoryview(heads[first * _HEAD : end * _HEAD]).cast("I")[1::2]
        if whole or any(pids):
            used = max((first + index + 1 for index, pid in enumerate(pids) if pid), default=0)
            self._high = used if whole else max(self._high, used)


class MappedMemory:
    """The segment mapped into our own address space. Raises OSError (EPERM) when that is not permitted."""

    route = "mapped through /proc/PID/map_files"

    def __init__(self, server: Postmaster, layout: Layout) -> None:
        self._layout = layout
        start, end = layout.segment
        path = f"/proc/{server.pid}/map_files/{start:x}-{end:x}"
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            if facts.st_ino != layout.inode:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            self._map = mmap.mmap(descriptor, end - start, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(descriptor)
        view = memoryview(self._map)
        self._words = view.cast("I")
        self._pairs = view.cast("Q")
        self._entries = layout.entries - start
        self._procs = layout.procs - start
        self._applications = layout.applications - start
        self._activities = layout.activities - start
        self._view = view
        self._in_use = _InUse(layout.slots)
        self._seen = bytearray(layout.slots * _HEAD)
        self._heads = self._strided(self._pairs, self._entries, layout.entry_size, layout.slots, _HEAD)
        self._waits = self._strided(
            self._words, self._procs + layout.proc_wait, layout.proc_size, layout.proc_count, _WORD
        )
        self._pids = self._strided(
            self._words, self._procs + layout.proc_pid, layout.proc_size, layout.proc_count, _WORD
        )

    @staticmethod
    def _strided(view: memoryview[int], offset: int, step: int, count: int, width: int) -> memoryview[int]:
        return view[offset // width : (offset + (count - 1) * step) // width + 1 : step // width]

    def tick(self, procs: Sequence[int]) -> tuple[tuple[int, ...], bytes]:
        """See `SharedMemory`."""
        # Waits first: one whose entry has not changed afterwards belongs to what the entry shows.
        waits = _picked(self._waits, procs)
        stretches = self._in_use.stretches()
        for first, last in stretches:
            self._seen[first * _HEAD : last * _HEAD] = self._heads[first:last].tobytes()
        heads = bytes(self._seen)
        self._in_use.found(heads, stretches)
        return waits, heads

    def look(self, wanted: Sequence[tuple[int, int]]) -> list[Look]:
        """See `SharedMemory`."""
        layout, memory = self._layout, self._map
        looks = []
        for slot, proc in wanted:
            entry = self._entries + slot * layout.entry_size
            application = self._applications + slot * APPLICATION_SIZE
            activity = self._activities + slot * layout.activity_size
            whole = memory[entry : entry + layout.entry.size]
            counter = memory[entry : entry + _HEAD]
            wait = self._waits[proc]
            name = memory[application : application + APPLICATION_SIZE]
            end = memory.find(b"\0", activity, activity + layout.text_size)
            text = memory[activity : activity + layout.text_size if end < 0 else end]
            rest = b""
            if 0 < len(text) <= _SHORT:
                rest_end = memory.find(b"\0", end + 1, activity + layout.text_size)
                rest = memory[end + 1 : rest_end if rest_end > end else end + 1]
            looks.append(
                Look(
                    whole,
                    counter,
                    wait,
                    name,
                    text,
                    memory[entry : entry + TIMES_SIZE],
                    memory[entry : entry + _HEAD],
                    memory[application : application + APPLICATION_SIZE],
                    rest,
                )
            )
        return looks

    def copier(self, slot: int, size: int) -> Copy:
        """See `SharedMemory`."""
        entry = self._entries + slot * self._layout.entry_size
        activity = self._activities + slot * self._layout.activity_size
        head = slice(entry, entry + _HEAD)
        # One call that runs no line of Python: at a sample nothing is in the processor's caches.
        parts = itemgetter(
            entry, head, slice(entry, entry + ENTRY_HEAD.size), slice(activity, activity + size), head, entry
        )
        return partial(parts, self._map)

    def find(self, server_pid: int) -> int | None:
        """See `SharedMemory`."""
        return _slot_of(self._heads.tobytes(), server_pid)

    def proc_pids(self) -> list[int]:
        """See `SharedMemory`."""
        return self._pids.tolist()

    def leader(self, proc: int) -> int:
        """See `SharedMemory`."""
        return self._pairs[(self._procs + proc * self._layout.proc_size + self._layout.proc_leader) // 8]

    def close(self) -> None:
        """See `SharedMemory`."""
        for view in (self._heads, self._waits, self._pids, self._words, self._pairs, self._view):
            view.release()
        self._map.close()


class ReadMemory:
    """The same arrays, copied from the postmaster by process_vm_readv(2).

    A tick is one call for all waits, and one for each stretch of slots.
    """

    route = "read by process_vm_readv"

    def __init__(self, server: Postmaster, layout: Layout) -> None:
        self._pid = server.pid
        self._reached = ctypes.c_int(server.pid)
        self._layout = layout
        self._size = layout.slots * layout.entry_size
        self._arrays = ctypes.create_string_buffer(self._size)
        heads = memoryview(self._arrays).cast("B").cast("Q")
        self._heads = heads[:: layout.entry_size // _HEAD]
        self._procs: Sequence[int] | None = None
        self._waits = ctypes.create_string_buffer(_WORD)
        self._words = memoryview(self._waits).cast("B").cast("I")
        self._positions: tuple[int, ...] = ()
        self._runs: list[tuple[int, int]] = []
        self._in_use = _InUse(layout.slots)
        self._take([(layout.entries, self._size)], ctypes.addressof(self._arrays))

    def tick(self, procs: Sequence[int]) -> tuple[tuple[int, ...], bytes]:
        """See `SharedMemory`."""
        if procs is not self._procs:
            self._prepare(procs)
        # Waits first: one whose entry has not changed afterwards belongs to what the entry shows.
        waits = ctypes.addressof(self._waits)
        for at in range(0, len(self._runs), _MAX_VECTORS):
            runs = self._runs[at : at + _MAX_VECTORS]
            self._take(runs, waits)
            waits += sum(size for _, size in runs)
        stretches = self._in_use.stretches()
        for first, last in stretches:
            size = (last - first) * self._layout.entry_size
            offset = first * self._layout.entry_size
            self._take([(self._layout.entries + offset, size)], ctypes.addressof(self._arrays) + offset)
        heads = self._heads.tobytes()
        self._in_use.found(heads, stretches)
        return _picked(self._words, self._positions), heads

    def _prepare(self, procs: Sequence[int]) -> None:
        """Lay out what is read of PGPROCs: one stretch for those side by side, as each takes its time."""
        size, base = self._layout.proc_size, self._layout.procs + self._layout.proc_wait
        runs: list[list[int]] = []
        for proc in sorted(set(procs)):
            if runs and proc - runs[-1][1] <= _NEAR:
                runs[-1][1] = proc
            else:
                runs.append([proc, proc])
        self._procs = procs
        self._runs = [(base + first * size, (last - first) * size + _WORD) for first, last in runs]
        position: dict[int, int] = {}
        at = 0
        for (first, last), (_, length) in zip(runs, self._runs, strict=True):
            position.update((proc, (at + (proc - first) * size) // _WORD) for proc in range(first, last + 1))
            at += length
        self._waits = ctypes.create_string_buffer(max(_WORD, at))
        self._words = memoryview(self._waits).cast("B").cast("I")
        self._positions = tuple(position[proc] for proc in procs)

    def look(self, wanted: Sequence[tuple[int, int]]) -> list[Look]:
        """See `SharedMemory`."""
        layout = self._layout
        text = layout.text_size
        sizes = (layout.entry.size, _HEAD, _WORD, APPLICATION_SIZE, text, TIMES_SIZE, _HEAD, APPLICATION_SIZE)
        record = sum(sizes)
        looks: list[Look] = []
        group = min(_MAX_VECTORS // len(sizes), max(1, _MAX_LOOK // record))
        for at in range(0, len(wanted), group):
            some = wanted[at : at + group]
            buffer = ctypes.create_string_buffer(len(some) * record)
            stretches: list[tuple[int, int]] = []
            for slot, proc in some:
                entry = layout.entries + slot * layout.entry_size
                wait = layout.procs + proc * layout.proc_size + layout.proc_wait
                name = layout.applications + slot * APPLICATION_SIZE
                parts = (
                    entry,
                    entry,
                    wait,
                    name,
                    layout.activities + slot * layout.activity_size,
                    entry,
                    entry,
                    name,
                )
                stretches += zip(parts, sizes, strict=True)
            self._take(stretches, ctypes.addressof(buffer))
            raw = buffer.raw
            looks += [self._cut(raw[index : index + record], sizes) for index in range(0, len(raw), record)]
        return looks

    @staticmethod
    def _cut(raw: bytes, sizes: tuple[int, ...]) -> Look:
        parts, at = [], 0
        for size in sizes:
            parts.append(raw[at : at + size])
            at += size
        entry, entry_counter, wait, name, text, times, counter, again = parts
        activity, rest = cut_text(text)
        number = int.from_bytes(wait, "little")
        return Look(entry, entry_counter, number, name, activity, times, counter, again, rest)

    def copier(self, slot: int, size: int) -> Copy:
        """See `SharedMemory`."""
        entry = self._layout.entries + slot * self._layout.entry_size
        activity = self._layout.activities + slot * self._layout.activity_size
        places = ((entry, _HEAD), (entry, ENTRY_HEAD.size), (activity, size), (entry, _HEAD))
        remote = (IoVec * len(places))(*(IoVec(*place) for place in places))
        ends = list(accumulate(length for _, length in places))
        parts = itemgetter(0, *map(slice, (0, *ends), ends), ends[-2])
        buffer = ctypes.create_string_buffer(ends[-1])
        local = IoVec(ctypes.addressof(buffer), ends[-1])
        arguments = (
            *(self._reached, ctypes.byref(local), ctypes.c_ulong(1)),
            *(ctypes.byref(remote), ctypes.c_ulong(len(places)), ctypes.c_ulong(0)),
        )

        def copy() -> Parts:
            # Another thread that comes between leaves all of one later look.
            if held_readv(*arguments) != ends[-1]:
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            copied: Parts = parts(buffer.raw)
            return copied

        return copy

    def find(self, server_pid: int) -> int | None:
        """See `SharedMemory`."""
        data = read_memory(self._pid, self._layout.entries, self._size)
        if len(data) != self._size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        heads = memoryview(data).cast("Q")[:: self._layout.entry_size // _HEAD]
        return _slot_of(heads.tobytes(), server_pid)

    def proc_pids(self) -> list[int]:
        """See `SharedMemory`."""
        layout = self._layout
        data = read_memory(self._pid, layout.procs, layout.proc_size * layout.proc_count)
        if len(data) != layout.proc_size * layout.proc_count:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return memoryview(data).cast("I")[layout.proc_pid // _WORD :: layout.proc_size // _WORD].tolist()

    def leader(self, proc: int) -> int:
        """See `SharedMemory`."""
        layout = self._layout
        raw = read_memory(self._pid, layout.procs + proc * layout.proc_size + layout.proc_leader, 8)
        return int.from_bytes(raw, "little")

    def close(self) -> None:
        """See `SharedMemory`."""
        self._reached.value = 0  # no process: what copies slots finds nothing any more

    def _take(self, stretches: Sequence[tuple[int, int]], into: int) -> None:
        vectors = array("Q")
        for stretch in stretches:
            vectors.extend(stretch)
        self._call(into, vectors, 0, len(stretches), sum(size for _, size in stretches))

    def _call(self, into: int, vectors: array[int], first: int, count: int, size: int) -> None:
        # Pairs of address and length are what struct iovec is, too.
        local = IoVec(into, size)
        remote = vectors.buffer_info()[0] + first * _VECTOR
        taken = process_vm_readv(self._pid, ctypes.byref(local), 1, remote, count, 0)
        if taken != size:
            number = ctypes.get_errno() if taken < 0 else errno.EFAULT
            raise OSError(number, os.strerror(number))


def cut_text(raw: bytes) -> tuple[bytes, bytes]:
    """Return the text in the bytes of an activity, and its `rest`; see `Look`."""
    activity, _, behind = raw.partition(b"\0")
    return activity, behind.partition(b"\0")[0] if 0 < len(activity) <= _SHORT else b""


def _picked(values: memoryview[int], indices: Sequence[int]) -> tuple[int, ...]:
    if len(indices) < 2:
        return tuple(values[index] for index in indices)
    picked: tuple[int, ...] = itemgetter(*indices)(values)
    return picked


def _slot_of(heads: bytes, server_pid: int) -> int | None:
    """Return the slot whose pid this is, of the counters and pids of all."""
    wanted = server_pid.to_bytes(_WORD, "little")
    at = heads.find(wanted)
    while at >= 0 and at % _HEAD != _WORD:
        at = heads.find(wanted, at + 1)
    return None if at < 0 else at // _HEAD
