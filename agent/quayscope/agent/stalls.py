"""Time blocked in SQL: by request, statement and stack; and our comment for each statement.

psycopg2 waits in C: the whole worker, all its greenlets, wait with it. A call's stack still stands when the
call has returned, so it is walked then, and only where the blocked time of the statement at that endpoint
crosses a multiple of `STEP_NS`: each stack then stands for the time since the crossing before. That is
exact in the sum, right in the mean, and cheap for requests of a hundred statements.
"""

from __future__ import annotations

import sys
import time
from typing import Optional

from quayscope.agent.context import CURRENT, About, Endpoint, Request
from quayscope.agent.early import get_ident
from quayscope.agent.faults import own
from quayscope.agent.frames import BETWEEN_SAMPLES, Stack, Stacker
from quayscope.agent.slots import MAX_KEYS, SECOND_NS, SlotLength, Slots, add_to, is_over
from quayscope.agent.turns import Turns
from quayscope.profile.statement import comment_head, comment_pairs, comment_tail, normalize

__all__ = ["Call", "StallTimer", "Statement"]

STEP_NS = 20_000_000
STATEMENTS_A_TIMING = 16
"""Our own cost is measured each so many: the clock of CPU time costs half a microsecond."""
LONGEST_STATEMENT = 8_000
"""Longer texts (bulk inserts) are named by their beginning, in characters."""
LONGEST_KNOWN = 4_000
"""Longer texts are not remembered: bulk inserts differ each time."""
MAX_KNOWN = 2_048
"""Texts remembered; a service has hundreds."""
_TRACE = "0" * 32
"""Stands for a trace id; the route before it has no such text in it."""


class _Tally:
    """One statement at one endpoint: blocked time that waits for a stack, and the last stack there was."""

    __slots__ = ("count", "crossing", "held_ns", "since", "stack", "total_ns")

    def __init__(self) -> None:
        self.held_ns = 0
        self.count = 0
        self.since = 0
        self.total_ns = 0
        self.crossing = 0
        self.stack = BETWEEN_SAMPLES


