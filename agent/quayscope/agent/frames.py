"""Stacks as they are taken, and on the wire: frames are named and numbered when they are written."""

from __future__ import annotations

import os
from bisect import bisect_right
from types import CodeType, FrameType
from typing import NamedTuple

if not hasattr(CodeType, "co_lines"):  # CPython 3.9
    import dis  # here, and not where it is needed: the agent's thread imports nothing

__all__ = [
    "BETWEEN_SAMPLES",
    "BLOCKED",
    "CPU_BOUND",
    "LATE",
    "MAX_DEPTH",
    "OTHER_THREADS",
    "OWN",
    "UNSEEN",
    "FrameTable",
    "Mark",
    "Stack",
    "Stacker",
]

MAX_DEPTH = 256
"""Frames of a stack, counted from the leaf; deeper ones are cut and marked."""
MAX_STACKS = 256
"""Stacks remembered, so that one that comes again is the same object; about 2 kB each."""
MAX_CODES = 50_000
"""Distinct functions remembered; a service has some thousands."""
MAX_PIECES = 512
"""Pieces of stacks that are kept as they are written, about 600 bytes each."""
_DEPTHS = range(MAX_DEPTH)
_PIECE = 8
"""Frames of a piece, counted from the root: near it most stacks are alike."""


class Mark(NamedTuple):
    """A frame that stands for something without code; `kind` is written where a file would be."""

    name: str
    kind: str = "[root]"


AGENT = Mark("[quayscope agent]")
"""Root of stacks that are the agent's own work."""
TRUNCATED = Mark("[truncated]")
"""Root of stacks that are cut before their root."""
LATE = Mark("[C call]", "[native]")
"""Leaf of a sample that came late: the line below it called into C, and the interpreter had to wait."""
CPU_BOUND = Mark("Hub:cpu", "[wait]")
BLOCKED = Mark("Hub:blocked", "[wait]")
_UNSEEN = Mark("Hub:unseen", "[wait]")
"""Leaves of time in which one greenlet kept the hub: computing, waiting, or not looked at in time."""
# As it stands in co_filename, so not made absolute.
_PACKAGE = os.path.dirname(__file__)  # noqa: PTH120 - pathlib is slow to import
_OWN_FILES = (_PACKAGE + os.sep, os.path.join(os.path.dirname(_PACKAGE), "profile") + os.sep)  # noqa: PTH118, PTH120


class Stack:
    """A stack, leaf first: code objects and offsets of instructions; `leaf` stands below them.

    Compared by identity, which is cheap: the `Stacker` gives the same object for the same stack. Holds its
    code objects, so that their ids stay theirs.
    """

    __slots__ = ("_marked", "codes", "encoded", "leaf", "offsets", "table")

    def __init__(
        self, codes: tuple[CodeType, ...], offsets: tuple[int, ...], leaf: Mark | None = None
    ) -> None:
        self.codes = codes
        self.offsets = offsets
        self.leaf = leaf
        self.encoded = b""
        self.table: object = None
        """What `encoded` was made by."""
        self._marked: dict[Mark, Stack] | None = None

    def marked(self, leaf: Mark) -> Stack:
        """Return this stack with a mark as its leaf."""
        if self._marked is None:
            self._marked = {}
        found = self._marked.get(leaf)
        if found is None:
            found = self._marked[leaf] = Stack(self.codes, self.offsets, leaf)
        return found


OTHER_THREADS = Stack((), (), Mark("[other threads]"))
"""The stack of CPU of threads that are not Python's, or that nobody told us of: measured, seen from afar."""
BETWEEN_SAMPLES = Stack((), (), Mark("[between samples]"))
"""The stack of CPU for which no sample of its endpoint came in time."""
OWN = Stack((), (), AGENT)
"""The stack of the agent's own thread."""
UNSEEN = Stack((), (), _UNSEEN)
"""The stack of a wait that nobody looked at in time."""


class Stacker:
    """Takes stacks."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Stack] = {}

    def take(self, frame: FrameType | None) -> Stack:
        """Return the stack of `frame`, at most `MAX_DEPTH` deep."""
        codes: list[CodeType] = []
        offsets: list[int] = []
        add_code, add_offset = codes.append, offsets.append
        for _ in _DEPTHS:
            if frame is None:
                break
            add_code(frame.f_code)
            add_offset(frame.f_lasti)
            frame = frame.f_back
        # Ids and not the code objects: the hash of one is made of all its constants.
        key = (*map(id, codes), *offsets)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_STACKS:
                self._known.clear()
            found = self._known[key] = Stack(tuple(codes), tuple(offsets))
        return found

    def forget(self) -> None:
        """Remember no stack any more."""
        self._known.clear()


class _Lines:
    """A code object's line table, decoded once."""

    __slots__ = ("code", "frames", "lines", "own", "starts")

    def __init__(self, code: CodeType) -> None:
        self.code = code  # held, so that its id stays its own
        self.own = code.co_filename.startswith(_OWN_FILES)
        self.frames: dict[int, int] = {}  # by line: the ids given so far
        self.starts: list[int] = []
        self.lines: list[int] = []
        for start, line in _line_starts(code):
            self.starts.append(start)
            self.lines.append(line)

    def at(self, offset: int) -> int:
        index = bisect_right(self.starts, max(offset, 0)) - 1
        return self.lines[index] if index >= 0 else 0


