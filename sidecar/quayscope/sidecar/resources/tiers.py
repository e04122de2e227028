"""What the tiers cost: CPU time of the registry's, the database's and the sidecar's own processes."""

from __future__ import annotations

import os
import resource

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources.names import PROCESS_CPU
from quayscope.sidecar.resources.processes import Processes
from quayscope.sidecar.targets import Postmaster

__all__ = ["TierCpu"]


class TierCpu:
    """Counts each tier's CPU.

    A tree's is what its root, its living descendants, and the dead ones that were waited for have used; /proc
    counts the dead ones' in clock ticks (10 ms).
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._highest: dict[tuple[str, int, int], int] = {}

    def readings(self, server: Postmaster | None, quay_pid: int | None) -> list[Reading]:
        """Return the cumulative CPU seconds of each tier whose processes run, as of the last look at them."""
        readings = []
        for tier, pid in (("postgres", None if server is None else server.pid), ("quay", quay_pid)):
            cpu_ns = None if pid is None else self._tree_ns(tier, pid)
            if cpu_ns is not None:
                readings.append(PROCESS_CPU.now(cpu_ns / 1e9, {"tier": tier}))
        mine = resource.getrusage(resource.RUSAGE_SELF)
        helpers = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = mine.ru_utime + mine.ru_stime + helpers.ru_utime + helpers.ru_stime
        readings.append(PROCESS_CPU.now(seconds, {"tier": "sidecar", "pid": str(os.getpid())}))
        return readings

    def _tree_ns(self, tier: str, root: int) -> int | None:
        tree = self._processes.tree(root)
        if not tree:
            return None
        total = sum(process.clock_ns + process.reaped_ns for process in tree)
        # A child that ends between the looks at its parent and at itself is in neither for once: a cumulative
        # counter must not go back for that.
        key = (tier, root, tree[0].start_ticks)
        total = max(total, self._highest.get(key, 0))
        self._highest = {other: value for other, value in self._highest.items() if other[0] != tier}
        self._highest[key] = total
        return total
