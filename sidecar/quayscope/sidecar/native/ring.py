"""The memory that the kernel writes perf records into: a ring for each CPU, shared by all events led there.

A ring is owned by an event that samples nothing, so that it outlives the targets. Samples are handed out
without a copy: their memory is given back by `release`.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections import Counter
from collections.abc import Hashable
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from quayscope.sidecar.native.events import Form, event_id, open_owner, set_output
from quayscope.sidecar.native.records import (
    LOST,
    SAMPLE,
    THROTTLE,
    Ended,
    Record,
    parse_lost,
    parse_sample,
    parse_task,
)
from quayscope.sidecar.native.samples import RawSample

__all__ = ["BUDGET_BYTES", "HEAD", "Ring", "RingBudget", "Rings", "Taken", "online_cpus"]

BUDGET_BYTES = 64 << 20
"""All rings together."""
LARGEST_BYTES = 8 << 20
ENOUGH_BYTES = 512 << 10
"""A ring below this size loses samples when its reader is kept waiting."""
_SMALLEST_BYTES = 4 << 10
_DUMPS_FROM_BYTES = 64 << 10
_PAGE = mmap.PAGESIZE
HEAD, _TAIL = 1024 // 8, 1032 // 8
"""Where `Ring.control` holds how far the kernel has written, and how far it may write."""
_MOST_COUNTED = 65_536
_MOST_SAMPLES = 4096
"""What one drain takes out of one ring at most; the rest waits in the ring."""

Source = TypeVar("Source", bound=Hashable)


class Taken(NamedTuple, Generic[Source]):
    """A sample as it came out of a ring: who took it, where it lay, and the CPU time that it stands for."""

    time_ns: int
    source: Source
    place: tuple[int, int]
    event: int
    cpu_ns: int
    sample: RawSample


class RingBudget:
    """Shares a number of bytes out among sets of rings."""

    def __init__(self, total: int = BUDGET_BYTES) -> None:
        self._left = total

    def take(self, cpus: int) -> int:
        """Return the size of each ring of a set: from half of what is left, where that is enough."""
        most = self._left // cpus
        wanted = min(LARGEST_BYTES, max(most // 2, ENOUGH_BYTES), max(most, _SMALLEST_BYTES))
        size = 1 << wanted.bit_length() - 1
        self._left -= size * cpus
        return size

    def give_back(self, size: int, cpus: int) -> None:
        """Return a set's memory to the budget."""
        self._left += size * cpus


class Ring:
    """One CPU's ring. Positions are the kernel's: bytes since the beginning, ever growing.

    `words` are the records, 8 bytes each, a power of two of them. Who wakes at each sample says how far it
    has `noted`: only so far `Rings.drain` takes.
    """

    def __init__(self, cpu: int, size: int, watermark: int) -> None:
        self.cpu = cpu
        self.size = size
        self.descriptor = open_owner(cpu, watermark)
        try:
            self._memory = mmap.mmap(
                self.descriptor, size + _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
            )
        except OSError:
            os.close(self.descriptor)
            raise
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + _PAGE
        view = memoryview(self._memory)
        self.control = view[:_PAGE].cast("Q")
        self.data = view[_PAGE:]
        self.words = self.data.cast("Q")
        self.read = self.noted = self.passed = 0

    def head(self) -> int:
        """Return how far the kernel has written."""
        return self.control[HEAD]

    def release(self) -> None:
        """Give back what was read."""
        self.control[_TAIL] = self.read

    def tail(self) -> int:
        """Return how far the memory was given back."""
        return self.control[_TAIL]

    def close(self) -> None:
        """Give the memory back."""
        for view in (self.control, self.words, self.data):
            view.release()
        # Somebody may still hold a sample's stack: the memory then goes when that does.
        with contextlib.suppress(BufferError):
            self._memory.close()
        os.close(self.descriptor)


