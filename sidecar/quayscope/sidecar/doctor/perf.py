"""Perf events on a process, with and without the kernel's part, and on its container's cgroup."""

from __future__ import annotations

import mmap
import os
import resource

from quayscope.sidecar.doctor.attempts import Attempt, Remedy, refused, system_answer, worked
from quayscope.sidecar.doctor.standing import Standing, filtered, security_context
from quayscope.sidecar.doctor.subjects import Subject
from quayscope.sidecar.errors import NoCgroup
from quayscope.sidecar.native import cgroups
from quayscope.sidecar.native.events import open_event, open_owner

__all__ = [
    "PERF_CGROUP",
    "PERF_KERNEL",
    "PERF_USER",
    "RING_MEMORY",
    "try_perf_events",
    "try_ring_memory",
    "try_task",
]

PERF_USER = "perf_user"
PERF_KERNEL = "perf_kernel"
PERF_CGROUP = "perf_cgroup"
RING_MEMORY = "ring_memory"

_CALL = "perf_event_open"
_HZ = 99
_RING_BYTES = 512 << 10
"""The least that does not lose most samples on a busy machine."""
_FILTER = (
    "a seccomp filter answers {answer} to perf_event_open before the kernel sees it; the runtimes' default "
    "profiles let it pass where PERFMON is listed, even if it is not in effect"
)
_OWN_FILTER = "or a seccompProfile of type Localhost that allows perf_event_open"


def try_perf_events(subject: Subject, standing: Standing) -> list[Attempt]:
    """Open a CPU clock event on the process for user code, for kernel code too, and on its cgroup."""
    return [*try_task(subject, standing), _cgroup(subject, standing)]


def try_task(subject: Subject, standing: Standing, hz: int = _HZ) -> list[Attempt]:
    """Open a CPU clock event on the process for user code, then for user and kernel code."""
    attempts = []
    for name, kernel, what in ((PERF_USER, False, "user"), (PERF_KERNEL, True, "user and kernel")):
        call = f"{_CALL}(pid {subject.pid}, {what})"
        try:
            os.close(open_event(subject.pid, 0, hz, kernel=kernel))
        except OSError as error:
            why = _why_capability(standing) if kernel else _why_user(subject, standing)
            attempts.append(refused(name, call, error, why, subject.pid))
        else:
            attempts.append(worked(name, call, f"opened: {what} code is sampled", subject.pid))
    return attempts


def _cgroup(subject: Subject, standing: Standing) -> Attempt:
    try:
        directory = cgroups.find(subject.pid).directory
        cgroups.refuse_foreign(directory, subject.pid, lambda: ())
    except (NoCgroup, OSError) as error:
        return _no_cgroup(subject, standing, error)
    call = f"{_CALL}(cgroup of pid {subject.pid}, CPU 0)"
    descriptor = -1
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.close(open_event(descriptor, 0, _HZ, kernel=True, cgroup=True))
    except OSError as error:
        # As uid 0 it is another user than the target's: the way to the cgroup needs SYS_PTRACE then.
        return refused(PERF_CGROUP, call, error, _why_capability(standing, "SYS_PTRACE"), subject.pid)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return worked(PERF_CGROUP, call, f"opened on {directory}: every process of it, and no other", subject.pid)


def _no_cgroup(subject: Subject, standing: Standing, error: NoCgroup | OSError) -> Attempt:
    """Say whether the way to the cgroup is closed, or there is none that is the target's alone."""
    root = f"/proc/{subject.pid}/root"
    try:
        os.close(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as closed:
        return refused(PERF_CGROUP, f"open({root})", closed, _why_closed(subject, standing), subject.pid)
    why = "a cgroup that holds others than the target is never sampled; its processes are, one by one"
    answer = "" if isinstance(error, NoCgroup) else system_answer(error)[0]
    return Attempt(PERF_CGROUP, False, subject.pid, f"open({root})", str(error), answer, Remedy(why))


def _opens_on_ourselves() -> bool:
    try:
        os.close(open_event(os.getpid(), 0, _HZ, kernel=False))
    except OSError:
        return False
    return True


def _why_user(subject: Subject, standing: Standing) -> Remedy:
    other = subject.uid != standing.uid
    theirs = f"the process belongs to uid {subject.uid}, and this is uid {standing.uid}"
    if answer := filtered(_CALL):
        why = _FILTER.format(answer=answer) + (f"; and {theirs}" if other else "")
        if standing.uid == 0:
            return standing.needs("PERFMON", why=why, otherwise=_OWN_FILTER)
        run_as = subject.uid if other else None
        return Remedy(why, security_context(standing, run_as=run_as, add=["PERFMON"]), _OWN_FILTER)
    if not _opens_on_ourselves():
        return _why_capability(standing)
    if other and standing.uid != 0:
        return Remedy(
            theirs,
            security_context(standing, run_as=subject.uid),
            "or runAsUser: 0 with PERFMON in capabilities.add",
        )
    why = theirs if other else "the process has capabilities that this one has not, or hides itself"
    return standing.needs("PERFMON", why=why)


def _why_capability(standing: Standing, *others: str) -> Remedy:
    if answer := filtered(_CALL):
        why = _FILTER.format(answer=answer)
        return standing.needs("PERFMON", *others, why=why, otherwise=_OWN_FILTER)
    setting = standing.perf_event_paranoid
    return standing.needs(
        *("PERFMON", *others),
        why=f"PERFMON is not in effect and kernel.perf_event_paranoid is {setting}",
        otherwise="or kernel.perf_event_paranoid <= 1 on the node (for cgroups <= 0)",
    )


def _why_closed(subject: Subject, standing: Standing) -> Remedy:
    return standing.needs(
        *("PERFMON", "SYS_PTRACE"),
        why=f"the root of a process of uid {subject.uid} is closed to uid {standing.uid} without SYS_PTRACE",
    )


def try_ring_memory(standing: Standing) -> Attempt:
    """Map a ring of 512 kB for each CPU, as the sampler does."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    said = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit >> 10} kB"
    cpus = sorted(os.sched_getaffinity(0))
    rings: list[tuple[int, mmap.mmap]] = []
    try:
        for cpu in cpus:
            try:
                descriptor = open_owner(cpu)
            except OSError as error:
                name, text = system_answer(error)
                detail = f"{text}: no perf event to map a ring for; RLIMIT_MEMLOCK is {said}"
                return Attempt(RING_MEMORY, None, 0, _CALL, detail, name, _why_capability(standing))
            try:
                rings.append((descriptor, mmap.mmap(descriptor, _RING_BYTES + mmap.PAGESIZE)))
            except OSError as error:
                os.close(descriptor)
                return _too_little(standing, error, len(rings), len(cpus), said)
    finally:
        for descriptor, ring in rings:
            ring.close()
            os.close(descriptor)
    detail = f"{len(cpus)} rings of {_RING_BYTES >> 10} kB mapped; RLIMIT_MEMLOCK is {said}"
    return worked(RING_MEMORY, "mmap(perf ring)", detail)


def _too_little(standing: Standing, error: OSError, mapped: int, wanted: int, limit: str) -> Attempt:
    remedy = standing.needs(
        "IPC_LOCK",
        why=f"{mapped} of {wanted} rings fit: RLIMIT_MEMLOCK is {limit}, and kernel.perf_event_mlock_kb "
        f"{standing.perf_event_mlock_kb} a CPU and user; smaller rings are used, which lose samples sooner",
        otherwise="or a higher memlock limit in the container runtime's configuration: a pod spec has none",
    )
    return refused(RING_MEMORY, "mmap(perf ring)", error, remedy)
