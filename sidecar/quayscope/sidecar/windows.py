"""Samples gathered into profiles: one a series and window, cut on whole windows of Unix time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from quayscope.profile import Attributes, Profile, Stack
from quayscope.profile.model import Losses
from quayscope.profile.types import ProfileType

__all__ = ["SECOND_NS", "Windows", "WindowsTap"]

WindowsTap = Callable[
    [ProfileType, Mapping[str, str], Stack, Attributes, tuple[int, ...], Losses | None], None
]
"""Takes what is added to windows: profile type, series labels, stack, attributes, values, losses."""

SECOND_NS = 1_000_000_000
MAX_SAMPLES = 50_000
"""Distinct samples that may be held at once; what comes beyond is counted lost."""


class Windows:
    """Builds the profiles of one sampler; thread-safe.

    `labels` are the series labels common to all its profiles. A finished window goes to `emit` when `flush`
    is called with a time past the window's end.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        window_s: int,
        emit: Callable[[list[Profile]], None],
        *,
        period_ns: int = 0,
    ) -> None:
        self._labels = dict(labels)
        self._window_ns = window_s * SECOND_NS
        self._emit = emit
        self._period_ns = period_ns
        self._open: dict[tuple[str, str, int], Profile] = {}
        self._samples = 0
        self._taps: tuple[WindowsTap, ...] = ()
        self._lock = threading.Lock()

    def set_period(self, period_ns: int) -> None:
        """Give windows that begin from now on another period, in nanoseconds."""
        self._period_ns = period_ns

    def start_of(self, time_ns: int) -> int:
        """Return the start of the window that a Unix time in nanoseconds falls into."""
        return time_ns - time_ns % self._window_ns

    def tap(self, tap: WindowsTap) -> None:
        """Have `tap` called with all that is added from now on, by whoever adds it: it must not block."""
        with self._lock:
            self._taps = (*self._taps, tap)

    def untap(self, tap: WindowsTap) -> None:
        """Call it no longer."""
        with self._lock:
            self._taps = tuple(one for one in self._taps if one != tap)

    def add(
        self,
        kind: ProfileType,
        role: str,
        stack: Stack,
        attributes: Attributes,
        values: tuple[int, ...],
        losses: Losses | None = None,
    ) -> None:
        """Add values under a stack; `attributes.slot_ns` says which window they belong to."""
        for tap in self._taps:
            tap(kind, {**self._labels, "role": role}, stack, attributes, values, losses)
        with self._lock:
            profile = self._profile(kind, role, attributes.slot_ns)
            if losses is not None:
                profile.losses.add(losses)
            # Hashing a stack costs more than all the rest: it is looked up first only where there is no room.
            if self._samples >= MAX_SAMPLES and (stack, attributes) not in profile.samples:
                profile.losses.lost += values[0]
                return
            held = len(profile.samples)
            profile.add(stack, attributes, values)
            self._samples += len(profile.samples) - held

    def lose(self, kind: ProfileType, role: str, time_ns: int, count: int) -> None:
        """Count samples that were taken and could not be kept."""
        with self._lock:
            self._profile(kind, role, time_ns).losses.lost += count

    def _profile(self, kind: ProfileType, role: str, time_ns: int) -> Profile:
        start = self.start_of(time_ns)
        key = (kind.name, role, start)
        profile = self._open.get(key)
        if profile is None:
            period = self._period_ns if kind.period.unit == "nanoseconds" else 0
            labels = {**self._labels, "role": role}
            profile = self._open[key] = Profile(kind, labels, start, self._window_ns, period)
        return profile

    def flush(self, now_ns: int | None = None) -> None:
        """Emit every window that ended before `now_ns` (Unix nanoseconds); all of them when it is None."""
        with self._lock:
            ready = [
                key
                for key, profile in self._open.items()
                if now_ns is None or profile.start_ns + self._window_ns <= now_ns
            ]
            profiles = [self._open.pop(key) for key in ready]
            self._samples -= sum(len(profile.samples) for profile in profiles)
        if profiles:
            self._emit(profiles)
