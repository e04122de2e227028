"""Time blocked in SQL: by request, statement and stack; and our comment for each statement.

psycopg2 waits in C: the whole worker, all its greenlets, wait with it. A call's stack still stands when the
call has returned, so it is walked then, and only where the blocked time of the statement at that endpoint
crosses a multiple of `STEP_NS`: each stack then stands for the time since the crossing before. That is
exact in the sum, right in the mean, and cheap for requests of a hundred statements.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

from quayscope.agent.context import About, Endpoint, Request, current
from quayscope.agent.faults import add, spent
from quayscope.agent.frames import Key, Stacker
from quayscope.agent.slots import MAX_KEYS, SlotLength, Slots
from quayscope.agent.turns import Turns
from quayscope.profile.statement import comment_pairs, encode_comment, normalize

__all__ = ["CONNECT", "Call", "StallTimer"]

CONNECT = "[connect]"
UNKNOWN = "[unknown statement]"
STEP_NS = 20_000_000
LONGEST_STATEMENT = 8_000
"""Longer texts (bulk inserts) are named by their beginning, in characters."""


class Call(NamedTuple):
    """A call into the driver: its statement, when it began (`perf_counter_ns`), and in which turn."""

    statement: str
    began_ns: int
    turn: int


class _Tally:
    """One statement at one endpoint: blocked time that waits for a stack, and the last stack there was."""

    __slots__ = ("count", "crossing", "held_ns", "stack", "total_ns")

    def __init__(self) -> None:
        self.held_ns = 0
        self.count = 0
        self.total_ns = 0
        self.crossing = 0
        self.stack: Key = ()


class StallTimer:
    """Keeps blocked time. While not `running`, it keeps none."""

    def __init__(self, stacker: Stacker, turns: Turns, length: SlotLength, *, comment: bool) -> None:
        self._stacker = stacker
        self._turns = turns
        self._comment = comment
        self.stalls: Slots[tuple[About, str, Key], list[int]] = Slots(length)
        self._tallies: dict[tuple[Endpoint | None, str], _Tally] = {}
        self.running = False

    def statement(self, text: str, *, parameters: bool) -> tuple[str, str]:
        """Return a statement without its literals, and the comment that goes in front of it ("": none)."""
        began = time.perf_counter_ns()
        found = normalize(text if len(text) <= LONGEST_STATEMENT else text[:LONGEST_STATEMENT])
        request = current() if self._comment else None
        comment = ""
        if request is not None:
            pairs = request.comment or _request_pairs(request)
            comment = encode_comment(pairs, fingerprint=found.fingerprint, parameters=parameters)
        spent(time.perf_counter_ns() - began)
        return found.text, comment

    def begin(self, statement: str) -> Call:
        """Note that a call into the driver begins."""
        turn = self._turns.sql_began()
        return Call(statement, time.perf_counter_ns(), turn)

    def end(self, call: Call) -> None:
        """Note that it is over, in a frame that the caller's caller called."""
        now = time.perf_counter_ns()
        blocked = now - call.began_ns
        self._turns.sql_ended(call.turn, blocked)
        statement = call.statement
        add("connections" if statement == CONNECT else "statements")
        request = current()
        if request is not None:
            request.stalled_ns += blocked
        key = (None if request is None else request.about(), statement)
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= MAX_KEYS:
                self.flush()
                self._tallies.clear()
            tally = self._tallies.setdefault(key, _Tally())
        tally.total_ns += blocked
        if tally.total_ns < tally.crossing:
            tally.held_ns += blocked
            tally.count += 1
        else:
            tally.crossing = tally.total_ns - tally.total_ns % STEP_NS + STEP_NS
            tally.stack = self._stacker.take(sys._getframe(3))
            table = self.stalls.now()
            self._add(table, (request, statement, tally.stack), blocked, 1)
            self._release(table, key, tally)
        spent(time.perf_counter_ns() - now)

    def flush(self) -> None:
        """Give what waits for a stack to the last stack of its kind: once a slot, so that it stays in it."""
        table = self.stalls.now()
        for key, tally in list(self._tallies.items()):
            self._release(table, key, tally)

    def kept_stacks(self) -> list[Key]:
        """Return the stacks still needed: of tables not yet taken, and the last ones of statements."""
        return [key for _, _, key in self.stalls.waiting()] + [
            tally.stack for tally in list(self._tallies.values())
        ]

    def forget(self) -> None:
        """In a child of the worker: gather nothing."""
        self.running = False
        self.stalls.clear()
        self._tallies.clear()

    def _release(
        self,
        table: dict[tuple[About, str, Key], list[int]],
        key: tuple[Endpoint | None, str],
        tally: _Tally,
    ) -> None:
        nanoseconds, count = tally.held_ns, tally.count
        if count:
            tally.held_ns -= nanoseconds
            tally.count -= count
            self._add(table, (*key, tally.stack), nanoseconds, count)

    @staticmethod
    def _add(
        table: dict[tuple[About, str, Key], list[int]],
        key: tuple[About, str, Key],
        nanoseconds: int,
        count: int,
    ) -> None:
        row = table.get(key)
        if row is not None:
            row[0] += nanoseconds
            row[1] += count
        elif len(table) < MAX_KEYS:
            table[key] = [nanoseconds, count]
        else:
            add("records_dropped")


def _request_pairs(request: Request) -> str:
    pairs = comment_pairs(route=request.endpoint, trace=request.trace(), run=request.run, phase=request.phase)
    if request.rule:  # else the route may come yet
        request.comment = pairs
    return pairs
