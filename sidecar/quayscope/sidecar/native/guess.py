"""Code without call frame information, generated code above all: where its caller may be.

A small function that pushes one word at most, as those that begin and end libraries, has right there the
return address of the call that led to it. Code that keeps frame pointers is walked by them, as long as they
lead to right behind a call. What LLVM generates for Postgres keeps none: there the stack is searched for the
return address of an indirect call, as generated code is called by nothing else. Such a find counts only when
the stack goes on from there to its root by call frame information.
"""

from __future__ import annotations

from typing import NamedTuple

from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.rules import Kind
from quayscope.sidecar.native.view import View

__all__ = ["Caller", "guess"]

_MAX_WORDS = 512
"""Words of the stack that are searched: frames of generated code are small."""
_MAX_FINDS = 8
_MAX_FUNCTION = 1024
"""Bytes from a function's start: what has no information is small (starts of libraries, assembly)."""
_CALLS = ("direct", "indirect", "unknown")
_LOWEST = 0x1000
"""No code lies in the first page."""
_MAX_FRAMES = 200
_MAX_FRAME_WORDS = 1 << 17


class Caller(NamedTuple):
    """Where the caller's stack pointer is, and its frame pointer: saved at an index, or (-1) the value."""

    stack_pointer: int
    saved_at: int
    frame_pointer: int


def guess(
    view: View,
    space: AddressSpace,
    words: memoryview,
    base: int,
    i: int,
    bp: int,
    at: int,
    *,
    generated: bool,
) -> Caller | None:
    """Return the caller of a frame at address `at`, with stack pointer `i` (an index) and frame pointer `bp`.

    None where nothing is found.
    """
    if not generated:
        for spot in range(i, min(i + 2, len(words))):
            # The one word pushed is the caller's frame pointer when the own one points to it.
            pushed = spot > i and bp == base + i * 8
            if _called_here(view, space, words, base, spot, words[i] if pushed else bp, at):
                view.guesses["call"] += 1
                return Caller(spot + 1, i if pushed else -1, bp)
    found = _by_frame_pointer(view, space, words, base, i, bp)
    return _search(view, space, words, base, i, bp) if found is None and generated else found


def _called_here(
    view: View, space: AddressSpace, words: memoryview, base: int, spot: int, bp: int, at: int
) -> bool:
    """Whether a word is the return address of the call that led to `at`."""
    word = words[spot]
    call = view.call_before(space, word) if word > _LOWEST else None
    if call is None or call.kind not in ("direct", "indirect"):
        return False
    if call.kind == "direct":
        return call.target <= at < call.target + _MAX_FUNCTION
    return _reaches_root(view, space, words, base, spot + 1, word - 1, bp)


def _by_frame_pointer(
    view: View, space: AddressSpace, words: memoryview, base: int, i: int, bp: int
) -> Caller | None:
    frame = bp - base
    at = frame >> 3
    size = len(words)
    if not frame & 7 and i <= at < min(size - 1, i + _MAX_FRAME_WORDS):
        word = words[at + 1]
        if word and view.call_before(space, word).kind in _CALLS and (words[at] == 0 or words[at] > bp):
            view.guesses["frame pointer"] += 1
            return Caller(at + 2, at, 0)
    return None


def _search(view: View, space: AddressSpace, words: memoryview, base: int, i: int, bp: int) -> Caller | None:
    size = len(words)
    finds = 0
    for spot in range(i, min(size, i + _MAX_WORDS)):
        word = words[spot]
        if word < _LOWEST or view.call_before(space, word).kind != "indirect":
            continue
        # LLVM pushes the frame pointer first, right below the return address, where it saves it at all.
        for saved_at, value in ((-1, bp), (spot - 1, words[spot - 1] if spot > i else bp)):
            if _reaches_root(view, space, words, base, spot + 1, word - 1, value):
                view.guesses["search"] += 1
                return Caller(spot + 1, saved_at, bp)
        finds += 1
        if finds >= _MAX_FINDS:
            break
    return None


def _reaches_root(
    view: View, space: AddressSpace, words: memoryview, base: int, i: int, at: int, bp: int
) -> bool:
    """Walk on by short rules alone, without a trace."""
    size = len(words)
    for _ in range(_MAX_FRAMES):
        kind, step, save, _general = view.learn(space, at)
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
