"""Who used the CPU: each thread's clock, read when somebody else's work begins.

The main thread's clock is read when a request begins and ends and when greenlets take turns; the clock of
any other thread when it takes up and lays down a request's work. So what each endpoint used is exact,
however long or rare the samples are (measured: 1.2 us a turn).

Greenlets are followed by `greenlet.settrace`, of which there is one: an earlier function is still called.
Where somebody takes ours away, the samples alone weigh what ran since the one before.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Callable

from quayscope.agent.context import CURRENT, Request, current
from quayscope.agent.early import allocate_lock, get_ident, get_native_id
from quayscope.agent.faults import add, fault, guarded, own
from quayscope.agent.turns import Turns

__all__ = ["CpuAccount", "Lane"]

_TURNS_A_TIMING = 64
"""Our own cost of a turn is measured each so many turns: measuring costs as much as the turn."""
_LEAST_OTHER_NS = 1_000_000
"""Less cannot be told from the difference between the process's clock and the threads'."""

Rest = Callable[[Request, int, bool], None]


class Lane:
    """A thread other than the main one: its clock, the request it works on, and what it had no sample for.

    `request` is set by the thread itself. The clock may be read from any thread: its number is made of the
    thread's (linux, posix-timers.h: ~tid << 3, per-thread, scheduler's), so an ended thread's is an error,
    where `pthread_getcpuclockid` would read freed memory.
    """

    __slots__ = ("clock", "last_ns", "request", "tid")

    def __init__(self) -> None:
        self.tid = get_native_id()
        self.clock = (~self.tid << 3) | 6
        self.last_ns = time.thread_time_ns()
        self.request: Request | None = None

    def waiting(self) -> int | None:
        """Return the thread's CPU since its clock was last read, None when it has ended."""
        try:
            return max(0, time.clock_gettime_ns(self.clock) - self.last_ns)
        except OSError:
            return None

    def settle(self) -> int:
        """Return that CPU, and begin anew; 0 when the thread has ended."""
        passed = self.waiting() or 0
        self.last_ns += passed
        return passed


