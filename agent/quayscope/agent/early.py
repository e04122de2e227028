"""Functions of the standard library as they are before gevent replaces them.

Imported at the start of the program. The agent's locks must be the kernel's, held for microseconds between
its own thread, the main one and the signal handler; gevent's `get_ident` tells greenlets apart, not threads.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident, get_native_id, start_new_thread

__all__ = ["allocate_lock", "get_ident", "get_native_id", "start_new_thread"]
