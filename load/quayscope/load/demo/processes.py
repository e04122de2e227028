"""CPU time of processes, straight from /proc: the truth that profiled CPU is held against."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["children", "cpu_seconds"]


def children(pid: int) -> list[int]:
    """Return the pids of a process's children (none when it is gone)."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        pass
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have used; 0.0 when it is gone.

    `schedstat` has nanoseconds where `stat` has ticks of 10 ms; ended threads are counted by `stat`
    alone, so the larger of the two is taken.
    """
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError, ValueError):
        return total / 1e9
    ticks = int(fields[11]) + int(fields[12])
    return max(total / 1e9, ticks / os.sysconf("SC_CLK_TCK"))
