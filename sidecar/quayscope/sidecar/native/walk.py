"""The walk from registers and a stack dump to addresses, for x86-64: short rules and remembered stretches.

All positions are indices of words of the dump, counted from the sample's stack pointer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from quayscope.sidecar.errors import MalformedCfi
from quayscope.sidecar.native.expressions import RegisterUnknown
from quayscope.sidecar.native.general import X86_64, NotDumped, caller, loader
from quayscope.sidecar.native.guess import guess
from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.memo import BOUNDARY, Walked
from quayscope.sidecar.native.rules import General, Kind
from quayscope.sidecar.native.samples import End
from quayscope.sidecar.native.view import View

__all__ = ["walk"]

_BP, _SP, _PC = 6, 7, 16
_FAR = 8 << 17
"""Words from the stack pointer past which nothing is a stack: 8 MB, what a thread has by default."""


def walk(
    view: View, space: AddressSpace, registers: Sequence[int], data: memoryview, out: list[int], most: int
) -> End | None:
    """Walk a stack; `out` gets its addresses, the first one among them, at most `most`.

    Returns why it ends; None where that takes more registers than are followed here (`general.walk_by_name`
    follows all). The stack pointer must be aligned to words.
    """
    words = data.cast("Q")
    known, memo = view.rules.get, view.memo
    base, at, bp = registers[_SP], registers[_PC], registers[_BP]
    add = out.append
    add(at)
    left = most - 1
    i = 0
    saved_at = -1  # where the caller's frame pointer was saved; before that it is in `bp`
    spots: list[int] | None = None  # words that the open stretch has read
    began, first, state, kept_saved = 0, 0, (0, 0, 0), -1
    guessed = False
    rule = known(at) or view.learn(space, at)
    while True:
        kind, step, save, general = rule
        if kind <= 1:
            i += step
            if kind and i + save >= 0:
                # In an epilogue what was popped already lies below the stack pointer: then bp has it.
                saved_at = i + save
        elif kind <= 3:
            if saved_at >= 0:
                try:
                    bp = words[saved_at]
                except IndexError:
                    return "dump"
                if spots is not None:
                    spots.append(saved_at)
            frame = bp - base
            if kind == Kind.CHAIN and not bp:
                return "root"
            if frame & 7 or (frame >> 3) + step <= i:
                return "memory"
            i = (frame >> 3) + step
            if i + save >= 0:
                saved_at = i + save
        elif kind == Kind.ROOT:
            if spots:
                walked = Walked(tuple(out[first:]), 0, None, 0, "root")
                view.store(state, spots, began, words, walked)
            return "root"
        elif kind == Kind.UNMAPPED:
            if len(out) > 1:
                out.pop()
            return "unmapped"
        elif kind == Kind.GENERAL:
            assert general is not None
            if saved_at >= 0:
                try:
                    bp = words[saved_at]
                except IndexError:
                    return "dump"
            moved = _general(general, base, i, at, bp, data)
            if moved is None or isinstance(moved, str):
                return moved
            sp, pc, bp = moved
            if not pc:
                return "root"
            at = pc if general.signal else pc - 1
            add(at)
            left -= 1
            if left <= 0:
                return "limit"
            if sp & 7 or not base <= sp < base + len(data):
                # What a signal on a stack of its own interrupted lies elsewhere.
                return "dump"
            i = (sp - base) >> 3
            saved_at = -1
            spots = None
            rule = known(at) or view.learn(space, at)
            continue
        else:
            if len(out) == 1 and view.call_before(space, at).kind == "system":
                # A system call that does not return is the last instruction of its function.
                before = view.learn(space, at - 1)
                if before[0] <= Kind.BP or before[0] == Kind.GENERAL:
                    rule = before
                    continue
            if saved_at >= len(words):
                return "dump"
            if saved_at >= 0:
                bp = words[saved_at]
            found = guess(view, space, words, base, i, bp, at, generated=kind == Kind.GENERATED)
            if found is None:
                return "root" if guessed and not bp else "rules"
            i, saved_at, bp = found
            spots = None
            guessed = True
        try:
            word = words[i - 1]
        except IndexError:
            return "dump" if i < _FAR else "memory"
        if not word:
            return "root"
        at = word - 1
        add(at)
        left -= 1
        if left <= 0:
            return "limit"
        if spots is not None:
            spots.append(i - 1)
        if not at & BOUNDARY:
            if spots:
                kept = None if saved_at == kept_saved else saved_at - began
                view.store(state, spots, began, words, Walked(tuple(out[first:]), i - began, kept, at, None))
            while True:
                state = (base + (i << 3), at, base + (saved_at << 3) if saved_at >= 0 else ~bp)
                for matches, offset, wanted, addresses, moved_by, saved, to, end in memo.find(state):
                    try:
                        if matches(data, (i << 3) + offset) != wanted:
                            continue
                    except struct.error:
                        continue
                    out += addresses
                    left -= len(addresses)
                    if left <= 0:
                        del out[most:]
                        return "limit"
                    if end is not None:
                        return end
                    if saved is not None:
                        saved_at = i + saved
                    i += moved_by
                    at = to
                    break
                else:
                    break
            spots, began, first, kept_saved = [], i, len(out), saved_at
        rule = known(at) or view.learn(space, at)


def _general(
    general: General, base: int, i: int, at: int, bp: int, data: memoryview
) -> tuple[int, int, int] | End | None:
    """Return the caller's (stack pointer, address, frame pointer) by a general rule; None: see `walk`."""
    registers: list[int | None] = [None] * 17
    registers[_SP], registers[_PC], registers[_BP] = base + i * 8, at, bp
    try:
        found = caller(general, registers, loader(base, data), X86_64)
    except NotDumped:
        return "dump"
    except RegisterUnknown:
        return None
    except MalformedCfi:
        return "rules"
    sp, pc, frame = found[_SP], found[_PC], found[_BP]
    if sp is None or pc is None:
        return None
    if not general.signal and (sp <= base + i * 8 or sp & 7):
        return "memory"
    return sp, pc, frame or 0
