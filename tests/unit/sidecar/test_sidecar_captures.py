"""Captures by themselves: every part that was announced is delivered."""

from __future__ import annotations

import threading
import time

from quayscope.profile.control import Part, StartCapture, Target
from quayscope.sidecar.control.capturer import Captured, Window
from quayscope.sidecar.control.captures import Captures
from quayscope.sidecar.errors import CaptureRefused

TARGETS = tuple(Target(pid, "python", {}) for pid in range(1, 17))


class Refusing:
    """Refuses all targets at once."""

    kind = "python"

    def suits(self, target: Target) -> bool:
        return True

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:
        raise CaptureRefused(f"not {target.pid}")


def test_targets_refused_at_once_are_all_named() -> None:
    """One that is over before the next one has begun takes none of the others along."""
    sent: list[Part] = []
    captures = Captures([Refusing()], lambda: TARGETS, sent.append, lambda: 0, time.time_ns)
    for round_ in range(20):
        name = f"capture-{round_}"
        answer = captures.start(name, StartCapture(time.time_ns(), 10**9, 99, ("python",), {}, (), ""))
        assert len(answer.parts) == len(TARGETS)
        deadline = time.monotonic() + 10
        while sum(part.capture == name for part in sent) < len(TARGETS):
            assert time.monotonic() < deadline, [part.target.pid for part in sent if part.capture == name]
            time.sleep(0.005)
    assert {part.error for part in sent} == {f"not {target.pid}" for target in TARGETS}
    assert captures.faults == 0
    captures.close(1.0)
