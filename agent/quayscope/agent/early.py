"""Functions of the standard library as they are before gevent replaces them.

Imported at the start of the program. The agent's locks must be the kernel's, held for microseconds between
its own thread, the main one and the signal handler; gevent's `get_ident` tells greenlets apart, not threads;
its `waitpid` makes a hub for the thread that calls it.

For the same reason the agent's thread imports nothing: with gevent's locks, two threads that import at the
same time may wait for each other for ever (seen).
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident, get_native_id, start_new_thread
from posix import posix_spawn, waitpid

__all__ = ["allocate_lock", "get_ident", "get_native_id", "posix_spawn", "start_new_thread", "waitpid"]
