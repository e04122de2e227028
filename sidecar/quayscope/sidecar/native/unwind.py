"""The unwinder: stacks from register and stack dumps, by call frame information.

Addresses, rules and stretches of stacks that were seen before cost little; what is new is decoded from the
objects, and kept between runs in `cache`.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path

from quayscope.sidecar.native.general import AARCH64, X86_64, walk_by_name
from quayscope.sidecar.native.lockstep import FEWEST, Dumped, Lockstep
from quayscope.sidecar.native.maps import AddressSpace, Layout
from quayscope.sidecar.native.ranges import MOST_TAGS
from quayscope.sidecar.native.rulebook import ObjectSource, RuleBook
from quayscope.sidecar.native.samples import Dump, End, Stack, Unwound
from quayscope.sidecar.native.view import Guess, View
from quayscope.sidecar.native.walk import walk

__all__ = ["MAX_FRAMES", "CfiUnwinder"]

MAX_FRAMES = 256
"""Frames of one stack; what lies further out is cut off, and its end is `limit`."""
_MAX_VIEWS = 64
_MAX_RULES = 65_536
_MAX_STRETCHES = 12_288
_TEND_EVERY = 256
_X86_64_REGISTERS = 17
_TOGETHER = os.uname().machine == "x86_64"
_AARCH64_REGISTERS = 33


class CfiUnwinder:
    """`samples.Unwinder` by call frame information; Go and code without any by frame pointers.

    `cache` is a directory for rules between runs, at most 64 MB of them; None keeps none. For one thread.
    Holds at most 65,536 rules, 24,576 stretches of stacks (of some 1 kB), and what `RuleBook` says.
    `ends` counts stacks by why they end, `guesses` frames without information whose caller was found all the
    same, by what (see `guess`).
    """

    def __init__(self, objects: ObjectSource, *, cache: Path | None) -> None:
        self._book = RuleBook(objects, cache)
        self._views: OrderedDict[Layout, View] = OrderedDict()
        self._lockstep = Lockstep()
        self._numbers = 0
        self._rules = 0
        self._stretches = 0
        self._dropped = 0
        self.ends: Counter[End] = Counter()
        self.guesses: Counter[Guess] = Counter()

    @property
    def malformed(self) -> int:
        """Functions whose call frame information made no sense."""
        return self._book.malformed

    @property
    def corrupted(self) -> int:
        """Files of stored rules that were passed over."""
        return self._book.corrupted

    def unwind(self, space: AddressSpace, registers: Sequence[int], stack: bytes | memoryview) -> Unwound:
        """Return the stack; `registers` and `stack` as in `Dump`."""
        view = self._views.get(space.layout) or self._view(space.layout)
        self._views.move_to_end(space.layout)
        out: list[int] = []
        end: End | None = None
        data = stack if isinstance(stack, memoryview) else memoryview(stack)
        if len(data) & 7:
            data = data[: len(data) & ~7]
        if len(registers) == _X86_64_REGISTERS:
            if not registers[7] & 7:
                end = walk(view, space, registers, data, out, MAX_FRAMES)
            if end is None:
                out.clear()
                end = walk_by_name(view, space, X86_64, registers, data, out, MAX_FRAMES)
        elif len(registers) == _AARCH64_REGISTERS:
            end = walk_by_name(view, space, AARCH64, registers, data, out, MAX_FRAMES)
        else:
            end = "rules"
        self.ends[end] += 1
        return Unwound(tuple(out), end)

    def unwind_all(self, dumped: Sequence[tuple[AddressSpace, Dump]]) -> list[Stack]:
        """Return the stacks of many samples, as `unwind` does: together where there are enough."""
        found: list[Stack | None] = [None] * len(dumped)
        if _TOGETHER and len(dumped) >= FEWEST:
            if self._numbers + len(dumped) >= MOST_TAGS:
                self._numbers = 0
                self._views.clear()
                self._lockstep.clear()
            numbers = [number for number, (_, dump) in enumerate(dumped) if dump.address]
            together = []
            for number in numbers:
                space, dump = dumped[number]
                together.append(
                    Dumped(self._views.get(space.layout) or self._view(space.layout), space, dump)
                )
            for number, walked in zip(numbers, self._lockstep.walk(together), strict=True):
                if walked is not None:
                    found[number] = walked, "root"
                    self.ends["root"] += 1
        return [
            self.unwind(space, dump.registers, dump.stack).packed() if stack is None else stack
            for (space, dump), stack in zip(dumped, found, strict=True)
        ]

    def close(self) -> None:
        """Store what is new."""
        self._book.save()

    def _view(self, layout: Layout) -> View:
        self._numbers += 1
        view = self._views[layout] = View(
            layout, self._book, self._learned, self._stored, self.guesses, self._numbers
        )
        if len(self._views) > _MAX_VIEWS:
            self._views.popitem(last=False)
        return view

    def _learned(self) -> None:
        self._rules += 1
        if self._rules % _TEND_EVERY == 0:
            self._book.tend()
            if self._book.dropped != self._dropped:
                self._dropped = self._book.dropped
                for view in self._views.values():
                    view.forget_objects()
            if self._rules >= _MAX_RULES:
                self._rules = 0
                for view in self._views.values():
                    view.rules.clear()
                self._lockstep.clear()

    def _stored(self) -> None:
        self._stretches += 1
        if self._stretches >= _MAX_STRETCHES:
            self._stretches = 0
            for view in self._views.values():
                view.memo.age()
