"""Every backend of a server as it is at one moment: a sweep over its shared memory.

A sweep reads little: the counter and pid of every slot, the wait of every backend. Where neither changed
since the sweep before, nothing did, and the slot is the same object as then. Where a counter moved, the entry
is read whole, with its texts and its wait, between two looks at the counter: what changed meanwhile is read
again, and what changes each time is counted torn and left out of this sweep.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence, ValuesView
from typing import NamedTuple

from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.errors import SidecarError
from quayscope.sidecar.postgres.calibrate import calibrate
from quayscope.sidecar.postgres.deaths import Deaths
from quayscope.sidecar.postgres.enums import names_of
from quayscope.sidecar.postgres.layout import Entry, Layout
from quayscope.sidecar.postgres.oids import OidNames
from quayscope.sidecar.postgres.program import Unreadable, is_mapped
from quayscope.sidecar.postgres.routes import (
    Copy,
    Look,
    MappedMemory,
    Parts,
    ReadMemory,
    SharedMemory,
)
from quayscope.sidecar.postgres.slots import (
    BACKGROUND_WORKER,
    Decoder,
    Glance,
    Session,
    Slot,
    started_ns,
    worker_type,
)
from quayscope.sidecar.targets import BackendPids, Postmaster

__all__ = ["SHARED_MEMORY", "MemoryGone", "Peek", "SharedReader", "Torn", "open_reader"]

SHARED_MEMORY = "postgres_shared_memory"
_ATTEMPTS = 3
_USUAL_TEXT = 448
"""Bytes of a text that a copy has at least: a comment, which stays behind a `COMMIT`, is shorter."""
_TEXT_STEP = 128
_CHECK_S = 1.0
_SEEK_AGAIN_S = 0.01
_POSTMASTER = -1
"""Its number among those whose deaths are told: no slot's."""
_SUSPICIOUS_S = 10.0
"""How long after a sign of trouble each sweep makes sure that the memory is still the server's."""
_MAP_REMEDY = "the capability CHECKPOINT_RESTORE in the container's securityContext (its process as uid 0)"
_READ_REMEDY = (
    "run as the target's own user, or add the capability SYS_PTRACE to the container's securityContext"
)


class MemoryGone(SidecarError):
    """The server has ended, or has made its shared memory anew: it is to be opened again."""


class Torn(SidecarError):
    """A slot that was being written whenever it was read."""


class Peek(NamedTuple):
    """What was read of one slot: its number, the pid that it has to show, its bytes."""

    number: int
    server_pid: int
    seen: Look


