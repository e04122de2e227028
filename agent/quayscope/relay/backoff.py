"""How long to wait before the next attempt."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Pauses that double from `first_s` to `longest_s` seconds, each cut by up to a half at random.

    Senders that lost the same receiver at the same moment do not come back at the same moment.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first = first_s
        self._longest = longest_s
        self._next = first_s

    def pause(self) -> float:
        """Return the seconds to wait now, and wait longer the next time."""
        pause = self._next * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        self._next = min(self._next * 2, self._longest)
        return pause

    def reset(self) -> None:
        """Begin anew: an attempt succeeded."""
        self._next = self._first
