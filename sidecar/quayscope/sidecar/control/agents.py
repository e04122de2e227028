"""Captures of workers with an agent: their own samples, at the rate asked for, of the window alone.

Nothing is started: the worker samples already. It is told the rate and quarter-second slots, and what it
writes is read on its way into the continuous profile, which goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from quayscope.profile import Profile, ProfileType
from quayscope.profile.control import Target
from quayscope.relay import Relay, WorkerSettings
from quayscope.relay.windows import Sample
from quayscope.sidecar.control.capturer import Captured, Collected, Window

__all__ = ["AgentCapturer", "Rates"]

_SLOT_NS = 250_000_000
_WRITTEN_S = 0.5
"""A worker writes a slot 50 ms after its end; one that is busy, or whose queue is full, a little later."""
_KEPT_S = 2


class Rates:
    """What workers are told while captures run: the highest rate that any of them asks for.

    `own`: what they are told when none runs (see `SetRate`).
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._lock = threading.Lock()
        self._asked: dict[int, list[tuple[int, int]]] = {}
        self.own = WorkerSettings()

    def begin(self, pid: int, hz: int, until_ns: int) -> tuple[int, int]:
        """Tell a worker; returns what to give to `end`."""
        asked = (hz, until_ns)
        with self._lock:
            self._asked.setdefault(pid, []).append(asked)
            self._tell(pid)
        return asked

    def end(self, pid: int, asked: tuple[int, int]) -> None:
        """Take back what was asked for."""
        with self._lock:
            self._asked[pid].remove(asked)
            self._tell(pid)
            if not self._asked[pid]:
                del self._asked[pid]

    def _tell(self, pid: int) -> None:
        asked = self._asked[pid]
        if not asked:
            self._relay.tell(self.own, pid)
            return
        hz, until_ns = max(one[0] for one in asked), max(one[1] for one in asked)
        self._relay.tell(WorkerSettings(True, hz, 250, until_ns), pid)


class AgentCapturer:
    """Takes captures of the relay's workers."""

    kind = "python"

    def __init__(self, relay: Relay, rates: Rates) -> None:
        self._relay = relay
        self._rates = rates

    def suits(self, target: Target) -> bool:
        """Whether an agent lives in the target."""
        return any(worker.pid == target.pid for worker in self._relay.workers())

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:
        """See `Capturer`."""
        lock, collected = threading.Lock(), Collected()

        def take(
            kind: ProfileType, labels: Mapping[str, str], slot_ns: int, samples: Sequence[Sample]
        ) -> None:
            ours = [one for one in samples if one[1].pid == target.pid]
            # Whole seconds where the worker has not heard of quarters yet.
            if not ours or not window.holds(slot_ns, _SLOT_NS):
                return
            profile = Profile(kind, {**labels, "sampler": "agent"}, slot_ns, _SLOT_NS)
            for stack, attributes, values in ours:
                profile.add(stack, attributes, values)
                if not attributes.endpoint:
                    profile.losses.unattributed += values[0]
            with lock:
                collected.add(profile)

        asked = self._rates.begin(target.pid, hz, window.end_ns + _KEPT_S * 10**9)
        self._relay.tap(take)
        try:
            window.wait_end(cancelled)
            ended_ns = min(window.clock(), window.end_ns)
            time.sleep(_WRITTEN_S)
        finally:
            self._relay.untap(take)
            self._rates.end(target.pid, asked)
        note = "" if self.suits(target) else f"process {target.pid} ended during the capture"
        started_ns = _first_slot(window.start_ns)
        with lock:
            return Captured(collected.within(started_ns, ended_ns), started_ns, ended_ns, note)


def _first_slot(start_ns: int) -> int:
    """Return the start of the first slot that `Window.holds`."""
    return -(-(start_ns - _SLOT_NS // 2) // _SLOT_NS) * _SLOT_NS
