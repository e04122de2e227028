"""py-spy on real processes: one capture with what it cost, and the rotation that keeps within its share."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.errors import CaptureRefused
from quayscope.sidecar.python import PythonProcess, PythonRotation, profile_of, record

_BURN = """
import time
def heavy(end):
    while time.process_time() < end:
        sum(range(100))
def light():
    time.sleep(0.03)
print(flush=True)
while True:
    heavy(time.process_time() + 0.03)
    light()
"""
_IDLE = "print(flush=True); input()"


@contextmanager
def _python(code: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def _process(process: subprocess.Popen[bytes], role: str = "worker") -> PythonProcess:
    facts = procfs.stat(process.pid)
    assert facts is not None
    return PythonProcess(process.pid, facts.start_ticks, {"service_name": "quay-app", "role": role})


def test_a_capture_with_native_frames() -> None:
    """Python and C frames, the CPU that the process used meanwhile, and what taking it cost."""
    with _python(_BURN) as child:
        before = procfs.cpu_ns(child.pid)
        capture = record(child.pid, duration_s=2, hz=100, native=True)
        after = procfs.cpu_ns(child.pid)
    assert before is not None
    assert after is not None
    assert capture.cpu_ns is not None
    assert 0 < capture.cpu_ns <= after - before
    kinds = {frame.kind for stack, _ in capture.stacks for frame in stack}
    assert kinds == {"python", "native"}
    assert any(frame.function == "heavy" for stack, _ in capture.stacks for frame in stack)
    assert 0 < capture.cost.cpu_ns < 2_000_000_000
    assert 0 < capture.cost.attach_ns < 15_000_000_000
    assert 0 <= capture.cost.paused_ns <= capture.duration_ns
    profile = profile_of(capture, child.pid, {"service_name": "s", "role": "r"}, 100)
    assert profile is not None
    assert profile.totals() == (sum(count for _, count in capture.stacks), capture.cpu_ns)
    assert profile.losses.lost == capture.errors
    print(capture.cost, f"{capture.duration_ns / 1e9:.2f} s")


def test_what_cannot_be_captured() -> None:
    """A process that is gone or no Python is refused with a reason; numbers out of range are an error."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as other:
        with pytest.raises(CaptureRefused, match=str(other.pid)) as refused:
            record(other.pid, duration_s=1, hz=20)
        assert len(str(refused.value)) > 20
        with pytest.raises(ValueError, match="0 Hz"):
            record(other.pid, duration_s=1, hz=0)
        other.communicate(b"")
    with pytest.raises(CaptureRefused, match="does not run"):
        record(other.pid, duration_s=1, hz=20)


def test_a_capture_that_is_stopped(until: Callable[..., Any]) -> None:
    """It ends at once, and its target goes on running."""
    stop = threading.Event()
    with _python(_BURN) as child:
        timer = threading.Timer(1.0, stop.set)
        timer.start()
        began = time.monotonic()
        # It may be stopped before it had anything to write.
        with contextlib.suppress(CaptureRefused):
            record(child.pid, duration_s=60, hz=50, stop=stop)
        assert time.monotonic() - began < 20
        timer.join()
        used = procfs.cpu_ns(child.pid)
        assert used is not None
        until(lambda: (procfs.cpu_ns(child.pid) or 0) > used + 20_000_000, 10.0, "the target runs on")


class _Taken:
    """Profiles in the order they came; `paid` is what the captures before the last one had cost."""

    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.paid = 0.0
        self.rotation: PythonRotation | None = None

    def __call__(self, profiles: list[Profile]) -> None:
        if self.rotation is not None:
            self.paid = _value(self.rotation, "cpu_time")
        self.profiles += profiles

    def pids(self) -> list[int]:
        return [next(iter(profile.samples))[1].pid for profile in list(self.profiles)]


def _value(rotation: PythonRotation, name: str) -> float:
    return sum(reading.value for reading in rotation.readings() if reading.name == f"quayscope.pyspy.{name}")


