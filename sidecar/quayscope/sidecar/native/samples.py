"""What passes between the rings, the unwinder and the namer: a raw sample, and its unwound stack.

Addresses are **leaf first** here; a `quayscope.profile.Stack` is root first.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol

from quayscope.sidecar.native.maps import AddressSpace

__all__ = ["DUMPED_AT", "Dump", "End", "RawSample", "Stack", "Unwinder", "Unwound"]

_MACHINE = os.uname().machine
# And the size of the dump behind them.
_REGISTERS = {"x86_64": struct.Struct("<17QQ"), "aarch64": struct.Struct("<33QQ")}.get(
    _MACHINE, struct.Struct("<Q")
)
# perf's order is ax bx cx dx si di bp sp ip r8..r15; DWARF's is ax dx cx bx si di bp sp r8..r15 ip.
_REORDER = itemgetter(0, 3, 2, 1, 4, 5, 6, 7, *range(9, 17), 8)
DUMPED_AT = _REGISTERS.size
"""How many bytes behind the registers' beginning a dump's stack begins."""

End = Literal["root", "dump", "unmapped", "rules", "memory", "limit"]
"""Why a stack ends.

At its root; where the stack dump ends; at an address that no mapping holds; where its code has no rules; at a
word that cannot be (a loop, an unaligned or sinking stack pointer); at the most frames.
"""


class Dump(NamedTuple):
    """Where a sample's user registers and stack lie; valid until the rings are drained again.

    `data` holds from byte `at` on the registers in perf's order and the length of the dump, then the stack
    from the stack pointer upwards, of which `size` bytes are valid. `address` is where `data` lies in our own
    memory, 0 where it is a copy.
    """

    data: memoryview
    at: int
    size: int
    address: int

    @property
    def registers(self) -> tuple[int, ...]:
        """The user registers by DWARF number.

        x86-64: 0 to 16, 7 is rsp and 16 the return address column, which holds rip; aarch64: 0 to 31, 32 pc.
        """
        fields = _REGISTERS.unpack_from(self.data, self.at)
        return _REORDER(fields) if _MACHINE == "x86_64" else fields[:-1]

    @property
    def stack(self) -> memoryview:
        """The stack; not a copy."""
        first = self.at + DUMPED_AT
        return self.data[first : first + self.size]


class RawSample(NamedTuple):
    """One sample as the kernel wrote it: CLOCK_MONOTONIC time and the CPU time it stands for, in nanoseconds.

    `kernel` and `user` are the kernel's chains of addresses, 8 bytes each, leaf first; `user` is empty where
    registers and stack were dumped instead.
    """

    pid: int
    tid: int
    time_ns: int
    period_ns: int
    kernel: bytes
    user: bytes
    dump: Dump | None


class Unwound(NamedTuple):
    """A user stack: the addresses to look names up at, leaf first, and why it ends.

    A caller's address is its return address less one, except under a signal frame: it lies inside the call.
    """

    addresses: tuple[int, ...]
    end: End

    def packed(self) -> Stack:
        """Return the same with the addresses as bytes."""
        return struct.pack(f"<{len(self.addresses)}Q", *self.addresses), self.end


Stack = tuple[bytes, End]
"""A user stack as it is passed on: the addresses of an `Unwound`, 8 bytes each, and its end."""


class Unwinder(Protocol):
    """Turns registers and stack dumps into addresses; never raises for what a dump holds."""

    def unwind(self, space: AddressSpace, registers: Sequence[int], stack: bytes | memoryview) -> Unwound:
        """Return the stack; `registers` and `stack` as in `Dump`."""
        ...

    def unwind_all(self, dumped: Sequence[tuple[AddressSpace, Dump]]) -> list[Stack]:
        """Return the stacks of many samples, what `unwind` returns for each."""
        ...
