"""Python processes named on the command line: one capture each, weighted with the CPU it measured."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from quayscope.profile import Profile
from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.errors import CaptureRefused
from quayscope.sidecar.python.record import profile_of, py_spy_program, record, wait_for_room

__all__ = ["CAPABILITY", "REMEDY", "PythonCaptures", "PythonTarget"]

log = logging.getLogger(__name__)

CAPTURE_S = 5
HZ = 50
CAPABILITY = "py_spy"
REMEDY = (
    "the target's own user, or the capability SYS_PTRACE, in a shared process namespace; "
    "a seccomp profile that allows process_vm_readv"
)


class PythonTarget(NamedTuple):
    """A process to capture, and the `role` label of its profile."""

    pid: int
    role: str


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
        if py_spy_program() is None:
            self._capabilities.note(
                Capability(CAPABILITY, False, "py-spy is not installed", "pip install 'quayscope[sidecar]'")
            )
            return
        for target in self._targets:
            # A capture lies in one window where it can.
            if self._stop.wait(wait_for_room(self._window_s, CAPTURE_S)):
                return
            # The one border of this thread: a capture that fails costs the next one nothing.
            try:
                self._capture(target)
            except Exception:
                self.faults += 1
                log.exception("capture fault", extra={"pid": target.pid, "faults": self.faults})

    def _capture(self, target: PythonTarget) -> None:
        try:
            capture = record(target.pid, duration_s=CAPTURE_S, hz=HZ, stop=self._stop)
        except CaptureRefused as error:
            if not self._stop.is_set():
                self._refused = True
                self._capabilities.note(Capability(CAPABILITY, False, str(error), REMEDY))
            return
        if self._stop.is_set():
            return
        if not self._refused:
            self._capabilities.note(Capability(CAPABILITY, True, "captured"))
        profile = profile_of(capture, target.pid, {**self._labels, "role": target.role}, HZ)
        if profile is None:
            log.warning(
                "nothing to show of a capture", extra={"pid": target.pid, "samples": len(capture.stacks)}
            )
            return
        log.info("captured", extra={"pid": target.pid, "stacks": len(capture.stacks)})
        self._emit([profile])
