"""The pipe that gunicorn has signals written to: our timer's numbers are taken out of it again.

`signal.set_wakeup_fd` knows no exceptions: the interpreter writes a byte for each SIGPROF too. A gevent or
gthread worker never reads the pipe, a busy sync worker hardly: after some minutes of CPU it would be full,
and Python complain on stderr at every signal from then on (seen). A sync worker that waits is woken by each.
"""

from __future__ import annotations

import os
import signal

__all__ = ["Wakeups"]

_OURS = bytes([signal.SIGPROF])
_READ_BYTES = 4_096
_UNREAD = 64
"""So many of our numbers may lie in the pipe: looking is a tenth of what a sample costs."""


class Wakeups:
    """A worker's pipe: (end to read, end to write), both non-blocking. Used on the main thread alone."""

    def __init__(self, ends: tuple[int, int]) -> None:
        self._read, self._write = ends
        self._written = 0
        self._inode = _inode(self._read)

    def signalled(self) -> None:
        """Note that the timer's number was written once more."""
        self._written += 1
        if self._written >= _UNREAD:
            self._written = 0
            self.drop_ours()

    def drop_ours(self) -> None:
        """Take the timer's numbers out of the pipe; others' stay, in their order.

        What was not empty is not emptied: the sync worker (gunicorn/workers/sync.py, `wait`) may just have
        been told that there is something to read, and dies of finding nothing.

        Never waits, and leaves alone what is not that pipe any more.
        """
        if not self.intact():
            return
        try:
            found = os.read(self._read, _READ_BYTES)
        except BlockingIOError:
            return
        os.write(self._write, found.replace(_OURS, b"") or found[:1])

    def intact(self) -> bool:
        """Whether it still is the same pipe, non-blocking: numbers are given to others again."""
        return self._inode != 0 and _inode(self._read) == self._inode and not os.get_blocking(self._read)


def _inode(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0
