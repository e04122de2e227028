"""Profiles as folded text: one line a stack, `root;...;leaf value`, as flame graph scripts read it.

The text holds frame names and one column alone: files, kinds, attributes and losses are not in it.
Source of the format: brendangregg/FlameGraph, `stackcollapse-*.pl`.
"""

from __future__ import annotations

from collections.abc import Mapping

from quayscope.profile.errors import MalformedProfile
from quayscope.profile.model import Attributes, Frame, Profile, Stack
from quayscope.profile.types import PROCESS_CPU, ProfileType

__all__ = ["parse", "render"]

_LARGEST = 1 << 63
_EMPTY = "[empty]"


def render(profile: Profile, column: int = -1) -> str:
    """Return one column (the last: time or bytes) as folded text, sorted, with equal stacks summed.

    A `;` or a line break inside a name would split it: they become `:` and a space. Stacks whose
    sum is 0 are left out. Raises `IndexError` for a column that the profile's type has not.
    """
    sums: dict[str, int] = {}
    for (stack, _), values in profile.samples.items():
        key = ";".join(_name(frame) for frame in stack) or _EMPTY
        sums[key] = sums.get(key, 0) + values[column]
    return "".join(f"{key} {value}\n" for key, value in sorted(sums.items()) if value)


def parse(
    text: str,
    labels: Mapping[str, str] | None = None,
    *,
    kind: ProfileType = PROCESS_CPU,
    column: int = -1,
    start_ns: int = 0,
    duration_ns: int = 0,
    period: int = 0,
) -> Profile:
    """Read folded text as a profile whose `column` holds the values; its other columns are 0.

    Frames get no file; one named like a marker (`[kernel]`) stays a name. Empty lines are passed over.
    Raises `MalformedProfile` with the line's number.
    """
    profile = Profile(kind, dict(labels or {}), start_ns, duration_ns, period)
    width = len(kind.values)
    place = range(width)[column]
    nothing = Attributes()
    frames: dict[str, Frame] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line:
            continue
        names, _, count = line.rpartition(" ")
        if not (count.isascii() and count.isdigit() and len(count) < 20 and names.strip()):
            raise MalformedProfile(f"line {number} is not `root;...;leaf value`")
        value = int(count)
        if value >= _LARGEST:
            raise MalformedProfile(f"line {number}: {count} does not fit 64 bits")
        stack: Stack = tuple(
            frames.get(name) or frames.setdefault(name, Frame(name))
            for name in names.strip().split(";")
            if name
        )
        profile.add(stack, nothing, (0,) * place + (value,) + (0,) * (width - place - 1))
    return profile


def _name(frame: Frame) -> str:
    return " ".join(frame.function.replace(";", ":").split()) or "[unknown]"
