"""What the process may take of the machine: real-time priority and descriptors."""

from __future__ import annotations

import fcntl
import os
import resource
import threading

from quayscope.sidecar.doctor.attempts import Attempt, Remedy, refused, worked
from quayscope.sidecar.doctor.standing import Standing, filtered

__all__ = ["OPEN_FILES", "REALTIME", "try_open_files", "try_realtime", "why_not_realtime"]

REALTIME = "realtime_priority"
OPEN_FILES = "open_files"

_BACKENDS = 100
_OTHERS = 256


def try_realtime(standing: Standing) -> Attempt:
    """Set the lowest real-time priority, on a thread that ends with it."""
    outcome: list[OSError] = []

    def rise() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=rise, name="realtime")
    thread.start()
    thread.join()
    call = "sched_setscheduler(SCHED_FIFO)"
    if not outcome:
        return worked(REALTIME, call, "set: short statements are read before they are over")
    return refused(REALTIME, call, outcome[0], why_not_realtime(standing))


def why_not_realtime(standing: Standing) -> Remedy:
    """Say what gives a real-time priority."""
    if "SYS_NICE" in standing.effective and not filtered("sched_setscheduler"):
        # Seen with SYS_NICE in effect: such a kernel asks the cgroup beside the capability.
        return Remedy(
            "SYS_NICE is in effect, but the cgroup has no real-time budget (CONFIG_RT_GROUP_SCHED)",
            "",
            "a cpu.rt_runtime_us for the container's cgroup on the node, or a kernel without that option",
        )
    why = "SYS_NICE is not in effect and RLIMIT_RTPRIO is 0"
    if answer := filtered("sched_setscheduler"):
        why = f"a seccomp filter answers {answer} to sched_setscheduler"
    return standing.needs("SYS_NICE", why=why)


def try_open_files() -> Attempt:
    """Take a descriptor as high as a sampler without PERFMON needs: one a backend and CPU."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cpus = len(os.sched_getaffinity(0))
    wanted = _OTHERS + _BACKENDS * cpus
    call = f"fcntl(F_DUPFD, {wanted - 1})"
    said = f"RLIMIT_NOFILE is {soft}, at most {hard}"
    with open(os.devnull, "rb") as null:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            os.close(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, wanted - 1))
        except (OSError, ValueError) as error:
            why = f"{said}; {_BACKENDS} backends on {cpus} CPUs without PERFMON need {wanted}"
            remedy = Remedy(why, "", "a higher nofile limit in the container runtime's configuration")
            number = error if isinstance(error, OSError) else OSError(str(error))
            return refused(OPEN_FILES, call, number, remedy)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return worked(OPEN_FILES, call, f"{said}: enough for {_BACKENDS} backends on {cpus} CPUs")
