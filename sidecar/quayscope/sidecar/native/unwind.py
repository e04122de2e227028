"""Stand-in until the unwinder's own comes: frame pointers in the dump."""

# ruff: noqa: D101, D102
from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.samples import Unwound


class CfiUnwinder:
    def __init__(self, objects: Objects, *, cache: Path | None = None) -> None:
        pass

    def unwind(self, space: AddressSpace, registers: Sequence[int], stack: bytes | memoryview) -> Unwound:
        base, frame = registers[7], registers[6]
        found = [registers[16]]
        while len(found) < 127:
            at = frame - base
            if at < 0 or at + 16 > len(stack):
                return Unwound(tuple(found), "dump")
            following, back = struct.unpack_from("<QQ", stack, at)
            if space.find(back - 1) is None:
                return Unwound(tuple(found), "unmapped")
            found.append(back - 1)
            if following <= frame:
                return Unwound(tuple(found), "root")
            frame = following
        return Unwound(tuple(found), "limit")
