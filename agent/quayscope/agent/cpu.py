"""CPU profile of one worker: a timer signal on the main thread, weighted by measured CPU.

The timer counts the process's CPU time, so an idle worker takes no samples. The handler reads the
interrupted frame and the request of the running greenlet, and the frames and clocks of the other threads.
A long call into C delays it, and a sample that weighed all CPU since the one before would then take over
what ran before the call: requests of a few milliseconds would lose to their long neighbours. So the clocks
are also read whenever somebody else's work begins (`account`), and what no sample of a request covered is
kept for the next sample of the same endpoint, whose stack stands for it.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from types import FrameType
from typing import Any, Callable, NamedTuple, Optional, Union

from quayscope.agent.account import CpuAccount, Lane
from quayscope.agent.context import About, Endpoint, Request, current
from quayscope.agent.faults import add, guarded, own
from quayscope.agent.frames import BETWEEN_SAMPLES, LATE, OTHER_THREADS, OWN, Stack, Stacker
from quayscope.agent.slots import MAX_KEYS, SECOND_NS, SlotLength, Slots, add_to, is_over
from quayscope.agent.turns import Turns
from quayscope.agent.wakeups import Wakeups

__all__ = ["LATE_PERIODS", "CpuSampler"]

LATE_PERIODS = 5
"""A sample that weighs more periods than this is marked: what delayed it is the line it stands on."""
_HALF_NS = 500_000_000
"""Half a period, times the rate: who used less since the last sample is left for the next one."""
_SPARE_PERIODS = 5
"""The timer is set for each sample anew, and its interval is for the case that this fails. The kernel looks
at its timers at the clock's ticks alone, and counts what a process used by them: of one that runs a
millisecond at a time an interval of one period misses a third. So the next signal is asked for when its
sample is due by the CPU's own clock: after a late sample the next one comes the earlier."""
_SHORTEST_NS = 100_000
_EARLY_NS = 1_500
"""What a signal costs that came before a sample was due: too little to be measured each time."""
_CATCH_UP_PERIODS = 2
"""Samples that came too late are made up for, but not those that a long call into C swallowed."""
_SELDOM_NS, _OFTEN_NS = 250_000_000, 100_000_000
_LOOKS, _MOST_LOOKS = 6, 60
"""How many looks each period or two the agent's own thread has left: so many more each time that it had to
stand in. A main thread that only waits for the GIL now and then is late too seldom to keep it at it."""

Handler = Union[Callable[[int, Optional[FrameType]], Any], int, signal.Handlers, None]
Table = dict[tuple[About, Stack], list[int]]


class _Waiting(NamedTuple):
    """What waits for a sample: whose it is, and whether the main thread or another one used it."""

    endpoint: Endpoint
    lane: bool


