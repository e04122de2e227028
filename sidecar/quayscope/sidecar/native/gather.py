"""Samples between ring and names: gathered by what tells them apart until their second is over.

A thread that samples adds, another one takes; what is held is bounded.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.statements import Described

__all__ = ["MOST_HELD", "Gathered", "Key", "Weight"]

MOST_HELD = 30_000
"""Distinct samples held at once, of all targets: some 40 MB."""


class Key(NamedTuple):
    """What tells samples apart before they have names; addresses leaf first, callers' inside their calls.

    `complete`: the unwinder reached the root. `unproven`: what its process ran is not known for certain.
    `space` is None where the process was gone before it was read.
    """

    tracked: Tracked
    slot_ns: int
    role: str
    pid: int
    described: Described
    kernel: tuple[int, ...]
    space: AddressSpace | None
    user: tuple[int, ...]
    complete: bool
    unproven: bool = False


class Weight:
    """How many samples, and the CPU time they stand for."""

    __slots__ = ("count", "cpu_ns")

    def __init__(self) -> None:
        self.count = 0
        self.cpu_ns = 0


class Gathered:
    """Holds samples until their names are looked up; thread-safe."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._held: dict[Key, Weight] = {}
        self._dropped: dict[tuple[Tracked, int], int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, key: Key, cpu_ns: int) -> None:
        """Add one sample; when there is no room it is counted as dropped."""
        with self._lock:
            weight = self._held.get(key)
            if weight is None:
                if len(self._held) >= self._most:
                    of = (key.tracked, key.slot_ns)
                    self._dropped[of] = self._dropped.get(of, 0) + 1
                    return
                weight = self._held[key] = Weight()
            weight.count += 1
            weight.cpu_ns += cpu_ns

    def take(self, before_ns: int | None) -> dict[Key, Weight]:
        """Return, and hold no longer, the samples of seconds that began before; None: all."""
        with self._lock:
            if before_ns is None:
                ready, self._held = self._held, {}
                return ready
            ready = {key: weight for key, weight in self._held.items() if key.slot_ns < before_ns}
            for key in ready:
                del self._held[key]
            return ready

    def take_dropped(self) -> dict[tuple[Tracked, int], int]:
        """Return how many samples were dropped since the last call, by target and second."""
        with self._lock:
            dropped, self._dropped = self._dropped, {}
            return dropped
