"""What sampling is permitted and lacks, as capabilities: how it reaches each target, with what memory."""

from __future__ import annotations

from collections.abc import Sequence

from quayscope.sidecar.capabilities import Capability
from quayscope.sidecar.native.ring import ENOUGH_BYTES
from quayscope.sidecar.native.sources import CgroupSource
from quayscope.sidecar.native.tracked import Tracked

__all__ = ["ALL_CPU", "CGROUP", "RINGS", "capabilities"]

CGROUP = "perf_cgroup"
RINGS = "ring_memory"
ALL_CPU = "perf_all_cpu"
_ENOUGH = 0.9
"""What is sampled of a target's CPU lies within a few per cent of it, where nothing escapes."""

_CGROUP_REMEDY = (
    "the sidecar as uid 0 with PERFMON and SYS_PTRACE in its securityContext, and a target in a container of "
    "its own"
)
_RINGS_REMEDY = "a higher RLIMIT_MEMLOCK, the capability IPC_LOCK as uid 0, or kernel.perf_event_mlock_kb"


def capabilities(targets: Sequence[Tracked]) -> list[Capability]:
    """Return one capability each for the cgroups, the rings and the CPU of all targets together."""
    return [_cgroups(targets), _rings(targets), _all_cpu(targets)] if targets else []


def _cgroups(targets: Sequence[Tracked]) -> Capability:
    without = [tracked for tracked in targets if not isinstance(tracked.source, CgroupSource)]
    if without:
        said = "; ".join(f"{tracked.target.service}: {tracked.why_not_cgroup}" for tracked in without[:4])
        return Capability(CGROUP, False, f"sampled task by task: {said}", _CGROUP_REMEDY)
    return Capability(CGROUP, True, "perf events on the cgroup of each target")


def _rings(targets: Sequence[Tracked]) -> Capability:
    smallest = min((tracked.rings for tracked in targets), key=lambda rings: rings.size)
    detail = f"{smallest.size // 1024} kB a CPU"
    if smallest.size >= ENOUGH_BYTES:
        return Capability(RINGS, True, detail)
    if not smallest.holds_dumps:
        detail += ": no room for stack dumps, frame pointers only"
    else:
        detail += ": samples are lost when the sidecar has to wait for a CPU"
    return Capability(RINGS, False, detail, _RINGS_REMEDY)


def _all_cpu(targets: Sequence[Tracked]) -> Capability:
    worst = min(targets, key=lambda tracked: tracked.coverage.share)
    share = worst.coverage.share
    if share >= _ENOUGH:
        return Capability(ALL_CPU, True, "the samples stand for all CPU that the targets use")
    return Capability(
        ALL_CPU,
        False,
        f"{worst.target.service}: the samples stand for less than {_rounded(share)} % of the CPU used: "
        "processes that live shorter than a sample's period are hardly seen task by task",
        _CGROUP_REMEDY,
    )


def _rounded(share: float) -> int:
    # In steps of ten: each other text would be told as a change.
    return min(90, int(share * 10 + 1) * 10)
