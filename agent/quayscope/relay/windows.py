"""Profiles by series and window: samples come in by slot and leave when their window is over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from quayscope.profile import Attributes, Profile, ProfileType, Stack

__all__ = ["GRACE_NS", "TRUNCATED", "Sample", "Series", "Windows"]

GRACE_NS = 1_500_000_000
"""How long after its end a window is kept open: workers write a slot within the second that follows it."""
MAX_SAMPLES = 200_000
"""Distinct samples held at most; more are counted as lost. A busy worker makes some 300 a second."""
MAX_CELLS = 16_000_000
"""Frames of all samples held and their own text, in 8 bytes: 200,000 stacks of 80 frames."""
MAX_PROFILES = 4_096
"""Profiles held, for senders that make up labels; a pod has a handful."""
TRUNCATED = "[truncated]"
"""Root frame that the agent puts on stacks which are cut before their root."""

Series = tuple[tuple[str, str], ...]
"""Sorted label pairs."""
Sample = tuple[Stack, Attributes, tuple[int, ...]]
"""A stack, what it is about, and its values, the count first."""


class _Key(NamedTuple):
    start_ns: int
    type_name: str
    series: Series


class Windows:
    """Collects samples into profiles cut on boundaries of `window_s` seconds of Unix time.

    `lost` counts the samples for which there was no room in any profile.
    """

    def __init__(self, window_s: int) -> None:
        self._length = window_s * 1_000_000_000
        self._open: dict[_Key, Profile] = {}
        self._late: dict[_Key, Profile] = {}
        self._held = 0
        self._cells = 0
        self.lost = 0

    def add(
        self, kind: ProfileType, series: Series, slot_ns: int, samples: Iterable[Sample], now_ns: int
    ) -> int:
        """Add the samples of one slot to its window; returns how many of them came late.

        A sample's first value is its count.
        """
        start = slot_ns - slot_ns % self._length
        late = start + self._length + GRACE_NS <= now_ns
        profile = self._profile(_Key(start, kind.name, series), kind, late)
        came_late = 0
        for stack, attributes, values in samples:
            count = values[0]
            came_late += late
            if profile is None:
                self.lost += count
                continue
            losses, held = profile.losses, len(profile.samples)
            if (self._held >= MAX_SAMPLES or self._cells >= MAX_CELLS) and (
                (stack, attributes) not in profile.samples
            ):
                losses.lost += count
                continue
            profile.add(stack, attributes, values)
            if len(profile.samples) > held:
                self._held += 1
                self._cells += _cells(stack, attributes)
            if late:
                losses.late += count
            if not attributes.endpoint:
                losses.unattributed += count
            if stack and stack[0].kind == "root" and stack[0].function == TRUNCATED:
                losses.truncated += count
        return came_late

    def _profile(self, key: _Key, kind: ProfileType, late: bool) -> Profile | None:
        profiles = self._late if late else self._open
        profile = profiles.get(key)
        if profile is None and len(self._open) + len(self._late) < MAX_PROFILES:
            profile = profiles[key] = Profile(kind, dict(key.series), key.start_ns, self._length)
        return profile

    def take(self, now_ns: int, *, everything: bool = False) -> list[Profile]:
        """Return the profiles of the windows that are over, and all late ones."""
        done = list(self._late.values())
        self._late.clear()
        for key in list(self._open):
            if everything or key.start_ns + self._length + GRACE_NS <= now_ns:
                done.append(self._open.pop(key))
        for profile in done:
            self._held -= len(profile.samples)
            self._cells -= sum(_cells(stack, attributes) for stack, attributes in profile.samples)
        return [profile for profile in done if profile.samples or profile.losses.lost]


def _cells(stack: Stack, about: Attributes) -> int:
    own = len(about.endpoint) + len(about.run) + len(about.phase)
    if stack and stack[-1].kind == "sql":
        own += len(stack[-1].function)
    return len(stack) + own // 8
