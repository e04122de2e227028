"""Leaving the process that started us: nobody's child, none of its descriptors, signals, or priority."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from pathlib import Path

__all__ = ["detach"]

_NICE = 10
_FIRST_FREE = 3
_MOST_DESCRIPTORS = 65_536
"""How far to look for open ones where /proc does not tell."""


def detach(kept: int) -> None:
    """Return in a process of its own, whose parent is gone; the one that was started ends with 0.

    Of the open descriptors only `kept` stays (-1: none), under a number of its own; the standard three are
    /dev/null. Signals do what they do by default, except that broken pipes are errors of their write. Raises
    OSError where the system refuses a process or `kept` is not open.
    """
    if kept >= 0:
        kept = fcntl.fcntl(kept, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    # First: a spawner that ignores SIGCHLD would leave nothing to wait for.
    _reset_signals()
    os.umask(0o077)
    os.chdir("/")
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):
            os.waitpid(child, 0)
        os._exit(0)
    os.setsid()
    # The second one leads no session: it can never get a terminal.
    if _fork_or_end():
        os._exit(0)
    _close_descriptors(kept)
    with contextlib.suppress(OSError):
        os.nice(_NICE)


def _fork_or_end() -> int:
    try:
        return os.fork()
    except OSError:
        os._exit(0)


def _reset_signals() -> None:
    ignored = {signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals():
        # SIGKILL and SIGSTOP cannot be set; the C library keeps two for itself.
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_descriptors(kept: int) -> None:
    try:
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        descriptors = list(range(_FIRST_FREE, _MOST_DESCRIPTORS))
    for descriptor in descriptors:
        if descriptor >= _FIRST_FREE and descriptor != kept:
            # The listing's own is closed already.
            with contextlib.suppress(OSError):
                os.close(descriptor)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(_FIRST_FREE):
        os.dup2(null, standard)
    if null >= _FIRST_FREE:
        os.close(null)
