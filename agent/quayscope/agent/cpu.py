"""CPU profile of one worker: a timer signal on the main thread, weighted by measured CPU.

The timer counts the process's CPU time, so an idle worker takes no samples. The handler reads the
interrupted frame and the request of the running greenlet. A long call into C delays it, and a sample that
weighed all CPU since the one before would then take over what ran before the call: requests of a few
milliseconds would lose to their long neighbours. So the clock is also read when a request begins and ends
and when greenlets take turns (measured: 1.2 us a turn): each endpoint's CPU is exact. What no sample of a
request covered is kept for the next sample of the same endpoint, whose stack stands for it, without
claiming its trace.

Greenlets are followed by `greenlet.settrace`, of which there is one: an earlier function is still called.
Where somebody takes ours away, the samples alone weigh what ran since the one before.
"""

from __future__ import annotations

import _thread
import signal
import sys
import time
from types import FrameType
from typing import Any, Callable, NamedTuple, Optional, Union

from quayscope.agent.context import CURRENT, Request
from quayscope.agent.faults import add, fault
from quayscope.agent.frames import Key, Stacker
from quayscope.agent.slots import MAX_KEYS, Slots

__all__ = ["BETWEEN_SAMPLES", "OTHER_THREADS", "About", "CpuSampler", "Endpoint"]

OTHER_THREADS: Key = ()
"""The stack of CPU that threads other than the main one used: measured, seen from afar."""
BETWEEN_SAMPLES: Key = (0,)
"""The stack of CPU for which no sample of its endpoint came in time."""
_OTHER_LEAST_NS = 1_000_000
_WAITS_NS = 50_000_000
_KEEP_S = 5
"""How long CPU waits for a sample of its endpoint: it must not leave its ten-second window often."""


class Endpoint(NamedTuple):
    """What CPU of several requests has in common, where it is no one request's."""

    endpoint: str
    run: str
    phase: str


About = Union[Request, Endpoint, None]
Handler = Union[Callable[[int, Optional[FrameType]], Any], int, signal.Handlers, None]


