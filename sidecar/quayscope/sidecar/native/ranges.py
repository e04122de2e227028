"""Stretches of addresses with a number each, looked up for many addresses at once.

Addresses of several address spaces lie side by side: each space has a tag, which is added to its addresses.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "MOST_TAGS", "Numbers", "Ranges", "tag"]

Numbers = NDArray[np.int64]

LIMIT = 1 << 47
"""No code of a program lies at or past this address, on x86-64 and on aarch64 with addresses of 47 bits."""
_TAG_AT = 48
MOST_TAGS = 1 << 14
_MOST = 65_536


def tag(number: int) -> int:
    """Return what is added to the addresses of the address space of this number, 0 to 16,383."""
    return number << _TAG_AT


class Ranges:
    """Numbers by stretch, [start, end) each, that do not overlap; the number 0 is none.

    At most 65,536 stretches, 24 bytes each; then it begins anew.
    """

    def __init__(self) -> None:
        self._added: set[tuple[int, int, int]] = set()
        self.clear()

    def __len__(self) -> int:
        return len(self._starts) - 1 + len(self._added)

    def clear(self) -> None:
        """Forget all."""
        self._added.clear()
        # One that holds nothing, before all: every address has a stretch that begins at or before it.
        self._starts: Numbers = np.full(1, -1, np.int64)
        self._ends: Numbers = np.full(1, -1, np.int64)
        self._values: Numbers = np.zeros(1, np.int64)

    def add(self, start: int, end: int, number: int) -> None:
        """Remember a stretch's number; what begins where another one does is not taken."""
        self._added.add((start, end, number))

    def find(self, at: Numbers) -> Numbers:
        """Return the numbers at addresses, tagged and not negative; 0 where there is none."""
        if self._added:
            self._merge()
        index = self._starts.searchsorted(at, "right") - 1
        return self._values[index] * (at < self._ends[index])

    def _merge(self) -> None:
        added = np.array(sorted(self._added), np.int64)
        if len(self) > _MOST:
            self.clear()
        self._added.clear()
        places = self._starts.searchsorted(added[:, 0], "right")
        fresh = self._starts[places - 1] != added[:, 0]
        fresh[1:] &= added[1:, 0] != added[:-1, 0]
        new, places = added[fresh], places[fresh]
        self._starts = np.insert(self._starts, places, new[:, 0])
        self._ends = np.insert(self._ends, places, new[:, 1])
        self._values = np.insert(self._values, places, new[:, 2])
