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
        self._at_ns = time.perf_counter_ns()
        self._delay_ns = self._read()[1]

    def on_cpu(self, now: int, since: int, cpu_since: int) -> tuple[bool, int]:
        """Whether it used or wanted a core most of the time from `since` (`perf_counter_ns`) to `now`.

        `cpu_since` was its CPU clock then; also returns what that is now. How long it waited for a core is
        known from call to call: of that, as much as falls to this time.
        """
        cpu, delay = self._read()
        passed = max(1, now - since)
        waited = (delay - self._delay_ns) * passed // max(passed, now - self._at_ns)
        self._at_ns, self._delay_ns = now, delay
        return (cpu - cpu_since + waited) * 2 >= passed, cpu

    def _read(self) -> tuple[int, int]:
        """Return the CPU it used, and how long it was ready and did not run, in nanoseconds."""
        if self._descriptor >= 0:
            fields = os.pread(self._descriptor, 64, 0).split()
            return int(fields[0]), int(fields[1])
        return time.clock_gettime_ns(self._clock), 0
