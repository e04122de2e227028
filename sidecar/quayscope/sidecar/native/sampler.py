"""CPU samples of a Postgres server: stack, statement and request of each, gathered into profiles.

A thread of its own wakes for each sample, because the statement must be read while it still runs; it notes
raw addresses only. Names come later, when a window has ended, on the thread that flushes.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Stack
from quayscope.profile.model import Losses
from quayscope.sidecar.native.kernel import KernelSymbols
from quayscope.sidecar.native.maps import AddressSpace, read_maps
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.ring import PerfRings, Sample
from quayscope.sidecar.native.symbols import Symbols
from quayscope.sidecar.statements import Described, StatementSource, describe
from quayscope.sidecar.targets import CLIENT_BACKEND, UNKNOWN_BACKEND, Postmaster, backend_type
from quayscope.sidecar.windows import SECOND_NS, Windows

__all__ = ["NativeSampler"]

log = logging.getLogger(__name__)

_POLL_MS = 100
_RESCAN_S = 1.0
_MAX_PENDING = 50_000
_GRACE_NS = SECOND_NS // 2
"""How long after a window's end its last samples may still be on their way through the rings."""
_MAX_FAULTS_LOGGED = 3


class _Key(NamedTuple):
    """What tells samples apart before they have names; addresses leaf first."""

    slot_ns: int
    role: str
    pid: int
    described: Described
    kernel: tuple[int, ...]
    user: tuple[int, ...]


