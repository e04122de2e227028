"""Captures of Python's memory: what pyroscope-io in a worker pushes to our gateway about the window.

It pushes every ten seconds, whole stretches of its own: those that overlap the window are the capture, which
says from when to when that was. Nothing is attached, and nothing is asked of the process.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

from quayscope.profile import MEMORY, MalformedProfile, Profile, ProfileError, pprof
from quayscope.profile.control import Target
from quayscope.profile.push import decode_push
from quayscope.sidecar.control.capturer import Captured, Collected, Window, runs
from quayscope.sidecar.errors import CaptureRefused

__all__ = ["MemoryPushes", "PythonMemoryCapturer"]

_MOST_PIDS = 1_024
_MOST_HELD = 128
"""Pushes that one capture holds: those of the longest, and room."""
_PUSHED_S = 12.0
"""How long after the window's end a push that covers it is waited for: they come every ten seconds."""
_LOOK_S = 0.1
_INUSE = tuple(value.type.startswith("inuse") for value in MEMORY.values)


class MemoryPushes:
    """Hears of pushes from the gateway, and hands those of memory to the captures that run; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pushed: OrderedDict[int, None] = OrderedDict()
        self._held: dict[int, list[list[Profile]]] = {}

    def take(self, pid: int, message: bytes) -> None:
        """Take a PushRequest that the process `pid` says it is of, and that was held for the collector."""
        with self._lock:
            listened_to = pid in self._held
        if pid in self._pushed and not listened_to:
            return
        found = list(_memory_of(message))
        with self._lock:
            if found:
                self._pushed[pid] = None
                self._pushed.move_to_end(pid)
                if len(self._pushed) > _MOST_PIDS:
                    self._pushed.popitem(last=False)
            for held in self._held.get(pid, ()):
                held += found[: _MOST_HELD - len(held)]

    def pushed(self, pid: int) -> bool:
        """Whether a process has pushed memory so far."""
        return pid in self._pushed

    @contextlib.contextmanager
    def listening(self, pid: int) -> Iterator[list[Profile]]:
        """Give a list that a process's profiles are added to meanwhile."""
        held: list[Profile] = []
        with self._lock:
            self._held.setdefault(pid, []).append(held)
        try:
            yield held
        finally:
            with self._lock:
                self._held[pid] = [one for one in self._held[pid] if one is not held]
                if not self._held[pid]:
                    del self._held[pid]


def _memory_of(message: bytes) -> Iterator[Profile]:
    # The gateway has read it already; what is broken all the same is the collector's to refuse.
    with contextlib.suppress(MalformedProfile):
        for series in decode_push(message):
            if series.labels.get("__name__") != MEMORY.name:
                continue
            for _, data in series.samples:
                with contextlib.suppress(ProfileError):
                    yield pprof.decode(data, {}, name=MEMORY.name)


class PythonMemoryCapturer:
    """Takes what Python processes push of their memory."""

    kind = "memory"

    def __init__(self, pushes: MemoryPushes) -> None:
        self._pushes = pushes

    def suits(self, target: Target) -> bool:
        """Any Python process: one that pushes nothing is named with the reason."""
        return target.kind == "python"

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:  # noqa: ARG002 - pyroscope-io samples by size
        """See `Capturer`."""
        if not self._pushes.pushed(target.pid):
            raise CaptureRefused(
                f"process {target.pid} has pushed no memory profile to this sidecar: it needs an agent with "
                "QUAYSCOPE_MEMORY at the sidecar's --push-listen, and pyroscope-io 1.4 or newer"
            )
        with self._pushes.listening(target.pid) as held:
            window.wait_end(cancelled)
            note = self._wait_pushed(target.pid, window, held, cancelled)
            overlapping = [
                one
                for one in list(held)
                if one.start_ns < window.end_ns and one.start_ns + one.duration_ns > window.start_ns
            ]
        if not overlapping:
            raise CaptureRefused(note or f"process {target.pid} pushed nothing of this time")
        overlapping.sort(key=lambda one: one.start_ns)
        collected = Collected()
        for one in overlapping:
            collected.add(_labelled(one, target, is_last=one is overlapping[-1]))
        last = overlapping[-1]
        started_ns, ended_ns = overlapping[0].start_ns, last.start_ns + last.duration_ns
        return Captured(collected.within(started_ns, ended_ns), started_ns, ended_ns, note)

    @staticmethod
    def _wait_pushed(pid: int, window: Window, held: list[Profile], cancelled: threading.Event) -> str:
        """Wait until the window is covered to its end; returns why it is not, empty: it is."""
        deadline_ns = window.end_ns + round(_PUSHED_S * 1e9)
        while not any(one.start_ns + one.duration_ns >= window.end_ns for one in list(held)):
            if cancelled.wait(_LOOK_S):
                return ""
            if not runs(pid):
                return f"process {pid} ended during the capture"
            if window.clock() > deadline_ns:
                return f"process {pid} pushed nothing of the capture's end within {_PUSHED_S:g} s"
        return ""


def _labelled(pushed: Profile, target: Target, *, is_last: bool) -> Profile:
    """Return it as the target's. What is in use is that of the last push: it is a level, no sum."""
    profile = Profile(
        MEMORY, {**target.labels, "sampler": "pyroscope"}, pushed.start_ns, pushed.duration_ns, pushed.period
    )
    profile.losses.add(pushed.losses)
    for (stack, attributes), values in pushed.samples.items():
        pairs = zip(values, _INUSE, strict=True)
        kept = tuple(0 if level and not is_last else value for value, level in pairs)
        if any(kept):
            profile.add(stack, attributes._replace(pid=target.pid), kept)
    return profile
