"""Keeps a process's memory in reach: `python -m bench.keeper PID`, until that one has ended.

Some hypervisors take away what a guest has not touched for a while; whoever touches it then pays for it. This
reads a byte of each page that the process has, many times a second, from outside: what the process itself is
charged with is then its own work. Rings are no memory that can be read so; theirs stay as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

INTERVAL_S = 0.05
LOOK_AGAIN_S = 5.0
_PAGES = 2_000
_IDLE_S = 2.5
_AT_ONCE = 1024
_LARGEST = 1 << 30
_PAGE = os.sysconf("SC_PAGESIZE")
_PRESENT_AT = 63
_REGION = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ *(.*)$", re.MULTILINE)
_LEFT_OUT = ("[v", "anon_inode:")


def resident(pid: int) -> Iterator[int]:
    """Return the addresses of all pages that a process has in memory."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for first, last, name in _REGION.findall(maps):
            start, end = int(first, 16), int(last, 16)
            if end - start <= _LARGEST and not name.startswith(_LEFT_OUT):
                pagemap.seek(start // _PAGE * 8)
                entries = array("Q", pagemap.read((end - start) // _PAGE * 8))
                yield from (start + _PAGE * i for i, entry in enumerate(entries) if entry >> _PRESENT_AT)


def page_costs(rounds: int) -> dict[str, float]:
    """Return the microseconds of CPU that a page of memory costs, touched again at once and after a while."""
    with mmap.mmap(-1, _PAGES * _PAGE) as memory:

        def touch() -> float:
            began = time.thread_time()
            for at in range(0, _PAGES * _PAGE, _PAGE):
                memory[at] = 1
            return (time.thread_time() - began) / _PAGES * 1e6

        touch()
        at_once = statistics.median(touch() for _ in range(5))
        later = []
        for _ in range(rounds):
            time.sleep(_IDLE_S)
            later.append(touch())
    return {"page_us": at_once, "page_idle_us": statistics.median(later)}


@contextlib.contextmanager
def kept(pid: int) -> Iterator[None]:
    """Keep a process's memory in reach while entered, by one of its own that no one's CPU includes."""
    keeper = subprocess.Popen([sys.executable, "-m", "bench.keeper", str(pid)])
    try:
        yield
    finally:
        keeper.kill()
        keeper.wait()


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def keep(pid: int) -> None:
    """Touch them until the process has ended."""
    libc = ctypes.CDLL(None)
    into = ctypes.create_string_buffer(_AT_ONCE)
    local = _IoVec(ctypes.addressof(into), _AT_ONCE)
    calls: list[tuple[array[int], int]] = []
    look_at = 0.0
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() >= look_at:
            look_at = time.monotonic() + LOOK_AGAIN_S
            pages = list(resident(pid))
            calls = []
            for at in range(0, len(pages), _AT_ONCE):
                some = pages[at : at + _AT_ONCE]
                calls.append((array("Q", [word for page in some for word in (page, 1)]), len(some)))
        for vectors, count in calls:
            remote = ctypes.c_void_p(vectors.buffer_info()[0])
            libc.process_vm_readv(pid, ctypes.byref(local), 1, remote, count, 0)
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    try:
        keep(int(sys.argv[1]))
    except (OSError, KeyboardInterrupt):
        sys.exit(0)
