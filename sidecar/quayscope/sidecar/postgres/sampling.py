"""CPU samples of a Postgres server: what each backend ran is noted at the sample, its stack unwound later.

The server has rings of its own, and a thread that wakes for each sample, because a statement must be read
while it still runs. It notes that and the backend's role; the sampler does the rest in its batches.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Mapping

from quayscope.sidecar.native.batches import Note
from quayscope.sidecar.native.ring import Rings
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.statements import StatementSource, describe
from quayscope.sidecar.targets import CLIENT_BACKEND, Postmaster, backend_type

__all__ = ["PostgresSampling", "StatementNotes"]

log = logging.getLogger(__name__)

_POLL_MS = 100
_FILLING = 0.25
_LOOKS = 8
"""How full the rings are is looked at once in so many wake-ups."""
_MAX_NOTES = 65_536
_MAX_ROLES = 16_384
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


class StatementNotes:
    """Wakes at each sample and notes the statement that its backend runs, and what the backend is.

    `realtime` is None when it does so at real-time priority, else why not. `faults` counts looks that failed.
    `filling` is called when the rings are a quarter full. At most 65,536 samples are noted; the ones beyond
    have no statement.
    """

    def __init__(
        self,
        rings: Rings[Tracked],
        server: Postmaster,
        statements: StatementSource | None,
        filling: Callable[[], None],
    ) -> None:
        self._rings = rings
        self._server = server
        self._statements = statements
        self._filling = filling
        self._noted: dict[tuple[int, int], tuple[str | None, str | None]] = {}
        self._roles: dict[int, str] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perf-notes", daemon=True)
        self._prioritised = threading.Event()
        self.realtime: OSError | None = None
        self.faults = 0

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
                self.look()
                if looks % _LOOKS == 0 and self._rings.fullest() > _FILLING:
                    self._filling()
            except Exception:
                self.faults += 1
                if self.faults <= _MAX_FAULTS_LOGGED:
                    log.exception("fault while noting", extra={"faults": self.faults})
                self._stop.wait(_POLL_MS / 1000)

    def look(self) -> None:
        """Note what was sampled since the last look: one read a backend, for all its samples at hand."""
        running: dict[int, tuple[str | None, str | None]] = {}
        with self._lock:
            for place, pid in self._rings.unnoted():
                noted = running.get(pid)
                if noted is None:
                    text = self._statements.statement(pid) if self._statements is not None else None
                    noted = running[pid] = (text, self.role(pid))
                if len(self._noted) < _MAX_NOTES:
                    self._noted[place] = noted

    def take(self, place: tuple[int, int]) -> Note | None:
        """Return the note for the sample that lay at a place in the rings, and forget it."""
        noted = self._noted.pop(place, None)
        return None if noted is None else Note(describe(noted[0]), noted[1])

    def role(self, pid: int) -> str | None:
        """Return what a process of the server is; None while it has no title yet, or when it is gone."""
        role = self._roles.get(pid)
        if role is None:
            role = "postmaster" if pid == self._server.pid else backend_type(pid)
            if role is not None:
                if len(self._roles) >= _MAX_ROLES:
                    self._roles.clear()
                self._roles[pid] = role
        return role

    def forget(self, pid: int) -> None:
        """Drop what is known of a process that ended."""
        self._roles.pop(pid, None)


class PostgresSampling:
    """Samples one server until `close`. Raises OSError with the kernel's answer when it may not.

    `service` is the root frame of every stack. Losses go into the profiles: `unproven` joins of a statement
    rest on time alone, `unattributed` samples belong to no request.
    """

    def __init__(
        self,
        sampler: Sampler,
        server: Postmaster,
        statements: StatementSource | None,
        *,
        service: str,
        labels: Mapping[str, str],
    ) -> None:
        self._sampler = sampler
        rings = sampler.open_rings(each=True)
        self._notes = StatementNotes(rings, server, statements, sampler.hurry)
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
    def refused(self) -> Mapping[int, str]:
        """The processes of the server that could not be attached, and why."""
        return dict(self.tracked.source.refused)

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop, and send everything held."""
        self._notes.close(timeout_s)
        self._sampler.remove(self.tracked)
