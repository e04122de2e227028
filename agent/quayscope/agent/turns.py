"""The turns of greenlets in a gevent worker: how long the hub waited for each, and who kept it.

While one greenlet runs no other does, and nobody is accepted or answered. The agent's own thread looks at a
turn that lasts too long while it still lasts, so that the stack is the one that blocked; psycopg2's time is
taken out, since it is measured by itself. When the turn is over its length is known, and is divided among
the looks, each standing for the time since the one before.
"""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

from quayscope.agent.context import About, Request
from quayscope.agent.early import get_ident
from quayscope.agent.faults import add
from quayscope.agent.frames import BLOCKED, CPU_BOUND, UNSEEN, Stack, Stacker
from quayscope.agent.mainwatch import MainWatch
from quayscope.agent.slots import MAX_KEYS, SlotLength, Slots

__all__ = ["Turns"]

_WARY_NS = 60_000_000_000
_RARELY = 4
NEVER_NS = 1 << 62
MAX_LOOKS = 600
"""Looks at one turn: half a minute of it. Later time goes to the last one."""


class _Look(NamedTuple):
    at_ns: int
    cpu_ns: int  # of the main thread
    on_cpu: bool
    request: Request | None
    stack: Stack


class Turns:
    """The turn that lasts, and the long ones that are over: rows of [nanoseconds, count, waited for].

    A turn counts as long from `threshold_ns`, psycopg2's part not counted. `idle_ns` is the time in which
    the hub had nothing to do, `blocked_ns` the time in which a greenlet kept it without using the CPU. In a
    worker without a hub they are the time without a request, and the time in psycopg2.
    """

    def __init__(self, stacker: Stacker, length: SlotLength, threshold_ns: int) -> None:
        self._stacker = stacker
        self._threshold = threshold_ns
        self.stalls: Slots[tuple[About, Stack], list[int]] = Slots(length)
        self.idle_ns = 0
        self.blocked_ns = 0
        self.in_flight = 0
        """Requests that have begun and not ended."""
        self._idle_since_ns = time.perf_counter_ns()  # where there is no hub
        self.followed = False
        """Whether there are greenlets and their turns are known."""
        self.number = 0
        self.in_sql = False
        self.sql_ns = 0
        """The turn that lasts, and psycopg2's part in it; `stalls` keeps the two."""
        self.main_ident = 0
        self._hub: Any = None
        self._watch: MainWatch | None = None
        self._idle = False
        self._began_ns = 0
        self._cpu_began_ns = 0
        self._request: Request | None = None  # the last one that this turn worked for
        self._looks: list[_Look] = []
        self._wary_until_ns = 0
        self._sampled: tuple[int, Stack] = (-1, UNSEEN)

    def start(self, hub: Any) -> None:
        """Begin, on the main thread."""
        self.main_ident = get_ident()
        self._watch = self._watch or MainWatch()
        self._began_ns, self._cpu_began_ns = time.perf_counter_ns(), time.thread_time_ns()
        self._hub = hub
        self.followed = True

    def stop(self) -> None:
        """End: turns are not seen any more."""
        self._hub = None
        self.followed = False

    def turn(self, greenlet: Any, now: int, cpu_ns: int, request: Request | None) -> None:
        """Note that a greenlet's turn begins, for `request`, and another's ends.

        `now` is by `perf_counter_ns`, `cpu_ns` by the thread's CPU clock. Called at every switch, on the
        main thread.
        """
        length = now - self._began_ns
        if self._idle:
            self.idle_ns += max(0, length - (cpu_ns - self._cpu_began_ns))
        elif length - self.sql_ns >= self._threshold:
            self._long(length, cpu_ns)
        self.number += 1
        self._began_ns, self._cpu_began_ns = now, cpu_ns
        self._idle = greenlet is self._hub
        self.sql_ns = 0
        self.in_sql = False
        self._request = request
        if self._looks:
            self._looks = []

    def request_began(self, request: Request) -> None:
        """Note that a request begins, on whatever thread."""
        self.in_flight += 1
        self._request = request
        if self._hub is None and self.in_flight == 1:
            self.idle_ns += time.perf_counter_ns() - self._idle_since_ns

    def request_ended(self) -> None:
        """Note that one has ended."""
        self.in_flight -= 1
        if self._hub is None and not self.in_flight:
            self._idle_since_ns = time.perf_counter_ns()

    def sampled(self, stack: Stack) -> None:
        """Note the stack of a CPU sample of the main thread."""
        self._sampled = self.number, stack

    def look(self, now: int) -> int:
        """Look at a turn that lasts too long; returns after how many nanoseconds to come again.

        To be called from the agent's own thread, with the time by `perf_counter_ns`.
        """
        if self._hub is None or self._watch is None:
            return NEVER_NS
        # Where nothing waited too long for a while, less often: each look costs the main thread a turn. A
        # short wait may then go unseen, once: the next ones are looked for.
        often = self._threshold if now < self._wary_until_ns else _RARELY * self._threshold
        if self._idle or self.in_sql:
            return often
        number, looks = self.number, self._looks
        began, cpu_began = self._began_ns, self._cpu_began_ns
        late = now - began - self.sql_ns
        if late < self._threshold:
            return min(often, self._threshold - late)
        stack = self._stacker.take(sys._current_frames().get(self.main_ident))
        if looks:
            began, cpu_began = looks[-1].at_ns, looks[-1].cpu_ns
        on_cpu, cpu = self._watch.on_cpu(now, began, cpu_began)
        found = _Look(now, cpu, on_cpu, self._request, stack)
        # Others may have run while we looked: then this was no part of that turn.
        if number == self.number and len(looks) < MAX_LOOKS:
            looks.append(found)
        return self._threshold

    def _long(self, length: int, cpu_ns: int) -> None:
        left = length - self.sql_ns
        request = self._request
        others = max(0, self.in_flight - (request is not None and not request.ended))
        at = self._began_ns
        looks = list(self._looks)
        computed = cpu_ns - self._cpu_began_ns
        if not looks and self._sampled[0] == self.number and 2 * computed >= left:
            # It computed, and a sample of the CPU profile was taken in it: that is a look too.
            self._add(request, self._sampled[1].marked(CPU_BOUND), left, 1, others)
            return
        if not looks or not looks[0].on_cpu:
            self._wary_until_ns = at + length + _WARY_NS
        if not looks:
            self._add(request, UNSEEN, left, 1, others)
            self.blocked_ns += max(0, left - computed)
            return
        for number, look in enumerate(looks):
            if number == len(looks) - 1:
                share = left
            else:
                share = min(left, (look.at_ns - at) * (length - self.sql_ns) // length)
            self._add(
                look.request,
                look.stack.marked(CPU_BOUND if look.on_cpu else BLOCKED),
                share,
                int(not number),
                others,
            )
            if not look.on_cpu:
                self.blocked_ns += share
            left -= share
            at = look.at_ns

    def _add(self, request: Request | None, stack: Stack, nanoseconds: int, count: int, others: int) -> None:
        table = self.stalls.now()
        row = table.get((request, stack))
        if row is None:
            if len(table) >= MAX_KEYS:
                add("records_dropped")
                return
            row = table[request, stack] = [0, 0, 0]
        row[0] += nanoseconds
        row[1] += count
        row[2] += nanoseconds * others
