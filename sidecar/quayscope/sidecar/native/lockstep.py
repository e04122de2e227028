"""Many walks at once, frame by frame together, for x86-64: what is the same for all is done once for all.

One walk after another costs the processor's caches most: each frame takes a rule here and a word there, in
an interpreter that other work has put out of them. Together, a frame of all walks is a few operations on
arrays. Only what nearly all code needs is done here, stacks whose every rule is by the stack pointer or the
frame pointer, to their root; any other stack is left to `walk`, from its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.ranges import LIMIT, Numbers, Ranges, tag
from quayscope.sidecar.native.rules import Kind, Rule
from quayscope.sidecar.native.samples import DUMPED_AT, Dump
from quayscope.sidecar.native.view import View

__all__ = ["FEWEST", "Dumped", "Lockstep"]

FEWEST = 96
"""Walks that are worth it: fewer cost more together than one by one."""
_CHUNK = 1024
"""Walked together at most: what is held of them stays in the caches."""
_DEEPEST = 128
"""Frames that are followed together."""
_DEEP = 40
"""Frames that there is room for at first."""
_BP, _SP, _PC = 6, 7, 8
"""Where perf's order has them."""

_OTHER, _ROOT, _BY_SP, _BY_BP = range(4)
"""What a rule is to these walks; of `_OTHER` ones they know nothing."""
_FORMS = {Kind.SP: _BY_SP, Kind.SP_SAVED: _BY_SP, Kind.BP: _BY_BP, Kind.ROOT: _ROOT}
_NOWHERE = -(1 << 40)
"""Where a rule saves the frame pointer that saves none."""


class Dumped(NamedTuple):
    """A sample that lies in our memory; `view` is that of its space's layout."""

    view: View
    space: AddressSpace
    dump: Dump


class Lockstep:
    """Remembers the rules that its walks have met, at most 65,536 stretches of them."""

    def __init__(self) -> None:
        self._stretches = Ranges()
        self._forget()

    def clear(self) -> None:
        """Forget all rules before the next walk."""
        self._stale = True

    def _forget(self) -> None:
        self._stale = False
        self._stretches.clear()
        self._numbers: dict[Rule, int] = {}
        # In this order the columns of a rule, by its number: form, step, save. Number 0 is no rule.
        self._rules: list[tuple[int, int, int]] = [(_OTHER, 0, 0)]
        self._columns: Numbers = np.array(self._rules, np.int64).T

    def walk(self, dumped: Sequence[Dumped]) -> list[bytes | None]:
        """Return each stack's addresses, leaf first, 8 bytes each, as `walk` finds them to their root.

        None for a stack that `walk` is to walk.
        """
        found: list[bytes | None] = []
        for first in range(0, len(dumped), _CHUNK):
            found += self._walk(dumped[first : first + _CHUNK])
        return found

    def _walk(self, dumped: Sequence[Dumped]) -> list[bytes | None]:
        if self._stale:
            self._forget()
        words, state, at = _begin(dumped)
        out: Numbers = np.empty((_DEEP, len(dumped)), np.int64)
        depths = np.zeros(len(dumped), np.int64)
        depth = 0
        while depth < _DEEPEST and at.size:
            rows, tags, base, bp, stacks, sizes, i, saved = state
            if depth == len(out):
                out = np.concatenate((out, np.empty_like(out)))
            out[depth, rows] = at
            depth += 1
            numbers = self._stretches.find(np.minimum(at.view(np.uint64), LIMIT).view(np.int64) + tags)
            if not numbers.all():
                for index in np.flatnonzero(numbers == 0).tolist():
                    numbers[index] = self._learn(dumped[rows[index]], int(at[index]))
            forms, steps, saves = self._columns[:, numbers]
            if forms.min() < _BY_SP:
                depths[rows[forms == _ROOT]] = depth
                going = forms >= _BY_SP
                state, forms, steps, saves = state[:, going], forms[going], steps[going], saves[going]
                rows, tags, base, bp, stacks, sizes, i, saved = state
            based = np.flatnonzero(forms == _BY_BP)
            if based.size:
                # By the frame pointer: the one that was saved on the way, else the register's own.
                load = based[saved[based] >= 0]
                inside = saved[load] < sizes[load]
                lost = load[~inside]
                load = load[inside]
                bp[load] = words[stacks[load] + saved[load] + 1]
                frame = bp[based] - base[based]
                astray = (frame & 7 != 0) | ((frame >> 3) + steps[based] <= i[based])
                i[based] = frame >> 3
                # No stack is that large: it is left to the other walk.
                i[based[astray]] = i[lost] = LIMIT
            i += steps
            inside = i <= sizes
            if not inside.all():
                state, saves = state[:, inside], saves[inside]
                rows, tags, base, bp, stacks, sizes, i, saved = state
            saves += i
            np.copyto(saved, saves, where=saves >= 0)
            word = words[stacks + i]
            if not word.all():
                depths[rows[word == 0]] = depth
                going = word != 0
                state, word = state[:, going], word[going]
            at = word - 1
        raw = out[:depth].T.tobytes()
        width = 8 * depth
        return [
            raw[first : first + 8 * frames] if frames else None
            for first, frames in zip(range(0, len(dumped) * width, width), depths.tolist(), strict=True)
        ]

    def _learn(self, one: Dumped, address: int) -> int:
        """Return the number of the rule at an address, which is remembered where it lasts."""
        found = one.view.learn_stretch(one.space, address)
        if found is None or found.rule[0] not in _FORMS:
            # Whether that has a number or not, the stack is not walked here.
            return 0
        number = self._numbers.get(found.rule)
        if number is None:
            kind, step, save, _ = found.rule
            number = self._numbers[found.rule] = len(self._rules)
            self._rules.append((_FORMS[kind], step, save if kind in (Kind.SP_SAVED, Kind.BP) else _NOWHERE))
            self._columns = np.array(self._rules, np.int64).T
        first = tag(one.view.number)
        self._stretches.add(first + found.start, first + found.end, number)
        return number


def _begin(dumped: Sequence[Dumped]) -> tuple[Numbers, Numbers, Numbers]:
    """Return memory as words, the state of each walk, and the address that each is at.

    A state's rows: number of the walk, tag, stack pointer, frame pointer, the index of the word before the
    stack, words of stack, words that the walk has come so far, and where on the stack the caller's frame
    pointer was saved, -1 while it is in the register.
    """
    count = len(dumped)
    state: Numbers = np.empty((8, count), np.int64)
    state[0] = np.arange(count)
    state[1] = [tag(one.view.number) for one in dumped]
    places: Numbers = np.array([one.dump.address + one.dump.at for one in dumped], np.int64) >> 3
    sizes = np.array([one.dump.size for one in dumped], np.int64) >> 3
    low = int(places.min())
    stacks = places + DUMPED_AT // 8 - low
    words = np.asarray(_Memory(low * 8, int((stacks + sizes).max())))
    places -= low
    state[2], state[3] = words[places + _SP], words[places + _BP]
    state[4], state[5] = stacks - 1, sizes
    state[6], state[7] = 0, -1
    aligned = state[2] & 7 == 0
    return words, state[:, aligned], words[places + _PC][aligned]


class _Memory:
    """Our own memory, as words; only what somebody else keeps there may be read."""

    def __init__(self, address: int, count: int) -> None:
        self.__array_interface__ = {
            "data": (address, True),
            "shape": (count,),
            "typestr": "<i8",
            "version": 3,
        }
