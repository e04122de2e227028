"""Leaving pids unused that a stale postmaster.pid may name.

Postgres does not start while `postmaster.pid` in its data directory names a live process or thread of its
own user other than itself, its parent and grandparent (`CreateLockFile` in its sources: kill(pid, 0), where
EPERM counts as dead). After a crash that file stays. Alone in its container Postgres has nobody to fear; in a
process namespace that it shares with us, a process of ours may have been given that number.

The kernel gives out pids in their order and begins anew at 300 when it has come to the end (`RESERVED_PIDS`
in kernel/pid.c). So an init container of the same namespace uses up every number to beyond the one in the
file, and whoever starts after it is above. It reads the file at each start of the pod, since each server
writes its own.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Passed", "pass_pids", "stale_pids"]

log = logging.getLogger(__name__)

_NAME = "postmaster.pid"
_FIRST_REUSED = 300
_BLIND = 4096
"""Up to here where a data directory cannot be looked into."""
_MOST = 50_000
"""Threads at most, about five seconds. What lies further up is left: Postgres reads its file in its first
second, and nothing in a pod uses up as many pids before."""
_DEPTH = 2
_MAX_FOLDERS = 1000
_MAX_BYTES = 8192


class Passed(NamedTuple):
    """The pids found, which of them are too far, the last pid used, and how many places were not readable."""

    stale: tuple[int, ...]
    left: tuple[int, ...]
    last: int
    unreadable: int


def pass_pids(folders: Iterable[Path]) -> Passed:
    """Use up pids until every one that a postmaster.pid under `folders` names lies behind.

    A folder is a volume on which a data directory may lie, up to two levels deep. Returns when all threads
    that were started have ended.
    """
    stale: list[int] = []
    unreadable = 0
    for folder in folders:
        found, refused = stale_pids(folder)
        stale += found
        unreadable += len(refused)
        for error in refused:
            # Not to be looked into is not the same as empty.
            log.warning("not readable", extra={"file": str(error.filename), "error": error.strerror})
    last = _next_pid()
    near = [pid for pid in stale if pid <= last + _MOST]
    aim = max([_FIRST_REUSED, *near, *([_BLIND] if unreadable else [])])
    while last < aim:
        following = _next_pid()
        if following <= last:
            break  # the numbers began anew: what was to be passed lies behind
        last = following
    left = tuple(sorted(pid for pid in stale if pid not in near))
    passed = Passed(tuple(sorted(stale)), left, last, unreadable)
    log.info("pids passed", extra={**passed._asdict()})
    return passed


def stale_pids(folder: Path) -> tuple[list[int], list[OSError]]:
    """Return what each postmaster.pid of `folder`, and two levels below, names, and what could not be read.

    What is no number names nothing to Postgres either: it does not start with such a file, whoever else runs.
    """
    found: list[int] = []
    refused: list[OSError] = []
    level = [folder]
    for _ in range(_DEPTH + 1):
        below: list[Path] = []
        for one in level:
            try:
                named = _named(one / _NAME)
                # In a data directory itself there is nothing more to look for.
                if named is None and not (one / "PG_VERSION").exists():
                    below += _folders(one)[: _MAX_FOLDERS - len(below)]
            except OSError as error:
                refused.append(error)
                continue
            if named:
                found.append(named)
        level = below
    return found, refused


def _named(file: Path) -> int | None:
    """Return the pid in a postmaster.pid, 0 when there is none in it, None when there is no such file."""
    try:
        # Whatever else has that name is not waited for.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as opened:
        first = opened.read(_MAX_BYTES).split(b"\n", 1)[0].strip()
    # A stand-alone backend writes its own pid as a negative number.
    digits = first.removeprefix(b"-")
    return int(digits) if digits.isdigit() and len(digits) <= 10 else 0


def _folders(folder: Path) -> list[Path]:
    # lost+found is root's alone on each new file system, and holds no database.
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.name != "lost+found" and not entry.is_symlink() and entry.is_dir()
    )


def _next_pid() -> int:
    """Use up one pid, by a thread that has ended on return, and return it."""
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(threading.get_native_id()))
    thread.start()
    thread.join()
    return taken[0]
