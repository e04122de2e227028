"""Samples between ring and names: gathered by what tells them apart until their second is over.

A thread that samples adds, another one takes; what is held is bounded.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.statements import Described

__all__ = ["MOST_HELD", "Gathered", "Held", "Known"]

MOST_HELD = 30_000
"""Samples held at once, of all targets: some 20 MB."""


class Known(NamedTuple):
    """What is known of a sample besides its stack; `unproven`: not for certain what its process ran."""

    tracked: Tracked
    slot_ns: int
    role: str
    pid: int
    described: Described
    unproven: bool


class Held(NamedTuple):
    """A sample before its stack has names, and the CPU time that it stands for.

    Addresses are 8 bytes each, leaf first, callers' inside their calls. `complete`: the unwinder reached the
    root. `space` is None where the process was gone before it was read.
    """

    known: Known
    kernel: bytes
    space: AddressSpace | None
    user: bytes
    complete: bool
    cpu_ns: int


class Gathered:
    """Holds samples until their names are looked up; thread-safe.

    One by one: nearly every sample has addresses of its own, and what is alike is so by name.
    """

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._held: dict[int, list[Held]] = {}
        self._count = 0
        self._dropped: dict[tuple[Tracked, int], int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def add(self, sample: Held) -> None:
        """Add one sample; when there is no room it is counted as dropped."""
        slot_ns = sample.known.slot_ns
        with self._lock:
            if self._count >= self._most:
                of = (sample.known.tracked, slot_ns)
                self._dropped[of] = self._dropped.get(of, 0) + 1
                return
            held = self._held.get(slot_ns)
            if held is None:
                held = self._held[slot_ns] = []
            held.append(sample)
            self._count += 1

    def take(self, before_ns: int | None) -> list[Held]:
        """Return, and hold no longer, the samples of seconds that began before; None: all."""
        ready: list[Held] = []
        with self._lock:
            for slot_ns in [one for one in self._held if before_ns is None or one < before_ns]:
                ready += self._held.pop(slot_ns)
            self._count -= len(ready)
        return ready

    def take_dropped(self) -> dict[tuple[Tracked, int], int]:
        """Return how many samples were dropped since the last call, by target and second."""
        with self._lock:
            dropped, self._dropped = self._dropped, {}
            return dropped
