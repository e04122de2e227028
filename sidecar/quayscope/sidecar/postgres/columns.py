"""The counters, pids and waits of all backends, and which of them changed since they were last looked at.

A tick finds every cache cold, so that it costs what it touches: each stretch of an array is compared with
what it held, by one call into C, and no object is made where nothing changed. Where it did not, nothing is
called that is written in Python either: such a call takes 2 us then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

__all__ = ["Arrays", "Column", "Slots"]

_LONGEST = 64
"""Elements that are compared at once: of those that differ, so many are taken out to see which."""
_NEAR = 8
"""PGPROCs that are looked at along rather than left out."""


Part: TypeAlias = "tuple[int, memoryview[int], memoryview[int]]"
"""Some elements of a column side by side: the first's number, them as they are now, and as they are held."""


class Column:
    """One field of an array of structures. `held` is what was seen last, an element each; at first zeros."""

    def __init__(self, live: memoryview[int]) -> None:
        self.live = live
        self.held = memoryview(bytearray(live.nbytes)).cast("Q" if live.itemsize == 8 else "I")

    def parts(self, stretches: Iterable[tuple[int, int]]) -> list[Part]:
        """Return the elements of stretches, first to last."""
        return [
            (at, self.live[at : min(at + _LONGEST, last)], self.held[at : min(at + _LONGEST, last)])
            for first, last in stretches
            for at in range(first, last, _LONGEST)
        ]


class Slots(NamedTuple):
    """What a tick looks at: stretches of slots, first to last, and their elements in the column."""

    stretches: tuple[tuple[int, int], ...]
    parts: list[Part]


class Arrays:
    """`heads` is the counter (low half) and pid (high half) of each slot, `waits` a number each PGPROC.

    A server gives its slots to connections from the front, or in turn: those up to the highest in use and
    some beyond, and those at the end (autovacuum, workers, auxiliary processes) are looked at each tick; the
    idle rest between them each tenth. `apart` says how many those at the end are. Of the PGPROCs, those are
    looked at that `watch` names. Where the columns are copies, `renew` is called first with the slots.
    """

    _RESCAN = 10
    _BEYOND = 64

    def __init__(
        self,
        heads: memoryview[int],
        waits: memoryview[int],
        apart: int,
        renew: Callable[[Slots], None] | None = None,
    ) -> None:
        self.heads = Column(heads)
        self.waits = Column(waits)
        self.runs: list[tuple[int, int]] = []
        """The stretches of PGPROCs that are looked at, first to last."""
        self._renew = renew
        self._wait_parts: list[Part] = []
        self._tail = self._high = max(0, len(heads) - apart)
        self._all = self._some = self._slots((0, len(heads)))
        self._until_all = self._RESCAN

    def watch(self, procs: Iterable[int]) -> None:
        """Look at the waits of these PGPROCs from now on."""
        runs: list[list[int]] = []
        for proc in sorted(procs):
            if runs and proc - runs[-1][1] <= _NEAR:
                runs[-1][1] = proc + 1
            else:
                runs.append([proc, proc + 1])
        self.runs = [(first, last) for first, last in runs]
        self._wait_parts = self.waits.parts(self.runs)

    def tick(self) -> tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]:
        """Return the waits that changed, then the counters and pids: index and value.

        Among the waits there may be some of PGPROCs that are not watched.
        """
        slots = self._some
        self._until_all -= 1
        if not self._until_all:
            slots, self._until_all = self._all, self._RESCAN
        if self._renew is not None:
            self._renew(slots)
        # Waits first: one whose entry has not changed afterwards belongs to what the entry shows.
        waits: Sequence[tuple[int, int]] = ()
        for _, live, held in self._wait_parts:
            if live != held:
                waits = _changed(self._wait_parts)
                break
        heads: Sequence[tuple[int, int]] = ()
        for _, live, held in slots.parts:
            if live != held:
                heads = _changed(slots.parts)
                break
        if heads or slots is not self._some:
            self._find_highest(heads, slots is self._all)
        return waits, heads

    def close(self) -> None:
        """Let go of the memory."""
        for _, live, _ in (*self._wait_parts, *self._some.parts, *self._all.parts):
            live.release()
        self.waits.live.release()
        self.heads.live.release()

    def _slots(self, *stretches: tuple[int, int]) -> Slots:
        return Slots(stretches, self.heads.parts(stretches))

    def _find_highest(self, changed: Iterable[tuple[int, int]], all_seen: bool) -> None:
        """Have the slots up to the highest in use looked at, apart from those at the end."""
        used = (index + 1 for index, head in changed if index < self._tail and head >> 32)
        high = max(self._high, max(used, default=0))
        while all_seen and high and not self.heads.held[high - 1] >> 32:
            high -= 1
        if high != self._high:
            self._high = high
            front = high + self._BEYOND
            whole = front >= self._tail
            self._some = self._all if whole else self._slots((0, front), (self._tail, len(self.heads.held)))


def _changed(parts: Iterable[Part]) -> list[tuple[int, int]]:
    """Return which elements are not as held, and hold them."""
    changed = []
    for first, live, held in parts:
        if live != held:
            now = live.tolist()
            for index, was in enumerate(held.tolist()):
                value = now[index]
                if value != was:
                    held[index] = value
                    changed.append((first + index, value))
    return changed
