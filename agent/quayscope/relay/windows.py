"""Profiles by series and window: samples come in by slot and leave when their window is over."""

from __future__ import annotations

from typing import NamedTuple

from quayscope.profile import Attributes, Profile, ProfileType, Stack

__all__ = ["GRACE_NS", "Windows"]

GRACE_NS = 2_500_000_000
"""How long after its end a window is kept open: workers write a slot within the second that follows it."""
MAX_SAMPLES = 200_000
"""Distinct samples held at most; more are counted as lost. A busy worker makes some 300 a second."""


class _Key(NamedTuple):
    start_ns: int
    type_name: str
    labels: tuple[tuple[str, str], ...]


class Windows:
    """Collects samples into profiles cut on boundaries of `window_s` seconds of Unix time."""

    def __init__(self, window_s: int) -> None:
        self._length = window_s * 1_000_000_000
        self._open: dict[_Key, Profile] = {}
        self._late: dict[_Key, Profile] = {}
        self._held = 0

    def add(
        self,
        kind: ProfileType,
        labels: dict[str, str],
        period: int,
        stack: Stack,
        attributes: Attributes,
        values: tuple[int, ...],
        now_ns: int,
    ) -> bool:
        """Add one sample to the window of its slot; returns whether it came late."""
        start = attributes.slot_ns - attributes.slot_ns % self._length
        late = start + self._length + GRACE_NS <= now_ns
        key = _Key(start, kind.name, tuple(sorted(labels.items())))
        profiles = self._late if late else self._open
        profile = profiles.get(key)
        if profile is None:
            profile = profiles[key] = Profile(kind, dict(labels), start, self._length, period)
        if late:
            profile.losses.late += values[0]
        if self._held >= MAX_SAMPLES and (stack, attributes) not in profile.samples:
            profile.losses.lost += values[0]
            return late
        before = len(profile.samples)
        profile.add(stack, attributes, values)
        self._held += len(profile.samples) - before
        if not attributes.endpoint:
            profile.losses.unattributed += values[0]
        return late

    def take(self, now_ns: int, *, everything: bool = False) -> list[Profile]:
        """Return the profiles of the windows that are over, and all late ones."""
        done = list(self._late.values())
        self._late.clear()
        for key in list(self._open):
            if everything or key.start_ns + self._length + GRACE_NS <= now_ns:
                done.append(self._open.pop(key))
        self._held -= sum(len(profile.samples) for profile in done)
        return [profile for profile in done if profile.samples or profile.losses.lost]
