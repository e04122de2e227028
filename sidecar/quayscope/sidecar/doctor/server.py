"""What the watch over one server is permitted, tried as it begins and noted as a capability."""

from __future__ import annotations

from collections.abc import Sequence

from quayscope.sidecar.capabilities import Capability
from quayscope.sidecar.doctor.attempts import Attempt, system_answer
from quayscope.sidecar.doctor.limits import REALTIME, why_not_realtime
from quayscope.sidecar.doctor.memory import READ_MEMORY, why_closed
from quayscope.sidecar.doctor.perf import PERF_KERNEL, PERF_USER, try_task
from quayscope.sidecar.doctor.standing import read_standing
from quayscope.sidecar.doctor.subjects import subject
from quayscope.sidecar.errors import SidecarError
from quayscope.sidecar.postgres.memory import BackendMemory
from quayscope.sidecar.targets import Postmaster

__all__ = [
    "PERF_KERNEL",
    "PERF_USER",
    "POSTGRES",
    "READ_MEMORY",
    "REALTIME",
    "coverage",
    "found",
    "not_found",
    "priority",
    "try_memory",
    "try_perf",
]

ALL_BACKENDS = "perf_all_backends"
POSTGRES = "postgres_process"

_POSTGRES_REMEDY = "spec.shareProcessNamespace: true in the pod of Postgres, or --postgres PID"


def _capability(attempt: Attempt) -> Capability:
    if attempt.permitted:
        return Capability(attempt.name, True, f"{attempt.call}: {attempt.detail}")
    detail = f"{attempt.call}: {attempt.detail}" + (f" ({attempt.errno})" if attempt.errno else "")
    return Capability(attempt.name, False, detail, attempt.remedy.line())


def found(server: Postmaster, others: int) -> Capability:
    """Report the server that is watched; `others` is how many more run."""
    more = f", {others} more not watched: name the one to watch with --postgres PID" if others else ""
    return Capability(POSTGRES, True, f"postmaster {server.pid}{more}")


def not_found(wanted: str) -> Capability:
    """Report that no server runs where `wanted` says."""
    return Capability(POSTGRES, False, f"no postmaster visible in /proc ({wanted})", _POSTGRES_REMEDY)


def try_perf(pid: int, hz: int) -> list[Capability]:
    """Open a CPU clock event on a process, with the kernel's part and without."""
    one = subject(pid)
    if one is None:
        return [Capability(name, False, f"process {pid} is gone") for name in (PERF_USER, PERF_KERNEL)]
    standing = read_standing()
    user, kernel = (_capability(attempt) for attempt in try_task(one, standing, hz))
    if user.permitted and not kernel.permitted:
        kernel = kernel._replace(detail=f"{kernel.detail}; CPU spent in the kernel is not in the samples")
    return [user, kernel]


def try_memory(server: Postmaster) -> tuple[Capability, BackendMemory | None]:
    """Read one pointer of the server's memory; returns the reader where that worked."""
    try:
        memory = BackendMemory(server)
    except (SidecarError, OSError) as error:
        answer = system_answer(error) if isinstance(error, OSError) else None
        detail = f"{READ_MEMORY}: {answer[1]} ({answer[0]})" if answer else str(error)
        one = subject(server.pid)
        remedy = why_closed(one, read_standing()).line() if one is not None else ""
        return Capability(READ_MEMORY, False, detail, remedy), None
    return Capability(READ_MEMORY, True, f"read from process {server.pid}"), memory


def priority(refusal: OSError | None) -> Capability:
    """Report whether statements are read at real-time priority."""
    if refusal is None:
        return Capability(REALTIME, True, "sched_setscheduler: SCHED_FIFO")
    name, text = system_answer(refusal)
    detail = f"sched_setscheduler: {text} ({name}); short statements are often over before they are read"
    return Capability(REALTIME, False, detail, why_not_realtime(read_standing()).line())


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
