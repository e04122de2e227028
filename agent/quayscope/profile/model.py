"""What a profile is: frames, stacks, attributes, samples, and what was lost on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from quayscope.profile.types import ProfileType

__all__ = ["KINDS", "Attributes", "Frame", "Losses", "Profile", "Stack"]

KINDS = ("python", "native", "kernel", "go", "sql", "wait", "root")
"""The kinds of frame. A statement is a frame of kind `sql`, a wait event one of kind `wait`."""


class Frame(NamedTuple):
    """One call in a stack. `kind` is one of `KINDS`; `line` is 0 where there is none."""

    function: str
    file: str = ""
    line: int = 0
    kind: str = "native"


Stack = tuple[Frame, ...]
"""Frames of one moment, **root first**."""


class Attributes(NamedTuple):
    """What one sample is about. Empty strings and zeros mean "not known", never a guess.

    `slot_ns` is the start of the sample's time slot (Unix nanoseconds; 0: the profile's start).
    `endpoint` is METHOD, space, route template. `span_id` is 16 hex digits, `trace_id` 32.
    """

    slot_ns: int = 0
    endpoint: str = ""
    run: str = ""
    phase: str = ""
    pid: int = 0
    span_id: str = ""
    trace_id: str = ""


@dataclass
class Losses:
    """What a profile does not show, counted in samples.

    `lost`: taken by nobody (ring or queue full); `late`: arrived after their window was sent;
    `truncated`: stack cut before its root; `unproven`: joined to a statement without proof;
    `unattributed`: belongs to no request.
    """

    lost: int = 0
    late: int = 0
    truncated: int = 0
    unproven: int = 0
    unattributed: int = 0

    def add(self, other: Losses) -> None:
        """Add `other`'s counts to these."""
        # One by one: this runs for each sample of a profile.
        self.lost += other.lost
        self.late += other.late
        self.truncated += other.truncated
        self.unproven += other.unproven
        self.unattributed += other.unattributed


@dataclass
class Profile:
    """Samples of one series over one window.

    `labels` are the series labels (`service_name` is required), `start_ns` Unix nanoseconds,
    `period` the nominal sampling period in the type's period unit (0: none). `samples` maps
    (stack, attributes) to one integer a column of `type.values`: measured, never nominal.
    """

    type: ProfileType
    labels: dict[str, str]
    start_ns: int
    duration_ns: int
    period: int = 0
    samples: dict[tuple[Stack, Attributes], tuple[int, ...]] = field(default_factory=dict)
    losses: Losses = field(default_factory=Losses)

    def add(self, stack: Stack, attributes: Attributes, values: tuple[int, ...]) -> None:
        """Add a sample's values to the ones already under its stack and attributes."""
        if len(values) != len(self.type.values):
            raise ValueError(f"{self.type.name} has {len(self.type.values)} columns, got {len(values)}")
        key = (stack, attributes)
        # One look-up for a new key: hashing a stack costs more than all the rest.
        size = len(self.samples)
        held = self.samples.setdefault(key, values)
        if len(self.samples) == size:
            self.samples[key] = tuple(a + b for a, b in zip(held, values))

    def move(self, by_ns: int) -> None:
        """Have it taken so much later, in nanoseconds; slots that are not known stay so."""
        if not by_ns:
            return
        self.start_ns += by_ns
        samples, self.samples = self.samples, {}
        for (stack, attributes), values in samples.items():
            slot_ns = attributes.slot_ns
            self.add(stack, attributes._replace(slot_ns=slot_ns + by_ns if slot_ns else 0), values)

    def totals(self) -> tuple[int, ...]:
        """Return the sum of each column."""
        sums = [0] * len(self.type.values)
        for values in self.samples.values():
            for index, value in enumerate(values):
                sums[index] += value
        return tuple(sums)
