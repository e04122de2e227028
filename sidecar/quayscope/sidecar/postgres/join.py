"""Which statement a backend ran at the moment of a CPU sample: proven by the server's times, or not known.

A sample is looked at some microseconds after it was taken; by then the backend may run something else. Its
slot in shared memory says since when it does what it does, so what the slot shows is the sample's only where
that began before the sample, and has not ended before it. No statement is inferred from what
came earlier; whose request it serves may be, see `transactions`.

Postgres (backend_status.c, `pgstat_report_activity`) keeps the text and the start of the last statement while
a backend is idle, and notes when it became so. A start is when the client's message came. A function call by
protocol (`PQfn`) reports no text of its own and leaves the last statement's: one that has ended again by the
time of the look is taken for that statement.
"""

from __future__ import annotations

import enum
import time
from typing import NamedTuple

from quayscope.sidecar.postgres.slots import Glance
from quayscope.sidecar.postgres.transactions import IDLE_IN_TRANSACTION
from quayscope.sidecar.targets import CLIENT_BACKEND

__all__ = ["Clock", "Verdict", "is_same_transaction", "judge"]

_MICROSECOND_NS = 1000
"""The server's times are cut to it."""
_IDLE = ("idle", *IDLE_IN_TRANSACTION)
_STEP_NS = 20_000
"""Real time that runs ahead of or behind the monotonic clock by so much between two looks was set."""
_READS = 4
_GOOD_NS = 2_000


class Verdict(enum.Enum):
    """What a slot says about an earlier moment.

    `STATEMENT`: its statement ran; `NOTHING`: none did; `UNKNOWN`: it does not tell.
    """

    STATEMENT = "statement"
    NOTHING = "nothing"
    UNKNOWN = "unknown"


class Clock(NamedTuple):
    """How sample times become the server's: CLOCK_REALTIME less CLOCK_MONOTONIC, and how far off it may be.

    Nanoseconds. Both clocks run at one rate (time_namespaces(7), clock_gettime(2)): the difference changes
    only when the time is set.
    """

    offset_ns: int
    error_ns: int

    @classmethod
    def read(cls) -> Clock:
        """Measure: real time between two readings of the monotonic clock, the closest of a few."""
        best = None
        for _ in range(_READS):
            before = time.monotonic_ns()
            real = time.time_ns()
            after = time.monotonic_ns()
            if best is None or after - before < best.error_ns:
                best = cls(real - (before + after) // 2, after - before)
            if best.error_ns < _GOOD_NS:
                break
        assert best is not None
        return best

    def was_set_since(self, other: Clock) -> bool:
        """Whether the real time was set between two readings."""
        return abs(self.offset_ns - other.offset_ns) > _STEP_NS + self.error_ns + other.error_ns


def judge(seen: Glance, at_ns: int, now_ns: int, error_ns: int) -> Verdict:
    """Say whether what a slot shows is what its backend did at a moment before.

    `at_ns` is that moment and `now_ns` one after the slot was read, Unix nanoseconds, each `error_ns` off at
    most. A time in the slot that has not come yet (the clock was set back) proves nothing.
    """
    now_ns += error_ns
    if seen.activity_start_ns > now_ns or seen.state_start_ns > now_ns or seen.state == "disabled":
        return Verdict.UNKNOWN
    if not seen.activity_start_ns:
        # It has not run any yet. A worker of an extension may tell no start.
        return Verdict.UNKNOWN if seen.state == "active" else Verdict.NOTHING
    began_ns = seen.activity_start_ns
    if seen.backend_type != CLIENT_BACKEND:
        # It gets no messages, and may tell one start for several statements.
        began_ns = max(began_ns, seen.state_start_ns if seen.state == "active" else 0)
    # A time is cut to the microsecond: it was in the one that it names.
    if began_ns + _MICROSECOND_NS + error_ns > at_ns:
        return Verdict.UNKNOWN
    if seen.state == "active":
        return Verdict.STATEMENT
    if seen.state_start_ns + _MICROSECOND_NS + error_ns <= at_ns:
        return Verdict.NOTHING
    if seen.state in _IDLE and seen.state_start_ns - error_ns >= at_ns:
        return Verdict.STATEMENT
    return Verdict.UNKNOWN


def is_same_transaction(seen: Glance, at_ns: int, now_ns: int, error_ns: int) -> bool:
    """Whether the transaction that a slot shows was open at a moment before; the times are those of `judge`.

    A transaction that began before that moment and is open still was so all the time.
    """
    began_ns = seen.transaction_start_ns
    return (
        (seen.state == "active" or seen.state in IDLE_IN_TRANSACTION)
        and 0 < began_ns <= now_ns + error_ns
        and began_ns + _MICROSECOND_NS + error_ns <= at_ns
    )
