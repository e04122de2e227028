"""One capture of a Python process: py-spy's `record`, the CPU it saw used, and what it cost.

py-spy (github.com/benfred/py-spy) counts samples, not time: the CPU that the process used while it was
sampled, from its CPU clock, is spread over them by whoever makes a profile of it (`profile_of`).

It stops its target for each sample, so that a stack is of one moment; `paused_ns` is what that came to. With
`nonblocking` it reads while the target runs, and stacks may be torn (py-spy counts those that break as
errors, and cannot see the others): docs/targets.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from quayscope.profile import PROCESS_CPU, Attributes, Profile, Stack
from quayscope.profile.model import Losses
from quayscope.sidecar import procfs
from quayscope.sidecar.errors import CaptureRefused
from quayscope.sidecar.python.raw import parse_raw, spread
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["Capture", "Cost", "profile_of", "py_spy_program", "record", "wait_for_room"]

SLACK_S = 15.0
"""How long py-spy may take beyond the seconds asked for, reading symbols above all, before it is ended."""
MAX_OUTPUT = 16 << 20
_LOOK_S = 0.05
_SAID = 4096
_BEGAN = b"Sampling process"
_ERRORS = re.compile(r"Samples: \d+ Errors: (\d{1,9})")
_RATE = range(1, 1000)


class Cost(NamedTuple):
    """What a capture cost: py-spy's own CPU, the time until it sampled, and how long its target stood still.

    All in nanoseconds. `paused_ns` is estimated from the share of looks (one in 50 ms) that found the target
    stopped by a tracer.
    """

    cpu_ns: int
    attach_ns: int
    paused_ns: int


@dataclass(frozen=True)
class Capture:
    """Stacks with their counts, and what the process used while they were taken.

    `cpu_ns` is None when the process ended during the capture: nothing is left to weigh the samples with.
    `errors` are the samples that py-spy could not read; `start_ns` is Unix nanoseconds.
    """

    stacks: list[tuple[Stack, int]]
    cpu_ns: int | None
    start_ns: int
    duration_ns: int
    errors: int
    cost: Cost


def py_spy_program() -> str | None:
    """Return py-spy's path: beside this interpreter, else on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def record(
    pid: int,
    *,
    duration_s: int,
    hz: int,
    native: bool = False,
    nonblocking: bool = False,
    stop: threading.Event | None = None,
) -> Capture:
    """Sample a process for whole seconds at `hz` (1 to 999); blocks for as long, `SLACK_S` more at most.

    `native` adds the frames of C code. Setting `stop` ends it early: what was taken until then is returned.
    Raises `CaptureRefused` when py-spy is missing or may not read the process, ValueError for numbers out of
    range.
    """
    if duration_s < 1 or hz not in _RATE:
        raise ValueError(f"a capture of {duration_s} s at {hz} Hz")
    program = py_spy_program()
    if program is None:
        raise CaptureRefused("py-spy is not installed")
    if procfs.cpu_ns(pid) is None:
        raise CaptureRefused(f"process {pid} does not run")
    with tempfile.TemporaryDirectory(prefix="quayscope-") as directory, tempfile.TemporaryFile() as said:
        output = Path(directory) / "raw"
        command = [program, "record", "--format", "raw", "--output", str(output)]
        command += ["--duration", str(duration_s), "--rate", str(hz), "--pid", str(pid)]
        command += ["--native"] * native + ["--nonblocking"] * nonblocking
        run = _Run(pid, command, said)
        try:
            run.watch(duration_s + SLACK_S, stop or threading.Event())
        finally:
            run.end()
        said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID))
        words = said.read().decode(errors="replace")
        if run.status != 0 or not output.exists():
            reason = _reason(words) or f"py-spy ended with {run.status}"
            raise CaptureRefused(f"process {pid}: {reason}", cost_ns=run.cost.cpu_ns)
        with output.open(encoding="utf-8", errors="replace") as file:
            stacks = parse_raw(file.read(MAX_OUTPUT))
    errors = _ERRORS.search(words)
    return Capture(
        stacks, run.used_ns, run.start_ns, run.duration_ns, int(errors[1]) if errors else 0, run.cost
    )


