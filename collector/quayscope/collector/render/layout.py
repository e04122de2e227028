"""A flame graph as rectangles: which call is how wide, where, and what it is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from quayscope.profile import Frame, Profile

__all__ = ["Box", "boxes", "in_words", "kind_colour"]

SMALLEST = 0.0002
"""Share of the whole below which a call is left out, with what it called."""
MOST_BOXES = 20_000
MOST_DEPTH = 400

_COLOURS = {
    "python": (64, 132, 214),
    "native": (214, 134, 64),
    "kernel": (196, 78, 82),
    "go": (64, 176, 190),
    "sql": (129, 114, 178),
    "wait": (140, 140, 140),
    "root": (96, 160, 96),
}


class Box(NamedTuple):
    """One call: its depth (0: everything), and start and width in the column's unit."""

    frame: Frame
    depth: int
    start: int
    value: int
    own: int


class _Node:
    __slots__ = ("children", "frame", "own", "value")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.value = self.own = 0
        self.children: dict[tuple[str, str, str], _Node] = {}


def boxes(profile: Profile, column: int, title: str) -> list[Box]:
    """Return the calls, parents before children, siblings by falling value; lines of a function are one."""
    root = _Node(Frame(title, kind="root"))
    for (stack, _), values in profile.samples.items():
        value = values[column]
        if value <= 0:
            continue
        node = root
        node.value += value
        for frame in stack[:MOST_DEPTH]:
            key = (frame.function, frame.file, frame.kind)
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = _Node(frame)
            child.value += value
            node = child
        node.own += value
    found: list[Box] = []
    for box in _walk(root):
        if len(found) >= MOST_BOXES:
            break
        found.append(box)
    return found


def _walk(root: _Node) -> Iterator[Box]:
    least = max(1, int(root.value * SMALLEST))
    pending = [(root, 0, 0)]
    while pending:
        node, depth, start = pending.pop()
        yield Box(node.frame, depth, start, node.value, node.own)
        at = start
        later = []
        for child in sorted(node.children.values(), key=lambda one: (-one.value, one.frame)):
            if child.value >= least:
                later.append((child, depth + 1, at))
            at += child.value
        pending.extend(reversed(later))


def in_words(value: int, unit: str) -> str:
    """Return a value as people read it."""
    if unit == "nanoseconds":
        return f"{value / 1e9:.3f} s" if value >= 10**9 else f"{value / 1e6:.2f} ms"
    if unit == "bytes":
        return f"{value / (1 << 20):.2f} MiB" if value >= 1 << 20 else f"{value / 1024:.1f} KiB"
    return f"{value:,}"


def kind_colour(frame: Frame) -> str:
    """Return a frame's colour: its kind's, shaded by its name so that neighbours differ."""
    red, green, blue = _COLOURS.get(frame.kind, _COLOURS["native"])
    shade = sum(frame.function.encode("utf-8", "replace")) % 40 + 10
    return f"rgb({min(255, red + shade)},{min(255, green + shade)},{min(255, blue + shade)})"
