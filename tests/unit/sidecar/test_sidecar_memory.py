"""Captures of Python's memory by themselves: which pushes count, and what is said where they do not come."""

from __future__ import annotations

import os
import threading
import time

import pytest

from quayscope.profile import MEMORY, Attributes, Frame, Profile
from quayscope.profile.control import Target
from quayscope.profile.push import encode_push, series_of
from quayscope.sidecar.control import memory
from quayscope.sidecar.control.capturer import Window
from quayscope.sidecar.control.memory import MemoryPushes, PythonMemoryCapturer
from quayscope.sidecar.errors import CaptureRefused

SECOND = 10**9
PID = os.getpid()
TARGET = Target(PID, "python", {"service_name": "quay-app", "role": "web"})


def push(pushes: MemoryPushes, start_ns: int, values: tuple[int, int, int, int]) -> None:
    """Ten seconds of memory, as pyroscope-io sends them."""
    profile = Profile(MEMORY, {"service_name": "anything"}, start_ns, 10 * SECOND)
    profile.add((Frame("main"), Frame("allocate")), Attributes(), values)
    pushes.take(PID, encode_push([series_of(profile, "")]))


def test_pushes_that_overlap_are_put_together() -> None:
    """What was allocated adds up, what is in use is that of the last; earlier and later ones are left out."""
    pushes = MemoryPushes()
    now = time.time_ns()
    push(pushes, now - 60 * SECOND, (1, 1, 1, 1))
    window = Window(now - 5 * SECOND, now + SECOND // 5)
    starts = {-25: (7, 7, 7, 7), -15: (3, 300, 2, 200), -5: (4, 400, 5, 500), 5: (9, 9, 9, 9)}

    def arrive() -> None:
        for start, values in starts.items():
            push(pushes, now + start * SECOND + SECOND // 2, values)

    arriving = threading.Timer(0.3, arrive)
    arriving.start()
    captured = PythonMemoryCapturer(pushes).capture(TARGET, window, 99, threading.Event())
    arriving.join()
    (found,) = captured.profiles
    # The one at -15 ends half a second after the window began.
    assert found.totals() == (3 + 4, 300 + 400, 5, 500)
    assert found.labels == {"service_name": "quay-app", "role": "web", "sampler": "pyroscope"}
    assert {about.pid for _, about in found.samples} == {PID}
    assert captured.note == ""
    assert captured.started_ns == now - 15 * SECOND + SECOND // 2
    assert captured.ended_ns == now + 5 * SECOND + SECOND // 2


def test_one_that_does_not_come_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that never pushed at once, of one that stopped after a push's length."""
    monkeypatch.setattr(memory, "_PUSHED_S", 0.2)
    pushes = MemoryPushes()
    now = time.time_ns()
    capturer, window = PythonMemoryCapturer(pushes), Window(now, now + SECOND // 10)
    with pytest.raises(CaptureRefused, match=r"pushed no memory profile .* QUAYSCOPE_MEMORY"):
        capturer.capture(TARGET, window, 99, threading.Event())
    push(pushes, now - 60 * SECOND, (1, 1, 1, 1))
    with pytest.raises(CaptureRefused, match=r"nothing of the capture's end within 0\.2 s"):
        capturer.capture(TARGET, window, 99, threading.Event())


@pytest.mark.parametrize("message", [b"", b"\xff", encode_push([])])
def test_what_is_no_memory_is_passed_over(message: bytes) -> None:
    """Nothing is raised into the gateway."""
    pushes = MemoryPushes()
    pushes.take(7, message)
    assert not pushes.pushed(7)