def _line_starts(code: CodeType) -> list[tuple[int, int]]:
    if hasattr(code, "co_lines"):
        return [(start, line or code.co_firstlineno) for start, _, line in code.co_lines()]
    return [(start, line or code.co_firstlineno) for start, line in dis.findlinestarts(code)]


class FrameTable:
    """Gives each (code object, line) an id, and says which ids have not been defined to the reader yet."""

    def __init__(self) -> None:
        self._lines: dict[int, _Lines] = {}
        self._definitions: list[tuple[int, str, str, int]] = []
        self._marks: dict[Mark, int] = {}
        self._pieces: dict[tuple[int, ...], bytes] = {}
        self._made_by = object()  # another one when ids begin anew
        self._sent = 0

    def encoded(self, stack: Stack) -> bytes:
        """Return the frame ids of a stack, root first, as JSON.

        The agent's own frames are left out; a stack that begins with them is its own work, and says so.
        """
        if stack.table is not self._made_by:
            stack.encoded, stack.table = self._encode(stack), self._made_by
        return stack.encoded

    def _encode(self, stack: Stack) -> bytes:
        codes, offsets = stack.codes, stack.offsets
        parts: list[bytes] = []
        end = len(codes)
        if end >= MAX_DEPTH:
            parts.append(self._mark(TRUNCATED))
        if end and self._lines_of(codes[-1]).own:
            parts.append(self._mark(AGENT))
        while end:
            start = max(0, end - _PIECE)
            key = (*map(id, codes[start:end]), *offsets[start:end])
            piece = self._pieces.get(key)
            if piece is None:
                if len(self._pieces) >= MAX_PIECES:
                    self._pieces.clear()
                piece = self._pieces[key] = self._piece(codes[start:end], offsets[start:end])
            if piece:
                parts.append(piece)
            end = start
        if stack.leaf is not None or not parts:
            parts.append(self._mark(stack.leaf or AGENT))
        return b"[%b]" % b",".join(parts)

    def _piece(self, codes: tuple[CodeType, ...], offsets: tuple[int, ...]) -> bytes:
        ids: list[int] = []
        for code, offset in zip(reversed(codes), reversed(offsets)):
            lines = self._lines_of(code)
            if lines.own:
                continue
            line = lines.at(offset)
            frame_id = lines.frames.get(line)
            if frame_id is None:
                name = getattr(code, "co_qualname", code.co_name)
                frame_id = lines.frames[line] = self._define(name, code.co_filename, line)
            ids.append(frame_id)
        return ",".join(map(str, ids)).encode()

    def _lines_of(self, code: CodeType) -> _Lines:
        found = self._lines.get(id(code))
        if found is None:
            found = self._lines[id(code)] = _Lines(code)
        return found

    def _mark(self, mark: Mark) -> bytes:
        frame_id = self._marks.get(mark)
        if frame_id is None:
            frame_id = self._marks[mark] = self._define(*mark, 0)
        return b"%d" % frame_id

    def _define(self, name: str, file: str, line: int) -> int:
        frame_id = len(self._definitions)
        self._definitions.append((frame_id, name, file, line))
        return frame_id

    def undefined(self) -> list[tuple[int, str, str, int]]:
        """Return the definitions that the reader has not had yet: (id, function, file, line)."""
        return self._definitions[self._sent :]

    def defined(self, count: int) -> None:
        """Note that the next `count` definitions were sent."""
        self._sent += count

    def forget_reader(self) -> None:
        """Define everything again: a new reader knows nothing."""
        self._sent = 0

    def large(self) -> bool:
        """Whether too many functions were seen to go on like this (generated code)."""
        return len(self._lines) > MAX_CODES

    def forget(self) -> None:
        """Start anew: ids mean something else from now on."""
        self._lines.clear()
        self._definitions.clear()
        self._marks.clear()
        self._pieces.clear()
        self._made_by = object()
        self._sent = 0
