"""Tries what the sidecar needs, one by one, and says what the system answered and what it would take.

Nothing is concluded from versions, users or configuration: each capability is the outcome of doing the thing.
`server` does so for the server that the sidecar watches, all the time. The command `doctor` does so once for
everything: `subjects` are the processes to try on, `standing` is what we are to the kernel; `perf`, `memory`,
`files`, `network`, `limits` and `pyspy` make the attempts (`attempts`), `examination` runs them all, `report`
shows them.
"""

from quayscope.sidecar.doctor.server import (
    PERF_KERNEL,
    PERF_USER,
    POSTGRES,
    READ_MEMORY,
    REALTIME,
    coverage,
    found,
    not_found,
    priority,
    try_memory,
    try_perf,
)

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
