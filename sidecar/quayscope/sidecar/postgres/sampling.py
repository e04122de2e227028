"""CPU samples of a Postgres server: what each backend ran is noted at the sample, its stack unwound later.

The server has rings of its own, and a thread that wakes for each sample, because a statement must be read
while it still runs. It notes that and the backend's role; the sampler does the rest in its batches.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from quayscope.sidecar.native.batches import Note
from quayscope.sidecar.native.ring import Rings
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.postgres.naming import Namer
from quayscope.sidecar.postgres.running import Backends, Ran, Running
from quayscope.sidecar.statements import NO_STATEMENT, StatementSource
from quayscope.sidecar.targets import CLIENT_BACKEND, Postmaster

__all__ = ["PostgresSampling", "StatementNotes"]

log = logging.getLogger(__name__)

_POLL_MS = 100
_FILLING = 0.25
_LOOKS = 8
"""How full the rings are is looked at once in so many wake-ups."""
_MAX_NOTES = 65_536
_MAX_HELD = 16 << 20
_MAX_FAULTS_LOGGED = 3


def _hurry() -> OSError | None:
    """Give the calling thread real-time priority; returns why not.

    A statement that takes less than a millisecond is over before a thread of normal priority runs on a busy
    machine. It works some 30 us a sample; the kernel bounds what real-time threads may take.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError as error:
        return error
    return None


class _Noted(NamedTuple):
    ran: Ran
    size: int


class StatementNotes:
    """Wakes at each sample and notes the statement that its backend runs, and what the backend is.

    `realtime` is None when it does so at real-time priority, else why not. `faults` counts looks that failed,
    `unnoted` samples for whose text there was no room: 65,536 samples are noted at a time, with 16 million
    characters. `filling` is called when the rings are a quarter full.
    """

    def __init__(self, rings: Rings[Tracked], running: Running, filling: Callable[[], None]) -> None:
        self._rings = rings
        self._running = running
        self._filling = filling
        self._namer = Namer()
        self._second = 0
        self._noted: dict[tuple[int, int], _Noted] = {}
        self._held = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perf-notes", daemon=True)
        self._prioritised = threading.Event()
        self.realtime: OSError | None = None
        self.faults = 0
        self.unnoted = 0

    def start(self) -> None:
        """Begin to wake."""
        self._thread.start()
        self._prioritised.wait(_POLL_MS / 1000)

    @property
    def alive(self) -> bool:
        """Whether it wakes."""
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> None:
        """Wake no longer."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        self.realtime = _hurry()
        self._prioritised.set()
        poller = select.poll()
        for descriptor in self._rings.descriptors():
            poller.register(descriptor, select.POLLIN)
        looks = 0
        while not self._stop.is_set():
            poller.poll(_POLL_MS)
            looks += 1
            # The one border of this thread: a fault costs the notes at hand, never the noting.
            try:
                self._look()
                if looks % _LOOKS == 0 and self._rings.fullest() > _FILLING:
                    self._filling()
            except Exception:
                self.faults += 1
                if self.faults <= _MAX_FAULTS_LOGGED:
                    log.exception("fault while noting", extra={"faults": self.faults})
                self._stop.wait(_POLL_MS / 1000)

    def look(self) -> None:
        """Note what nobody has noted: nothing, while the thread wakes that is quicker at it."""
        if not self.alive:
            self._look()

    def _look(self) -> None:
        with self._lock:
            samples = self._rings.unnoted()
            if samples:
                self._running.begin()
                by_pid: dict[int, list[tuple[tuple[int, int], int]]] = {}
                for place, pid, time_ns in samples:
                    by_pid.setdefault(pid, []).append((place, time_ns))
                for pid, taken in by_pid.items():
                    ran = self._running.at(pid, [time_ns for _, time_ns in taken])
                    for (place, _), one in zip(taken, ran, strict=True):
                        self._note(place, one)
            self._rings.noted()

    def _note(self, place: tuple[int, int], ran: Ran) -> None:
        size = len(ran.text) if ran.text is not None else 0
        if len(self._noted) >= _MAX_NOTES or self._held + size > _MAX_HELD:
            self._prune()
            if len(self._noted) >= _MAX_NOTES or self._held + size > _MAX_HELD:
                self.unnoted += 1
                return
        self._noted[place] = _Noted(ran, size)
        self._held += size

    def _prune(self) -> None:
        """Drop the notes of samples that nobody took: they are gone from the rings."""
        released = self._rings.released()
        for place in [place for place in list(self._noted) if place[1] < released.get(place[0], 0)]:
            self._drop(place)

    def _drop(self, place: tuple[int, int]) -> Ran | None:
        noted = self._noted.pop(place, None)
        if noted is None:
            return None
        self._held -= noted.size
        return noted.ran

    def take(self, place: tuple[int, int], pid: int) -> Note:
        """Return the note for a process's sample that lay at a place in the rings, and forget it."""
        ran = self._drop(place)
        if ran is None:
            return Note(NO_STATEMENT, None, True, pid)
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._namer.next_second()
        described = NO_STATEMENT if ran.text is None else self._namer.describe(ran.text)
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
    def refused(self) -> Mapping[int, str]:
        """The processes of the server that could not be attached, and why."""
        return dict(self.tracked.source.refused)

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop, and send everything held."""
        self._notes.close(timeout_s)
        self._sampler.remove(self.tracked)