class SharedReader:
    """Reads all backends of one server; for one thread, apart from `peek`, `leader` and `look`.

    `changes` are the slots that the last sweep saw otherwise than the one before, by number: the old and the
    new, None where there is none. `counts` says what could not be read: torn, invalid (an entry that points
    elsewhere), dead (a slot whose process was killed).
    """

    def __init__(
        self, server: Postmaster, layout: Layout, memory: SharedMemory, names: OidNames | None = None
    ) -> None:
        self.server = server
        self.layout = layout
        self.counts: Counter[str] = Counter()
        self.changes: list[tuple[int, Slot | None, Slot | None]] = []
        self._memory = memory
        self._enums = names_of(layout.major)
        self._names = names or OidNames()
        self._decoder = Decoder(layout, self._enums, self._names)
        self._as_of = self._names.version
        self._pids = BackendPids(server)
        self._tick = memory.arrays.tick
        self._slots: dict[int, Slot] = {}
        self._procs: dict[int, int] = {}
        self._number_of: dict[int, int] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._sought: dict[int, tuple[tuple[int, int] | None, float]] = {}
        self._applications: dict[int, bytes] = {}
        self._number_of_proc: dict[int, int] = {}
        self._watched = True
        self._unseen: set[int] = set()
        self._deaths = Deaths()
        self._deaths.watch(_POSTMASTER, server.pid)
        self._check_at = time.monotonic() + _CHECK_S
        self._suspicious_until = 0.0

    @property
    def route(self) -> str:
        """How the memory is read."""
        return self._memory.route

    def close(self) -> None:
        """Let go of the memory and of all processes."""
        self._memory.close()
        self._deaths.close()

    def sweep(self) -> ValuesView[Slot]:
        """Take in how every backend is now; returns them, which holds until the next sweep.

        Raises `MemoryGone` when the server, or its memory, is not the one that was opened.
        """
        if self.changes:
            self.changes = []
        try:
            now = time.monotonic()
            if now >= self._check_at:
                self._check(now)
            waits, heads = self._tick()
            if heads or waits:
                self._take(heads, waits)
            # After the slots: who ends as he should clears his before.
            if self._deaths.poll(0, 1):
                for number in self._deaths.take():
                    if number == _POSTMASTER:
                        raise MemoryGone(f"postmaster {self.server.pid} has ended")
                    self._die(number)
            if self._sought:
                self._sought.clear()
        except OSError as error:
            raise MemoryGone(f"shared memory of postmaster {self.server.pid}: {error.strerror}") from error
        return self._slots.values()

    def peek(self, pid: int) -> Peek | None:
        """Read the slot of a process (by our pid) right now; None when it has none.

        For the sampler's wake-up, on its thread: microseconds where the memory is mapped, else a system call
        a try. A process that no sweep has seen yet is looked for, each ten milliseconds. Raises `Torn` when
        the slot is being written at each of three looks.
        """
        place = self._places.get(pid)
        try:
            if place is None:
                place = self._seek(pid)
                if place is None:
                    return None
            number, own = place
            for _ in range(_ATTEMPTS):
                (seen,) = self._memory.look([(number, 0)])
                if seen.steady():
                    return Peek(number, own, seen)
        except (OSError, ValueError):  # ValueError: closed meanwhile
            return None
        raise Torn(f"the slot of process {pid} is being written")

    def copier(self, peek: Peek) -> tuple[Copy, int]:
        """Return what copies a client backend's slot from now on, and how many bytes of text a copy has."""
        used = len(peek.seen.activity) // _TEXT_STEP * _TEXT_STEP + _TEXT_STEP
        # The last byte is for the zero of a text that is cut.
        size = min(max(used, _USUAL_TEXT), self.layout.text_size - 1)
        return self._memory.copier(peek.number, size), size

    def copied(self, number: int, server_pid: int, parts: Parts) -> Glance | None:
        """Return what a copy of a slot shows, whose text is whole.

        None when it was another's by then, or when its parts do not belong together.
        """
        return self._decoder.copied(number, server_pid, parts)

    def glance(self, peek: Peek) -> Glance | None:
        """Return what a process's slot showed, None when it was another's, or none."""
        entry = self._decoder.entry(peek.number, peek.seen)
        if entry is None or entry.pid != peek.server_pid:
            return None
        return self._decoder.glance(entry, peek.seen)

    def leader(self, pid: int) -> int:
        """Return the process (by our pid) that leads the group a parallel worker is in, else 0."""
        number, own = self._places.get(pid) or (-1, self._pids.own(pid))
        slot = self._slots.get(number)
        leader = 0 if slot is None else slot.leader
        if not leader:
            try:
                proc = self._memory.proc_pids().index(own)
                leader = self._leader(proc, own)
            except (OSError, ValueError):
                return 0
        return (self._pids.resolve(leader) or 0) if leader else 0

    def _seek(self, pid: int) -> tuple[int, int] | None:
        now = time.monotonic()
        place, sought_at = self._sought.get(pid, (None, 0.0))
        if place is None and now - sought_at >= _SEEK_AGAIN_S:
            own = self._pids.own(pid)
            number = self._memory.find(own)
            place = None if number is None else (number, own)
            self._sought[pid] = place, now
        return place

    def look(self, server_pid: int) -> Slot | None:
        """Return one backend as it is right now, None when it has no slot or is being written."""
        number = self._number_of.get(server_pid, -1)
        slot, proc = self._slots.get(number), self._procs.get(number)
        if slot is None or proc is None:
            return None
        try:
            (seen,) = self._memory.look([(number, proc)])
        except (OSError, ValueError):  # ValueError: closed meanwhile
            return None
        if not seen.steady():
            return None
        entry = self._decoder.entry(number, seen)
        return self._slot(number, seen, proc) if entry is not None and _is_of(slot, entry) else None

    def _check(self, now: float) -> None:
        """Notice that the server restarted, or made its memory anew after a crash."""
        self._check_at = now if now < self._suspicious_until else now + _CHECK_S
        if not self._deaths.watches(_POSTMASTER) and not self.server.alive():
            raise MemoryGone(f"postmaster {self.server.pid} has ended")
        if not is_mapped(self.server.pid, *self.layout.segment, self.layout.inode):
            raise MemoryGone(f"postmaster {self.server.pid} has made its shared memory anew")
        # A process in a pid namespace of its own may not have been listed yet when its slot was first seen.
        self._forget(self._unseen)
        if self._names.version != self._as_of:
            self._as_of = self._names.version
            self._applications.clear()
            self._forget(self._slots)

    def _suspect(self) -> None:
        self._check_at = 0.0
        self._suspicious_until = time.monotonic() + _SUSPICIOUS_S

    def _die(self, number: int) -> None:
        """Take out a slot whose process ended without clearing it: it was killed, and the server recovers."""
        old = self._slots.get(number)
        if old is None:
            self._deaths.forget(number)
        else:
            self.counts["dead"] += 1
            self._suspect()
            self._put(number, old, None)

    def _take(self, heads: Sequence[tuple[int, int]], waits: Sequence[tuple[int, int]]) -> None:
        """Take in the slots whose counter or pid moved, and what others wait for."""
        slots = self._slots
        pending: dict[int, int] = {}
        for number, head in heads:
            pid = head >> 32
            if pid:
                pending[number] = pid
            elif number in slots:
                self._put(number, slots[number], None)
        for proc, wait in waits:
            number = self._number_of_proc.get(proc, -1)
            if number in slots and number not in pending:
                slot = slots[number]
                named = self._enums.wait(wait)
                if named != slot.wait:
                    self._put(number, slot, slot._replace(wait=named))
        if pending:
            self._read(pending)

    def _read(self, pending: dict[int, int]) -> None:
        """Read slots (by number, the pid in each) whole, again where they were written meanwhile."""
        held = self._memory.arrays.waits.held
        wanted = self._with_procs(pending)
        for _ in range(_ATTEMPTS):
            again = []
            for (number, proc), seen in zip(wanted, self._memory.look(wanted), strict=True):
                if not seen.steady():
                    again.append((number, proc))
                    continue
                old, new = self._slots.get(number), self._slot(number, seen, proc)
                if new != old:
                    self._put(number, old, new)
                if new is not None:
                    held[proc] = seen.wait
                    if self._procs.get(number) != proc:
                        self._procs[number] = proc
                        self._watched = False
            wanted = again
            if not wanted:
                break
        torn = [number for number, _ in wanted]
        for number in torn:
            self.counts["torn"] += 1
            if number in self._slots:
                self._put(number, self._slots[number], None)
        self._forget(torn)
        if not self._watched:
            self._watch()

    def _forget(self, numbers: Iterable[int]) -> None:
        """Have slots looked at again next time, as if they had changed."""
        held = self._memory.arrays.heads.held
        for number in numbers:
            held[number] = 0

    def _with_procs(self, pending: dict[int, int]) -> list[tuple[int, int]]:
        """Return the slots with their PGPROCs; those that have none (yet) are looked at again next time."""
        found = []
        lacking = []
        proc_of_pid: dict[int, int] | None = None
        for number, pid in pending.items():
            slot = self._slots.get(number)
            if slot is not None and slot.session.server_pid == pid:
                found.append((number, self._procs[number]))
                continue
            if proc_of_pid is None:
                proc_of_pid = {own: index for index, own in enumerate(self._memory.proc_pids()) if own}
            proc = proc_of_pid.get(pid)
            if proc is None:
                lacking.append(number)
                if slot is not None:
                    self._put(number, slot, None)
            else:
                found.append((number, proc))
        self._forget(lacking)
        return found

    def _slot(self, number: int, seen: Look, proc: int) -> Slot | None:
        if seen.counter[4:] == b"\0\0\0\0":
            return None
        entry = self._decoder.entry(number, seen)
        if entry is None:
            self.counts["invalid"] += 1
            self._suspect()
            return None
        session = self._session(number, entry, seen)
        if session is None:
            return None
        worker = self._decoder.backend_type(entry) == BACKGROUND_WORKER
        return self._decoder.slot(session, entry, seen, self._leader(proc, entry.pid) if worker else 0)

    def _session(self, number: int, entry: Entry, seen: Look) -> Session | None:
        old = self._slots.get(number)
        if old is not None and old.session.pid and _is_of(old, entry):
            if self._applications.get(number) == seen.application and self._names.version == self._as_of:
                return old.session
            self._applications[number] = seen.application
            return self._decoder.renewed(old.session, entry, seen)
        pid = self._pids.resolve(entry.pid) or 0
        if pid and not self._deaths.watch(number, pid):
            return None
        kind = self._decoder.backend_type(entry)
        if kind == BACKGROUND_WORKER and pid:
            kind = worker_type(pid)
        return self._decoder.session(entry, seen, pid, kind)

    def _leader(self, proc: int, pid: int) -> int:
        index, odd = divmod(self._memory.leader(proc) - self.layout.procs, self.layout.proc_size)
        if odd or not 0 <= index < self.layout.proc_count:
            return 0
        leader = self._memory.proc_pids()[index]
        return 0 if leader == pid else leader

    def _put(self, number: int, old: Slot | None, new: Slot | None) -> None:
        if old is not None and (new is None or new.session.server_pid != old.session.server_pid):
            if self._number_of.get(old.session.server_pid) == number:
                del self._number_of[old.session.server_pid]
            if self._places.get(old.session.pid, (-1, 0))[0] == number:
                del self._places[old.session.pid]
        if new is not None:
            self._slots[number] = new
            self._number_of[new.session.server_pid] = number
            if new.session.pid:
                self._places[new.session.pid] = (number, new.session.server_pid)
                self._unseen.discard(number)
            else:
                self._unseen.add(number)
        else:
            self._unseen.discard(number)
            self._slots.pop(number, None)
            if self._procs.pop(number, None) is not None:
                self._watched = False
            self._applications.pop(number, None)
            self._deaths.forget(number)
        if old is not None or new is not None:
            self.changes.append((number, old, new))

    def _watch(self) -> None:
        """Have the waits of exactly the backends that there are read from now on."""
        self._number_of_proc = {proc: number for number, proc in self._procs.items()}
        self._memory.arrays.watch(self._number_of_proc)
        self._watched = True


