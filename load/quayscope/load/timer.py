"""An exact alarm for an event loop: epoll's own timeout is whole milliseconds, late for most arrivals."""

from __future__ import annotations

import ctypes
import os

__all__ = ["Timer"]

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME, timerfd_create(2)


class _Setting(ctypes.Structure):
    """`struct itimerspec`: interval, then first expiry, each in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


# `os.timerfd_create` came with CPython 3.13; this is the same call on 3.11.
_libc = ctypes.CDLL(None, use_errno=True)


class Timer:
    """A Linux timer descriptor on the clock of `time.monotonic_ns`. Readable once its time has come."""

    def __init__(self) -> None:
        self.descriptor = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._setting = _Setting()
        self._pointer = ctypes.byref(self._setting)

    def arm(self, at_ns: int) -> None:
        """Be readable from `at_ns` on, and not before: an earlier expiry is forgotten."""
        # All zeros would switch the timer off; a time long past expires at once.
        self._setting.first_s, self._setting.first_ns = divmod(max(at_ns, 1), 1_000_000_000)
        if _libc.timerfd_settime(self.descriptor, _ABSOLUTE, self._pointer, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)