class Statement:
    """A statement without its literals, and what its comment begins with."""

    __slots__ = ("head", "tallies", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.head = ""
        self.tallies: dict[Endpoint | None, _Tally] = {}


Call = tuple[Statement, Optional[Request], int, int, int]
"""A call into the driver: its statement and request, the turn it began in, what preparing it cost where that
is measured (nanoseconds of CPU, else 0), and when it began."""


class StallTimer:
    """Keeps blocked time. While not `running`, it keeps none."""

    def __init__(self, stacker: Stacker, turns: Turns, length: SlotLength, *, comment: bool) -> None:
        self._stacker = stacker
        self._turns = turns
        self._comment = comment
        self.stalls: Slots[tuple[About, str, Stack], list[int]] = Slots(length)
        self.known: dict[str, Statement] = {}
        """By text as it was sent, without our comment."""
        self._by_text: dict[str, Statement] = {}
        self._until_timing = STATEMENTS_A_TIMING
        self.statements = 0
        """How many were sent since somebody set this to 0."""
        self.running = False

    def named(self, text: str) -> Statement:
        """Return a statement by what it is called."""
        found = self._by_text.get(text)
        if found is None:
            if len(self._by_text) >= MAX_KNOWN:
                self.flush(everything=True)
                self._by_text.clear()
                self.known.clear()
            found = self._by_text[text] = Statement(text)
        return found

    def prepare(self, statement: Statement, parameters: bool) -> tuple[Call, str]:
        """Begin a call with a statement; returns it, and the comment to send in front ("": none).

        `parameters`: the driver will put some in, and so takes `%%` for `%`. Written in one piece: after
        a wait everything is cold, and each function more costs as much as the work it does.
        """
        self._until_timing -= 1
        timing = 0 if self._until_timing > 0 else time.thread_time_ns()
        request = CURRENT.get()
        comment = ""
        if request is not None and self._comment and not request.ended:
            comments = request.comments or _comments(request)
            comment = statement.head + comments[parameters]
        self.statements += 1
        turns = self._turns
        if get_ident() == turns.main_ident:
            turns.in_sql = True
        if timing:
            timing = time.thread_time_ns() - timing
        return (statement, request, turns.number, timing, time.perf_counter_ns()), comment

    def begin(self, statement: Statement) -> Call:
        """Begin a call that is no statement of the application's."""
        turns = self._turns
        if get_ident() == turns.main_ident:
            turns.in_sql = True
        return statement, CURRENT.get(), turns.number, 0, time.perf_counter_ns()

    def end(self, call: Call, below: int) -> None:
        """Note that a call is over; its frame is so many `below` this one."""
        now = time.perf_counter_ns()
        statement, request, number, timing, began = call
        blocked = now - began
        if timing:
            timing = time.thread_time_ns() - timing
        turns = self._turns
        if not turns.followed:
            turns.blocked_ns += blocked
        elif get_ident() == turns.main_ident:
            turns.in_sql = False
            # A call that let others run (a wait callback) blocked nobody.
            if number == turns.number:
                turns.sql_ns += blocked
                turns.blocked_ns += blocked
        endpoint = None
        if request is not None:
            if request.ended:
                request = None
            else:
                request.stalled_ns += blocked
                endpoint = request.shared or request.about()
        tally = statement.tallies.get(endpoint)
        if tally is None:
            tally = self._new_tally(statement, endpoint)
        tally.total_ns += blocked
        if tally.total_ns < tally.crossing:
            if not tally.count:
                tally.since = int(time.time())
            tally.held_ns += blocked
            tally.count += 1
        else:
            tally.crossing = tally.total_ns - tally.total_ns % STEP_NS + STEP_NS
            tally.stack = self._stacker.take(sys._getframe(below))
            table = self.stalls.now()
            add_to(table, (request, statement.text, tally.stack), blocked, 1)
            self._release(table, endpoint, statement, tally)
        if timing:
            self._until_timing = STATEMENTS_A_TIMING
            own(STATEMENTS_A_TIMING * (time.thread_time_ns() - timing))

    def flush(self, *, everything: bool) -> None:
        """Give what waited some seconds for a stack to the last stack of its kind."""
        for statement in list(self._by_text.values()):
            for endpoint, tally in list(statement.tallies.items()):
                if tally.count and is_over(tally.since, everything):
                    table = self.stalls.at(tally.since * SECOND_NS)
                    self._release(table, endpoint, statement, tally)

    def forget(self) -> None:
        """In a child of the worker: gather nothing."""
        self.running = False
        self.stalls.clear()
        self.known.clear()
        self._by_text.clear()

    def learn(self, text: str) -> Statement:
        """Return the statement that a text is; to be called where `known` has none."""
        shape = normalize(text if len(text) <= LONGEST_STATEMENT else text[:LONGEST_STATEMENT])
        found = self.named(shape.text)
        found.head = comment_head(shape.fingerprint)
        if len(text) <= LONGEST_KNOWN:
            if len(self.known) >= MAX_KNOWN:
                self.known.clear()
            self.known[text] = found
        return found

    def _new_tally(self, statement: Statement, endpoint: Endpoint | None) -> _Tally:
        if len(statement.tallies) >= MAX_KEYS // 10:  # runs and phases without end
            self.flush(everything=True)
            statement.tallies.clear()
        return statement.tallies.setdefault(endpoint, _Tally())

    def _release(
        self,
        table: dict[tuple[About, str, Stack], list[int]],
        endpoint: Endpoint | None,
        statement: Statement,
        tally: _Tally,
    ) -> None:
        nanoseconds, count = tally.held_ns, tally.count
        if count:
            tally.held_ns -= nanoseconds
            tally.count -= count
            add_to(table, (endpoint, statement.text, tally.stack), nanoseconds, count)


_known_comments: dict[Endpoint, tuple[tuple[str, str], tuple[str, str]]] = {}
"""By endpoint: what stands before and behind the trace id, without and with parameters."""


def _comments(request: Request) -> tuple[str, str]:
    """Return what stands behind the fingerprint in a request's comments, without and with parameters."""
    endpoint = request.about()
    found = _known_comments.get(endpoint)
    if found is None:
        if len(_known_comments) >= MAX_KNOWN:
            _known_comments.clear()
        pairs = comment_pairs(route=endpoint.endpoint, trace=_TRACE, run=endpoint.run, phase=endpoint.phase)
        parts = [comment_tail(pairs, parameters=parameters).split(_TRACE, 1) for parameters in (False, True)]
        found = _known_comments[endpoint] = (parts[0][0], parts[0][1]), (parts[1][0], parts[1][1])
    (before, after), (before_doubled, after_doubled) = found
    trace = request.trace()
    comments = before + trace + after, before_doubled + trace + after_doubled
    if request.rule:  # else the route may come yet
        request.comments = comments
    return comments