def _is_of(slot: Slot, entry: Entry) -> bool:
    """Whether an entry is of the backend that a slot showed."""
    return (slot.session.server_pid, slot.session.started_ns) == (entry.pid, started_ns(entry))


def open_reader(
    server: Postmaster, capabilities: Capabilities, names: OidNames | None = None
) -> SharedReader | str:
    """Return a reader by the best permitted route, or the reason why there is none; notes which it was."""
    try:
        layout = calibrate(server)
        memory, why_not_mapped = _open_memory(server, layout)
    except (Unreadable, OSError) as error:
        reason = str(error) if isinstance(error, Unreadable) else f"process_vm_readv: {error.strerror}"
        capabilities.note(Capability(SHARED_MEMORY, False, reason, _READ_REMEDY))
        return reason
    detail = f"PostgreSQL {layout.major}, {layout.slots} slots, {memory.route}"
    if why_not_mapped:
        detail += f"; mapping: {why_not_mapped}"
    remedy = _MAP_REMEDY if why_not_mapped else ""
    capabilities.note(Capability(SHARED_MEMORY, True, detail, remedy))
    return SharedReader(server, layout, memory, names)


def _open_memory(server: Postmaster, layout: Layout) -> tuple[SharedMemory, str]:
    why = ""
    with contextlib.suppress(OSError):
        try:
            return MappedMemory(server, layout), why
        except OSError as error:
            why = error.strerror or str(error)
            raise
    return ReadMemory(server, layout), why