@pytest.mark.alone
def test_the_rotation_keeps_within_its_share(until: Callable[..., Any], full: bool) -> None:
    """Process after process in turn, all of py-spy within the share of a core that it was given."""
    share, capture_s, turns = (0.005, 5, 13) if full else (0.005, 1, 2)
    taken = _Taken()
    capabilities = Capabilities()
    rotation = PythonRotation(
        taken, capabilities, lambda: {agent.pid}, window_s=1, share=share, capture_s=capture_s
    )
    taken.rotation = rotation
    with _python(_BURN) as one, _python(_BURN) as other, _python(_BURN) as agent, _python(_IDLE) as idle:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        rotation.update([_process(child) for child in (one, other, agent, idle)])
        rotation.start()
        try:
            until(lambda: len(taken.profiles) >= turns, 400.0, "every turn")
        finally:
            elapsed = time.monotonic() - began
            rotation.close(5.0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    measured = _value(rotation, "cpu_time")
    each = measured / _value(rotation, "captures")
    print(f"{cost:.3f} s of CPU in {elapsed:.1f} s, {cost / elapsed:.2%} of a core, {each * 1e3:.0f} ms each")
    stopped, attached = _value(rotation, "paused_time"), _value(rotation, "attach_time")
    print(f"stopped for {stopped:.3f} s, attached in {attached:.3f} s")
    # All but the last were paid for when the last began.
    first, last = (taken.profiles[index].start_ns / 1e9 for index in (0, -1))
    assert 0 < taken.paid <= 1.1 * share * (last - first)
    # Our own part, the looks at the target and the reading of what py-spy wrote, is in what we say it took.
    assert measured >= 0.9 * cost
    # One that does nothing is looked at once, to see that.
    assert {one.pid, other.pid} <= set(taken.pids()) <= {one.pid, other.pid, idle.pid}
    assert taken.pids().count(idle.pid) <= 1
    assert all(a != b for a, b in zip(taken.pids(), taken.pids()[1:], strict=False))
    assert agent.pid not in taken.pids()
    assert _value(rotation, "faults") == 0
    assert _value(rotation, "attach_time") > 0
    assert capabilities.permitted("py_spy")
    assert taken.profiles[0].labels == {"service_name": "quay-app", "role": "worker", "sampler": "pyspy"}


def test_an_agent_that_connects_ends_its_workers_capture(until: Callable[..., Any]) -> None:
    """The capture under way ends, the target is left alone from then on, and runs."""
    connected: set[int] = set()
    taken = _Taken()
    rotation = PythonRotation(taken, Capabilities(), lambda: connected, window_s=1, share=1.0, capture_s=60)
    with _python(_BURN) as child:
        processes = [_process(child)]
        rotation.update(processes)
        rotation.start()
        try:
            until(lambda: rotation._captured_pid == child.pid, 10.0, "a capture begins")
            connected.add(child.pid)
            rotation.update(processes)
            until(lambda: rotation._captured_pid == 0, 20.0, "it ends")
            used = procfs.cpu_ns(child.pid) or 0
            until(lambda: (procfs.cpu_ns(child.pid) or 0) > used + 20_000_000, 10.0, "the target runs on")
            assert rotation._captured_pid == 0
        finally:
            rotation.close(5.0)
    assert rotation.faults == 0


def test_a_refused_process_is_said_and_left_alone(until: Callable[..., Any]) -> None:
    """What may not be read is a missing capability with its reason, and costs one try in ten minutes."""
    capabilities = Capabilities()
    rotation = PythonRotation(_Taken(), capabilities, set, window_s=1, share=1.0, capture_s=1)
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as other, _python(_BURN) as child:
        rotation.update([_process(other), _process(child)])
        rotation.start()
        try:
            until(lambda: _value(rotation, "captures") >= 1, 30.0, "the other one goes on")
        finally:
            rotation.close(5.0)
        other.communicate(b"")
    assert _value(rotation, "refused") == 1
    assert not capabilities.permitted("py_spy")
