"""What the tiers cost: CPU time of the registry's, the database's and the sidecar's own processes."""

from __future__ import annotations

import os
import resource

from quayscope.sidecar import procfs
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.targets import Postmaster

__all__ = ["TierCpu"]

_METRIC = "process.cpu.time"


class TierCpu:
    """Counts each tier's CPU.

    A tree's is what its root, its living descendants, and the dead ones that were waited for have used; /proc
    counts it in clock ticks (10 ms).
    """

    def __init__(self) -> None:
        self._highest: dict[tuple[str, int, int], int] = {}

    def readings(self, server: Postmaster | None, quay_pid: int | None) -> list[Reading]:
        """Return the cumulative CPU seconds of each tier whose processes run."""
        readings = []
        for tier, pid in (("postgres", None if server is None else server.pid), ("quay", quay_pid)):
            cpu_ns = None if pid is None else self._tree_ns(tier, pid)
            if cpu_ns is not None:
                readings.append(Reading(_METRIC, "cumulative", cpu_ns / 1e9, "s", {"tier": tier}))
        mine = resource.getrusage(resource.RUSAGE_SELF)
        helpers = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = mine.ru_utime + mine.ru_stime + helpers.ru_utime + helpers.ru_stime
        readings.append(
            Reading(_METRIC, "cumulative", seconds, "s", {"tier": "sidecar", "pid": str(os.getpid())})
        )
        return readings

    def _tree_ns(self, tier: str, root: int) -> int | None:
        facts = procfs.stat(root)
        if facts is None or facts.state in "ZX":
            return None
        total = 0
        for pid in (root, *procfs.descendants(root)):
            of_one = procfs.stat(pid)
            if of_one is not None:
                total += of_one.cpu_ns + of_one.reaped_ns
        # A child that ends between the looks at its parent and at itself is in neither for once: a cumulative
        # counter must not go back for that.
        key = (tier, root, facts.start_ticks)
        total = max(total, self._highest.get(key, 0))
        self._highest = {other: value for other, value in self._highest.items() if other[0] != tier}
        self._highest[key] = total
        return total
