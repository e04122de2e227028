"""Whether the main thread computes or waits, as another thread sees it.

Its CPU clock alone does not tell: on a busy machine a thread that computes gets a part of a core. What it
waited for a core counts as computing; the kernel says how long that was (linux, sched-stats.rst).
"""

from __future__ import annotations

import os
import time

from quayscope.agent.early import get_native_id

__all__ = ["MainWatch"]


class MainWatch:
    """Made on the main thread, asked from another one."""

    def __init__(self) -> None:
        tid = get_native_id()
        self._clock = (~tid << 3) | 6
        self._descriptor = -1
        try:  # noqa: SIM105 - a suppress would be one more import
            self._descriptor = os.open(f"/proc/self/task/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # a kernel without it: then the CPU clock decides
        self._at_ns, self._used_ns = time.perf_counter_ns(), self._used()

    def on_cpu(self, now: int) -> bool:
        """Whether it used or wanted a core for most of the time since the last call (`perf_counter_ns`)."""
        used = self._used()
        passed, wanted = now - self._at_ns, used - self._used_ns
        self._at_ns, self._used_ns = now, used
        return wanted * 2 >= passed

    def _used(self) -> int:
        if self._descriptor >= 0:
            fields = os.pread(self._descriptor, 64, 0).split()
            return int(fields[0]) + int(fields[1])
        return time.clock_gettime_ns(self._clock)
