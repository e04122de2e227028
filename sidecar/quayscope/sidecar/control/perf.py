"""Captures by perf events: a sampler of their own, shared by all captures that run.

The continuous sampler goes on beside it, at its own rate: a capture costs what its own samples cost. Two
captures of one target share its events and are told apart by the seconds that their samples lie in.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from quayscope.profile import Profile
from quayscope.profile.control import Target
from quayscope.sidecar.control.capturer import Captured, Collected, Window, runs
from quayscope.sidecar.errors import CaptureRefused
from quayscope.sidecar.native.ring import RingBudget
from quayscope.sidecar.native.sampler import HIGHEST_HZ, LOWEST_HZ, Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["NativeCapturer", "Open", "Opened", "PerfRecordings"]

BUDGET_BYTES = 32 << 20
"""Rings of all captures together."""
_EARLY_S = 0.3
_NEAR_NS = 50_000_000
_FLUSH_S = 1.0
_WINDOW_S = 1
_LOOK_S = 0.2
_BATCH_S = 1.0
"""Whoever waits for a capture waits for its last batch, if others go on with the same target."""
_LABEL = "quayscope_recording"


class Opened(Protocol):
    """What samples a target until it is closed, when everything held is emitted."""

    def close(self) -> None:
        """Sample no longer."""


Open = Callable[[Sampler, Mapping[str, str]], Opened]
"""Begin to sample, with these labels on all profiles; raises OSError with the kernel's answer."""


class _Recording:
    """One target while captures of it run."""

    def __init__(self) -> None:
        self.opened: Opened | None = None
        self.started_ns = 0
        self.rates: list[int] = []
        self.shared = False
        self.profiles: list[Profile] = []
        self.closed = threading.Event()


