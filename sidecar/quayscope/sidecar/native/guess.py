"""Code without call frame information, generated code above all: where its caller may be.

Code that keeps frame pointers is walked by them. What LLVM generates for Postgres keeps none: there the stack
is searched for the return address of an indirect call, as generated code is called by nothing else. A find
counts only when the stack goes on from there to its root by call frame information.
"""

from __future__ import annotations

from typing import NamedTuple

from quayscope.sidecar.native.rules import Kind
from quayscope.sidecar.native.view import View

__all__ = ["Caller", "guess"]

_MAX_WORDS = 512
"""Words of the stack that are searched: frames of generated code are small."""
_MAX_FINDS = 8
_MAX_FRAMES = 200
_MAX_FRAME_WORDS = 1 << 17


class Caller(NamedTuple):
    """Where the caller's stack pointer is, and its frame pointer: saved at an index, else (-1) the value itself."""

    stack_pointer: int
    saved_at: int
    frame_pointer: int


def guess(
    view: View, pid: int, words: memoryview, base: int, i: int, bp: int, *, search: bool
) -> Caller | None:
    """Return the caller of a frame whose stack pointer has index `i` and whose frame pointer is `bp`.

    None where nothing is found; only generated code is to be searched for.
    """
    frame = bp - base
    at = frame >> 3
    size = len(words)
    if not frame & 7 and i <= at < min(size - 1, i + _MAX_FRAME_WORDS):
        word = words[at + 1]
        if word and view.is_code(word - 1) and (words[at] == 0 or words[at] > bp):
            return Caller(at + 2, at, 0)
    if not search:
        return None
    finds = 0
    for spot in range(i, min(size, i + _MAX_WORDS)):
        word = words[spot]
        if word < 4096 or not view.is_code(word - 1) or not view.follows_call(pid, word):
            continue
        # LLVM pushes the frame pointer first, right below the return address, where it saves it at all.
        for saved_at, value in ((-1, bp), (spot - 1, words[spot - 1] if spot > i else bp)):
            if _reaches_root(view, pid, words, base, spot + 1, word - 1, value):
                return Caller(spot + 1, saved_at, bp)
        finds += 1
        if finds >= _MAX_FINDS:
            break
    return None


def _reaches_root(view: View, pid: int, words: memoryview, base: int, i: int, at: int, bp: int) -> bool:
    """Walk on by short rules alone, without a trace."""
    size = len(words)
    for _ in range(_MAX_FRAMES):
        kind, step, save, _general = view.learn(pid, at)
        if kind == Kind.ROOT:
            return True
        if kind in (Kind.SP, Kind.SP_SAVED):
            after = i + step
        elif kind == Kind.BP:
            if (bp - base) & 7:
                return False
            after = (bp - base >> 3) + step
        else:
            return False
        if not i < after <= size:
            return False
        i = after
        if kind != Kind.SP and i + save >= 0:
            bp = words[i + save]
        word = words[i - 1]
        if not word:
            return True
        at = word - 1
    return False
