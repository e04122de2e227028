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
from typing import NamedTuple, Protocol, TypeAlias

from quayscope.sidecar.postgres.columns import Arrays, Slots
from quayscope.sidecar.postgres.layout import APPLICATION_SIZE, ENTRY_HEAD, TIMES_SIZE, Layout
from quayscope.sidecar.postgres.memory import IoVec, held_readv, process_vm_readv, read_memory
from quayscope.sidecar.targets import Postmaster

__all__ = ["Copy", "Look", "MappedMemory", "Parts", "ReadMemory", "SharedMemory", "cut_text"]

_WORD = 4
_HEAD = 8
_VECTOR = 16
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
    """A server's arrays. Every method, and each tick of `arrays`, raises OSError when they are gone.

    `arrays` are the counter and pid of every slot, and the `wait_event_info` of every PGPROC.
    """

    route: str
    arrays: Arrays

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
        self._heads = self._strided(self._pairs, self._entries, layout.entry_size, layout.slots, _HEAD)
        self._waits = self._strided(
            self._words, self._procs + layout.proc_wait, layout.proc_size, layout.proc_count, _WORD
        )
        self._pids = self._strided(
            self._words, self._procs + layout.proc_pid, layout.proc_size, layout.proc_count, _WORD
        )
        self.arrays = Arrays(self._heads, self._waits, layout.apart)

    @staticmethod
    def _strided(view: memoryview[int], offset: int, step: int, count: int, width: int) -> memoryview[int]:
        return view[offset // width : (offset + (count - 1) * step) // width + 1 : step // width]

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
        self.arrays.close()
        for view in (self._pids, self._words, self._pairs, self._view):
            view.release()
        self._map.close()


_Copy: TypeAlias = "tuple[int, int, int, int, array[int]]"
"""One call: addresses of the vectors into which and out of which, their count, the bytes of all, and the
memory that the vectors lie in."""


class ReadMemory:
    """The same arrays, copied from the postmaster by process_vm_readv(2): a tick is one call for all."""

    route = "read by process_vm_readv"

    def __init__(self, server: Postmaster, layout: Layout) -> None:
        self._pid = server.pid
        self._reached = ctypes.c_int(server.pid)
        self._layout = layout
        self._size = layout.slots * layout.entry_size
        # Mapped, as what is never copied then takes no memory.
        self._held = [
            mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for size in (self._size, layout.proc_count * layout.proc_size)
        ]
        self._entries, self._procs = (ctypes.addressof(ctypes.c_char.from_buffer(one)) for one in self._held)
        entries, procs = (memoryview(one) for one in self._held)
        self.arrays = Arrays(
            entries.cast("Q")[:: layout.entry_size // _HEAD],
            procs.cast("I")[layout.proc_wait // _WORD :: layout.proc_size // _WORD],
            layout.apart,
            self._renew,
        )
        self._copies: dict[tuple[tuple[int, int], ...], list[_Copy]] = {}
        self._runs = self.arrays.runs
        self._take([(layout.entries, self._size)], self._entries)

    def _renew(self, slots: Slots) -> None:
        """Copy what a tick looks at, its waits first."""
        if self.arrays.runs is not self._runs:
            self._runs = self.arrays.runs
            self._copies.clear()
        copies = self._copies.get(slots.stretches)
        if copies is None:
            if len(self._copies) > 1:
                self._copies.clear()
            copies = self._copies[slots.stretches] = self._prepared(slots.stretches)
        for into, out_of, count, size, _ in copies:
            taken = process_vm_readv(self._pid, into, count, out_of, count, 0)
            if taken != size:
                raise _cut_short(taken)

    def _prepared(self, slots: Sequence[tuple[int, int]]) -> list[_Copy]:
        """Lay out what is copied: one stretch for those side by side, as each takes its time."""
        layout = self._layout
        size, wait = layout.proc_size, layout.proc_wait
        pieces = [
            (first * size + wait, (last - first - 1) * size + _WORD, self._procs, layout.procs)
            for first, last in self._runs
        ]
        size = layout.entry_size
        pieces += [
            (first * size, (last - first) * size, self._entries, layout.entries) for first, last in slots
        ]
        copies = []
        for at in range(0, len(pieces), _MAX_VECTORS):
            some = pieces[at : at + _MAX_VECTORS]
            # Pairs of address and length are what struct iovec is, too.
            vectors = array("Q")
            for offset, length, copied, _ in some:
                vectors.extend((copied + offset, length))
            for offset, length, _, original in some:
                vectors.extend((original + offset, length))
            into, count = vectors.buffer_info()[0], len(some)
            total = sum(length for _, length, _, _ in some)
            copies.append((into, into + count * _VECTOR, count, total, vectors))
        return copies

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
        self.arrays.close()
        for one in self._held:
            one.close()

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
            raise _cut_short(taken)


def cut_text(raw: bytes) -> tuple[bytes, bytes]:
    """Return the text in the bytes of an activity, and its `rest`; see `Look`."""
    activity, _, behind = raw.partition(b"\0")
    return activity, behind.partition(b"\0")[0] if 0 < len(activity) <= _SHORT else b""


def _cut_short(taken: int) -> OSError:
    number = ctypes.get_errno() if taken < 0 else errno.EFAULT
    return OSError(number, os.strerror(number))


def _slot_of(heads: bytes, server_pid: int) -> int | None:
    """Return the slot whose pid this is, of the counters and pids of all."""
    wanted = server_pid.to_bytes(_WORD, "little")
    at = heads.find(wanted)
    while at >= 0 and at % _HEAD != _WORD:
        at = heads.find(wanted, at + 1)
    return None if at < 0 else at // _HEAD
