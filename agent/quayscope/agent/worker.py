"""The agent of one worker: starts after the fork, writes each second, stops before the interpreter ends."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any, Callable

from quayscope.agent import faults
from quayscope.agent.border import Border
from quayscope.agent.context import Request
from quayscope.agent.control import Control
from quayscope.agent.cpu import CpuSampler
from quayscope.agent.faults import guarded
from quayscope.agent.frames import Stacker
from quayscope.agent.governor import Governor
from quayscope.agent.launch import Helper
from quayscope.agent.memory import start_memory
from quayscope.agent.records import RecordWriter
from quayscope.agent.requests import RequestCounter
from quayscope.agent.settings import Settings
from quayscope.agent.slots import SECOND_NS, SlotLength
from quayscope.agent.stalls import StallTimer
from quayscope.agent.thread import OwnThread
from quayscope.agent.threads import follow_threads
from quayscope.agent.tracing import SpanKeeper, start_tracing
from quayscope.agent.turns import Turns
from quayscope.agent.usage import Usage
from quayscope.agent.wakeups import Wakeups
from quayscope.agent.writing import RecordStream

__all__ = ["WorkerAgent"]

VERSION = 1
PAUSE_S = 0.002
"""Between two slices: the application's greenlets go first."""
_SLICE_NS = 700_000
"""How long packets are written in one go. A pause for each would cost more than the packets do."""
LAST_WORDS_S = 0.2
"""How long the end of a worker may be held up for its last records."""
_BEHIND_NS = 50_000_000
"""How long after a slot's end it is written: what had begun in it is over by then."""


