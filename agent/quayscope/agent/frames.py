"""Code positions as dense frame ids: stacks are taken as numbers and named when they are written."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable
from types import CodeType, FrameType

if not hasattr(CodeType, "co_lines"):  # CPython 3.9
    import dis  # here, and not where it is needed: the agent's thread imports nothing

__all__ = ["BLOCKED", "CPU_BOUND", "LATE", "MAX_DEPTH", "OWN", "UNSEEN", "FrameTable", "Key", "Stacker"]

Key = tuple[int, ...]
"""A stack as (id of code, offset of instruction) pairs, leaf first: cheap to take and to hash."""

MAX_DEPTH = 256
"""Frames of a stack, counted from the leaf; deeper ones are cut and marked."""
MAX_CODES = 50_000
"""Distinct functions remembered; a service has some thousands."""
MAX_ENCODED = 2_048
"""Stacks whose ids are kept as they are written, about 400 bytes each."""
AGENT = "[quayscope agent]"
"""Root of stacks that are the agent's own work."""
TRUNCATED = "[truncated]"
"""Root of stacks that are cut before their root."""
FORGOTTEN = "[forgotten]"
"""Stands for a function that was forgotten before its sample was written."""
LATE: Key = (1, 0)
"""Leaf of a sample that came late: the line below it called into C, and the interpreter had to wait."""
CPU_BOUND: Key = (2, 0)
BLOCKED: Key = (3, 0)
UNSEEN: Key = (4, 0)
"""Leaves of time in which one greenlet kept the hub: computing, waiting, or not looked at in time."""
OWN: Key = (5, 0)
"""The stack of the agent's own thread."""
_LEAVES = {
    OWN[0]: (AGENT, "[root]"),
    LATE[0]: ("[C call]", "[native]"),
    CPU_BOUND[0]: ("Hub:cpu", "[wait]"),
    BLOCKED[0]: ("Hub:blocked", "[wait]"),
    UNSEEN[0]: ("Hub:unseen", "[wait]"),
}
# As it stands in co_filename, so not made absolute.
_PACKAGE = os.path.dirname(__file__)  # noqa: PTH120 - pathlib is slow to import
_OWN = (_PACKAGE + os.sep, os.path.join(os.path.dirname(_PACKAGE), "profile") + os.sep)  # noqa: PTH118, PTH120


class Stacker:
    """Takes stacks. Holds the code objects, so that their ids stay theirs."""

    def __init__(self) -> None:
        self.codes: dict[int, CodeType] = {}

    def take(self, frame: FrameType | None) -> Key:
        """Return the stack of `frame`, leaf first, at most `MAX_DEPTH` deep."""
        codes = self.codes
        key: list[int] = []
        append = key.append
        depth = MAX_DEPTH
        while frame is not None and depth:
            code = frame.f_code
            number = id(code)
            if number not in codes:
                codes[number] = code
            append(number)
            append(frame.f_lasti)
            frame = frame.f_back
            depth -= 1
        return tuple(key)


class _Lines:
    """A code object's line table, decoded once."""

    __slots__ = ("frames", "lines", "own", "starts")

    def __init__(self, code: CodeType) -> None:
        self.own = code.co_filename.startswith(_OWN)
        self.frames: dict[int, int] = {}  # by offset: the ids given so far
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

    def __init__(self, stacker: Stacker) -> None:
        self._stacker = stacker
        self._lines: dict[int, _Lines] = {}
        self._ids: dict[tuple[int, int], int] = {}
        self._definitions: list[tuple[int, str, str, int]] = []
        self._marks: dict[str, int] = {}
        self._encoded: dict[Key, bytes] = {}
        self._sent = 0

    def encoded(self, key: Key) -> bytes:
        """Return the frame ids of a stack, root first, as JSON: stacks come again and again."""
        found = self._encoded.get(key)
        if found is None:
            if len(self._encoded) >= MAX_ENCODED:
                self._encoded.clear()
            found = self._encoded[key] = json.dumps(self.resolve(key), separators=(",", ":")).encode()
        return found

    def resolve(self, key: Key) -> list[int]:
        """Return the frame ids of a stack, root first.

        The agent's own frames are left out; a stack that begins with them is its own work, and says so.
        """
        ids: list[int] = [self.mark(TRUNCATED)] if len(key) >= 2 * MAX_DEPTH else []
        codes, tables = self._stacker.codes, self._lines
        last = len(key) - 2
        for index in range(last, -1, -2):
            number = key[index]
            table = tables.get(number)
            if table is None:
                code = codes.get(number)
                if code is None:
                    ids.append(self.mark(*_LEAVES.get(number, (FORGOTTEN, "[root]"))))
                    continue
                table = tables[number] = _Lines(code)
            if table.own:
                if index == last:
                    ids.append(self.mark(AGENT))
                continue
            offset = key[index + 1]
            frame_id = table.frames.get(offset)
            if frame_id is None:
                frame_id = table.frames[offset] = self._define(number, table.at(offset))
            ids.append(frame_id)
        return ids or [self.mark(AGENT)]

    def _define(self, number: int, line: int) -> int:
        known = self._ids
        frame_id = known.get((number, line))
        if frame_id is None:
            frame_id = known[number, line] = len(self._definitions)
            code = self._stacker.codes[number]
            name = getattr(code, "co_qualname", code.co_name)
            self._definitions.append((frame_id, name, code.co_filename, line))
        return frame_id

    def mark(self, name: str, kind: str = "[root]") -> int:
        """Return the id of a frame that stands for something without code."""
        frame_id = self._marks.get(name)
        if frame_id is None:
            frame_id = self._marks[name] = len(self._definitions)
            self._definitions.append((frame_id, name, kind, 0))
        return frame_id

    def undefined(self) -> list[tuple[int, str, str, int]]:
        """Return the definitions that the reader has not had yet."""
        return self._definitions[self._sent :]

    def defined(self, count: int) -> None:
        """Note that the next `count` definitions were sent."""
        self._sent += count

    def forget_reader(self) -> None:
        """Define everything again: a new reader knows nothing."""
        self._sent = 0

    def large(self) -> bool:
        """Whether too many functions were seen to go on like this (generated code)."""
        return len(self._stacker.codes) > MAX_CODES

    def forget(self, unwritten: Iterable[Key]) -> None:
        """Start anew, but for the functions of `unwritten` stacks: their ids must not go to others."""
        before, self._stacker.codes = self._stacker.codes, {}
        for key in unwritten:
            for number in key[::2]:
                if number in before:
                    self._stacker.codes[number] = before[number]
        self._lines.clear()
        self._ids.clear()
        self._definitions.clear()
        self._marks.clear()
        self._encoded.clear()
        self._sent = 0