class CpuSampler:
    """Samples from `start` to `stop`. Must be used on the main thread of a worker."""

    def __init__(self, stacker: Stacker, hz: int) -> None:
        self._stacker = stacker
        self._period = 1.0 / hz
        self.samples: Slots[tuple[About, Key], list[int]] = Slots()
        self._unsampled: dict[Endpoint, list[int]] = {}  # nanoseconds, Unix second of the first
        self._nobodys_ns = 0
        self._running: Request | None = None
        self._exact = False
        self._greenlet: Any = None
        self._previous_trace: Callable[[str, Any], Any] | None = None
        self._main = 0
        self._thread_ns = 0
        self._process_ns = 0
        self._process_thread_ns = 0
        self._threads_ns = 0  # of requests on other threads, since `_process_ns`
        self._previous: Handler = None
        self.running = False

    def start(self) -> None:
        """Arm the timer. An earlier handler of the signal is kept and still called."""
        # The kernel's: gevent's `get_ident` tells greenlets apart.
        self._main = _thread.get_native_id()
        self._thread_ns = self._process_thread_ns = time.thread_time_ns()
        self._process_ns = time.process_time_ns()
        self._previous = signal.signal(signal.SIGPROF, self._sample)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, self._period, self._period)
        self.running = True

    def follow(self) -> None:
        """Read the clock at each request's begin and end, and where there are greenlets, at their turns.

        To be called when the application is loaded, which may set a trace function itself.
        """
        if "gevent" in sys.modules and self._greenlet is None:
            self._greenlet = sys.modules["greenlet"]
            self._previous_trace = self._greenlet.settrace(self._switched)
        self._settle()
        self._exact = True

    def _follows(self) -> bool:
        return self._greenlet is None or self._greenlet.gettrace() == self._switched

    def _switched(self, event: str, arguments: Any) -> None:
        try:
            # The context is the next greenlet's already.
            self._charge()
            self._running = CURRENT.get()
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)
        if self._previous_trace is not None:
            self._previous_trace(event, arguments)

    def _charge(self) -> None:
        """Give the CPU since the clock was last read to who had it, for a sample to stand for."""
        spent = self._settle()
        request = self._running
        if request is None:
            self._nobodys_ns += spent
        else:
            request.unsampled_ns += spent

    def stop(self) -> None:
        """Disarm: an armed timer kills the interpreter when it ends with "Profiling timer expired"."""
        if not self.running:
            return
        self.running = self._exact = False
        if self._greenlet is not None and self._follows():
            self._greenlet.settrace(self._previous_trace)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        # Not SIG_DFL, whose action is to kill: a last signal may be on its way.
        previous = self._previous
        signal.signal(signal.SIGPROF, previous if callable(previous) else signal.SIG_IGN)

    def begin(self, request: Request) -> None:
        """Note that a request begins, on its own greenlet or thread: the CPU up to now was not its own."""
        if not self.running:
            return
        if _thread.get_native_id() != self._main:
            request.thread_ns = time.thread_time_ns()
        elif self._exact:
            self._charge()
            self._running = request

    def end(self, request: Request) -> None:
        """Note that a request has ended, on its own greenlet or thread."""
        if not self.running:
            return
        if request.thread_ns:
            spent = time.thread_time_ns() - request.thread_ns
            self._threads_ns += spent
        elif self._exact:
            self._charge()
            self._running = None
            spent, request.unsampled_ns = request.unsampled_ns, 0
        else:
            return
        request.busy_ns += spent
        held = self._unsampled.setdefault(
            Endpoint(request.endpoint, request.run, request.phase), [0, int(time.time())]
        )
        held[0] += spent

    def waits(self) -> bool:
        """Whether CPU was used that no sample came for: the main thread waits while others work."""
        return self.running and time.process_time_ns() - self._process_ns > _WAITS_NS

    def _settle(self) -> int:
        """Return the main thread's CPU since the clock was last read here."""
        while True:
            before = self._thread_ns
            now = time.thread_time_ns()
            if self._thread_ns == before:  # else a sample came between the two
                self._thread_ns = now
                return now - before

    def flush(self, *, everything: bool) -> None:
        """Give up waiting for samples of endpoints that had CPU some seconds ago: write it as it is."""
        if self._exact and not self._follows():
            self._exact, self._running = False, None
            add("greenlets_lost")
        oldest = int(time.time()) + (1 if everything else -_KEEP_S)
        for endpoint in [name for name, held in self._unsampled.items() if held[1] < oldest]:
            self._add(self.samples.now(), (endpoint, BETWEEN_SAMPLES), self._unsampled.pop(endpoint)[0], 0)
        if everything:
            rest, self._nobodys_ns = self._nobodys_ns + self._settle(), 0
            self._add(self.samples.now(), (None, BETWEEN_SAMPLES), rest, 0)
            self._add_other_threads(self.samples.now())

    def _sample(self, number: int, frame: FrameType | None) -> None:
        try:
            now = time.thread_time_ns()
            spent = now - self._thread_ns
            self._thread_ns = now
            request = CURRENT.get()
            table = self.samples.now()
            key = self._stacker.take(frame)
            if request is None:
                spent += self._nobodys_ns
                self._nobodys_ns = 0
            else:
                spent += request.unsampled_ns
                request.unsampled_ns = 0
                request.busy_ns += spent
                if request.rule:
                    self._stand_for(table, request, key)
            self._add(table, (request, key), spent, 1)
            self._add_other_threads(table)
            add("samples")
            add("cpu_ns", time.thread_time_ns() - now)
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            fault(error)
        previous = self._previous
        if callable(previous):
            previous(number, frame)

    def _stand_for(self, table: dict[tuple[About, Key], list[int]], request: Request, key: Key) -> None:
        """Give this stack the CPU of its endpoint that no sample covered."""
        endpoint = Endpoint(request.endpoint, request.run, request.phase)
        held = self._unsampled.pop(endpoint, None)
        if held is not None and held[0]:
            self._add(table, (endpoint, key), held[0], 0)

    def _add_other_threads(self, table: dict[tuple[About, Key], list[int]]) -> None:
        process, thread = time.process_time_ns(), time.thread_time_ns()
        claimed = self._threads_ns
        other = (process - self._process_ns) - (thread - self._process_thread_ns) - claimed
        if other >= _OTHER_LEAST_NS:  # less cannot be told from the two clocks' difference
            self._add(table, (None, OTHER_THREADS), other, 1)
            self._process_ns, self._process_thread_ns = process, thread
            self._threads_ns -= claimed

    @staticmethod
    def _add(
        table: dict[tuple[About, Key], list[int]], key: tuple[About, Key], spent: int, count: int
    ) -> None:
        held = table.get(key)
        if held is not None:
            held[0] += spent
            held[1] += count
        elif len(table) < MAX_KEYS:
            table[key] = [spent, count]
        else:
            add("records_dropped")