class WorkerAgent:
    """Everything of the agent in one worker process. `role` is the series label."""

    def __init__(self, settings: Settings, role: str) -> None:
        self._settings = settings
        self._role = role
        self._slot = SlotLength()
        stacker = Stacker()
        self._turns = Turns(stacker, self._slot, settings.stall_ns)
        self._cpu = CpuSampler(stacker, self._turns, self._slot, settings.hz)
        self.stalls = StallTimer(stacker, self._turns, self._slot, comment=settings.sql_comment)
        self._requests = RequestCounter(settings.slow_ns)
        self.border = Border(self._cpu.account.begin, self._finished, self._turns)
        self._usage = Usage(self._turns)
        self._governor = Governor(settings.max_overhead)
        self._control = Control()
        self._spans: SpanKeeper | None = None
        self._writer = RecordWriter(settings.socket, self._hello)
        self._stream = RecordStream(
            stacker, self._cpu, self.stalls, self._turns, self._requests, self._writer
        )
        self._helper = Helper(settings.socket, os.environ)
        self._thread = OwnThread(self._step)
        self._writing: Iterator[bool] = iter(())
        self._next_write_ns = 0
        self._next_settle_ns = 0
        self._greenlet = False
        self._stopped = False
        self._on = True
        self._wanted_hz = settings.hz
        self.pid = 0

    def start(self) -> None:
        """Begin in this process, which must be the worker: after the fork, on the main thread."""
        self.pid = os.getpid()
        os.register_at_fork(after_in_child=lambda: guarded(self._leave))
        self.stalls.running = self.border.running = True
        guarded(follow_threads, self._cpu.account)
        guarded(self._cpu.start)
        guarded(self._start_writing)
        guarded(self._thread.start)

    def serve(self, application: Callable[..., Any]) -> None:
        """Follow greenlets and make spans: the application is loaded, and about to serve."""
        guarded(self._cpu.account.follow)
        if self._settings.tracing:
            guarded(self._start_tracing, application)
        guarded(start_memory, self._settings.memory, self._settings.service_name, {"role": self._role})

    def signals_go_to(self, ends: tuple[int, int]) -> None:
        """Keep our timer's signals from filling a pipe that the server has them written to."""
        self._cpu.wakeups = Wakeups(ends)

    def before_exec(self) -> None:
        """Disarm: the timer would outlive this program, and kill the next."""
        self._cpu.disarm()

    def after_exec(self) -> None:
        """Go on: there was no other program."""
        if self._on:
            self._cpu.arm()

    def stop(self) -> None:
        """Disarm the timer and write the last records, within a bounded time. May be called twice."""
        if self._stopped or os.getpid() != self.pid:
            return
        self._stopped = True
        guarded(self._flush)
        guarded(self._cpu.stop)
        self.stalls.running = self.border.running = False
        guarded(self._thread.stop, LAST_WORDS_S / 2)
        guarded(self._write_last)
        self._writer.close()

    def _hello(self) -> dict[str, Any]:
        return {
            "k": "hello",
            "v": VERSION,
            "pid": self.pid,
            "role": self._role,
            "service": self._settings.service_name,
            "start": time.time_ns(),
            "labels": {},
        }

    def _start_tracing(self, application: Callable[..., Any]) -> None:
        self._spans = self._stream.spans = start_tracing(application, self._settings.trace_ratio)

    def _leave(self) -> None:
        """In a child of the worker gather nothing: nobody writes there. It inherits no timer."""
        self._stopped = True
        self.border.running = False
        self.stalls.forget()
        self._cpu.forget()
        self._requests.forget()
        self._writer.close()

    def _finished(self, request: Request) -> None:
        self._cpu.account.end(request)
        if request.method:  # else the worker refused it before the application saw it
            self._requests.finished(request)

    def _flush(self) -> None:
        self._cpu.flush(everything=True)

    def _write_last(self) -> None:
        deadline = time.monotonic() + LAST_WORDS_S
        # What the writer had begun with comes first.
        for accepted in chain(self._writing, self._stream.write(everything=True)):
            if time.monotonic() > deadline:
                break
            if not accepted:
                select.select([], [], [], PAUSE_S)

    # The agent's own thread.

    def _step(self) -> int:
        """Look at what the main thread cannot see; where it has no hub, write. Returns when to come again."""
        now = time.perf_counter_ns()
        wait = min(self._turns.look(now), self._cpu.stand_in())
        self._helper.step(alone=self._writer.alone)
        if now >= self._next_settle_ns:
            self._next_settle_ns = now + SECOND_NS // 2
            faults.own(self._cpu.settle_own())
        if not self._greenlet:
            if time.time_ns() >= self._next_write_ns:
                self._write(self._thread.sleep)
                self._next_write_ns = self._after_slot()
            wait = min(wait, self._next_write_ns - time.time_ns())
        return wait

    # Writing: a greenlet where the hub is gevent's, else the agent's thread.

    def _start_writing(self) -> None:
        monkey = sys.modules.get("gevent.monkey")
        self._next_write_ns = self._after_slot()
        if monkey is not None and monkey.is_module_patched("time"):
            gevent = sys.modules["gevent"]
            self._greenlet = self._usage.counts_slices = True
            gevent.spawn(guarded, self._write_in_greenlet, gevent.sleep)

    def _write_in_greenlet(self, sleep: Callable[[float], None]) -> None:
        while not self._stopped:
            sleep(max(0.001, (self._after_slot() - time.time_ns()) / 1e9))
            guarded(self._write, sleep)

    def _after_slot(self) -> int:
        return self._slot.start() + self._slot.ns + _BEHIND_NS

    def _write(self, sleep: Callable[[float], None]) -> None:
        """Write what is over in slices, between which others run; then take what is asked for."""
        if self._stopped:
            return
        self._usage.slice(self._keep_house)
        self._writing = self._stream.write(everything=False)
        while self._usage.slice(self._write_slice):
            sleep(PAUSE_S)
            if self._stopped:
                return

    def _write_slice(self) -> bool:
        """Write until it has taken long enough or the queue is full; returns whether there is more."""
        end = time.perf_counter_ns() + _SLICE_NS
        return any(not accepted or time.perf_counter_ns() > end for accepted in self._writing)

    def _keep_house(self) -> None:
        self._cpu.check()
        self._take_asked()
        asked = self._control.asked()
        self._slot.ns = asked.slot_ms * 1_000_000
        if asked.on != self._on:
            self._switch(asked.on)
        wanted = asked.hz or self._settings.hz
        if wanted != self._wanted_hz:
            self._wanted_hz = wanted
            self._governor.reset()
            self._cpu.set_rate(wanted)
        usage, hz = self._usage, self._cpu.hz
        if usage.second_passed():
            self._cpu.set_rate(self._governor.decide(usage.own_ns, usage.cpu_ns, usage.wall_ns, hz, wanted))
            self._stream.levels = {
                **usage.levels(hz, self._governor.share),
                "sample_cpu_max_ns": self._cpu.longest_ns,
            }
            self._cpu.longest_ns = 0

    def _take_asked(self) -> None:
        for _ in range(4):
            packet = self._writer.receive()
            if packet is None:
                break
            self._control.take(packet)
        if not self._writer.connected:
            self._control.disconnected()

    def _switch(self, on: bool) -> None:
        self._on = self.stalls.running = self.border.running = on
        if self._spans is not None:
            self._spans.running = on
        if on:
            self._cpu.resume()
        else:
            self._cpu.pause()
