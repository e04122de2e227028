"""What a capture is to whoever takes it: a target, a stretch of time, a rate; and what comes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from quayscope.profile import Profile
from quayscope.profile.control import Target
from quayscope.profile.model import Losses
from quayscope.sidecar import procfs

__all__ = ["MAX_SAMPLES", "Captured", "Capturer", "Clock", "Collected", "Window", "of_endpoint", "runs"]

MAX_SAMPLES = 200_000
"""Distinct samples of one part; what comes beyond is counted lost."""
_LOOK_S = 0.25


Clock = Callable[[], int]
"""Gives Unix nanoseconds."""


class Window(NamedTuple):
    """A stretch of Unix time by our own clock, in nanoseconds, and the clock itself."""

    start_ns: int
    end_ns: int
    clock: Clock = time.time_ns

    def wait_start(self, cancelled: threading.Event, early_s: float = 0.0) -> bool:
        """Wait until it begins, or `early_s` before; False when cancelled."""
        return self._wait(self.start_ns - round(early_s * 1e9), cancelled)

    def wait_end(self, cancelled: threading.Event, late_s: float = 0.0) -> bool:
        """Wait until it is over, and `late_s` more; False when cancelled."""
        return self._wait(self.end_ns + round(late_s * 1e9), cancelled)

    def left_s(self) -> float:
        """Return the seconds until its end."""
        return max(0.0, (self.end_ns - self.clock()) / 1e9)

    def holds(self, slot_ns: int, slot_length_ns: int) -> bool:
        """Whether a slot lies in it: by its middle, since clocks agree to milliseconds at best."""
        return self.start_ns <= slot_ns + slot_length_ns // 2 < self.end_ns

    def _wait(self, until_ns: int, cancelled: threading.Event) -> bool:
        # In pieces: a clock that is set meanwhile must not hold us up for good.
        while (left := (until_ns - self.clock()) / 1e9) > 0:
            if cancelled.wait(min(left, _LOOK_S)):
                return False
        return not cancelled.is_set()


class Captured(NamedTuple):
    """What was taken, from when to when (Unix ns of our clock). `note`: why it is not whole; empty: it is."""

    profiles: list[Profile]
    started_ns: int
    ended_ns: int
    note: str = ""


class Capturer(Protocol):
    """Takes captures of one kind; used from several threads at once."""

    kind: str
    """One of `quayscope.profile.control.KINDS`."""

    def suits(self, target: Target) -> bool:
        """Whether it can take this target at all."""

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:
        """Take the window, or what there is of it until `cancelled`; returns soon after its end.

        Raises `SidecarError` where there is nothing to show, saying why.
        """


class Collected:
    """Profiles put together by type and series, bounded; not thread-safe."""

    def __init__(self) -> None:
        self._profiles: dict[tuple[str, tuple[tuple[str, str], ...]], Profile] = {}
        self._samples = 0

    def add(self, profile: Profile) -> None:
        """Add the samples and losses of a profile."""
        key = (profile.type.name, tuple(sorted(profile.labels.items())))
        held = self._profiles.get(key)
        if held is None:
            held = self._profiles[key] = Profile(
                profile.type, dict(profile.labels), profile.start_ns, profile.duration_ns, profile.period
            )
        held.losses.add(profile.losses)
        for (stack, attributes), values in profile.samples.items():
            if self._samples >= MAX_SAMPLES and (stack, attributes) not in held.samples:
                held.losses.add(Losses(lost=values[0]))
                continue
            before = len(held.samples)
            held.add(stack, attributes, values)
            self._samples += len(held.samples) - before

    def within(self, started_ns: int, ended_ns: int) -> list[Profile]:
        """Return what there is, as of this stretch of time."""
        for profile in self._profiles.values():
            profile.start_ns, profile.duration_ns = started_ns, max(1, ended_ns - started_ns)
        return list(self._profiles.values())


def of_endpoint(profiles: Iterable[Profile], endpoint: str) -> list[Profile]:
    """Return the profiles with the samples of one endpoint alone; all of them where it is empty."""
    if not endpoint:
        return list(profiles)
    found = []
    for profile in profiles:
        kept = {key: values for key, values in profile.samples.items() if key[1].endpoint == endpoint}
        if kept:
            profile.samples = kept
            found.append(profile)
    return found


def runs(pid: int) -> bool:
    """Whether a process runs: it is there, and no zombie."""
    facts = procfs.stat(pid)
    return facts is not None and facts.state not in "ZX"