class _Run:
    """One py-spy process and what is measured about it."""

    def __init__(self, pid: int, command: list[str], said: BinaryIO) -> None:
        self._pid = pid
        self._said = said
        self._spawned_ns = time.monotonic_ns()
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        self.status: int | None = None
        self._helper_ns = 0
        self._looks = self._stopped = 0
        self._attached = False
        self._begin()

    def _begin(self) -> None:
        self.start_ns = time.time_ns()
        self._start = time.monotonic_ns()
        self._before = procfs.cpu_ns(self._pid)
        self.used_ns: int | None = None
        self.duration_ns = 0

    def watch(self, seconds: float, stop: threading.Event) -> None:
        """Wait for its end, or see to it after `seconds` or when `stop` is set."""
        deadline = time.monotonic() + seconds
        while not self._reap(os.WNOHANG):
            if not self._attached and self._says_it_began():
                # What the target used while py-spy read its symbols is none of the samples'.
                self._attached = True
                self._begin()
            self._look()
            if stop.wait(_LOOK_S) or time.monotonic() > deadline:
                return

    def _says_it_began(self) -> bool:
        return _BEGAN in os.pread(self._said.fileno(), _SAID, 0)

    def _look(self) -> None:
        facts = procfs.stat(self._pid)
        if facts is not None:
            after = procfs.cpu_ns(self._pid)
            self.used_ns = None if after is None or self._before is None else after - self._before
            self.duration_ns = time.monotonic_ns() - self._start
            self._looks += 1
            self._stopped += facts.state == "t"
        else:
            self.used_ns = None

    def end(self) -> None:
        """End it if it still runs, and take the last measures."""
        if self.status is None:
            # SIGINT lets it detach from its target and write what it has; killed between two stops it would
            # leave the target stopped.
            self._process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + 1.5
            while not self._reap(os.WNOHANG) and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            if self.status is None:
                self._process.kill()
                self._reap(0)
        if self.duration_ns == 0:
            self.duration_ns = max(1, time.monotonic_ns() - self._start)

    def _reap(self, options: int) -> bool:
        with contextlib.suppress(ChildProcessError):
            pid, status, usage = os.wait4(self._process.pid, options)
            if pid == 0:
                return False
            self._helper_ns = int((usage.ru_utime + usage.ru_stime) * SECOND_NS)
            self.status = self._process.returncode = os.waitstatus_to_exitcode(status)
            self._look()
            return True
        self.status = self._process.returncode = -1
        return True

    @property
    def cost(self) -> Cost:
        attach_ns = self._start - self._spawned_ns if self._attached else 0
        paused_ns = self.duration_ns * self._stopped // self._looks if self._looks else 0
        return Cost(self._helper_ns, attach_ns, paused_ns)


def _reason(said: str) -> str:
    """Return what py-spy gave as its reason: its error lines, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("Error", "Reason", "Permission"))]
    return " ".join(errors or lines[-1:])[:300]


def wait_for_room(window_s: int, capture_s: int) -> float:
    """Return the seconds until a capture fits into one window of Unix time; 0 when it never does."""
    if window_s <= capture_s:
        return 0.0
    into = time.time() % window_s
    return 0.0 if into <= window_s - capture_s - 1 else window_s - into


def profile_of(capture: Capture, pid: int, labels: Mapping[str, str], hz: int) -> Profile | None:
    """Return a capture as a CPU profile; None where there is nothing, or no CPU to weigh it with."""
    if not capture.stacks or not capture.cpu_ns:
        return None
    start_ns = capture.start_ns
    profile = Profile(
        PROCESS_CPU, {**labels, "sampler": "pyspy"}, start_ns, capture.duration_ns, SECOND_NS // hz
    )
    counts = [count for _, count in capture.stacks]
    attributes = Attributes(slot_ns=start_ns - start_ns % SECOND_NS, pid=pid)
    for (stack, count), weight in zip(capture.stacks, spread(capture.cpu_ns, counts), strict=True):
        profile.add(stack, attributes, (count, weight))
    profile.losses.add(Losses(lost=capture.errors, unattributed=sum(counts)))
    return profile
