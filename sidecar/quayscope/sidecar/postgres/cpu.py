"""CPU per statement where perf events are refused: CPU clocks, charged to what backends are seen running.

Between two polls a backend may have run many statements; all its CPU of the interval goes to the one that is
seen at its end, or the last one it ran. Every such sample is therefore counted unproven.
"""

from __future__ import annotations

from quayscope.profile import PROCESS_CPU, Attributes, Frame
from quayscope.profile.model import Losses
from quayscope.sidecar import procfs
from quayscope.sidecar.postgres.activity import Backend, Poll
from quayscope.sidecar.statements import NO_STATEMENT, describe
from quayscope.sidecar.targets import CLIENT_BACKEND
from quayscope.sidecar.windows import SECOND_NS, Windows

__all__ = ["ActivityCpu"]


class ActivityCpu:
    """Turns polls into `process_cpu` samples; a listener of `Activity`. Off until `enabled` is set.

    Only backends that are processes here are charged: a server elsewhere has pids that on this machine
    belong to somebody else.
    """

    def __init__(self, windows: Windows, service: str) -> None:
        self._windows = windows
        self._root = Frame(service, kind="root")
        self._clocks: dict[int, int] = {}
        self.enabled = False

    def seen(self, poll: Poll) -> None:
        """Charge the CPU that each backend used since the last poll."""
        if not self.enabled:
            self._clocks.clear()
            return
        slot = poll.time_ns - poll.time_ns % SECOND_NS
        clocks: dict[int, int] = {}
        for backend in poll.backends:
            if not backend.local:
                continue
            now = procfs.cpu_ns(backend.pid)
            if now is None:
                continue
            clocks[backend.pid] = now
            before = self._clocks.get(backend.pid)
            if before is None and poll.elapsed_ns and backend.age_s * SECOND_NS <= poll.elapsed_ns:
                before = 0  # born since the last poll: all its CPU is of this interval
            if before is not None and now > before:
                self._charge(backend, slot, now - before)
        self._clocks = clocks

    def _charge(self, backend: Backend, slot: int, cpu_ns: int) -> None:
        client = backend.kind == CLIENT_BACKEND
        described = describe(backend.query) if backend.query else NO_STATEMENT
        frames = [self._root]
        if not client:
            frames.append(Frame(backend.kind, kind="root"))
        if described.frame is not None:
            frames.append(described.frame)
        attributes = Attributes(
            slot,
            described.endpoint,
            described.run,
            described.phase,
            backend.pid,
            described.span_id,
            described.trace_id,
        )
        losses = Losses(
            unproven=int(described.frame is not None), unattributed=int(not described.has_request)
        )
        self._windows.add(PROCESS_CPU, backend.kind, tuple(frames), attributes, (1, cpu_ns), losses)
