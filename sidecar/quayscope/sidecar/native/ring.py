"""Perf events of one process tree, read from one ring per CPU.

Layouts and rules: perf_event_open(2) and the kernel's include/uapi/linux/perf_event.h. Events are opened for
single tasks with inheritance, never for a whole CPU: only the named processes and what they fork are sampled.
Inherited events need a ring per CPU, hence one event per task and CPU, all of a CPU sharing one ring.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import struct
from collections.abc import Iterator
from typing import NamedTuple

from quayscope.sidecar.native.events import open_event, set_output

__all__ = ["PerfRings", "Sample", "TaskEvent"]

_HEADER = struct.Struct("<IHH")
_SAMPLE = struct.Struct("<QIIQQQ")
_LOST = struct.Struct("<QQ")
_TASK_RECORD = struct.Struct("<IIIIQ")
_RECORD_LOST, _RECORD_EXIT, _RECORD_THROTTLE, _RECORD_FORK, _RECORD_SAMPLE = 2, 4, 5, 7, 9
_CONTEXT_FLOOR = (1 << 64) - 4095
_CONTEXT_KERNEL, _CONTEXT_USER = (1 << 64) - 128, (1 << 64) - 512
_PAGE = mmap.PAGESIZE
_HEAD, _TAIL = 1024 // 8, 1032 // 8
_LARGEST_RING_PAGES = 256
_SMALLEST_RING_PAGES = 8
_RESERVED_DESCRIPTORS = 128
"""Left to the rest of the program: sampling everybody is no use to one that can open nothing else."""


class Sample(NamedTuple):
    """One sample: monotonic time, the CPU time it stands for, and return addresses **leaf first**."""

    pid: int
    time_ns: int
    period_ns: int
    kernel: tuple[int, ...]
    user: tuple[int, ...]


class TaskEvent(NamedTuple):
    """A process was forked from `parent` (`exited` False), or ended."""

    pid: int
    parent: int
    exited: bool


class _Ring:
    """The memory that the kernel writes one CPU's records into; `descriptor` is the event that owns it."""

    def __init__(self, descriptor: int, pages: int) -> None:
        self.descriptor = descriptor
        self._size = pages * _PAGE
        self._memory = mmap.mmap(
            descriptor, self._size + _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._control = memoryview(self._memory)[:_PAGE].cast("Q")
        self._data = memoryview(self._memory)[_PAGE:]

    def take(self) -> bytes:
        """Return the records written since the last call, and give their room back."""
        head = self._control[_HEAD]
        tail = self._control[_TAIL]
        if head == tail:
            return b""
        start, end = tail % self._size, head % self._size
        data = (
            bytes(self._data[start:end])
            if start < end
            else bytes(self._data[start:]) + bytes(self._data[:end])
        )
        self._control[_TAIL] = head
        return data

    def close(self) -> None:
        self._control.release()
        self._data.release()
        self._memory.close()


class PerfRings:
    """Samples of a process tree. The first process attached must be its root: its events own the rings.

    `lost` counts samples the kernel had no room for, `throttled` how often it slowed the events down,
    `refused` processes that could not be attached and why.
    """

    def __init__(self, root: int, hz: int, *, kernel: bool) -> None:
        self._hz = hz
        self._kernel = kernel
        self._events: dict[int, list[int]] = {}
        self._rings: dict[int, _Ring] = {}
        self.lost = 0
        self.throttled = 0
        self.malformed = 0
        self.refused: dict[int, str] = {}
        try:
            self._attach_root(root)
        except BaseException:
            self.close()
            raise

    def _attach_root(self, root: int) -> None:
        events = self._events.setdefault(root, [])
        pages = _LARGEST_RING_PAGES
        for cpu in _online_cpus():
            descriptor = open_event(root, cpu, self._hz, kernel=self._kernel)
            events.append(descriptor)
            while cpu not in self._rings:
                try:
                    self._rings[cpu] = _Ring(descriptor, pages)
                except PermissionError:
                    # perf_event_mlock_kb and RLIMIT_MEMLOCK bound the memory of users without CAP_IPC_LOCK.
                    if pages <= _SMALLEST_RING_PAGES:
                        raise
                    pages //= 2

    def attach(self, pid: int) -> bool:
        """Sample a process that already ran when its parent was attached; says whether it worked.

        What went wrong stands in `refused`; a process that is gone is no refusal.
        """
        if pid in self._events:
            return True
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if (len(self._events) + 1) * len(self._rings) > limit - _RESERVED_DESCRIPTORS:
            self.refused[pid] = f"Too many open files ({limit})"
            return False
        events: list[int] = []
        try:
            for cpu, ring in self._rings.items():
                descriptor = open_event(pid, cpu, self._hz, kernel=self._kernel)
                events.append(descriptor)
                set_output(descriptor, ring.descriptor)
        except OSError as error:
            _close_all(events)
            if error.errno != errno.ESRCH:
                self.refused[pid] = error.strerror or str(error)
            return False
        self._events[pid] = events
        self.refused.pop(pid, None)
        return True

    def detach(self, pid: int) -> None:
        """Close the events of a process that ended. The root's stay: the rings are theirs."""
        self.refused.pop(pid, None)
        if pid in self._events and next(iter(self._events)) != pid:
            _close_all(self._events.pop(pid))

    @property
    def attached(self) -> frozenset[int]:
        """The processes with events of their own; their later children are covered by inheritance."""
        return frozenset(self._events)

    def descriptors(self) -> list[int]:
        """Return what to poll: readable when there are records, hung up when the whole tree is gone."""
        return [ring.descriptor for ring in self._rings.values()]

    def drain(self) -> Iterator[Sample | TaskEvent]:
        """Yield what the rings hold, in the order of each ring."""
        for ring in self._rings.values():
            yield from self._parse(ring.take())

    def _parse(self, data: bytes) -> Iterator[Sample | TaskEvent]:
        at, end = 0, len(data)
        while at + _HEADER.size <= end:
            kind, _, size = _HEADER.unpack_from(data, at)
            if size < _HEADER.size or at + size > end:
                self.malformed += 1
                return
            body = at + _HEADER.size
            if kind == _RECORD_SAMPLE:
                yield self._sample(data, body)
            elif kind == _RECORD_LOST:
                self.lost += _LOST.unpack_from(data, body)[1]
            elif kind == _RECORD_THROTTLE:
                self.throttled += 1
            elif kind in (_RECORD_FORK, _RECORD_EXIT):
                pid, parent, thread, _, _ = _TASK_RECORD.unpack_from(data, body)
                if pid == thread:
                    yield TaskEvent(pid, parent, kind == _RECORD_EXIT)
            at += size

    @staticmethod
    def _sample(data: bytes, at: int) -> Sample:
        _, pid, _, time_ns, period, depth = _SAMPLE.unpack_from(data, at)
        kernel: list[int] = []
        user: list[int] = []
        into = user
        for address in struct.unpack_from(f"<{depth}Q", data, at + _SAMPLE.size):
            if address >= _CONTEXT_FLOOR:
                into = kernel if address == _CONTEXT_KERNEL else user
            else:
                into.append(address)
        return Sample(pid, time_ns, period, tuple(kernel), tuple(user))

    def close(self) -> None:
        """Close all events and rings."""
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()
        for events in self._events.values():
            _close_all(events)
        self._events.clear()


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _online_cpus() -> list[int]:
    """Return the CPUs that a task may run on, not only those that we may."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/sys/devices/system/cpu/online", encoding="ascii") as file,
    ):
        cpus: list[int] = []
        for part in file.read().strip().split(","):
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
        if cpus:
            return cpus
    return list(range(os.cpu_count() or 1))
