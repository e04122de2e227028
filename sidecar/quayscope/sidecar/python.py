"""Python processes without an agent: one py-spy capture each, weighted with the CPU it measured.

py-spy (github.com/benfred/py-spy) reads the stacks from outside; `record --format raw` writes one line a
stack, `frame;frame;... COUNT`, root first, a frame as `function (file:line)`. It counts samples, not time:
the CPU that the process used during the capture, from its CPU clock, is spread over them.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile, Stack
from quayscope.profile.model import Losses
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["PythonCaptures", "PythonTarget", "parse_raw", "py_spy_program", "spread"]

log = logging.getLogger(__name__)

CAPTURE_S = 5
HZ = 50
_SLACK_S = 15
_MAX_OUTPUT = 16 << 20
_SAID = 4096
_FRAME = re.compile(r"(?P<function>.*?) \((?P<file>.*?)(?::(?P<line>[0-9]{1,9}))?\)", re.DOTALL)
_CAPABILITY = "py_spy"
_REMEDY = (
    "the target's own user, or the capability SYS_PTRACE, in a shared process namespace; "
    "a seccomp profile that allows process_vm_readv"
)


class PythonTarget(NamedTuple):
    """A process to capture, and the `role` label of its profile."""

    pid: int
    role: str


def py_spy_program() -> str | None:
    """Return py-spy's path: beside this interpreter, else on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def parse_raw(text: str) -> list[tuple[Stack, int]]:
    """Return the stacks, root first, with their counts; lines of another form are passed over."""
    found = []
    for line in text.splitlines():
        names, _, count = line.rpartition(" ")
        if names and count.isdigit() and len(count) < 12:
            found.append((tuple(_frame(name) for name in names.split(";")), int(count)))
    return found


def _frame(name: str) -> Frame:
    match = _FRAME.fullmatch(name)
    if match is None:
        return Frame(name, kind="python")
    return Frame(match["function"], match["file"], int(match["line"] or 0), "python")


def spread(total: int, counts: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `counts`, to the last unit."""
    weight = sum(counts)
    shares, given, seen = [], 0, 0
    for count in counts:
        seen += count
        upto = total * seen // weight if weight else 0
        shares.append(upto - given)
        given = upto
    return shares


class PythonCaptures:
    """Captures each target once, one after the other, on a thread of its own."""

    def __init__(
        self,
        targets: Sequence[PythonTarget],
        labels: Mapping[str, str],
        window_s: int,
        emit: Callable[[list[Profile]], None],
        capabilities: Capabilities,
    ) -> None:
        self._targets = list(targets)
        self._labels = dict(labels)
        self._window_s = window_s
        self._emit = emit
        self._capabilities = capabilities
        self._refused = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="py-spy", daemon=True)
        self.faults = 0

    def start(self) -> None:
        """Begin, when there is anything to capture."""
        if self._targets:
            self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """End a running capture and wait for the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        program = py_spy_program()
        if program is None:
            self._capabilities.note(
                Capability(_CAPABILITY, False, "py-spy is not installed", "pip install 'quayscope[sidecar]'")
            )
            return
        for target in self._targets:
            if self._wait_for_room():
                return
            # The one border of this thread: a capture that fails costs the next one nothing.
            try:
                self._capture(program, target)
            except Exception:
                self.faults += 1
                log.exception("capture fault", extra={"pid": target.pid, "faults": self.faults})

    def _wait_for_room(self) -> bool:
        """Wait until a capture fits into one window; says whether to stop instead."""
        if self._window_s <= CAPTURE_S:
            return self._stop.is_set()
        into = time.time() % self._window_s
        return self._stop.wait(0 if into <= self._window_s - CAPTURE_S - 1 else self._window_s - into)

    def _capture(self, program: str, target: PythonTarget) -> None:
        before, start_ns = procfs.cpu_ns(target.pid), time.time_ns()
        if before is None:
            self._refuse(f"process {target.pid} does not run")
            return
        with tempfile.TemporaryDirectory(prefix="quayscope-") as directory:
            output = Path(directory) / "raw"
            status, said = self._record(program, target, output)
            after, duration_ns = procfs.cpu_ns(target.pid), time.time_ns() - start_ns
            if self._stop.is_set():
                return
            if status != 0 or not output.exists():
                self._refuse(f"process {target.pid}: {_reason(said) or f'py-spy ended with status {status}'}")
                return
            with output.open(encoding="utf-8", errors="replace") as file:
                stacks = parse_raw(file.read(_MAX_OUTPUT))
        if not self._refused:
            self._capabilities.note(Capability(_CAPABILITY, True, "captured"))
        if after is None:
            # It ended during the capture: without its CPU there is nothing to weigh the samples with.
            log.warning("target ended during its capture", extra={"pid": target.pid, "samples": len(stacks)})
            return
        self._send(target, stacks, after - before, start_ns, duration_ns)

    def _record(self, program: str, target: PythonTarget, output: Path) -> tuple[int, str]:
        """Run py-spy; returns its exit status and the end of what it said."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [
                    *(program, "record", "--format", "raw", "--output", str(output)),
                    *("--duration", str(CAPTURE_S), "--rate", str(HZ), "--pid", str(target.pid)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
            deadline = time.monotonic() + CAPTURE_S + _SLACK_S
            while process.poll() is None:
                if self._stop.wait(0.1) or time.monotonic() > deadline:
                    _end(process)
            said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID))
            return process.returncode, said.read().decode(errors="replace")

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._capabilities.note(Capability(_CAPABILITY, False, reason, _REMEDY))

    def _send(
        self,
        target: PythonTarget,
        stacks: list[tuple[Stack, int]],
        cpu_ns: int,
        start_ns: int,
        duration_ns: int,
    ) -> None:
        log.info("captured", extra={"pid": target.pid, "stacks": len(stacks), "cpu_ms": cpu_ns // 1_000_000})
        labels = {**self._labels, "role": target.role, "sampler": "pyspy"}
        profile = Profile(PROCESS_CPU, labels, start_ns, duration_ns, SECOND_NS // HZ)
        counts = [count for _, count in stacks]
        attributes = Attributes(slot_ns=start_ns - start_ns % SECOND_NS, pid=target.pid)
        for (stack, count), weight in zip(stacks, spread(cpu_ns, counts), strict=True):
            profile.add(stack, attributes, (count, weight))
        profile.losses.add(Losses(unattributed=sum(counts)))
        if stacks:
            self._emit([profile])


def _end(process: subprocess.Popen[bytes]) -> None:
    # SIGINT lets it detach from its target; killed between two stops it would leave the target stopped.
    process.send_signal(signal.SIGINT)
    try:
        process.wait(1.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(said: str) -> str:
    """Return what py-spy gave as its reason: its error lines, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("Error", "Reason", "Permission"))]
    return " ".join(errors or lines[-1:])[:300]
