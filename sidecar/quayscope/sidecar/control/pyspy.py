"""Captures of Python processes without an agent, by py-spy.

py-spy begins when it has read its target's symbols, so it is started as much before the window as that took
the last time, and a part says when its samples really began. Two captures of one process share one py-spy:
it is ended and started anew where one of them begins or ends, and what is missed meanwhile is said.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from quayscope.profile import Profile
from quayscope.profile.control import Target
from quayscope.sidecar import procfs
from quayscope.sidecar.control.capturer import Captured, Collected, Window, runs
from quayscope.sidecar.errors import CaptureRefused
from quayscope.sidecar.python.record import Capture, profile_of, record

__all__ = ["PySpyCapturer"]

_LONGEST_S = 700
_FIRST_ATTACH_S = 0.1
_LOOK_S = 0.1
_END_S = 5.0


class _Segment:
    """One run of py-spy."""

    def __init__(self, pid: int, hz: int) -> None:
        self.members: list[_Member] = []
        self.hz = hz
        self._pid = pid
        self._stop = threading.Event()
        self._capture: Capture | None = None
        self._refused = ""
        self._used_ns = 0
        self._thread = threading.Thread(target=self._run, name="py-spy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._capture = record(self._pid, duration_s=_LONGEST_S, hz=self.hz, stop=self._stop)
        except CaptureRefused as error:
            self._refused = str(error)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def note_cpu(self, used_ns: int) -> None:
        """Note what the process has used since this began, while that can be read."""
        self._used_ns = used_ns

    def end(self) -> None:
        """End it, and give what it took to its members."""
        self._stop.set()
        self._thread.join(_END_S)
        capture = self._capture
        if capture is not None and capture.cpu_ns is None and self._used_ns:
            # The process is gone: what it had used at the last look is the least that it did.
            capture = replace(capture, cpu_ns=self._used_ns)
        for member in self.members:
            member.refused = member.refused or self._refused
            if capture is not None:
                member.captures.append((capture, self.hz))


class _Member:
    def __init__(self, hz: int) -> None:
        self.hz = hz
        self.captures: list[tuple[Capture, int]] = []
        self.refused = ""


class PySpyCapturer:
    """Takes captures of the Python processes that no agent lives in."""

    kind = "python"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: dict[int, _Segment] = {}
        self._attach_s = _FIRST_ATTACH_S

    def suits(self, target: Target) -> bool:
        """Any Python process: those with an agent are taken before."""
        return target.kind == "python"

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:
        """See `Capturer`."""
        if not window.wait_start(cancelled, self._attach_s):
            raise CaptureRefused("cancelled before it began")
        member = _Member(hz)
        before = procfs.cpu_ns(target.pid)
        self._change(target.pid, member, joins=True)
        try:
            self._watch(target.pid, window, cancelled, before)
        finally:
            self._change(target.pid, member, joins=False)
        if not member.captures:
            raise CaptureRefused(member.refused or f"process {target.pid} ended before py-spy could read it")
        return self._captured(target, member)

    def _watch(self, pid: int, window: Window, cancelled: threading.Event, before: int | None) -> None:
        while window.left_s() and not cancelled.wait(min(window.left_s(), _LOOK_S)):
            segment = self._segments.get(pid)
            if segment is None:
                continue  # it is being begun anew
            if not segment.running:
                return
            used = procfs.cpu_ns(pid)
            if used is None:
                return
            if before is not None:
                segment.note_cpu(used - before)

    def _change(self, pid: int, member: _Member, *, joins: bool) -> None:
        """End the run there is, and begin one for those who are left."""
        with self._lock:
            running = self._segments.pop(pid, None)
            members = []
            if running is not None:
                running.end()
                members = [one for one in running.members if one is not member]
            if joins:
                members.append(member)
            if members:
                segment = _Segment(pid, max(one.hz for one in members))
                segment.members = members
                self._segments[pid] = segment

    def _captured(self, target: Target, member: _Member) -> Captured:
        collected = Collected()
        gaps_ns = ended_ns = 0
        for capture, hz in member.captures:
            if ended_ns:
                gaps_ns += max(0, capture.start_ns - ended_ns)
            ended_ns = capture.start_ns + capture.duration_ns
            profile: Profile | None = profile_of(capture, target.pid, target.labels, hz)
            if profile is not None:
                collected.add(profile)
        first = member.captures[0][0]
        if len(member.captures) == 1 and first.cost.attach_ns:
            self._attach_s = min(max(first.cost.attach_ns / 1e9, 0.05), 3.0)
        notes = []
        if not runs(target.pid):
            notes.append(f"process {target.pid} ended during the capture")
        if gaps_ns:
            notes.append(f"{gaps_ns / 1e9:.2f} s are missing: py-spy began anew for another capture")
        return Captured(
            collected.within(first.start_ns, ended_ns), first.start_ns, ended_ns, "; ".join(notes)
        )
