"""CPU samples of a Postgres server: what each backend ran is noted at the sample, its stack unwound later.

The server has rings of its own, and a thread that wakes for each sample, because a statement must be read
while it still runs. It notes that and the backend's role; the sampler does the rest in its batches.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from quayscope.sidecar.native.batches import Note
from quayscope.sidecar.native.records import SAMPLE
from quayscope.sidecar.native.ring import HEAD, Ring, Rings
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.postgres.naming import Namer
from quayscope.sidecar.postgres.routes import Parts
from quayscope.sidecar.postgres.running import Backend, Backends, Noted, Running
from quayscope.sidecar.statements import NO_STATEMENT, StatementSource
from quayscope.sidecar.targets import CLIENT_BACKEND, Postmaster

__all__ = ["PostgresSampling", "StatementNotes"]

log = logging.getLogger(__name__)

_POLL_MS = 1000
_PAUSE_S = 0.1
_FILLING = 1 / 2
_MORE_FILLED = 1 / 32
"""Of a ring: how much more of it is full when that is told again."""
_MAX_HELD = 16 << 20
_ROOM_AT_ONCE = 64 << 10
_MAX_FAULTS_LOGGED = 3


def _hurry(cpu: int | None) -> None:
    """Give the calling thread real-time priority, and keep it on a CPU if it has one. Raises OSError.

    A statement that takes less than a millisecond is over before a thread of normal priority runs on a busy
    machine. The kernel bounds what real-time threads may take.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    if cpu is not None:
        # A CPU that we may not run on is looked after from another.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, [cpu])


def _may_hurry() -> OSError | None:
    """Return None where threads may have real-time priority, else why not."""
    found: list[OSError] = []

    def ask() -> None:
        try:
            _hurry(None)
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join()
    return found[0] if found else None


_Held = tuple[int, int, Backend, Parts] | tuple[int, Noted]
"""Where a sample lies in its ring, and when its backend was copied and what that gave, or its note."""


def _size(held: _Held) -> int:
    return held[1].size if len(held) == 2 else held[2].size