class CpuSampler:
    """Samples from `start` to `stop`. `start` and `stop` must be called on the main thread of a worker."""

    def __init__(self, stacker: Stacker, turns: Turns, length: SlotLength, hz: int) -> None:
        self._stacker = stacker
        self._turns = turns
        self.account = CpuAccount(self._rest, turns)
        self.samples: Slots[tuple[About, Stack], list[int]] = Slots(length)
        self._unsampled: dict[_Waiting, list[int]] = {}  # nanoseconds, Unix second of the first
        self._stacks: dict[Endpoint, Stack] = {}  # the last one of each
        self._previous: Handler = None
        self._armed = False
        self._due_ns = 0  # when the next sample is, by the process's clock
        self._looks = 0
        self.hz = hz
        self.longest_ns = 0
        """CPU of the longest sample since somebody set this to 0."""
        self.running = False
        self.wakeups: Wakeups | None = None
        """Where the server has signals written to."""

    def start(self) -> None:
        """Arm the timer. An earlier handler of the signal is kept and still called."""
        self.account.start()
        self._previous = signal.signal(signal.SIGPROF, self._signalled)
        signal.siginterrupt(signal.SIGPROF, False)
        # A program that was started from a thread which had it blocked begins with it blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF,))
        self.running = True
        self.arm()

    def arm(self) -> None:
        """Begin, or go on, or go on at another rate."""
        if self.running:
            self._due_ns = time.process_time_ns() + SECOND_NS // self.hz
            self._armed = True
            self._set_timer(self._due_ns - SECOND_NS // self.hz)

    def disarm(self) -> None:
        """Hold the timer: an armed one outlives `exec`, and kills an interpreter that ends."""
        if self._armed:
            self._armed = False
            signal.setitimer(signal.ITIMER_PROF, 0.0)

    def set_rate(self, hz: int) -> None:
        """Take `hz` samples a CPU second from now on."""
        if hz != self.hz:
            self.hz = hz
            if self._armed:
                self.arm()

    def pause(self) -> None:
        """Take no samples and follow nobody, until `resume`."""
        self.disarm()
        self.account.stop()

    def resume(self) -> None:
        """Go on after a pause."""
        self.account.start()
        self.account.follow()
        self.arm()

    def stop(self) -> None:
        """Disarm, and give the signal back."""
        if not self.running:
            return
        self.disarm()
        self.running = False
        self.account.stop()
        if signal.getsignal(signal.SIGPROF) == self._signalled:
            # Not SIG_DFL, whose action is to kill: a last signal may be on its way.
            previous = self._previous
            signal.signal(signal.SIGPROF, previous if callable(previous) else signal.SIG_IGN)

    def forget(self) -> None:
        """In a child of the worker: it has no timer, and gathers nothing."""
        self.running = self._armed = False
        self.account.forget()
        self.samples.clear()

    def check(self) -> None:
        """Notice what others took from us: the signal, the timer, the greenlets' trace function."""
        self.account.check()
        if not self._armed:
            return
        if signal.getsignal(signal.SIGPROF) != self._signalled:
            # Theirs now, and the timer with it: two of us would only disturb each other.
            self._armed = False
            add("timers_lost")
        elif not signal.getitimer(signal.ITIMER_PROF)[1]:
            add("timers_lost")
            self.arm()

    def stand_in(self) -> int:
        """Sample the other threads, from the agent's own, when the main one cannot: it waits in C.

        No signal ends its wait for a lock, as for a pool's task: the C library begins that anew. Returns
        after how many nanoseconds to come again.
        """
        account = self.account
        if not self._armed or not account.lanes:
            return _SELDOM_NS
        used, period = time.process_time_ns(), SECOND_NS // self.hz
        if used - self._due_ns >= period:
            mains = account.mains_ns()
            with account.lock:
                taken = self._take_lanes(self.samples.now(), mains)
            if taken:
                add("samples")
                self._looks = min(self._looks + _LOOKS, _MOST_LOOKS)
                # Where it computes in C, its own sample stays due: of the line that it does so on.
                if mains * self.hz < _HALF_NS:
                    self._sampled(used, period)
        if not self._looks:
            return _OFTEN_NS
        self._looks -= 1
        return max(period, period - (used - self._due_ns))

    def settle_own(self) -> int:
        """Write down what the agent's own thread used, on that thread; returns it."""
        with self.account.lock:
            passed = self.account.settle_own()
            add_to(self.samples.now(), (None, OWN), passed, 0)
        return passed

    def flush(self, *, everything: bool) -> None:
        """Give up waiting for samples of endpoints that had CPU some seconds ago: write it where it was."""
        account = self.account
        with account.lock:
            if everything:
                account.lay_down_all()
            for waiting in [name for name, held in self._unsampled.items() if is_over(held[1], everything)]:
                nanoseconds, since = self._unsampled.pop(waiting)
                table = self.samples.at(since * SECOND_NS)
                add_to(table, (waiting.endpoint, BETWEEN_SAMPLES), nanoseconds, 0)
            table = self.samples.now()
            if len(self._stacks) > MAX_KEYS:
                self._stacks.clear()
            if everything:
                rest = account.nobodys_ns + account.lanes_nobodys_ns + account.settle()
                account.nobodys_ns = account.lanes_nobodys_ns = 0
                add_to(table, (None, BETWEEN_SAMPLES), rest, 0)
                other = account.settle_others()
                if other:
                    add_to(table, (None, OTHER_THREADS), other, 0)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        used = time.process_time_ns()
        if not self._armed:
            pass
        elif used < self._due_ns:
            guarded(self._wait, used)
        else:
            # A collection that our own few objects set off would be the application's, in our time.
            collecting = gc.isenabled()
            gc.disable()
            try:
                guarded(self._sample, frame, used)
            finally:
                if collecting:
                    gc.enable()
        previous = self._previous
        if callable(previous):
            previous(number, frame)

    def _sample(self, frame: FrameType | None, used: int) -> None:
        self._sampled(used, SECOND_NS // self.hz)
        account = self.account
        weight = account.settle()
        began = account.settled_ns
        table = self.samples.now()
        # Never waits: whoever has the lock may be what this signal interrupted.
        locked = account.lock.acquire(False)
        try:
            others = self._take_lanes(table, weight) if locked else 0
            if others and weight * self.hz < _HALF_NS:
                account.keep(weight)
            else:
                self._take_main(table, frame, weight, locked)
        finally:
            if locked:
                account.lock.release()
        if self.wakeups is not None:
            self.wakeups.signalled()
        add("samples")
        self._set_timer(used)
        took = time.thread_time_ns() - began
        own(took)
        self.longest_ns = max(self.longest_ns, took)

    def _wait(self, used: int) -> None:
        own(_EARLY_NS)
        add("early_signals")
        self._set_timer(used)

    def _set_timer(self, used: int) -> None:
        signal.setitimer(
            signal.ITIMER_PROF, max(self._due_ns - used, _SHORTEST_NS) / SECOND_NS, _SPARE_PERIODS / self.hz
        )

    def _sampled(self, used: int, period: int) -> None:
        self._due_ns = max(self._due_ns + period, used - _CATCH_UP_PERIODS * period)

    def _take_main(self, table: Table, frame: FrameType | None, weight: int, locked: bool) -> None:
        request = current()
        stack = self._stacker.take(frame)
        self._turns.sampled(stack)
        if weight * self.hz > LATE_PERIODS * SECOND_NS:
            stack = stack.marked(LATE)
        if request is None:
            weight, self.account.nobodys_ns = weight + self.account.nobodys_ns, 0
        else:
            weight, request.unsampled_ns = weight + request.unsampled_ns, 0
            request.busy_ns += weight
            if locked:
                self._stand_for(table, request, stack, lane=False)
        add_to(table, (request, stack), weight, 1)

    def _take_lanes(self, table: Table, main_ns: int) -> int:
        """Sample the other threads; the lock must be held. Returns how many samples were taken.

        Those that used half a period since their last sample; where nobody did, and the main thread neither,
        the one that used most. The others go on adding up.
        """
        account = self.account
        due: list[tuple[Lane, FrameType]] = []
        most: tuple[int, Lane, FrameType] | None = None
        if account.lanes:
            frames = sys._current_frames()
            for ident, lane in list(account.lanes.items()):
                frame = frames.get(ident)
                waiting = lane.waiting()
                if frame is None or waiting is None:
                    del account.lanes[ident]  # it ended without a word
                elif waiting * self.hz >= _HALF_NS:
                    due.append((lane, frame))
                elif waiting > main_ns and (most is None or waiting > most[0]):
                    most = waiting, lane, frame
        other = account.settle_others()
        if other:
            add_to(table, (None, OTHER_THREADS), other, int(other * self.hz >= _HALF_NS))
        if most is not None and not due and other < most[0] and main_ns * self.hz < _HALF_NS:
            due.append(most[1:])
        for lane, frame in due:
            self._take_lane(table, lane, frame)
        return len(due) + (other * self.hz >= _HALF_NS)

    def _take_lane(self, table: Table, lane: Lane, frame: FrameType) -> None:
        account = self.account
        request = lane.request
        if request is not None and request.ended:
            request = None
        weight = account.settle_lane(lane)
        stack = self._stacker.take(frame)
        if weight * self.hz > LATE_PERIODS * SECOND_NS:
            stack = stack.marked(LATE)
        if request is None:
            weight, account.lanes_nobodys_ns = weight + account.lanes_nobodys_ns, 0
        else:
            request.busy_ns += weight
            self._stand_for(table, request, stack, lane=True)
        add_to(table, (request, stack), weight, 1)

    def _rest(self, request: Request, nanoseconds: int, lane: bool) -> None:
        """Keep what a request used without a sample; of one that is traced, under its own trace."""
        endpoint = request.about()
        if request.span_id and nanoseconds:
            stack = request.stack or self._stacks.get(endpoint, BETWEEN_SAMPLES)
            add_to(self.samples.now(), (request, stack), nanoseconds, 0)
            return
        held = self._unsampled.setdefault(_Waiting(endpoint, lane), [0, int(time.time())])
        held[0] += nanoseconds

    def _stand_for(self, table: Table, request: Request, stack: Stack, *, lane: bool) -> None:
        """Give this stack the CPU of its endpoint that no sample covered."""
        if request.span_id:
            request.stack = stack
        if not request.rule:
            return
        endpoint = request.about()
        self._stacks[endpoint] = stack
        held = self._unsampled.pop(_Waiting(endpoint, lane), None)
        if held is not None and held[0]:
            add_to(table, (endpoint, stack), held[0], 0)
