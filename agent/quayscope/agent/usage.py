"""What the agent itself uses, and what the worker did with its time: measured, and sent like the rest."""

from __future__ import annotations

import gc
import time
from typing import Callable, TypeVar

from quayscope.agent import faults
from quayscope.agent.slots import SECOND_NS
from quayscope.agent.turns import Turns

__all__ = ["Usage"]

T = TypeVar("T")


class Usage:
    """Reads the clocks once a second: `own_ns`, `cpu_ns` (the worker's), `wall_ns` of the last one."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._wall_at = time.perf_counter_ns()
        self._cpu_at = time.process_time_ns()
        self._own_at = faults.own_ns()
        self._idle_at = self._blocked_at = 0
        self._slice_cpu_ns = self._slice_wall_ns = 0
        self.counts_slices = False
        """Whether slices add to what we use: on the main thread; our own thread's clock says it all."""
        self.own_ns = self.cpu_ns = self.wall_ns = 0

    def slice(self, step: Callable[[], T]) -> T:
        """Run a step that holds up the worker's other greenlets, and measure it.

        No collection starts in it: that would be the application's garbage, in our time.
        """
        collecting = gc.isenabled()
        gc.disable()
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        try:
            return step()
        finally:
            used = time.thread_time_ns() - cpu
            self._slice_cpu_ns = max(self._slice_cpu_ns, used)
            self._slice_wall_ns = max(self._slice_wall_ns, time.perf_counter_ns() - wall)
            if self.counts_slices:
                faults.own(used)
            if collecting:
                gc.enable()

    def second_passed(self) -> bool:
        """Take the clocks when a second has gone by since the last time, and count what it was spent on."""
        wall = time.perf_counter_ns()
        if wall - self._wall_at < 0.9 * SECOND_NS:
            return False
        cpu, own = time.process_time_ns(), faults.own_ns()
        self.wall_ns, self._wall_at = wall - self._wall_at, wall
        self.cpu_ns, self._cpu_at = cpu - self._cpu_at, cpu
        self.own_ns, self._own_at = own - self._own_at, own
        turns = self._turns
        idle, blocked = turns.idle_ns, turns.blocked_ns
        idle_ns, self._idle_at = min(idle - self._idle_at, self.wall_ns), idle
        blocked_ns, self._blocked_at = min(blocked - self._blocked_at, self.wall_ns - idle_ns), blocked
        faults.add("cpu_ns", self.own_ns)
        faults.add("idle_ns", idle_ns)
        faults.add("blocked_ns", blocked_ns)
        faults.add("busy_ns", self.wall_ns - idle_ns - blocked_ns)
        return True

    def levels(self, hz: int, share: float) -> dict[str, int]:
        """Return the rate, our share of the worker's CPU, and the longest slices since last time."""
        taken = {
            "hz": hz,
            "share_ppm": int(share * 1e6),
            "slice_cpu_max_ns": self._slice_cpu_ns,
            "slice_wall_max_ns": self._slice_wall_ns,
        }
        self._slice_cpu_ns = self._slice_wall_ns = 0
        return taken
