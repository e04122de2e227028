"""The global trie of frames in memory: each stack is one node id, each prefix is shared.

Beside the trie of frames (function, file, line) stands a coarser one of functions, without lines:
flame graphs and tables show functions, so their merge must not walk stacks. Both only grow; ids are
dense, a parent's id is smaller than its children's, and node 0 is the root of all.

One writer thread adds; readers take arrays and see at least every node that a committed sample names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quayscope.collector.errors import CollectorError
from quayscope.collector.limits import MAX_FRAMES, MAX_NODES, MAX_TEXT
from quayscope.profile import Frame

__all__ = ["DictionaryFull", "Growing", "Tries", "storable"]

Int32 = npt.NDArray[np.int32]


_MAX_LINE = (1 << 31) - 1


def storable(text: str) -> str:
    """Return `text` as every table can hold it: bounded, without lone surrogates."""
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 1] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")


class DictionaryFull(CollectorError):
    """A dictionary reached its limit; the entry that needed a new id is refused."""

    status = 429
    code = "resource_exhausted"


class Growing:
    """An array of 32-bit integers that is appended to by one thread while others read it."""

    def __init__(self) -> None:
        self._array: Int32 = np.zeros(1024, dtype=np.int32)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, value: int) -> None:
        """Add a value. Doubling copies, so arrays handed out before stay valid."""
        if self._size == len(self._array):
            self._array = np.concatenate([self._array, np.zeros_like(self._array)])
        self._array[self._size] = value
        self._size += 1

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Add many values at once."""
        self._array = np.concatenate([self._array[: self._size], values.astype(np.int32)])
        self._size = len(self._array)

    def array(self) -> Int32:
        """Every value so far; do not write to it."""
        return self._array[: self._size]


class Tries:
    """Frames, functions, and the two tries over them. `new_*` are rows not yet on disk."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._frame_ids: dict[Frame, int] = {}
        self.functions: list[tuple[str, str, str]] = []
        self._function_ids: dict[tuple[str, str, str], int] = {}
        self.frame_function = Growing()
        self.node_parent, self.node_frame, self.node_depth = Growing(), Growing(), Growing()
        self.node_call = Growing()
        self._nodes: dict[int, int] = {}
        self.call_parent, self.call_function = Growing(), Growing()
        # 1 where the function already stands above this call: such calls add nothing to its total.
        self.call_recursive = Growing()
        # The frame of kind sql or wait nearest the leaf, per node; 0 where there is none.
        self.node_sql, self.node_wait = Growing(), Growing()
        self._calls: dict[int, int] = {}
        self.new_frames: list[tuple[int, Frame]] = []
        self.new_nodes: list[tuple[int, int, int]] = []
        root = Frame("all", "", 0, "root")
        self._add_frame(root)
        for column, value in (
            (self.node_parent, -1),
            (self.node_frame, 0),
            (self.node_depth, 0),
            (self.node_call, 0),
            (self.node_sql, 0),
            (self.node_wait, 0),
            (self.call_parent, -1),
            (self.call_function, 0),
            (self.call_recursive, 0),
        ):
            column.append(value)

    def load(self, frames: Sequence[Frame], parents: npt.NDArray[Any], frame_ids: npt.NDArray[Any]) -> None:
        """Fill from what is on disk: frames 1.. and nodes 1.., in id order."""
        for frame in frames:
            self._add_frame(frame)
        for parent, frame in zip(parents.tolist(), frame_ids.tolist(), strict=True):
            self._add_node(parent, frame)

    def node_of(self, stack: Sequence[Frame], memo: dict[int, int]) -> int:
        """Return the node id of a stack, root first; `memo` maps `id(frame)` to ids within one profile.

        Raises `DictionaryFull`; nodes added before that stay, and are used by later stacks.
        """
        node = 0
        nodes = self._nodes
        for frame in stack:
            frame_id = memo.get(id(frame))
            if frame_id is None:
                frame_id = memo[id(frame)] = self._frame_id(frame)
            child = nodes.get(node << 32 | frame_id)
            if child is None:
                child = self._new_node(node, frame_id)
            node = child
        return node

    def _frame_id(self, frame: Frame) -> int:
        found = self._frame_ids.get(frame)
        if found is not None:
            return found
        frame = Frame(
            storable(frame.function), storable(frame.file), min(max(frame.line, 0), _MAX_LINE), frame.kind
        )
        found = self._frame_ids.get(frame)
        if found is None:
            if len(self.frames) >= MAX_FRAMES:
                raise DictionaryFull(f"{MAX_FRAMES} distinct frames are stored: no new ones are taken")
            found = self._add_frame(frame)
            self.new_frames.append((found, frame))
        return found

    def _new_node(self, parent: int, frame: int) -> int:
        if len(self.node_parent) >= MAX_NODES:
            raise DictionaryFull(f"{MAX_NODES} distinct stack prefixes are stored: no new ones are taken")
        node = self._add_node(parent, frame)
        self.new_nodes.append((node, parent, frame))
        return node

    def _add_frame(self, frame: Frame) -> int:
        number = self._frame_ids[frame] = len(self.frames)
        self.frames.append(frame)
        key = (frame.function, frame.file, frame.kind)
        function = self._function_ids.get(key)
        if function is None:
            function = self._function_ids[key] = len(self.functions)
            self.functions.append(key)
        self.frame_function.append(function)
        return number

    def _add_node(self, parent: int, frame: int) -> int:
        node = self._nodes[parent << 32 | frame] = len(self.node_parent)
        kind = self.frames[frame].kind
        self.node_frame.append(frame)
        self.node_depth.append(int(self.node_depth.array()[parent]) + 1)
        self.node_sql.append(frame if kind == "sql" else int(self.node_sql.array()[parent]))
        self.node_wait.append(frame if kind == "wait" else int(self.node_wait.array()[parent]))
        self.node_call.append(
            self._call(int(self.node_call.array()[parent]), int(self.frame_function.array()[frame]))
        )
        self.node_parent.append(parent)
        return node

    def _call(self, parent: int, function: int) -> int:
        key = parent << 32 | function
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = len(self.call_parent)
            above, parents, functions = parent, self.call_parent.array(), self.call_function.array()
            while above > 0 and functions[above] != function:
                above = int(parents[above])
            self.call_function.append(function)
            self.call_recursive.append(1 if above > 0 else 0)
            self.call_parent.append(parent)
        return call