class StatementNotes:
    """Wakes at each sample and notes what its backend does; `take` says what that means.

    A thread for each CPU; kept on it, and of real-time priority, where that is permitted: the backend whose
    sample it looks at then stands still meanwhile. `realtime` is None, or why there is no priority.

    `faults` counts looks that failed, `inherited` samples whose request is that of their transaction,
    `unnoted` samples that there was no room for: 16 MB of notes are held at a time, and 64 kB more a CPU.
    `filling` is called when a ring is half full, or half of that room is used.
    """

    def __init__(self, rings: Rings[Tracked], running: Running, filling: Callable[[], None]) -> None:
        self._rings = rings
        self._running = running
        self._filling = filling
        self._namer = Namer()
        self._second = 0
        self._notes: dict[int, deque[_Held]] = {cpu: deque() for cpu in rings.cpus}
        self._room = _MAX_HELD
        self._going = True
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads: list[threading.Thread] = []
        self.realtime: OSError | None = None
        self.faults = 0
        self.unnoted = 0
        self.inherited = 0

    def start(self) -> None:
        """Begin to wake."""
        self.realtime = _may_hurry()
        for place in zip(self._rings.cpus, self._rings.descriptors(), strict=True):
            thread = threading.Thread(target=self._run, args=place, name="perf-notes", daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether it wakes."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def close(self, timeout_s: float) -> None:
        """Wake no longer."""
        self._going = False
        deadline = time.monotonic() + timeout_s
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads) and self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _run(self, cpu: int, descriptor: int) -> None:
        if self.realtime is None:
            _hurry(cpu)
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(descriptor, select.POLLIN)
        self._note(self._rings.ring(cpu), poller.poll)

    def _note(self, ring: Ring, wait: Callable[[int], object] | None) -> None:
        """Note what comes into a ring, whenever `wait` returns, until closed; for one thread a ring.

        Without `wait` what is there, once. At a wake nothing of ours is in the processor's caches any more,
        and each object, function and dictionary that is touched has to be fetched from memory. So this is one
        function, all is bound once, a backend that is known is only copied, and what the copy says is found
        out in the batch.
        """
        control, words, mask = ring.control, ring.words, len(ring.words) - 1
        known, note_carefully, time_ns = self._running.known.get, self._running.note, time.time_ns
        keep = self._notes[ring.cpu].append
        head = at = ring.noted
        filled = left = 0
        while True:
            # The one border of this thread: a fault costs the notes at hand, never the noting.
            try:
                if wait is not None:
                    wait(_POLL_MS)
                head = control[HEAD]
                last = 0
                while at < head:
                    word = at >> 3
                    header = words[word & mask]
                    if header & 0xFFFFFFFF == SAMPLE:
                        pid = words[word + 2 & mask] & 0xFFFFFFFF
                        if pid != last:
                            last = pid
                            looked_ns = 0
                            backend = known(pid)
                            if backend is not None:
                                try:
                                    parts = backend[0]()
                                    low, _, _, text, _, again = parts
                                    if low == again and not low & 1 and 0 in text:
                                        looked_ns, taken = time_ns(), backend[1]
                                except (OSError, ValueError):
                                    pass  # its memory is gone
                            if not looked_ns:
                                note = note_carefully(pid)
                                taken = note.size
                        if left < taken:
                            left += self._more_room(taken)
                        if left < taken:
                            self.unnoted += 1
                        else:
                            left -= taken
                            keep((at, looked_ns, backend, parts) if backend and looked_ns else (at, note))
                    header >>= 48
                    if header < 8:
                        at = head  # `drain` counts it
                    else:
                        at += header
                ring.noted = head
                if head > filled:
                    filled = ring.read + int(ring.size * _FILLING)
                    if head > filled:
                        filled = head + int(ring.size * _MORE_FILLED)
                        self._filling()
            except Exception:
                self.faults += 1
                if self.faults <= _MAX_FAULTS_LOGGED:
                    log.exception("fault while noting", extra={"faults": self.faults})
                at = ring.noted = head
                time.sleep(_PAUSE_S)
            if wait is None or not self._going:
                return

    def _more_room(self, wanted: int) -> int:
        """Take some of the room for notes, in bytes: so much that it is seldom asked for."""
        granted = max(0, min(self._room, max(wanted, _ROOM_AT_ONCE)))
        self._room -= granted
        if self._room < _MAX_HELD // 2:
            self._filling()
        return granted

    def look(self) -> None:
        """Prepare for a batch."""
        if self.alive:
            self._rings.pass_over()
        else:
            for cpu in self._rings.cpus:
                self._note(self._rings.ring(cpu), None)
        self._running.measure()
        self._prune()
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._namer.next_second()

    def _prune(self) -> None:
        """Drop the notes of samples that nobody took: they are gone from the rings."""
        for cpu, position in self._rings.released().items():
            self._drop(self._notes[cpu], position)
        self._room = _MAX_HELD - sum(_size(held) for notes in self._notes.values() for held in tuple(notes))

    def _drop(self, notes: deque[_Held], position: int) -> None:
        while notes and notes[0][0] < position:
            self._room += _size(notes.popleft())

    def take(self, place: tuple[int, int], pid: int, time_ns: int) -> Note:
        """Return the note for a process's sample that lay at a place in the rings, and forget it.

        Those before it in its ring are forgotten as well: samples are taken in their order.
        """
        cpu, position = place
        notes = self._notes[cpu]
        self._drop(notes, position)
        if not notes or notes[0][0] != position:
            return Note(NO_STATEMENT, None, True, pid)
        held = notes.popleft()
        self._room += _size(held)
        noted = held[1] if len(held) == 2 else self._running.noted(*held[1:])
        ran = self._running.settle(noted, time_ns)
        described = NO_STATEMENT if ran.text is None else self._namer.describe(ran.text)
        if ran.comment:
            described = self._namer.inherit(described, ran.comment)
            self.inherited += described.inherited
        return Note(described, ran.role, ran.unproven, ran.pid)

    def role(self, pid: int) -> str | None:
        """Return what a process of the server is; None while it has no title yet, or when it is gone."""
        return self._running.role(pid)

    def forget(self, pid: int) -> None:
        """Drop what is known of a process that ended."""
        self._running.forget(pid)


class PostgresSampling:
    """Samples one server until `close`. Raises OSError with the kernel's answer when it may not.

    `service` is the root frame of every stack. `backends` gives the reader of the server's shared memory,
    which proves what a sample's backend ran; without it statements come from `statements` alone. Losses go
    into the profiles: of `unproven` samples it is not certain what they ran, `unattributed` ones belong to no
    request.
    """

    def __init__(
        self,
        sampler: Sampler,
        server: Postmaster,
        statements: StatementSource | None,
        *,
        service: str,
        labels: Mapping[str, str],
        backends: Backends | None = None,
    ) -> None:
        self._sampler = sampler
        rings = sampler.open_rings(each=True)
        self._notes = StatementNotes(rings, Running(server, statements, backends), sampler.hurry)
        target = SampledTarget(service, server.pid, server.backends, self._notes.role, CLIENT_BACKEND, labels)
        self.tracked = sampler.add(target, rings, self._notes)
        self._notes.start()

    @property
    def alive(self) -> bool:
        """Whether samples are still being taken, and noted."""
        return self._sampler.alive and self._notes.alive and self.tracked in self._sampler.targets

    @property
    def realtime(self) -> OSError | None:
        """None when statements are read at real-time priority, else why not."""
        return self._notes.realtime

    @property
    def faults(self) -> int:
        """How often noting failed."""
        return self._notes.faults

    @property
    def unnoted(self) -> int:
        """Samples whose statement there was no room to note."""
        return self._notes.unnoted

    @property
    def inherited(self) -> int:
        """Samples whose request is that of their transaction."""
        return self._notes.inherited

    @property
    def refused(self) -> Mapping[int, str]:
        """The processes of the server that could not be attached, and why."""
        return dict(self.tracked.source.refused)

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop, and send everything held."""
        self._notes.close(timeout_s)
        self._sampler.remove(self.tracked)
