"""Samples laid out in memory as the kernel leaves them in a ring."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence

from quayscope.sidecar.native.samples import Dump

__all__ = ["Laid"]

_PERF_OF_DWARF = (0, 3, 2, 1, 4, 5, 6, 7, 16, *range(8, 16))
"""The DWARF numbers of x86-64 registers in perf's order."""


class Laid:
    """Dumps of (registers by DWARF number, stack), valid while this is held."""

    def __init__(self, samples: Iterable[tuple[Sequence[int], bytes]]) -> None:
        data = bytearray()
        places = []
        for registers, stack in samples:
            places.append((len(data), len(stack)))
            fields = [registers[number] for number in _PERF_OF_DWARF]
            data += struct.pack("<17QQ", *fields, len(stack)) + stack + bytes(-len(stack) % 8)
        self._memory = (ctypes.c_uint64 * max(1, len(data) // 8)).from_buffer(data)
        view = memoryview(data)
        address = ctypes.addressof(self._memory)
        self.dumps = [Dump(view, at, size, address) for at, size in places]