class Rings(Generic[Source]):
    """A ring for each CPU that is online, and what the events led into them have written.

    `size` is what each ring may take at most, a power of two of bytes; where the kernel grants less
    (RLIMIT_MEMLOCK, kernel.perf_event_mlock_kb) it is halved until it fits. `each`: readers wake at each
    sample, else when a ring is half full. Raises OSError when not even the smallest is granted.

    `lost` counts records that the kernel had no room for, `throttled` how often it slowed events down,
    `malformed` records that contradict themselves. One thread drains; another may note.
    """

    def __init__(self, size: int, *, each: bool = False) -> None:
        self.each = each
        self.lost = 0
        self._lost_of: Counter[Source | None] = Counter()
        self.throttled = 0
        self.malformed = 0
        self._events: dict[int, tuple[Form, Source]] = {}
        self._counts: dict[int, dict[int, int]] = {}  # by task, by event
        self._lock = threading.Lock()
        self._rings: list[Ring] = []
        self.cpus = online_cpus()
        self.size = size
        while not self._rings:
            try:
                for cpu in self.cpus:
                    self._rings.append(Ring(cpu, self.size, self.watermark))
            except PermissionError:
                self._close_rings()
                if self.size <= _SMALLEST_BYTES:
                    raise
                self.size //= 2
            except OSError:
                self._close_rings()
                raise
        self._ring_of = {ring.cpu: ring for ring in self._rings}

    @property
    def holds_dumps(self) -> bool:
        """Whether a ring has room for a few stack dumps."""
        return self.size >= _DUMPS_FROM_BYTES

    @property
    def watermark(self) -> int:
        """What events led here are to be opened with."""
        return 0 if self.each else self.size // 2

    def descriptors(self) -> list[int]:
        """Return what to poll: readable when a reader is to wake."""
        return [ring.descriptor for ring in self._rings]

    def lead(self, descriptor: int, cpu: int, form: Form, source: Source) -> int:
        """Lead an event of `cpu` into its ring; returns the number of the event. Raises OSError."""
        owner = next(ring.descriptor for ring in self._rings if ring.cpu == cpu)
        number = event_id(descriptor)
        self._events[number] = (form, source)
        try:
            set_output(descriptor, owner)
        except OSError:
            del self._events[number]
            raise
        return number

    def forget(self, event: int) -> None:
        """Drop what is still in the rings of an event that was closed."""
        self._events.pop(event, None)

    def drain(self) -> list[Taken[Source] | Record]:
        """Return what is in all rings, in the order of time; valid until `release`.

        Where readers wake at each sample, only what was noted is taken; see `Ring` and
        `pass_over`.
        """
        # What is written into one ring while another is read waits: else a child's samples could come
        # before its birth.
        limit = time.monotonic_ns()
        out: list[Taken[Source] | Record] = []
        for ring in self._rings:
            self._read(ring, max(ring.noted, ring.passed) if self.each else ring.head(), limit, out)
        out.sort(key=attrgetter("time_ns"))
        return out

    def take_lost(self) -> Counter[Source | None]:
        """Return what was lost since the last call, by source; None: the kernel does not say whose."""
        lost, self._lost_of = self._lost_of, Counter()
        return lost

    def release(self) -> None:
        """Give the memory of what was drained back to the kernel."""
        with self._lock:
            for ring in self._rings:
                ring.release()

    def ring(self, cpu: int) -> Ring:
        """Return the ring of a CPU, for the one thread that notes what comes into it."""
        return self._ring_of[cpu]

    def fullest(self) -> float:
        """Return how full the fullest ring is, 0 to 1."""
        return max((ring.head() - ring.read) / ring.size for ring in self._rings)

    def released(self) -> dict[int, int]:
        """Return the position in each CPU's ring before which nothing is held any more."""
        with self._lock:
            return {ring.cpu: ring.tail() for ring in self._rings}

    def pass_over(self) -> None:
        """Let `drain` take what comes before the first sample not noted: other records wake nobody."""
        with self._lock:
            for ring in self._rings:
                at, head, words = ring.noted, ring.head(), ring.words
                while at < head:
                    header = words[at // 8 % len(words)]
                    if header & 0xFFFFFFFF == SAMPLE or header >> 48 < 8:
                        break
                    at += header >> 48
                ring.passed = at

    def _read(self, ring: Ring, end: int, limit: int, out: list[Taken[Source] | Record]) -> None:
        at, size, data, words = ring.read, ring.size, ring.data, ring.words
        samples = 0
        while at < end and samples < _MOST_SAMPLES:
            base = at % size
            header = words[base // 8]
            length = header >> 48
            if length < 8 or length % 8 or at + length > end:
                self.malformed += 1
                at = end
                break
            view, fields, address = data, words, ring.address
            if base + length > size:
                view, base = memoryview(bytes(data[base:]) + bytes(data[: base + length - size])), 0
                address = 0
                fields = view.cast("Q")
            kind = header & 0xFFFFFFFF
            if kind == SAMPLE and length >= 32:
                if fields[base // 8 + 3] > limit:
                    break
                samples += 1
                held = self._events.get(fields[base // 8 + 1])
                taken = (
                    None if held is None else self._sample(view, base, length, address, (ring.cpu, at), *held)
                )
                if taken is not None:
                    out.append(taken)
            elif kind == LOST and length >= 24:
                event, lost = parse_lost(view, base)
                held = self._events.get(event)
                self.lost += lost
                self._lost_of[held[1] if held is not None else None] += lost
                # The next counts stand for the lost ones too.
                self._counts.clear()
            elif kind == THROTTLE:
                self.throttled += 1
            else:
                record = parse_task(view, base, length, kind, header >> 32 & 0xFFFF)
                if record is not None and record.event in self._events:
                    if record.time_ns > limit:
                        break
                    out.append(record)
                    if isinstance(record, Ended):
                        self._counts.pop(record.tid, None)
            at += length
        ring.read = at

    def _sample(
        self,
        view: memoryview,
        base: int,
        length: int,
        address: int,
        place: tuple[int, int],
        form: Form,
        source: Source,
    ) -> Taken[Source] | None:
        parsed = parse_sample(view, base, length, form, address)
        if parsed is None:
            self.malformed += 1
            return None
        number, count, sample = parsed
        cpu_ns = sample.period_ns
        if form.counted:
            cpu_ns = self._weigh(number, sample.tid if form.per_task else 0, count, cpu_ns)
        return Taken(sample.time_ns, source, place, number, cpu_ns, sample)

    def _weigh(self, event: int, task: int, count: int, period_ns: int) -> int:
        """Return the CPU time since the event's sample before, of the same task where it was inherited."""
        counts = self._counts.get(task)
        if counts is None:
            if len(self._counts) >= _MOST_COUNTED:
                self._counts.clear()
            counts = self._counts[task] = {}
        before = counts.get(event)
        counts[event] = count
        if before is None:
            # Its first sample, unless others before it were lost.
            return count if count < 2 * period_ns else period_ns
        return count - before if count > before else period_ns

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._close_rings()
        self._events.clear()

    def _close_rings(self) -> None:
        for ring in self._rings:
            ring.close()
        self._rings.clear()


def online_cpus() -> list[int]:
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
