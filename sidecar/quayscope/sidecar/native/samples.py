"""What passes between the rings, the unwinder and the namer: a raw sample, and its unwound stack.

Addresses are **leaf first** here; a `quayscope.profile.Stack` is root first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from quayscope.sidecar.native.maps import AddressSpace

__all__ = ["End", "RawSample", "Unwinder", "Unwound"]

End = Literal["root", "dump", "unmapped", "rules", "memory", "limit"]
"""Why a stack ends.

At its root; where the stack dump ends; at an address that no mapping holds; where its code has no rules; at a
word that cannot be (a loop, an unaligned or sinking stack pointer); at the most frames.
"""


class RawSample(NamedTuple):
    """One sample as the kernel wrote it: CLOCK_MONOTONIC time and the CPU time it stands for, in nanoseconds.

    `user` is the kernel's frame-pointer chain, empty where registers and stack were dumped instead.
    `registers` are the user registers by DWARF number (x86-64: 0 to 16, 7 is rsp and 16 the return address
    column, which holds rip; aarch64: 0 to 31 and 32 the pc), empty where none were dumped; `stack` are the
    bytes from the stack pointer upwards, valid until the rings are drained again unless copied.
    """

    pid: int
    tid: int
    time_ns: int
    period_ns: int
    kernel: tuple[int, ...]
    user: tuple[int, ...]
    registers: tuple[int, ...]
    stack: bytes | memoryview


class Unwound(NamedTuple):
    """A user stack: the addresses to look names up at, leaf first, and why it ends.

    A caller's address is its return address less one, except under a signal frame: it lies inside the call.
    """

    addresses: tuple[int, ...]
    end: End


class Unwinder(Protocol):
    """Turns registers and a stack dump into addresses; never raises for what a dump holds."""

    def unwind(self, space: AddressSpace, registers: Sequence[int], stack: bytes | memoryview) -> Unwound:
        """Return the stack; `registers` and `stack` as in `RawSample`."""
        ...
