"""CPU profile of one worker: a timer signal on the main thread, weighted by measured CPU.

The timer counts the process's CPU time, so an idle worker takes no samples. The handler reads the
interrupted frame and the request of the running greenlet. A call into C delays it: hence each sample
weighs the CPU used since the one before, never the nominal period.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any, Callable, Optional, Union

from quayscope.agent.context import CURRENT, Request
from quayscope.agent.faults import add, fault
from quayscope.agent.frames import Key, Stacker
from quayscope.agent.slots import MAX_KEYS, Slots

__all__ = ["OTHER_THREADS", "CpuSampler"]

OTHER_THREADS: Key = ()
"""The stack of CPU that threads other than the main one used: measured, seen from afar."""
_OTHER_LEAST_NS = 1_000_000

Handler = Union[Callable[[int, Optional[FrameType]], Any], int, signal.Handlers, None]


class CpuSampler:
    """Samples from `start` to `stop`. Must be used on the main thread of a worker."""

    def __init__(self, stacker: Stacker, hz: int) -> None:
        self._stacker = stacker
        self._period = 1.0 / hz
        self.samples: Slots[tuple[Request | None, Key], list[int]] = Slots()
        self._thread_ns = 0
        self._process_ns = 0
        self._previous: Handler = None
        self.running = False

    def start(self) -> None:
        """Arm the timer. An earlier handler of the signal is kept and still called."""
        self._thread_ns = time.thread_time_ns()
        self._process_ns = time.process_time_ns()
        self._previous = signal.signal(signal.SIGPROF, self._sample)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, self._period, self._period)
        self.running = True

    def stop(self) -> None:
        """Disarm: an armed timer kills the interpreter when it ends with "Profiling timer expired"."""
        if not self.running:
            return
        self.running = False
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        # Not SIG_DFL, whose action is to kill: a last signal may be on its way.
        previous = self._previous
        signal.signal(signal.SIGPROF, previous if callable(previous) else signal.SIG_IGN)

    def unsampled_ns(self) -> int:
        """Return the CPU that this process used since the last sample."""
        return max(0, time.process_time_ns() - self._process_ns)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        try:
            now = time.thread_time_ns()
            spent = now - self._thread_ns
            self._thread_ns = now
            process = time.process_time_ns()
            other = process - self._process_ns - spent
            self._process_ns = process
            request = CURRENT.get()
            table = self.samples.now()
            self._add(table, (request, self._stacker.take(frame)), spent)
            if request is not None:
                request.busy_ns += spent
            if other >= _OTHER_LEAST_NS:
                self._add(table, (None, OTHER_THREADS), other)
            elif other > 0:
                # Too little to tell from the clocks' own difference: it stays for the next sample.
                self._process_ns -= other
            add("samples")
            add("cpu_ns", time.thread_time_ns() - now)
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)
        previous = self._previous
        if callable(previous):
            previous(number, frame)

    @staticmethod
    def _add(
        table: dict[tuple[Request | None, Key], list[int]], key: tuple[Request | None, Key], spent: int
    ) -> None:
        held = table.get(key)
        if held is not None:
            held[0] += spent
            held[1] += 1
        elif len(table) < MAX_KEYS:
            table[key] = [spent, 1]
        else:
            add("records_dropped")