class PerfRecordings:
    """Holds what is being sampled for captures; thread-safe.

    `cache` is the folder for the unwinder's rules. The sampler is made with the first capture and kept: its
    next one finds the rules and names of the last.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._sampler: Sampler | None = None
        self._recordings: dict[tuple[str, int], _Recording] = {}
        self._by_label: dict[str, _Recording] = {}
        self._numbers = itertools.count()

    def record(
        self, key: tuple[str, int], open_target: Open, window: Window, hz: int, cancelled: threading.Event
    ) -> Captured:
        """Sample one target for the window; raises `CaptureRefused` when the kernel does not let us."""
        # Opening events takes up to 50 ms: where the window begins with a second, what was sampled before it
        # lies in another slot and is left out.
        whole = abs((window.start_ns + SECOND_NS // 2) % SECOND_NS - SECOND_NS // 2) <= _NEAR_NS
        if not window.wait_start(cancelled, _EARLY_S if whole else 0.0):
            raise CaptureRefused("cancelled before it began")
        hz = min(max(hz, LOWEST_HZ), HIGHEST_HZ)
        recording = self._join(key, open_target, hz)
        try:
            while window.left_s() and not cancelled.wait(min(window.left_s(), _FLUSH_S)):
                self._flush()
        finally:
            ended_ns = min(window.clock(), window.end_ns)
            alone = self._leave(key, recording, hz)
        if not alone:
            self._wait_named(recording, ended_ns)
        begins_ns = round(window.start_ns / SECOND_NS) * SECOND_NS if whole else window.start_ns
        started_ns = max(recording.started_ns, begins_ns)
        by_slot = whole or recording.shared
        return Captured(self._taken(recording, window, by_slot, started_ns, ended_ns), started_ns, ended_ns)

    def close(self) -> None:
        """End the sampler; what is under way gives what it has."""
        with self._lock:
            sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.close(1.0)

    def _join(self, key: tuple[str, int], open_target: Open, hz: int) -> _Recording:
        with self._lock:
            if self._sampler is None:
                self._sampler = Sampler(
                    self._emit,
                    hz=hz,
                    window_s=_WINDOW_S,
                    cache=self._cache,
                    budget=RingBudget(BUDGET_BYTES),
                    batch_s=_BATCH_S,
                )
                self._sampler.start()
            recording = self._recordings.get(key)
            if recording is not None:
                recording.shared = True
                recording.rates.append(hz)
                self._set_rate()
                return recording
            recording = _Recording()
            recording.rates.append(hz)
            self._recordings[key] = recording
            self._set_rate()
            name = str(next(self._numbers))
            self._by_label[name] = recording
            try:
                recording.opened = open_target(self._sampler, {_LABEL: name})
            except OSError as error:
                del self._recordings[key], self._by_label[name]
                raise CaptureRefused(f"perf events on process {key[1]}: {error.strerror or error}") from error
            recording.started_ns = time.time_ns()
            return recording

    def _set_rate(self) -> None:
        wanted = max(max(one.rates) for one in self._recordings.values())
        if self._sampler is not None and self._sampler.hz != wanted:
            self._sampler.set_rate(wanted)

    def _leave(self, key: tuple[str, int], recording: _Recording, hz: int) -> bool:
        """Take part no longer; whether nobody else does, and the target is not sampled any more."""
        with self._lock:
            recording.rates.remove(hz)
            if recording.rates:
                return False
            del self._recordings[key]
        if recording.opened is not None:
            recording.opened.close()
        recording.closed.set()
        with self._lock:
            self._by_label = {label: one for label, one in self._by_label.items() if one is not recording}
        return True

    def _wait_named(self, recording: _Recording, ended_ns: int) -> None:
        sampler = self._sampler
        if sampler is None:
            return
        # Named when its second is over and all its samples have come.
        deadline = ended_ns + round((_WINDOW_S + sampler.late_s + _LOOK_S) * SECOND_NS)
        while time.time_ns() < deadline and not recording.closed.wait(_LOOK_S):
            self._flush()

    def _flush(self) -> None:
        sampler = self._sampler
        if sampler is not None:
            sampler.flush(time.time_ns())

    def _emit(self, profiles: list[Profile]) -> None:
        # Without our lock: the sampler has its own, and is called with ours held.
        for profile in profiles:
            recording = self._by_label.get(profile.labels.pop(_LABEL, ""))
            if recording is not None:
                recording.profiles.append(profile)

    @staticmethod
    def _taken(
        recording: _Recording, window: Window, by_slot: bool, started_ns: int, ended_ns: int
    ) -> list[Profile]:
        collected = Collected()
        for profile in list(recording.profiles):
            # Each is of one second.
            if not by_slot or window.holds(profile.start_ns, SECOND_NS):
                collected.add(profile)
        return collected.within(started_ns, ended_ns)


class _Native:
    """One process, or tree of them, under a sampler."""

    def __init__(self, sampler: Sampler, target: SampledTarget) -> None:
        self._sampler = sampler
        self._tracked = sampler.add(target)

    def close(self) -> None:
        """See `Opened`."""
        self._sampler.remove(self._tracked)


class NativeCapturer:
    """Takes native stacks of any process."""

    kind = "native"

    def __init__(self, recordings: PerfRecordings) -> None:
        self._recordings = recordings

    def suits(self, target: Target) -> bool:  # noqa: ARG002 - the kernel says whether it may
        """Any target."""
        return True

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:
        """See `Capturer`."""
        role = target.labels.get("role", "")

        def open_target(sampler: Sampler, labels: Mapping[str, str]) -> Opened:
            return _Native(
                sampler,
                SampledTarget(
                    target.labels.get("service_name", ""),
                    target.pid,
                    lambda: (),
                    lambda _pid: role,
                    role,
                    {**target.labels, **labels},
                    chain=target.kind == "go",
                    cgroup=False,
                ),
            )

        captured = self._recordings.record((self.kind, target.pid), open_target, window, hz, cancelled)
        if not runs(target.pid):
            return captured._replace(note=f"process {target.pid} ended during the capture")
        return captured
