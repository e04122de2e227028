"""The whole examination: what is visible, then everything that can be tried on it, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from quayscope.sidecar.doctor import files, limits, memory, network, perf, pyspy
from quayscope.sidecar.doctor.attempts import Attempt, Remedy
from quayscope.sidecar.doctor.standing import Standing, read_standing
from quayscope.sidecar.doctor.subjects import MAX_SUBJECTS, Subject, choose, subject
from quayscope.sidecar.errors import BadOption

__all__ = ["DIRECTORIES", "NAMES", "PROCESSES", "Examination", "examine"]

PROCESSES = "processes"
DIRECTORIES = ("cache", "spool")
NAMES = (
    PROCESSES,
    perf.PERF_USER,
    perf.PERF_KERNEL,
    perf.PERF_CGROUP,
    memory.READ_MEMORY,
    memory.SHARED_MEMORY,
    files.SYMBOLS_EXE,
    files.SYMBOLS_ROOT,
    files.SCHEDSTAT,
    files.ENVIRON,
    network.SOCKET_QUEUES,
    pyspy.PY_SPY,
    files.KERNEL_SYMBOLS,
    limits.REALTIME,
    perf.RING_MEMORY,
    limits.OPEN_FILES,
    *(files.directory_name(name) for name in DIRECTORIES),
)
"""Everything that is tried, in this order."""


class Examination(NamedTuple):
    """What was tried, by whom and on which processes."""

    standing: Standing
    subjects: list[Subject]
    attempts: list[Attempt]

    def works(self, name: str) -> bool:
        """Whether `name` was tried, and worked wherever it was."""
        outcomes = [attempt.permitted for attempt in self.attempts if attempt.name == name]
        tried = [outcome for outcome in outcomes if outcome is not None]
        return bool(tried) and all(tried)


def examine(pid: int | None, directories: Mapping[str, Path]) -> Examination:
    """Try everything, on one process or on one of each user, container and kind.

    Raises `BadOption` when the process named is not visible.
    """
    standing = read_standing()
    if pid is None:
        subjects, left_out = choose()
    else:
        named = subject(pid)
        if named is None:
            raise BadOption(
                f"no process {pid} is visible here",
                next_step="check the pid as this container sees it; spec.shareProcessNamespace: true shows "
                "the other containers' processes",
            )
        subjects, left_out = [named], 0
    attempts = [_processes(subjects, left_out)]
    for one in subjects:
        attempts += perf.try_perf_events(one, standing)
        attempts += [memory.try_read_memory(one, standing), memory.try_shared_memory(one, standing)]
        attempts += files.try_process_files(one, standing)
        attempts.append(network.try_socket_queues(one, standing))
        if one.kind == "python":
            attempts.append(pyspy.try_py_spy(one, standing))
    attempts += [
        files.try_kernel_symbols(standing),
        limits.try_realtime(standing),
        perf.try_ring_memory(standing),
        limits.try_open_files(),
        *files.try_directories(directories),
    ]
    return Examination(standing, subjects, attempts)


def _processes(subjects: list[Subject], left_out: int) -> Attempt:
    call = "readdir(/proc)"
    if not subjects:
        remedy = Remedy(
            "no process but our own is visible: the containers of the pod do not share their processes",
            "spec:\n  shareProcessNamespace: true",
        )
        return Attempt(PROCESSES, False, 0, call, "none to try on", "", remedy)
    detail = f"{len(subjects)} tried, one of each user, container and kind"
    if left_out:
        detail += f"; {left_out} more not: at most {MAX_SUBJECTS}, name others with --pid"
    return Attempt(PROCESSES, True, 0, call, detail)
