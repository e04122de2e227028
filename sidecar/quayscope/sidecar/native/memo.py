"""What walks have found before: stretches of stacks, and the words that prove them the same again.

A stretch is the part of a walk between two addresses that happen to be divisible by 8. It begins in a state
(where the stack pointer is, the address, where the caller's frame pointer lies) and read certain words of
the stack on its way: given the same state and the same words, the walk must do the same. So it is checked by
comparing those words in one go, not by walking, and cannot be wrong.

Where stretches begin and end depends on the code only: stacks that share their outer part share its
stretches, whatever lies above.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from quayscope.sidecar.native.samples import End

__all__ = ["BOUNDARY", "Memo", "State", "Stretch", "Walked"]

BOUNDARY = 7
"""A stretch ends at an address none of whose bits here are set."""
_MAX_ALTERNATIVES = 4
"""Stretches kept that begin alike: what differs more often than that is not worth a look."""
_MAX_WORDS = 64
_MAX_LAYOUTS = 8192

State = tuple[int, int, int]
"""(stack pointer, address, where the caller's frame pointer was saved; or ~(its value) while it is in bp)."""


Stretch = tuple[
    Callable[[memoryview, int], tuple[int, ...]],
    int,
    tuple[int, ...],
    tuple[int, ...],
    int,
    int | None,
    int,
    End | None,
]
"""(matches, offset, words, addresses, step, saved, address, end).

`matches` reads the words at `offset` bytes from the state's stack pointer, which must equal `words`. Then the
stretch's addresses are `addresses`; the stack pointer is `step` words further; the caller's frame pointer was
saved `saved` words from the state's stack pointer (None: where it was before); and the walk goes on at
`address`, unless it has come to `end`.
"""


class Walked(NamedTuple):
    """What a walk found in a stretch: see `Stretch`."""

    addresses: tuple[int, ...]
    step: int
    saved: int | None
    address: int
    end: End | None


class Memo:
    """The stretches of one layout of an address space, by state, in two generations.

    What a generation has not been asked for is dropped with it; `age` begins the next one.
    """

    def __init__(self) -> None:
        self.young: dict[State, list[Stretch]] = {}
        self.old: dict[State, list[Stretch]] = {}

    def age(self) -> None:
        """Let go of what was not asked for since the last call."""
        self.old, self.young = self.young, {}

    def find(self, state: State) -> Sequence[Stretch]:
        """Return the stretches that begin in a state; the old generation's are young again by that."""
        found = self.young.get(state)
        if found is None:
            found = self.old.pop(state, None)
            if found is None:
                return ()
            self.young[state] = found
        return found

    def store(self, state: State, spots: list[int], start: int, words: memoryview, walked: Walked) -> bool:
        """Keep a stretch that read `words` at `spots` (indices; `start` is the state's stack pointer's).

        Returns whether there was room for it.
        """
        kept = self.young.setdefault(state, [])
        if len(kept) >= _MAX_ALTERNATIVES or len(spots) > _MAX_WORDS:
            return False
        ordered = sorted(set(spots))
        parts = []
        at = ordered[0]
        for spot in ordered:
            if spot > at:
                parts.append(f"{(spot - at) * 8}x")
            parts.append("Q")
            at = spot + 1
        layout = "<" + "".join(parts)
        matches = _layouts.get(layout)
        if matches is None:
            if len(_layouts) >= _MAX_LAYOUTS:
                _layouts.clear()
            matches = _layouts[layout] = struct.Struct(layout).unpack_from
        offset = (ordered[0] - start) * 8
        found = tuple([words[spot] for spot in ordered])
        kept.append((matches, offset, found, *walked))
        return True


_layouts: dict[str, Callable[[memoryview, int], tuple[int, ...]]] = {}
