"""Keeps the agent's own cost under a share of the worker's CPU, by the rate of the samples."""

from __future__ import annotations

from collections import deque

__all__ = ["Governor"]

LEAST_HZ = 20
"""Below this a profile says little and costs hardly less; what costs too much even then is shown."""
WINDOW = 10
"""Seconds over which the share is taken."""
FEWEST = 3
"""Seconds that must have passed since the last change: the first ones name functions never seen before."""
IDLE_SHARE = 0.1
"""A worker that uses less of a core than this is held to the same bound as one that uses so much."""
_FALL, _RISE = 0.7, 1.2
_ROOM = 0.75
"""The rate rises again where the cost is under this part of what is allowed."""


class Governor:
    """Decides the rate once a second. `allowed` is the share of the worker's CPU, as 0.01 for 1 %."""

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self.share = 0.0
        """The agent's CPU as a share of the worker's, over the last seconds."""
        self._seconds: deque[tuple[int, int, int]] = deque(maxlen=WINDOW)

    def reset(self) -> None:
        """Forget: another rate is wanted."""
        self._seconds.clear()

    def _share_now(self) -> float:
        own = sum(second[0] for second in self._seconds)
        base = sum(max(second[1], int(second[2] * IDLE_SHARE)) for second in self._seconds)
        return own / base if base else 0.0

    def decide(self, own_ns: int, worker_ns: int, wall_ns: int, hz: int, wanted_hz: int) -> int:
        """Return the rate for the next second: own and the worker's CPU in the last one, and the rate now.

        After a change the cost is taken anew: the seconds before it say nothing of the new rate.
        """
        self._seconds.append((own_ns, worker_ns, wall_ns))
        self.share = share = self._share_now()
        if len(self._seconds) < FEWEST:
            new = min(hz, wanted_hz)
        elif share > self._allowed and hz > LEAST_HZ:
            new = max(LEAST_HZ, int(hz * _FALL))
        elif share < self._allowed * _ROOM and hz < wanted_hz:
            new = min(wanted_hz, max(hz + 1, int(hz * _RISE)))
        else:
            new = min(hz, wanted_hz)
        if new != hz:
            self.reset()
        return new
