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
from collections.abc import Callable, Mapping

from quayscope.sidecar.native.batches import Note
from quayscope.sidecar.native.ring import Rings
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.postgres.naming import Namer
from quayscope.sidecar.postgres.running import Backends, Noted, Running
from quayscope.sidecar.statements import NO_STATEMENT, StatementSource
from quayscope.sidecar.targets import CLIENT_BACKEND, Postmaster

__all__ = ["PostgresSampling", "StatementNotes"]

log = logging.getLogger(__name__)

_POLL_MS = 1000
_PAUSE_S = 0.1
_FILLING = 0.25
_LOOKS = 8
"""How full the rings are is looked at once in so many wake-ups."""
_MAX_NOTES = 65_536
_MANY_NOTES = 8_192
_MAX_HELD = 16 << 20
_MAX_FAULTS_LOGGED = 3


def _hurry(cpus: list[int]) -> None:
    """Give the calling thread real-time priority, and keep it on its CPU if it has one. Raises OSError.

    A statement that takes less than a millisecond is over before a thread of normal priority runs on a busy
    machine. The kernel bounds what real-time threads may take.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    if len(cpus) == 1:
        # A CPU that we may not run on is looked after from another.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)


def _may_hurry() -> OSError | None:
    """Return None where threads may have real-time priority, else why not."""
    found: list[OSError] = []

    def ask() -> None:
        try:
            _hurry([])
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join()
    return found[0] if found else None


class StatementNotes:
    """Wakes at each sample and notes what its backend does; `take` says what that means.

    A thread of real-time priority for each CPU, kept on it, where that is permitted: the backend whose sample
    it looks at then stands still meanwhile. Else one thread. `realtime` is None, or why there is no priority.

    `faults` counts looks that failed, `inherited` samples whose request is that of their transaction,
    `unnoted` samples that there was no room for: 65,536 are noted at a time, with 16 MB of text. `filling` is
    called when the rings are a quarter full.
    """

    def __init__(self, rings: Rings[Tracked], running: Running, filling: Callable[[], None]) -> None:
        self._rings = rings
        self._running = running
        self._filling = filling
        self._namer = Namer()
        self._second = 0
        self._noted: dict[tuple[int, int], Noted] = {}
        self._room = _MAX_HELD
        self._stop = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads: list[threading.Thread] = []
        self.realtime: OSError | None = None
        self.faults = 0
        self.unnoted = 0
        self.inherited = 0

    def start(self) -> None:
        """Begin to wake."""
        self.realtime = _may_hurry()
        cpus = self._rings.cpus
        for some in [cpus] if self.realtime is not None else [[cpu] for cpu in cpus]:
            thread = threading.Thread(target=self._run, args=(some,), name="perf-notes", daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether it wakes."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def close(self, timeout_s: float) -> None:
        """Wake no longer."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads) and self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _run(self, cpus: list[int]) -> None:
        if self.realtime is None:
            _hurry(cpus)
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        for cpu, descriptor in zip(self._rings.cpus, self._rings.descriptors(), strict=True):
            if cpu in cpus:
                poller.register(descriptor, select.POLLIN)
        looks = 0
        while not self._stop.is_set():
            poller.poll(_POLL_MS)
            looks += 1
            # The one border of this thread: a fault costs the notes at hand, never the noting.
            try:
                self._look(cpus)
                if looks % _LOOKS == 0 and self._rings.fullest() > _FILLING:
                    self._filling()
            except Exception:
                self.faults += 1
                if self.faults <= _MAX_FAULTS_LOGGED:
                    log.exception("fault while noting", extra={"faults": self.faults})
                self._stop.wait(_PAUSE_S)

    def _look(self, cpus: list[int]) -> None:
        for cpu in cpus:
            samples = self._rings.unnoted(cpu)
            seen: dict[int, Noted] = {}
            for place, pid, _ in samples:
                noted = seen.get(pid)
                if noted is None:
                    noted = seen[pid] = self._running.note(pid)
                    self._room -= noted.size
                if self._room < 0 or len(self._noted) >= _MAX_NOTES:
                    self.unnoted += 1
                else:
                    self._noted[place] = noted
            self._rings.noted(cpu)

    def look(self) -> None:
        """Prepare for a batch."""
        if self.alive:
            self._rings.pass_over()
        else:
            self._look(self._rings.cpus)
        self._running.measure()
        self._prune()
        self._room = _MAX_HELD
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._namer.next_second()

    def _prune(self) -> None:
        """Drop the notes of samples that nobody took: they are gone from the rings."""
        if len(self._noted) > _MANY_NOTES:
            released = self._rings.released()
            for place in list(self._noted):
                if place[1] < released.get(place[0], 0):
                    del self._noted[place]

    def take(self, place: tuple[int, int], pid: int, time_ns: int) -> Note:
        """Return the note for a process's sample that lay at a place in the rings, and forget it."""
        noted = self._noted.pop(place, None)
        if noted is None:
            return Note(NO_STATEMENT, None, True, pid)
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
