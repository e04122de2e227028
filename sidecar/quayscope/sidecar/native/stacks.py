"""From addresses to stacks of frames, many at once, on whichever thread sends windows."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from quayscope.profile import Frame
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.inlines import Inlines
from quayscope.sidecar.native.kernel import KernelSymbols
from quayscope.sidecar.native.maps import AddressSpace, Layout
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.ranges import LIMIT, Numbers, Ranges, tag
from quayscope.sidecar.native.symbols import Named, Symbols

__all__ = ["Stacks"]

_MAX_REMEMBERED = 8_192
"""Distinct stacks by name: a server has a few thousand."""
_MAX_ADDRESSES = 60_000
_MAX_SPACES = 512
"""Layouts whose first process is known: backends of a server share one, what comes and goes has its own."""

_KERNEL = 0
"""The number by which the kernel's addresses are told apart from those of layouts."""

_Frames = tuple[Frame, ...]
_Stack = tuple[_Frames, bool]


class Stacks:
    """Names whole stacks, and remembers the latest. Not thread-safe."""

    def __init__(
        self, objects: Objects, debuginfod: Debuginfod | None = None, inlines: Inlines | None = None
    ) -> None:
        self._symbols = Symbols(objects, debuginfod, inlines)
        self._kernel = KernelSymbols()
        self._known: dict[Layout, _Known] = {}
        self._stretches = Ranges()
        self._stacks: dict[bytes, _Stack] = {}
        self._numbers: dict[Named, int] = {}
        self._names: list[Named] = []
        self._held = 0

    @property
    def unnamed(self) -> int:
        """Addresses that got no name."""
        return self._symbols.unnamed

    @property
    def malformed(self) -> int:
        """Files and tables that contradict themselves."""
        return self._symbols.malformed

    def users(self, wanted: Sequence[tuple[AddressSpace, bytes, int]]) -> list[_Stack]:
        """Return for each stack its frames, root first, and whether the outermost is where a thread begins.

        Addresses are leaf first, 8 bytes each. Files are read through the process, else, when it is gone,
        through the last of the three, a process of the same container.
        """
        if self._symbols.refresh() or self._held > _MAX_ADDRESSES or len(self._stacks) > _MAX_REMEMBERED:
            self._forget()
        if len(self._known) > _MAX_SPACES:
            self._forget()
        spaces = [self._space(space, root_pid) for space, _, root_pid in wanted]

        def learn(owner: int, address: int) -> int:
            return self._learn(spaces[owner], address)

        return self._named([stack for _, stack, _ in wanted], [tag(one.number) for one in spaces], learn)

    def kernels(self, wanted: Sequence[bytes]) -> list[_Frames]:
        """Return the kernel's frames of each stack, root first; addresses are leaf first, 8 bytes each."""
        named = self._named(wanted, [tag(_KERNEL)] * len(wanted), self._learn_kernel)
        return [frames for frames, _ in named]

    def _named(
        self, stacks: Sequence[bytes], tags: Sequence[int], learn: Callable[[int, int], int]
    ) -> list[_Stack]:
        """Name all addresses at once: each stands for a number, and a stack of numbers is remembered.

        `learn` is asked for the number of an address, by the stack that it is in, where it is not known.
        """
        lengths = [len(stack) // 8 for stack in stacks]
        addresses: Numbers = np.frombuffer(b"".join(stacks), np.int64)
        low = (
            np.minimum(addresses.view(np.uint64), LIMIT).view(np.int64)
            if tags and tags[0]
            else addresses & (LIMIT - 1)
        )
        numbers = self._stretches.find(low + np.repeat(np.array(tags, np.int64), lengths))
        new = np.flatnonzero(numbers == 0)
        if new.size:
            owners = np.repeat(np.arange(len(stacks)), lengths)[new].tolist()
            learned: dict[tuple[int, int], int] = {}
            for place, owner, address in zip(
                new.tolist(), owners, addresses[new].view(np.uint64).tolist(), strict=True
            ):
                key = (tags[owner], address)
                number = learned.get(key)
                if number is None:
                    number = learned[key] = learn(owner, address)
                numbers[place] = number
        packed = numbers.astype(np.uint32).tobytes()
        found = []
        end = 0
        for length in lengths:
            begin, end = end, end + 4 * length
            stack = packed[begin:end]
            known = self._stacks.get(stack)
            if known is None:
                known = self._stacks[stack] = self._stack(stack)
            found.append(known)
        return found

    def _space(self, space: AddressSpace, root_pid: int) -> _Known:
        known = self._known.get(space.layout)
        if known is None:
            known = self._known[space.layout] = _Known(len(self._known) + 1, _shared(space, root_pid))
        return known

    def _learn(self, known: _Known, address: int) -> int:
        """Return the number of what an address stands for; 0: of nothing, as no code is there."""
        if known.space.find(address) is None:
            # Code without frame pointers led the kernel astray: what follows is no stack.
            return 0
        number = self._number(self._symbols.frames(known.space, address))
        start, end = self._symbols.around(known.space, address)
        first = tag(known.number)
        self._stretches.add(first + start, first + end, number)
        self._held += 1
        return number

    def _learn_kernel(self, _: int, address: int) -> int:
        frame, start, end = self._kernel.around(address)
        number = self._number(Named((frame,), False, True))
        # Its addresses are told apart by their lower bits: all of them are in the upper half.
        low = max(start, 1 << 63) & (LIMIT - 1)
        high = ((end - 1) & (LIMIT - 1)) + 1
        if low <= address & (LIMIT - 1) < high:
            self._stretches.add(tag(_KERNEL) + low, tag(_KERNEL) + high, number)
        return number

    def _number(self, named: Named) -> int:
        number = self._numbers.get(named)
        if number is None:
            self._names.append(named)
            number = self._numbers[named] = len(self._names)
        return number

    def _stack(self, key: bytes) -> _Stack:
        """Return the stack of such numbers, 4 bytes each, leaf first."""
        frames: list[Frame] = []
        is_root = False
        for (number,) in _NUMBER.iter_unpack(key):
            if not number:
                is_root = False
                break
            named = self._names[number - 1]
            frames += named.frames
            is_root = named.is_root
        return tuple(reversed(frames)), is_root

    def _forget(self) -> None:
        self._known.clear()
        self._stretches.clear()
        self._stacks.clear()
        self._numbers.clear()
        self._names.clear()
        self._held = 0


class _Known(NamedTuple):
    """A layout by its number, and the process through which its files are read."""

    number: int
    space: AddressSpace


_NUMBER = struct.Struct("=I")


def _shared(space: AddressSpace, root_pid: int) -> AddressSpace:
    # Processes of one layout run the same files: the first one's names are all the others'.
    pid = space.pid if os.path.exists(f"/proc/{space.pid}") else root_pid  # noqa: PTH110 cheaper
    return AddressSpace(pid, space.layout)
