"""A target that is being sampled: its source, its windows, and how much of its CPU the samples explain."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from quayscope.profile import PROCESS_CPU, Frame, Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.errors import NoCgroup
from quayscope.sidecar.native import cgroups
from quayscope.sidecar.native.ring import Rings
from quayscope.sidecar.native.sources import CgroupSource, Demand, Plan, TaskSource, open_source
from quayscope.sidecar.native.target import UNKNOWN_ROLE, SampledTarget
from quayscope.sidecar.windows import SECOND_NS, Windows

__all__ = ["Coverage", "Tracked"]

_MEASURE_EVERY_S = 10.0
_TOO_LITTLE_NS = SECOND_NS // 2
_MAX_ROLES = 65_536


class Coverage(NamedTuple):
    """CPU that the target's processes used in a stretch of time, and what of it the samples stand for, ns."""

    measured_ns: int
    sampled_ns: int

    @property
    def share(self) -> float:
        """The sampled share; 1 where too little was used to tell."""
        return self.sampled_ns / self.measured_ns if self.measured_ns > _TOO_LITTLE_NS else 1.0


class Tracked:
    """Opens the target's events. Raises OSError when none of any kind may be opened.

    `why_not_cgroup` is empty where the cgroup's events are used. `samples` and `cpu_ns` are what came so far.
    """

    def __init__(
        self,
        target: SampledTarget,
        rings: Rings[Tracked],
        plan: Plan,
        emit: Callable[[list[Profile]], None],
        window_s: int,
    ) -> None:
        self.target = target
        self.rings = rings
        labels = {**target.labels, "service_name": target.service, "sampler": "perf"}
        self.root = Frame(target.service, kind="root")
        self.windows = Windows(labels, window_s, emit, period_ns=SECOND_NS // plan.hz)
        self.samples = 0
        self.cpu_ns = 0
        self.truncated = 0
        self.lost = 0
        """Lost since windows were last charged with it."""
        self.coverage = Coverage(0, 0)
        self._plan = plan
        self._roles: dict[int, str] = {}
        self.source, self.why_not_cgroup = open_source(rings, self._demand(), plan, cgroup=target.cgroup)
        self._measured_at = time.monotonic()
        self._measured = (self._used_ns(), 0)

    def _demand(self) -> Demand[Tracked]:
        return Demand(self, self.target.root_pid, self.target.pids)

    def rescan(self) -> None:
        """Cover what is not covered yet. Raises OSError when nothing can be sampled any more."""
        try:
            self.source.rescan()
        except NoCgroup as error:
            # Somebody else moved into it: go on with the tasks' own events.
            self.source.close()
            self.why_not_cgroup = str(error)
            self.source = TaskSource(self.rings, self._demand(), self._plan)

    def shares_with(self, other: Tracked) -> bool:
        """Whether either of two targets is in the cgroup by which the other is sampled."""
        for one, by in ((self, other), (other, self)):
            if isinstance(by.source, CgroupSource):
                with contextlib.suppress(OSError, NoCgroup):
                    if one.target.root_pid in cgroups.members(by.source.cgroup.directory):
                        return True
        return self.target.root_pid == other.target.root_pid

    def set_rate(self, hz: int) -> None:
        """Sample `hz` times a second of CPU from now on. Raises OSError."""
        self._plan = self._plan._replace(hz=hz)
        self.source.set_rate(hz)
        self.windows.set_period(SECOND_NS // hz)

    def role(self, pid: int) -> str:
        """Return what a process is; asked again at its next sample while it cannot be told."""
        role = self._roles.get(pid)
        if role is None:
            role = self.target.role(pid)
            if role is None:
                return UNKNOWN_ROLE
            if len(self._roles) >= _MAX_ROLES:
                self._roles.clear()
            self._roles[pid] = role
        return role

    def forget(self, pid: int) -> None:
        """Drop what is known of a process that ended, or runs another program."""
        self._roles.pop(pid, None)

    def measure(self) -> None:
        """Measure the coverage, if it is time; to be called when all samples so far have been taken."""
        now = time.monotonic()
        if now - self._measured_at < _MEASURE_EVERY_S:
            return
        used, sampled = self._used_ns(), self.cpu_ns
        before = self._measured
        if 0 <= used - before[0] < _TOO_LITTLE_NS:
            return  # too little to tell: the stretch goes on
        self._measured_at, self._measured = now, (used, sampled)
        # Of a tree, a process that ends unobserved by its parent takes its CPU with it.
        self.coverage = Coverage(max(0, used - before[0]), sampled - before[1])

    def _used_ns(self) -> int:
        if isinstance(self.source, CgroupSource):
            with contextlib.suppress(OSError, ValueError):
                return self.source.cgroup.cpu_ns()
        total = 0
        for pid in {self.target.root_pid, *self.target.pids()}:
            facts = procfs.stat(pid)
            if facts is not None:
                total += facts.cpu_ns + facts.reaped_ns
        return total

    def lose(self, at_ns: int, count: int) -> None:
        """Count samples that were taken and could not be kept."""
        if count:
            self.windows.lose(PROCESS_CPU, self.target.main_role, at_ns, count)

    def charge(self, at_ns: int) -> None:
        """Put what the rings lost since the last call into the window of `at_ns`."""
        lost, self.lost = self.lost, 0
        self.lose(at_ns, lost)

    def close(self) -> None:
        """Close the events."""
        self.source.close()
