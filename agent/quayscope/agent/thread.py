"""The agent's own thread: one a worker, of the kernel's, whatever gevent made of `threading`.

It looks at what the main thread cannot see of itself: a greenlet that keeps the hub, other threads at work
while the main one waits. Where there is no hub it also writes the records.
"""

from __future__ import annotations

import signal
from typing import Callable

from quayscope.agent.early import allocate_lock, start_new_thread
from quayscope.agent.faults import guarded

__all__ = ["OwnThread"]

LONGEST_WAIT_NS = 250_000_000
LEAST_WAIT_NS = 1_000_000
_NOT_OURS = frozenset(
    (
        signal.SIGALRM,
        signal.SIGCHLD,
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGPROF,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGVTALRM,
        signal.SIGWINCH,
    )
)
"""Signals that must wake the main thread, where Python handles them."""


class OwnThread:
    """Calls `step` until `stop`; it returns after how many nanoseconds it wants to be called again."""

    def __init__(self, step: Callable[[], int]) -> None:
        self._step = step
        self._wake = allocate_lock()
        self._ended = allocate_lock()
        self._stopping = False
        self._started = False

    def start(self) -> None:
        """Begin."""
        self._wake.acquire()
        self._ended.acquire()
        self._started = True
        start_new_thread(self._run, ())

    def stop(self, seconds: float) -> None:
        """End, and wait for it at most so long."""
        if not self._started or self._stopping:
            return
        self._stopping = True
        self._wake.release()
        self._ended.acquire(True, seconds)

    def sleep(self, seconds: float) -> None:
        """Sleep so long, or until `stop`."""
        if not self._stopping and seconds > 0:
            self._wake.acquire(True, seconds)

    def _run(self) -> None:
        guarded(self._loop)
        self._ended.release()

    def _loop(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_OURS)
        while not self._stopping:
            wait = guarded(self._step)
            if wait is None:
                wait = LONGEST_WAIT_NS
            self.sleep(max(LEAST_WAIT_NS, min(wait, LONGEST_WAIT_NS)) / 1e9)