def _hurry() -> OSError | None:
    """Give the calling thread real-time priority; returns why not.

    A statement that takes less than a millisecond is over before a thread of normal priority runs on a busy
    machine. It works some 50 us a sample; the kernel bounds what real-time threads may take.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError as error:
        return error
    return None


class NativeSampler:
    """Samples one server until it ends or `close` is called.

    Opening the events raises OSError with the kernel's answer. `service` is the root frame of every stack.
    `realtime` is None when the samples are taken at real-time priority, else why not.
    Losses go into the profiles: `lost` samples had no room, `truncated` stacks do not reach their root,
    `unproven` joins of a statement rest on time alone, `unattributed` samples belong to no request.
    """

    def __init__(
        self,
        server: Postmaster,
        statements: StatementSource | None,
        windows: Windows,
        *,
        service: str,
        hz: int,
        kernel: bool,
    ) -> None:
        self._server = server
        self._statements = statements
        self._windows = windows
        self._root = Frame(service, kind="root")
        # Listed before the events are opened: whoever is not in here yet will inherit them, except one
        # forked in the instant between.
        self._older = set(server.backends())
        self._rings = PerfRings(server.pid, hz, kernel=kernel)
        self._space = read_maps(server.pid)
        self._spaces: dict[int, AddressSpace | None] = {}
        self._roles: dict[int, str] = {}
        self._ended: set[int] = set()
        self._pending: dict[_Key, list[int]] = {}
        self._lock = threading.Lock()
        self._lost = 0
        self._symbols = Symbols(Objects())
        self._kernel_symbols = KernelSymbols()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perf", daemon=True)
        self._prioritised = threading.Event()
        self.realtime: OSError | None = None
        self.faults = 0
        self.samples = 0

    def start(self) -> None:
        """Cover the backends that run already, and begin."""
        self._rescan()
        self._thread.start()
        self._prioritised.wait(_POLL_MS / 1000)

    @property
    def alive(self) -> bool:
        """Whether samples are still being taken."""
        return self._thread.is_alive()

    @property
    def throttled(self) -> int:
        """How often the kernel slowed sampling down."""
        return self._rings.throttled

    @property
    def refused(self) -> Mapping[int, str]:
        """The processes of the server that could not be attached, and why."""
        return dict(self._rings.refused)

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop, and hand everything held to the windows."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._rings.close()
        self.flush(None)

    def _run(self) -> None:
        self.realtime = _hurry()
        self._prioritised.set()
        poller = select.poll()
        for descriptor in self._rings.descriptors():
            poller.register(descriptor, select.POLLIN)
        rescan_at = time.monotonic() + _RESCAN_S
        while not self._stop.is_set():
            events = poller.poll(_POLL_MS)
            # The one border of this thread: a fault costs the samples at hand, never the sampling.
            try:
                self._collect()
                if time.monotonic() >= rescan_at:
                    rescan_at = time.monotonic() + _RESCAN_S
                    self._rescan()
            except Exception:
                self.faults += 1
                if self.faults <= _MAX_FAULTS_LOGGED:
                    log.exception("sampling fault", extra={"faults": self.faults})
            if any(event & ~select.POLLIN for _, event in events):
                if not self._server.alive():
                    return
                self._stop.wait(_POLL_MS / 1000)  # such events do not go away: no spinning over them

    def _collect(self) -> None:
        offset = time.time_ns() - time.monotonic_ns()
        # One read a backend and wake-up: all its samples at hand are joined to what it runs now.
        running: dict[int, Described] = {}
        for record in self._rings.drain():
            if isinstance(record, Sample):
                self._note(record, offset, running)
            elif record.exited:
                # Other rings may still hold samples of it: what is known about it goes with the next flush.
                self._ended.add(record.pid)
                self._rings.detach(record.pid)

    def _note(self, sample: Sample, offset: int, running: dict[int, Described]) -> None:
        pid = sample.pid
        described = running.get(pid)
        if described is None:
            text = self._statements.statement(pid) if self._statements is not None else None
            described = running[pid] = describe(text)
        self._learn_space(sample)
        unix_ns = sample.time_ns + offset
        slot = unix_ns - unix_ns % SECOND_NS
        key = _Key(slot, self._role(pid), pid, described, sample.kernel, sample.user)
        with self._lock:
            self.samples += 1
            held = self._pending.get(key)
            if held is not None:
                held[0] += 1
                held[1] += sample.period_ns
            elif len(self._pending) < _MAX_PENDING:
                self._pending[key] = [1, sample.period_ns]
            else:
                self._lost += 1

    def _role(self, pid: int) -> str:
        role = self._roles.get(pid)
        if role is None:
            if pid == self._server.pid:
                role = "postmaster"
            else:
                role = backend_type(pid)
                if role is None:
                    # Not named yet, or gone: ask again at its next sample.
                    return UNKNOWN_BACKEND
            self._roles[pid] = role
        return role

    def _learn_space(self, sample: Sample) -> None:
        """Read a backend's own maps, while it lives, when the postmaster's do not explain its stack.

        Backends are forks without exec: what is mapped in the postmaster lies at the same place in them.
        """
        pid = sample.pid
        if pid in self._spaces:
            return
        space = self._space
        if space is None or any(space.find(address) is None for address in sample.user[:1]):
            self._spaces[pid] = read_maps(pid)

    def _rescan(self) -> None:
        """Attach backends that ran before the postmaster's events were opened, and forget dead ones."""
        alive = set(self._server.backends())
        self._older &= alive
        for pid in (self._rings.attached | self._rings.refused.keys()) - alive - {self._server.pid}:
            self._rings.detach(pid)
        for pid in self._older - self._rings.attached:
            if not self._rings.attach(pid) and pid in self._rings.refused:
                log.debug("backend not attached", extra={"pid": pid, "error": self._rings.refused[pid]})

    def flush(self, now_ns: int | None) -> None:
        """Turn the raw samples of windows that ended before `now_ns` (None: all) into profiles."""
        before = None if now_ns is None else self._windows.start_of(now_ns - _GRACE_NS)
        with self._lock:
            if before is None:
                ready, self._pending = self._pending, {}
            else:
                ready = {key: held for key, held in self._pending.items() if key.slot_ns < before}
                for key in ready:
                    del self._pending[key]
            lost = self._lost + self._rings.lost
            self._lost = self._rings.lost = 0
            ended, self._ended = self._ended, set()
        for (slot, role, pid, described, kernel, user), (count, cpu_ns) in ready.items():
            stack, complete = self._stack(role, pid, described, kernel, user)
            losses = Losses(
                truncated=0 if complete else count,
                unproven=count if described.frame is not None else 0,
                unattributed=0 if described.has_request else count,
            )
            attributes = Attributes(
                slot, described.endpoint, described.run, described.phase, pid, trace_id=described.trace_id
            )
            self._windows.add(PROCESS_CPU, role, stack, attributes, (count, cpu_ns), losses)
        for pid in ended:
            self._spaces.pop(pid, None)
            self._roles.pop(pid, None)
        if lost:
            at = time.time_ns() if now_ns is None else now_ns
            self._windows.lose(PROCESS_CPU, CLIENT_BACKEND, at, lost)
        self._windows.flush(before)

    def _stack(
        self, role: str, pid: int, described: Described, kernel: tuple[int, ...], user: tuple[int, ...]
    ) -> tuple[Stack, bool]:
        frames = [self._root]
        if role != CLIENT_BACKEND:
            frames.append(Frame(role, kind="root"))
        if described.frame is not None:
            frames.append(described.frame)
        native, complete = self._native(pid, user)
        frames += native
        frames += (self._kernel_symbols.frame(address) for address in reversed(kernel))
        return tuple(frames), complete

    def _native(self, pid: int, user: tuple[int, ...]) -> tuple[list[Frame], bool]:
        """Return the frames of a chain of addresses, root first, and whether it reaches the root."""
        found: list[Frame] = []
        complete = False
        own = self._spaces.get(pid)
        for depth, address in enumerate(user):
            # A return address is the instruction after the call: the call itself is one byte before.
            address -= depth > 0
            space = self._space
            mapping = space.find(address) if space is not None else None
            if mapping is None and own is not None:
                space, mapping = own, own.find(address)
            if space is None or mapping is None:
                # Code without frame pointers led the kernel astray: what follows is no stack.
                break
            named = self._symbols.frames(space, address)
            complete = named.is_root
            found += named.frames
        found.reverse()
        return found, complete
