"""How far the collector's clock is from ours: the estimate of NTP (RFC 5905, section 8)."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from quayscope.profile.control import HeartbeatAnswer

__all__ = ["ClockOffset", "Estimate"]

KEPT = 8
"""Exchanges that are remembered: the one with the shortest round trip tells most, but clocks drift."""


class Estimate(NamedTuple):
    """What is to be added to our clock for the collector's, wrong by half the round trip at most; in ns."""

    offset_ns: int = 0
    round_trip_ns: int = 0


class ClockOffset:
    """Learns from heartbeats. One thread adds, others read."""

    def __init__(self) -> None:
        self._last: deque[Estimate] = deque(maxlen=KEPT)
        self._best = Estimate()

    def add(self, answer: HeartbeatAnswer, arrived_ns: int) -> None:
        """Take an answer that arrived at `arrived_ns` of our clock; one that cannot be is left out."""
        round_trip = arrived_ns - answer.sent_ns - (answer.answered_ns - answer.received_ns)
        if round_trip <= 0 or answer.answered_ns < answer.received_ns:
            return
        offset = (answer.received_ns - answer.sent_ns + answer.answered_ns - arrived_ns) // 2
        if self._last and abs(offset - self._best.offset_ns) > round_trip + self._best.round_trip_ns:
            # No two exchanges of the same clocks can differ so much: one of them was set.
            self._last.clear()
        self._last.append(Estimate(offset, round_trip))
        self._best = min(self._last, key=lambda one: one.round_trip_ns)

    @property
    def best(self) -> Estimate:
        """Return the estimate so far; a round trip of 0: none yet."""
        return self._best
