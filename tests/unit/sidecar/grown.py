"""A program made by hand, and random stacks of it that are true."""

from __future__ import annotations

import random
import struct

from unit.sidecar.assembled import BASE, CODE, space_of, uleb

STACK = 0x7FFF_0000_1000
"""Where the stacks of these tests begin."""
NOTHING = b""
ROOT = b"\x07\x10"


def saves_bp(words: int) -> bytes:
    """A frame of so many words with the frame pointer saved next to the return address."""
    return b"\x0e" + uleb(words * 8) + b"\x86\x02"


def frame(words: int) -> bytes:
    return b"\x0e" + uleb(words * 8)


BP_BASED = b"\x0c\x06\x10\x86\x02"
FUNCTIONS = [
    (CODE + 0x000, 0x40, frame(1)),
    (CODE + 0x040, 0x40, frame(4)),
    (CODE + 0x080, 0x40, saves_bp(3)),
    (CODE + 0x0C0, 0x40, BP_BASED),
    (CODE + 0x100, 0x40, ROOT),
    (CODE + 0x140, 0x40, b"\x0c\x03\x10\x86\x02"),  # through rbx
    (CODE + 0x180, 0x40, frame(6) + b"\x83\x03"),  # saves rbx
    (CODE + 0x1C0, 0x40, b"\x0e\x0c"),  # has pushed half a word
]
LEAF, PLAIN, SAVES, BASED, OUTERMOST, BY_RBX, SAVES_RBX, HALF = (BASE + start for start, _, _ in FUNCTIONS)


SPACE = space_of("program")


def registers(pc: int, sp: int = STACK, bp: int = 0, rbx: int = 0) -> tuple[int, ...]:
    found = [0] * 17
    found[3], found[6], found[7], found[16] = rbx, bp, sp, pc
    return tuple(found)


def stack(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}Q", *words)


def grow(chance: random.Random, depth: int) -> tuple[list[int], int, tuple[int, ...]]:
    """Return a true stack, the frame pointer's value at its leaf, and its addresses."""
    words: list[int] = []
    addresses = [LEAF + 4 * chance.randrange(4)]
    bp_spots: list[int] = []  # saved frame pointers whose value is not known yet: where the next frame is
    kinds = [chance.choice((PLAIN, SAVES, BASED)) for _ in range(depth)]
    pending: list[int] = []
    based_ends: list[tuple[int, list[int]]] = []
    at_leaf: int | None = None
    for kind in [LEAF, *kinds]:
        if kind == PLAIN:
            words += [chance.randrange(1 << 36) for _ in range(3)]
        elif kind == SAVES:
            words += [chance.randrange(1 << 36), 0]
            pending.append(len(words) - 1)
        elif kind == BASED:
            words += [chance.randrange(1 << 36) for _ in range(chance.randrange(3))]
            words.append(0)
            based_ends.append((len(words) - 1, pending))
            if at_leaf is None and not pending:
                at_leaf = len(words) - 1
            pending = [len(words) - 1]
        addresses.append(0)
        words.append(0)
        bp_spots.append(len(words) - 1)
    for spot, waiting in based_ends:
        # Only the innermost of those that saved it holds what the frame needs; the others saved garbage.
        if waiting:
            for place in waiting:
                words[place] = STACK + spot * 8
    callers = [*kinds, OUTERMOST]
    for number, (spot, kind) in enumerate(zip(bp_spots, callers, strict=True)):
        address = kind + 8 * chance.randrange(1, 5) + chance.randrange(2)
        words[spot] = address
        addresses[number + 1] = address - 1
    return words, STACK + (at_leaf or 0) * 8, tuple(addresses)
