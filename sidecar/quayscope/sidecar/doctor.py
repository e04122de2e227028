"""Tries what the sidecar needs, one by one, and says what the system answered and what it would take.

Nothing is concluded from versions, users or configuration: each capability is the outcome of doing the thing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from quayscope.sidecar.capabilities import Capability
from quayscope.sidecar.errors import SidecarError
from quayscope.sidecar.native.events import open_event
from quayscope.sidecar.postgres.memory import BackendMemory
from quayscope.sidecar.targets import Postmaster

__all__ = [
    "PERF_KERNEL",
    "PERF_USER",
    "POSTGRES",
    "READ_MEMORY",
    "REALTIME",
    "found",
    "not_found",
    "priority",
    "try_memory",
    "try_perf",
]

PERF_USER = "perf_user"
PERF_KERNEL = "perf_kernel"
ALL_BACKENDS = "perf_all_backends"
READ_MEMORY = "process_vm_readv"
REALTIME = "realtime_priority"
POSTGRES = "postgres_process"

_PERF_USER_REMEDY = (
    "run as the target's own user with kernel.perf_event_paranoid <= 2, or add the capability PERFMON to the "
    "container's securityContext; and a seccomp profile that allows perf_event_open"
)
_PERF_KERNEL_REMEDY = (
    "the capability PERFMON in the container's securityContext (its process as uid 0), or "
    "kernel.perf_event_paranoid <= 1; and a seccomp profile that allows perf_event_open"
)
_MEMORY_REMEDY = (
    "run as the target's own user, or add the capability SYS_PTRACE to the container's securityContext; "
    "a seccomp profile that allows process_vm_readv, and kernel.yama.ptrace_scope 0"
)
_POSTGRES_REMEDY = "shareProcessNamespace: true in the pod of Postgres, or --postgres PID"


def _answer(call: str, error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return f"{call}: {error.strerror} ({name})"


def found(server: Postmaster, others: int) -> Capability:
    """Report the server that is watched; `others` is how many more run."""
    more = f", {others} more not watched: name the one to watch with --postgres PID" if others else ""
    return Capability(POSTGRES, True, f"postmaster {server.pid}{more}")


def not_found(wanted: str) -> Capability:
    """Report that no server runs where `wanted` says."""
    return Capability(POSTGRES, False, f"no postmaster visible in /proc ({wanted})", _POSTGRES_REMEDY)


def try_perf(pid: int, hz: int) -> list[Capability]:
    """Open a CPU clock event on a process, with the kernel's part and without."""
    outcomes: list[Capability] = []
    for name, kernel, remedy in (
        (PERF_USER, False, _PERF_USER_REMEDY),
        (PERF_KERNEL, True, _PERF_KERNEL_REMEDY),
    ):
        what = "perf_event_open (user and kernel)" if kernel else "perf_event_open (user)"
        try:
            os.close(open_event(pid, 0, hz, kernel=kernel))
        except OSError as error:
            detail = _answer(what, error)
            if kernel and outcomes[0].permitted:
                detail += "; CPU spent in the kernel is not in the samples"
            outcomes.append(Capability(name, False, detail, remedy))
        else:
            outcomes.append(Capability(name, True, f"{what} on process {pid}"))
    return outcomes


def try_memory(server: Postmaster) -> tuple[Capability, BackendMemory | None]:
    """Read one pointer of the server's memory; returns the reader where that worked."""
    try:
        memory = BackendMemory(server)
    except SidecarError as error:
        return Capability(READ_MEMORY, False, str(error), _MEMORY_REMEDY), None
    except OSError as error:
        return Capability(READ_MEMORY, False, _answer(READ_MEMORY, error), _MEMORY_REMEDY), None
    return Capability(READ_MEMORY, True, f"read from process {server.pid}"), memory


def priority(refusal: OSError | None) -> Capability:
    """Report whether statements are read at real-time priority."""
    if refusal is None:
        return Capability(REALTIME, True, "sched_setscheduler: SCHED_FIFO")
    detail = _answer("sched_setscheduler", refusal) + "; short statements are often over before they are read"
    return Capability(REALTIME, False, detail, "the capability SYS_NICE, or a RLIMIT_RTPRIO of 1")


def coverage(sampling: bool, refused: Sequence[str]) -> Capability:
    """Report whether every backend is sampled; `refused` says why each of the others is not."""
    if not sampling:
        return Capability(ALL_BACKENDS, False, "the sampler ended", "see the sidecar's log")
    if refused:
        return Capability(
            ALL_BACKENDS,
            False,
            f"{len(refused)} backends older than the sidecar are not sampled: {refused[0]}",
            "a higher RLIMIT_NOFILE: a descriptor a backend and CPU; backends started later are sampled",
        )
    return Capability(ALL_BACKENDS, True, "all backends are sampled")
