"""A sidecar that comes back by itself, inside its container.

A container that ends makes its pod not ready, and a database that is not ready gets no connections: a fault
of ours must not show outside. So the container's first process does nothing but start the sidecar, wait for
it, and start it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from types import FrameType

__all__ = ["keep_running"]

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_GOOD_S = 60.0
"""Whoever ran for so long is started again without much waiting."""
_STOPS = (signal.SIGTERM, signal.SIGINT)


def keep_running() -> None:
    """Return in a new process, and in another one each time that one ended by itself; never in this one.

    Told to end (SIGTERM, SIGINT), this one tells the other, waits for it, and ends with its exit code. To be
    called before any thread is started.
    """
    keeper = _Keeper()
    wait_s = _FIRST_WAIT_S
    while True:
        began = time.monotonic()
        if not keeper.start():
            return
        code = keeper.wait()
        if keeper.stopping:
            os._exit(code)
        if time.monotonic() - began >= _GOOD_S:
            wait_s = _FIRST_WAIT_S
        log.error("the sidecar ended and is started again", extra={"code": code, "wait_s": wait_s})
        keeper.pause(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


class _Keeper:
    def __init__(self) -> None:
        self.stopping = False
        self._child = 0
        self._before = {number: signal.signal(number, self._stop) for number in _STOPS}

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopping = True
        if self._child:
            with contextlib.suppress(ProcessLookupError):  # it ended, and we were just told
                os.kill(self._child, number)

    def start(self) -> bool:
        """Fork; whether this is still the old process."""
        # A signal between the fork and the number being known would be lost on the new process.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        if self.stopping:
            os._exit(0)
        child = os.fork()
        if child == 0:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._child = child
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        return child != 0

    def wait(self) -> int:
        """Wait for the new process, and for orphans that came to us; the exit code, as a shell says it."""
        while True:
            pid, status = os.wait()
            if pid == self._child:
                self._child = 0
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def pause(self, seconds: float) -> None:
        """Let time pass; told to end meanwhile, end."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        if self.stopping or signal.sigtimedwait(_STOPS, seconds) is not None:
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
