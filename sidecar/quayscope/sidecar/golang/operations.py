"""Operations by marker frames: what a sample of a Go program was for, where nothing ties it to a request.

A table is text: `[OPERATION]` begins a section, each line below it is a marker, `#` a comment.

    [index report: fetch]
    libindex.(*RemoteFetchArena)        all methods of a type
    indexer/controller.fetchLayers      one function, its closures among it
    internal/rpm                        a whole package
    [-]                                 these say nothing: the frames around them decide
    [runtime]
    only runtime                        every frame is of this package or one below it

A marker is a function's name or a beginning of it that ends at a dot, written from one of the last elements
of the import path on: so forks and vendored copies match too. Type arguments are left out.

**The marker nearest to the leaf decides; of two in one frame, the longer.** `only` comes last, and looks at
Go frames alone. A sample that nothing matches stays without an operation and is counted as unattributed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources

from quayscope.profile import Profile, Stack
from quayscope.profile.model import Losses

__all__ = ["CLAIR", "OperationTable", "clair_operations"]

CLAIR = "clair_operations.txt"
NOTHING = "-"
_TYPE_ARGUMENTS = re.compile(r"\[[^\[\]]*\]")
_REMEMBERED = 50_000
"""Functions whose markers are remembered; a program has some 30,000."""


class OperationTable:
    """A table of markers. Raises ValueError, with the line, for text that is none."""

    def __init__(self, text: str) -> None:
        self._markers: dict[str, str] = {}
        self._only: dict[str, str] = {}
        self._deepest = 1
        operation = ""
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            if entry.startswith("[") and entry.endswith("]"):
                operation = entry[1:-1].strip()
            elif operation:
                self._add(entry, operation, number)
            if not operation:
                raise ValueError(f"line {number}: {entry!r} stands under no operation")
        self._known: dict[str, str | None] = {}

    def _add(self, entry: str, operation: str, number: int) -> None:
        word, _, package = entry.partition(" ")
        if package and word != "only":
            raise ValueError(f"line {number}: {entry!r} is no marker")
        held, marker = (self._only, package.strip()) if package else (self._markers, entry)
        if held.setdefault(marker, operation) != operation:
            raise ValueError(f"line {number}: {marker!r} stands for two operations")
        self._deepest = max(self._deepest, marker.count("/") + 1)

    @property
    def operations(self) -> list[str]:
        """The operations' names, in the order of the table."""
        named = dict.fromkeys((*self._markers.values(), *self._only.values()))
        return [name for name in named if name != NOTHING]

    def of(self, stack: Stack) -> str:
        """Return the operation of a stack (root first); empty where nothing matches."""
        for frame in reversed(stack):
            found = self._marker(frame.function)
            if found:
                return found
        return self._only_of(stack)

    def _marker(self, function: str) -> str | None:
        try:
            return self._known[function]
        except KeyError:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[function] = self._find(function)
            return found

    def _find(self, function: str) -> str | None:
        """Return the operation of the longest marker in a name; None for none, and for [-]."""
        plain = _without_type_arguments(function)
        folders, _, rest = plain.rpartition("/") if "/" in plain else ("", "", plain)
        beginnings = [rest[:end] for end in _ends(rest)]
        elements = folders.split("/") if folders else []
        best: str | None = None
        for count in range(min(self._deepest, len(elements) + 1)):
            prefix = "".join(f"{element}/" for element in elements[len(elements) - count :])
            for beginning in beginnings:
                marker = prefix + beginning
                if marker in self._markers and (best is None or len(marker) > len(best)):
                    best = marker
        operation = self._markers[best] if best is not None else NOTHING
        return None if operation == NOTHING else operation

    def _only_of(self, stack: Stack) -> str:
        packages = {_package(frame.function) for frame in stack if frame.kind == "go"}
        for operation in dict.fromkeys(self._only.values()):
            roots = [package for package, named in self._only.items() if named == operation]
            if packages and all(_is_below(name, roots) for name in packages):
                return operation
        return ""

    def attribute(self, profile: Profile) -> Profile:
        """Return the profile with each sample's operation as its `endpoint`; what has none is counted.

        A sample that already has an endpoint keeps it.
        """
        found = Profile(
            profile.type,
            profile.labels,
            profile.start_ns,
            profile.duration_ns,
            profile.period,
            losses=Losses(**vars(profile.losses)),
        )
        for (stack, attributes), values in profile.samples.items():
            if not attributes.endpoint:
                attributes = attributes._replace(endpoint=self.of(stack))
            if not attributes.endpoint:
                # Objects and bytes of memory are no samples: there each stack counts once.
                found.losses.unattributed += 1 if profile.type.name == "memory" else values[0]
            found.add(stack, attributes, values)
        return found


def _without_type_arguments(function: str) -> str:
    while "[" in function:
        shorter = _TYPE_ARGUMENTS.sub("", function)
        if shorter == function:
            break
        function = shorter
    return function


def _ends(rest: str) -> list[int]:
    """Return where each beginning of a name that may be a marker ends: before each dot, and at its end."""
    return [*(index for index, letter in enumerate(rest) if letter == "."), len(rest)]


def _package(function: str) -> str:
    plain = _without_type_arguments(function)
    slash = plain.rfind("/") + 1
    dot = plain.find(".", slash)
    return plain[:dot] if dot >= 0 else plain


def _is_below(package: str, roots: Iterable[str]) -> bool:
    return any(package == root or package.startswith(f"{root}/") for root in roots)


def clair_operations() -> OperationTable:
    """Return the table for Clair that comes with this package."""
    return OperationTable(resources.files(__package__).joinpath(CLAIR).read_text(encoding="utf-8"))
