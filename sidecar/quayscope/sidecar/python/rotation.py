"""py-spy at a low rate over all Python processes in which no agent lives: one at a time, in turn.

What it costs bounds how often it runs: after a capture that took C seconds of CPU (py-spy's own, from its
resource usage, and this thread's) the next one begins no sooner than C / share after that one began. So over
time all of it takes at most that share of a core, whatever the processes are. Measured: 70 ms a capture of
5 s at 20 Hz on two busy CPUs, one in 14 s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple

from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.errors import CaptureRefused
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.python.captures import CAPABILITY, REMEDY
from quayscope.sidecar.python.record import Capture, profile_of, py_spy_program, record, wait_for_room
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["PythonProcess", "PythonRotation"]

log = logging.getLogger(__name__)

SHARE = 0.005
CAPTURE_S = 5
HZ = 20
LEAST_S = 1.0
"""The shortest time from one capture's end to the next one's begin."""
IDLE_SHARE = 0.001
"""A process that used less of a core since its last capture is passed over: nothing would be seen."""
REFUSED_S = 600.0
_NOTHING_S = 2.0


class PythonProcess(NamedTuple):
    """A process that may be captured, with its series labels."""

    pid: int
    start_ticks: int
    labels: Mapping[str, str]


class _Turn(NamedTuple):
    """When a process was captured last, and what it had used then; `until` it is left alone."""

    at: float
    cpu_ns: int
    until: float


class PythonRotation:
    """Goes round the processes of the last `update` on a thread of its own.

    `connected` gives the pids in which an agent lives right now: those are never captured, and a capture
    under way ends when one connects.
    """

    def __init__(
        self,
        emit: Callable[[list[Profile]], None],
        capabilities: Capabilities,
        connected: Callable[[], Container[int]],
        *,
        window_s: int = 10,
        share: float = SHARE,
        capture_s: int = CAPTURE_S,
        hz: int = HZ,
    ) -> None:
        self._emit = emit
        self._capabilities = capabilities
        self._connected = connected
        self._window_s = window_s
        self._share = share
        self._capture_s = capture_s
        self._hz = hz
        self._processes: tuple[PythonProcess, ...] = ()
        self._turns: dict[tuple[int, int], _Turn] = {}
        self._stop = threading.Event()
        self._interrupt = threading.Event()
        self._captured_pid = 0
        self._thread = threading.Thread(target=self._run, name="py-spy-rotation", daemon=True)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._cpu_ns = self._paused_ns = self._attach_ns = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def update(self, processes: Sequence[PythonProcess]) -> None:
        """Say which processes run now; may be called at any time, from one thread."""
        self._processes = tuple(processes)
        pid = self._captured_pid
        if pid and pid in self._connected():
            self._interrupt.set()

    def close(self, timeout_s: float = 2.0) -> None:
        """End a running capture and wait for the thread."""
        self._stop.set()
        self._interrupt.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def readings(self) -> list[Reading]:
        """Return what it did and what that cost, since it began."""
        with self._lock:
            seconds = {
                "cpu_time": self._cpu_ns,
                "paused_time": self._paused_ns,
                "attach_time": self._attach_ns,
            }
            counts = dict(self._counts)
        found = [
            Reading(f"quayscope.pyspy.{name}", "cumulative", value / SECOND_NS, "s", {})
            for name, value in seconds.items()
        ]
        return found + [
            Reading(f"quayscope.pyspy.{name}", "cumulative", count, "1", {}) for name, count in counts.items()
        ]

    @property
    def faults(self) -> int:
        """Errors of our own."""
        with self._lock:
            return self._counts["faults"]

    def _count(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] += count

    def _run(self) -> None:
        if py_spy_program() is None:
            self._capabilities.note(
                Capability(CAPABILITY, False, "py-spy is not installed", "pip install 'quayscope[sidecar]'")
            )
            return
        rest_s = 0.0
        while not self._stop.wait(rest_s):
            # The one border of this thread: a capture that fails costs the next one nothing.
            try:
                rest_s = self._turn()
            except Exception:
                self._count("faults")
                log.exception("capture fault")
                rest_s = self._capture_s / self._share * 0.01

    def _turn(self) -> float:
        """Capture the process whose turn it is; returns the seconds to rest."""
        process = self._next()
        if process is None or self._stop.wait(wait_for_room(self._window_s, self._capture_s)):
            return _NOTHING_S
        began, own_ns = time.monotonic(), time.thread_time_ns()
        self._interrupt.clear()
        self._captured_pid = process.pid
        try:
            # Looked at last: who connected since is not captured.
            if self._stop.is_set() or process.pid in self._connected():
                return 0.0
            cost_ns = self._capture(process)
        finally:
            self._captured_pid = 0
        cost_ns += time.thread_time_ns() - own_ns
        with self._lock:
            self._cpu_ns += cost_ns
        return max(LEAST_S, cost_ns / SECOND_NS / self._share - (time.monotonic() - began))

    def _next(self) -> PythonProcess | None:
        """Return the one that waited longest of those that did anything."""
        now = time.monotonic()
        processes, connected = self._processes, self._connected()
        keys = {(process.pid, process.start_ticks) for process in processes}
        self._turns = {key: turn for key, turn in self._turns.items() if key in keys}
        waiting = []
        for process in processes:
            turn = self._turns.get((process.pid, process.start_ticks), _Turn(0.0, 0, 0.0))
            if process.pid in connected or now < turn.until:
                continue
            if turn.at:
                used_ns = (procfs.cpu_ns(process.pid) or 0) - turn.cpu_ns
                if used_ns < IDLE_SHARE * SECOND_NS * (now - turn.at):
                    continue
            waiting.append((turn.at, process))
        return min(waiting, key=lambda entry: (entry[0], entry[1].pid))[1] if waiting else None

    def _capture(self, process: PythonProcess) -> int:
        """Capture one process; returns the nanoseconds of CPU that py-spy took."""
        key = (process.pid, process.start_ticks)
        facts = procfs.stat(process.pid)
        if facts is None or facts.start_ticks != process.start_ticks:
            return 0
        try:
            capture = record(process.pid, duration_s=self._capture_s, hz=self._hz, stop=self._interrupt)
        except CaptureRefused as error:
            now = time.monotonic()
            self._turns[key] = _Turn(now, procfs.cpu_ns(process.pid) or 0, now + REFUSED_S)
            if not self._interrupt.is_set() and procfs.cpu_ns(process.pid) is not None:
                self._count("refused")
                self._capabilities.note(Capability(CAPABILITY, False, str(error), REMEDY))
            return error.cost_ns
        self._turns[key] = _Turn(time.monotonic(), procfs.cpu_ns(process.pid) or 0, 0.0)
        self._take(process, capture)
        return capture.cost.cpu_ns

    def _take(self, process: PythonProcess, capture: Capture) -> None:
        self._count("captures")
        self._count("errors", capture.errors)
        with self._lock:
            self._paused_ns += capture.cost.paused_ns
            self._attach_ns += capture.cost.attach_ns
        if not self._counts["refused"]:
            self._capabilities.note(Capability(CAPABILITY, True, "captured"))
        profile = profile_of(capture, process.pid, process.labels, self._hz)
        if profile is not None:
            self._emit([profile])