class CpuAccount:
    """The clocks of one worker. `rest(request, ns, on a lane)` takes what a request used without a sample.

    `lock` guards `lanes` and whatever other threads share with the signal handler, which only tries it.
    """

    def __init__(self, rest: Rest, turns: Turns) -> None:
        self._rest = rest
        self._turns = turns
        self.lock = allocate_lock()
        self.lanes: dict[int, Lane] = {}
        self._own: Lane | None = None
        self.main_ident = 0
        self._main_clock = 0
        self.running = False
        self.exact = False
        self.nobodys_ns = 0
        """CPU of the main thread that was no request's, since its last sample."""
        self.lanes_nobodys_ns = 0
        self._request: Request | None = None
        self.settled_ns = 0
        """The main thread's clock when it was last read."""
        self._process_ns = 0
        self._main_ns = 0
        self._others_ns = 0  # of all other threads; the lock guards it
        self._turns_until_timing = _TURNS_A_TIMING
        self._greenlet: Any = None
        self._previous_trace: Callable[[str, Any], Any] | None = None

    def start(self) -> None:
        """Begin on the main thread."""
        self.main_ident = get_ident()
        self._main_clock = Lane().clock
        self.settled_ns = time.thread_time_ns()
        self._process_ns, self._main_ns, self._others_ns = time.process_time_ns(), 0, 0
        self._request = current()
        with self.lock:
            self.lanes.clear()
            self._own = None
        self.running = True

    def follow(self) -> None:
        """Read the clock at each request's begin and end, and where there are greenlets, at their turns.

        To be called when the application is loaded, which may set a trace function itself.
        """
        if "gevent" in sys.modules and self._greenlet is None:
            self._greenlet = sys.modules["greenlet"]
            self._turns.start(sys.modules["gevent"].get_hub())
            self._previous_trace = self._greenlet.settrace(self._switched)
        self.settle()
        self.exact = True

    def stop(self) -> None:
        """End: give the place of the trace function back."""
        self.running = self.exact = False
        self._turns.stop()
        if self._greenlet is not None and self._greenlet.gettrace() == self._switched:
            self._greenlet.settrace(self._previous_trace)
        self._greenlet = None

    def forget(self) -> None:
        """End in a child of the worker, where who held the lock may not be any more."""
        self.lock = allocate_lock()
        self.stop()

    def check(self) -> None:
        """Notice that somebody took the greenlets' trace function: from then on samples alone decide."""
        if self.exact and self._greenlet is not None and self._greenlet.gettrace() != self._switched:
            self.exact, self._request = False, None
            self._turns.stop()
            add("greenlets_lost")

    def _switched(self, event: str, arguments: Any) -> None:
        try:  # guarded in place: this is called at every switch
            self._turn(arguments[1])
        except Exception as error:  # noqa: BLE001 - the border to somebody else's process
            guarded(fault, error)
        if self._previous_trace is not None:
            self._previous_trace(event, arguments)

    def _turn(self, greenlet: Any) -> None:
        # The context is the next greenlet's already.
        if not self.running:
            return
        # As `_charge`, in place.
        request, passed = self._request, self.settle()
        if request is None or request.ended:
            self.nobodys_ns += passed
        else:
            request.unsampled_ns += passed
        self._request = following = CURRENT.get()
        self._turns.turn(greenlet, time.perf_counter_ns(), self.settled_ns, following)
        self._turns_until_timing -= 1
        if self._turns_until_timing <= 0:
            self._turns_until_timing = _TURNS_A_TIMING
            own(_TURNS_A_TIMING * (time.thread_time_ns() - self.settled_ns))

    def _charge(self) -> None:
        """Give the main thread's CPU since its clock was last read to who had it."""
        self._give(self.settle(), self._request)

    def keep(self, passed: int) -> None:
        """Keep CPU of the main thread, as `settle` returned it, for its next sample."""
        self._give(passed, current())

    def _give(self, passed: int, request: Request | None) -> None:
        if request is None or request.ended:
            self.nobodys_ns += passed
        else:
            request.unsampled_ns += passed

    def settle(self) -> int:
        """Return the main thread's CPU since its clock was last read."""
        while True:
            before = self.settled_ns
            now = time.thread_time_ns()
            if self.settled_ns == before:  # else a sample came between the two
                self.settled_ns = now
                self._main_ns += now - before
                return now - before

    def mains_ns(self) -> int:
        """Return the main thread's CPU since its clock was last read, on any thread."""
        return max(0, time.clock_gettime_ns(self._main_clock) - self.settled_ns)

    def begin(self, request: Request) -> None:
        """Note that a request begins, on its own greenlet or thread: the CPU up to now was not its own."""
        if not self.running:
            return
        if get_ident() != self.main_ident:
            self.take_up(request)
        elif self.exact:
            self._charge()
            self._request = request

    def end(self, request: Request) -> None:
        """Note that a request has ended, on its own greenlet or thread."""
        if not self.running:
            return
        if get_ident() != self.main_ident:
            self.take_up(None)
            return
        if not self.exact:
            return
        passed = self.settle()
        self._request = None
        passed, request.unsampled_ns = passed + request.unsampled_ns, 0
        request.busy_ns += passed
        with self.lock:
            self._rest(request, passed, False)

    def take_up(self, request: Request | None) -> Request | None:
        """On a thread other than the main one: work for this request from now on; returns the one before."""
        ident = get_ident()
        with self.lock:
            lane = self.lanes.get(ident)
            if lane is None or lane.tid != get_native_id():
                lane = self.lanes[ident] = Lane()
            before = lane.request
            self._lay_down(lane)
            lane.request = request
        return before

    def leave(self) -> None:
        """On a thread other than the main one: it is about to end."""
        with self.lock:
            lane = self.lanes.pop(get_ident(), None)
            if lane is not None:
                self._lay_down(lane)

    def _lay_down(self, lane: Lane) -> None:
        passed, request = self.settle_lane(lane), lane.request
        if request is None:
            self.lanes_nobodys_ns += passed
        else:
            request.busy_ns += passed
            self._rest(request, passed, True)

    def settle_lane(self, lane: Lane) -> int:
        """Return a lane's CPU since its clock was last read; the lock must be held."""
        passed = lane.settle()
        self._others_ns += passed
        return passed

    def settle_own(self) -> int:
        """On the agent's own thread, the lock held: return its CPU since the last time."""
        if self._own is None:
            self._own = Lane()
        return self.settle_lane(self._own)

    def lay_down_all(self) -> None:
        """At the end: what the other threads used up to now is their requests'; the lock must be held."""
        for lane in self.lanes.values():
            self._lay_down(lane)

    def settle_others(self) -> int:
        """Return the CPU of all threads that are no lanes, from a millisecond on; the lock must be held."""
        other = time.process_time_ns() - self._process_ns - self._main_ns - self._others_ns
        if other < _LEAST_OTHER_NS:
            return 0
        # Of threads that are known this is the part since their clocks were last read: it comes with the next
        # reading, and would be counted twice here (20 ms of each worker were).
        other -= self.mains_ns() + sum([lane.waiting() or 0 for lane in self.lanes.values()])
        if self._own is not None:
            other -= self._own.waiting() or 0
        if other < _LEAST_OTHER_NS:
            return 0
        self._others_ns += other
        return other
