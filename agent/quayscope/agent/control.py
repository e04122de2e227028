"""What the relay asks of a worker: on or off, a rate, quarter-second slots (docs/wire.md).

Whoever is behind the socket can change no more than that, and not for longer than the connection lasts.
"""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from quayscope.agent.faults import add
from quayscope.agent.settings import MAX_HZ

__all__ = ["MAX_ASKED", "Asked", "Control", "parse_asked"]

MAX_ASKED = 1_000
"""Bytes of a packet from the relay; a longer one is refused."""
_SLOTS_MS = (1_000, 250)


class Asked(NamedTuple):
    """What is asked for. `hz` 0: the worker's own rate. `until_ns` in Unix nanoseconds, 0: no end."""

    on: bool = True
    hz: int = 0
    slot_ms: int = 1_000
    until_ns: int = 0


NOTHING = Asked()


def parse_asked(packet: bytes) -> Asked:
    """Read a settings packet; raises ValueError for anything else."""
    if len(packet) > MAX_ASKED:
        raise ValueError("too long")
    record: Any = json.loads(packet)
    if not isinstance(record, dict) or record.get("k") != "settings":
        raise ValueError("no settings")
    on, hz = record.get("on", True), record.get("hz", 0)
    slot_ms, until_ns = record.get("slot_ms", 1_000), record.get("until", 0)
    if not isinstance(on, bool) or slot_ms not in _SLOTS_MS or isinstance(slot_ms, bool):
        raise ValueError("on or slot_ms is none")
    for number, most in ((hz, MAX_HZ), (until_ns, 1 << 63)):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
            raise ValueError("hz or until is out of range")
    return Asked(on, hz, int(slot_ms), until_ns)


class Control:
    """The newest wish of the connection that is; none once its time is over or the connection is."""

    def __init__(self) -> None:
        self._asked = NOTHING

    def take(self, packet: bytes) -> None:
        """Take a packet from the relay; a malformed one is counted and changes nothing."""
        try:
            self._asked = parse_asked(packet)
        except (ValueError, RecursionError):
            add("asked_malformed")

    def disconnected(self) -> None:
        """Forget: who asked is gone."""
        self._asked = NOTHING

    def asked(self) -> Asked:
        """Return what holds now."""
        if self._asked.until_ns and time.time_ns() >= self._asked.until_ns:
            self._asked = NOTHING
        return self._asked
