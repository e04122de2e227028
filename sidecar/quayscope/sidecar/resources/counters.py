"""Counters of the kernel as cumulative sums: since when they count, and what it means when one goes back."""

from __future__ import annotations

import time
from collections.abc import Mapping

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources.names import Instrument

__all__ = ["Counters", "boot_ns"]

_MOST = 4096
_NOTHING: Mapping[str, str] = {}


def boot_ns() -> int:
    """Return when the machine started, in Unix nanoseconds."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Counters:
    """Sums that began at `start_ns` (Unix nanoseconds).

    One that is lower than it was has begun anew, some time after it was last read: that is its start from
    then on, as OTLP wants it. Knows 4,096 sums at most; beyond that all of them begin at `start_ns` again.
    """

    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self._last: dict[tuple[str, tuple[str, ...]], tuple[float, int, int]] = {}

    def at(self, instrument: Instrument, value: float, attributes: Mapping[str, str] = _NOTHING) -> Reading:
        """Return the sum as it stands now."""
        now = time.time_ns()
        key = (instrument.name, tuple(attributes.values()))
        before, read_at, start = self._last.get(key, (value, now, self._start_ns))
        if value < before:
            start = read_at
        if len(self._last) >= _MOST and key not in self._last:
            self._last.clear()
        self._last[key] = (value, now, start)
        return Reading(instrument.name, instrument.kind, value, instrument.unit, attributes, start)

    def highest(
        self, instrument: Instrument, value: float, attributes: Mapping[str, str] = _NOTHING
    ) -> Reading:
        """Return the sum, not lower than it was: for those whose kernel lets them fall by a rounding."""
        held = self._last.get((instrument.name, tuple(attributes.values())))
        return self.at(instrument, value if held is None else max(value, held[0]), attributes)
