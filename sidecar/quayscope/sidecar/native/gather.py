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
        self._held: dict[int, dict[Key, Weight]] = {}
        self._count = 0
        self._dropped: dict[tuple[Tracked, int], int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def add(self, key: Key, cpu_ns: int) -> None:
        """Add one sample; when there is no room it is counted as dropped."""
        slot_ns = key.slot_ns
        with self._lock:
            held = self._held.get(slot_ns)
            if held is None:
                held = self._held[slot_ns] = {}
            if self._count >= self._most and key not in held:
                of = (key.tracked, slot_ns)
                self._dropped[of] = self._dropped.get(of, 0) + 1
                return
            # One look-up: most keys are new, and hashing one costs more than all the rest.
            before = len(held)
            weight = held.setdefault(key, Weight())
            self._count += len(held) - before
            weight.count += 1
            weight.cpu_ns += cpu_ns

    def take(self, before_ns: int | None) -> list[tuple[Key, Weight]]:
        """Return, and hold no longer, the samples of seconds that began before; None: all."""
        ready: list[tuple[Key, Weight]] = []
        with self._lock:
            for slot_ns in [one for one in self._held if before_ns is None or one < before_ns]:
                ready += self._held.pop(slot_ns).items()
            self._count -= len(ready)
        return ready

    def take_dropped(self) -> dict[tuple[Tracked, int], int]:
        """Return how many samples were dropped since the last call, by target and second."""
        with self._lock:
            dropped, self._dropped = self._dropped, {}
            return dropped
