"""A batch of what the rings held: address spaces kept, stacks unwound, samples gathered; for one thread."""

from __future__ import annotations

import struct
import time
from collections import Counter
from typing import NamedTuple, Protocol

from quayscope.sidecar.native.gather import Gathered, Held, Known
from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.records import Ended, Executed, Forked, Mapped, Record
from quayscope.sidecar.native.ring import Taken
from quayscope.sidecar.native.samples import Dump, End, Unwinder
from quayscope.sidecar.native.spaces import Spaces
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.statements import NO_STATEMENT, Described
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["Batches", "Note", "Notes"]


class Note(NamedTuple):
    """What was seen of a process at the moment of its sample; `role` None: it could not be told.

    `unproven`: it is not certain that it ran just that. `pid` is the process that it works for.
    """

    described: Described
    role: str | None
    unproven: bool
    pid: int


class Notes(Protocol):
    """What somebody who wakes at each sample has noted."""

    def look(self) -> None:
        """Prepare for a batch: what is in the rings is to be noted."""

    def take(self, place: tuple[int, int], pid: int, time_ns: int) -> Note:
        """Return the note for a process's sample that lay at a place in the rings, and forget it."""

    def forget(self, pid: int) -> None:
        """Drop what is known of a process that ended."""


class Batches:
    """Turns drained records into gathered samples.

    `ends` counts why stacks ended, `spaceless` samples of processes that were gone before their maps were
    read.
    """

    def __init__(self, unwinder: Unwinder, gathered: Gathered) -> None:
        self._unwinder = unwinder
        self._gathered = gathered
        self._spaces = Spaces()
        self.ends: Counter[str] = Counter()
        self.spaceless = 0

    def forget_spaces(self) -> None:
        """Read all maps anew: records of changes to them were lost."""
        self._spaces = Spaces()

    def take(
        self, drained: list[Taken[Tracked] | Record], tracked: list[Tracked], notes: Notes | None
    ) -> None:
        """Work through what was drained, in its order; the stacks are unwound when all is known."""
        offset = time.time_ns() - time.monotonic_ns()
        waiting: list[_Waiting] = []
        for item in drained:
            if isinstance(item, Taken):
                self._sample(item, offset, notes, waiting)
            else:
                self._task(item, tracked, notes)
        stacks = self._unwinder.unwind_all([(one.space, one.dump) for one in waiting])
        for one, (user, end) in zip(waiting, stacks, strict=True):
            self._unwound(one, user, end)

    def _task(self, record: Record, tracked: list[Tracked], notes: Notes | None) -> None:
        spaces = self._spaces
        for one in tracked:
            one.source.seen(record)
        if isinstance(record, Mapped):
            spaces.mapped(
                record.pid, record.start, record.length, record.offset, record.path, record.executable
            )
        elif isinstance(record, Forked):
            if record.pid != record.parent:
                # The parent is still there to be read; the child, when its first sample is seen, may not be.
                spaces.of(record.parent)
                spaces.forked(record.pid, record.parent)
        elif isinstance(record, Executed):
            spaces.executed(record.pid)
            for one in tracked:
                one.forget(record.pid)
        elif isinstance(record, Ended) and record.pid == record.tid:
            spaces.ended(record.pid)
            if notes is not None:
                notes.forget(record.pid)
            for one in tracked:
                one.forget(record.pid)

    def _sample(
        self, taken: Taken[Tracked], offset: int, notes: Notes | None, waiting: list[_Waiting]
    ) -> None:
        tracked, sample = taken.source, taken.sample
        pid = sample.pid
        note = notes.take(taken.place, pid, taken.time_ns) if notes is not None else None
        if not tracked.source.accepts(taken.event, taken.place[0], sample.tid):
            return
        at = taken.time_ns + offset
        slot_ns = at - at % SECOND_NS
        if note is None:
            known = Known(tracked, slot_ns, tracked.role(pid), pid, NO_STATEMENT, False)
        else:
            role = tracked.role(pid) if note.role is None else note.role
            known = Known(tracked, slot_ns, role, note.pid, note.described, note.unproven)
        tracked.samples += 1
        tracked.cpu_ns += taken.cpu_ns
        space = self._spaces.of(pid)
        if sample.dump is not None:
            if space is not None:
                waiting.append(_Waiting(space, sample.dump, pid, known, sample.kernel, taken.cpu_ns))
                return
            self.spaceless += 1
        elif sample.user:
            if space is None:
                self.spaceless += 1
            elif space.find(int.from_bytes(sample.user[:8], "little")) is None:
                space = self._spaces.missed(pid) or space
        # A process without memory of its own: all its stack is the kernel's.
        complete = bool(sample.kernel) and not sample.user and sample.dump is None
        self._gathered.add(Held(known, sample.kernel, space, _callers(sample.user), complete, taken.cpu_ns))

    def _unwound(self, one: _Waiting, user: bytes, end: End) -> None:
        space = one.space
        if end == "unmapped":
            newer = self._spaces.missed(one.pid)
            if newer is not None:
                space = newer
                user, end = self._unwinder.unwind(space, one.dump.registers, one.dump.stack).packed()
        self.ends[end] += 1
        self._gathered.add(Held(one.known, one.kernel, space, user, end == "root", one.cpu_ns))


class _Waiting(NamedTuple):
    """A sample whose stack is not unwound yet."""

    space: AddressSpace
    dump: Dump
    pid: int
    known: Known
    kernel: bytes
    cpu_ns: int


def _callers(chain: bytes) -> bytes:
    # The kernel's chain holds return addresses: the call itself is one byte before.
    if len(chain) <= 8:
        return chain
    leaf, *callers = struct.unpack(f"<{len(chain) // 8}Q", chain)
    return struct.pack(f"<{len(chain) // 8}Q", leaf, *[address - 1 for address in callers])
