"""Stands for a container's first process: a child of it starts a helper, and orphans are adopted here.

`keeper.py INTERPRETER CODE LOCK_FILE` prints one JSON line for what the child saw, and one for each process
that ended. The child lives until standard input ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def odd_signals() -> None:
    """What a worker's own libraries may have left behind, and a child inherits."""
    for number in (signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGPROF})


def spawn(interpreter: str, code: str, lock_file: str) -> None:
    """Be a worker: hold a lock and stray descriptors, and start a helper with them."""
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    stray = os.pipe()
    process = subprocess.Popen(
        [interpreter, "-S", "-E", "-c", code],
        env={"QUAYSCOPE_LOCK_FD": str(lock), **os.environ},
        pass_fds=(lock, *stray),
        restore_signals=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=odd_signals,
    )
    ended = process.wait()
    os.close(lock)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    say(spawner=os.getpid(), spawned=process.pid, code=ended, children=children)
    sys.stdin.read()


def main() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    spawner = os.fork()
    if spawner == 0:
        spawn(*sys.argv[1:])
        os._exit(0)
    sys.stdin.close()
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return
        if pid != spawner:
            say(ended=pid, code=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
