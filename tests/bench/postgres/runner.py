"""What reads a server, in a process of its own, and its cost: `python -m bench.postgres.runner PART PID`.

`sweep` sweeps all backends 99 times a second by one route, `wake` wakes as often and does nothing, `join`
samples with the join and sweeps, `poll` polls `pg_stat_activity`. Each goes on for so many seconds, or until
standard input ends, and writes its figures as one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from bench.keeper import kept
from postgres.joined import Joined, joining
from postgres.pgbench import serial
from postgres.reading import ROUTES, reader_of
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.interpreter import tune
from quayscope.sidecar.postgres.activity import Activity
from quayscope.sidecar.postgres.sampling import PostgresSampling
from quayscope.sidecar.targets import CLIENT_BACKEND

HZ = 99


def main() -> int:
    """Run one part, and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.postgres.runner")
    parser.add_argument("part", choices=("sweep", "wake", "join", "poll"))
    parser.add_argument("pid", type=int)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--route", choices=tuple(ROUTES), default="mapped")
    parser.add_argument("--dsn", default="")
    parser.add_argument("--kept", action="store_true", help="have another process keep our memory in reach")
    parser.add_argument("--normal", action="store_true", help="as where the kernel grants no priority")
    given = parser.parse_args()
    tune()
    closed = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        closed.set()

    threading.Thread(target=wait, daemon=True).start()
    figures: dict[str, object] = {}
    server = SimpleNamespace(pid=given.pid)
    with contextlib.ExitStack() as stack:
        if given.part == "sweep":
            reader = stack.enter_context(reader_of(server, given.route))
            reader.sweep()
        elif given.part == "join":
            refused = PermissionError(1, "Operation not permitted")
            found = stack.enter_context(
                joining(server, HZ, given.route, (lambda: refused) if given.normal else None)
            )
        elif given.part == "poll":
            activity = Activity(given.dsn, Capabilities(), [])
            activity.start()
            activity.wait_tried(10.0)
        if given.kept:
            stack.enter_context(kept(os.getpid()))
        print("ready", file=sys.stderr, flush=True)
        began, cpu = time.monotonic(), time.process_time()
        due = began
        while (now := time.monotonic()) < began + given.seconds and not closed.is_set():
            if given.part == "sweep":
                reader.sweep()
            if given.part in ("sweep", "wake"):
                due = max(due + 1 / HZ, now)
                time.sleep(max(0.0, due - time.monotonic()))
            else:
                closed.wait(min(1.0, began + given.seconds - now))
        wall = time.monotonic() - began
        figures["core_share"] = (time.process_time() - cpu) / wall
        if given.part == "join":
            figures["notes_core_share"] = _notes_cpu_s(found.sampling) / wall
            figures["realtime"] = found.sampling.realtime is None
        elif given.part == "poll":
            activity.close()
            figures["polls"] = activity.polls
    if given.part == "join":
        figures["samples"] = [_written(one) for one in found.samples if one.ran.role == CLIENT_BACKEND]
    print(json.dumps(figures))
    return 0


def _notes_cpu_s(sampling: PostgresSampling) -> float:
    """Return the CPU seconds of the threads that note."""
    tasks = [Path(f"/proc/self/task/{thread.native_id}/schedstat") for thread in sampling._notes._threads]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _written(one: Joined) -> tuple[int, bool, tuple[int, int] | None, bool]:
    """Return a sample's time, whether it is unproven, which statement it got, and whether it got one."""
    text = one.ran.text
    return one.time_ns, one.ran.unproven, serial(text) if text is not None else None, text is not None


if __name__ == "__main__":
    sys.exit(main())
