"""A batch of what the rings held: address spaces kept, stacks unwound, samples gathered; for one thread."""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple, Protocol

from quayscope.sidecar.native.gather import Gathered, Key
from quayscope.sidecar.native.records import Ended, Executed, Forked, Mapped, Record
from quayscope.sidecar.native.ring import Taken
from quayscope.sidecar.native.samples import RawSample, Unwinder
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
        """Work through what was drained, in its order."""
        offset = time.time_ns() - time.monotonic_ns()
        for item in drained:
            if isinstance(item, Taken):
                self._sample(item, offset, notes)
            else:
                self._task(item, tracked, notes)

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

    def _sample(self, taken: Taken[Tracked], offset: int, notes: Notes | None) -> None:
        tracked, sample = taken.source, taken.sample
        note = notes.take(taken.place, sample.pid, taken.time_ns) if notes is not None else None
        if not tracked.source.accepts(taken.event, taken.place[0], sample.tid):
            return
        pid = sample.pid
        space = self._spaces.of(pid)
        user: tuple[int, ...] = ()
        complete = False
        if sample.registers:
            if space is None:
                self.spaceless += 1
            else:
                user, end = self._unwinder.unwind(space, sample.registers, sample.stack)
                if end == "unmapped":
                    newer = self._spaces.missed(pid)
                    if newer is not None:
                        space = newer
                        user, end = self._unwinder.unwind(space, sample.registers, sample.stack)
                self.ends[end] += 1
                complete = end == "root"
        elif sample.user:
            user = _callers(sample)
            if space is None:
                self.spaceless += 1
            elif space.find(user[0]) is None:
                space = self._spaces.missed(pid) or space
        else:
            complete = bool(
                sample.kernel
            )  # a process without memory of its own: all its stack is the kernel's
        role = None if note is None else note.role
        at = taken.time_ns + offset
        key = Key(
            tracked,
            at - at % SECOND_NS,
            tracked.role(pid) if role is None else role,
            pid if note is None else note.pid,
            NO_STATEMENT if note is None else note.described,
            sample.kernel,
            space,
            user,
            complete,
            note is not None and note.unproven,
        )
        tracked.samples += 1
        tracked.cpu_ns += taken.cpu_ns
        self._gathered.add(key, taken.cpu_ns)


def _callers(sample: RawSample) -> tuple[int, ...]:
    # The kernel's chain holds return addresses: the call itself is one byte before.
    leaf, *callers = sample.user
    return (leaf, *[address - 1 for address in callers])
