"""The processes that things are tried on: one of each user, container and kind, none of our own family."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from quayscope.sidecar import procfs
from quayscope.sidecar.targets import find_postmasters

__all__ = ["MAX_SUBJECTS", "Kind", "Subject", "choose", "subject"]

Kind = Literal["postgres", "python", "other"]

MAX_SUBJECTS = 8
"""Most processes that are tried; a pod has as many containers and users, a bare machine has more."""
_KINDS: tuple[Kind, ...] = ("postgres", "python", "other")
_KERNEL_THREADS = 2
_PAUSE = ("/pause", "/usr/bin/pod", "/catatonit")
"""Programs that hold a pod's namespaces; they run nothing of interest."""
_SIDECAR = re.compile(r"(^|[ /])quayscope(\.cli\.main)? sidecar\b")


class Subject(NamedTuple):
    """A process: `uid` its effective user, `cgroup` as we see its path (it tells containers apart)."""

    pid: int
    uid: int
    kind: Kind
    command: str
    cgroup: str


def subject(pid: int) -> Subject | None:
    """Return what is publicly known about a process; None when it is gone or invisible."""
    facts = procfs.stat(pid)
    if facts is None or facts.state in "ZX":
        return None
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
    kind: Kind = "python" if _is_python(pid, facts.name) else "other"
    if find_postmasters([pid]):
        kind = "postgres"
    return Subject(
        pid, _effective_user(pid, uid), kind, procfs.command_line(pid)[:200] or facts.name, _cgroup(pid)
    )


def choose() -> tuple[list[Subject], int]:
    """Return the processes to try, servers first, and how many more are like none of them but left out."""
    servers = {server.pid for server in find_postmasters()}
    family = _family()
    found: dict[tuple[int, str, Kind], Subject] = {}
    for pid in sorted(procfs.pids()):
        facts = procfs.stat(pid)
        if facts is None or pid in family or facts.parent in servers or facts.parent == _KERNEL_THREADS:
            continue
        seen = subject(pid)
        if seen is None or pid == _KERNEL_THREADS or not _is_target(seen):
            continue
        found.setdefault((seen.uid, seen.cgroup, seen.kind), seen)
    ordered = sorted(found.values(), key=lambda one: (_KINDS.index(one.kind), one.pid))
    return ordered[:MAX_SUBJECTS], max(0, len(ordered) - MAX_SUBJECTS)


def _is_target(seen: Subject) -> bool:
    # Run by `kubectl exec`, the doctor is no relative of the sidecar that it is there for.
    return seen.command.partition(" ")[0] not in _PAUSE and not _SIDECAR.search(seen.command)


def _family() -> set[int]:
    """Return ourselves, what started us and what we started."""
    family = {os.getpid(), *procfs.descendants(os.getpid())}
    facts = procfs.stat(os.getpid())
    while facts is not None and facts.parent > 0 and facts.parent not in family:
        family.add(facts.parent)
        facts = procfs.stat(facts.parent)
    return family


def _is_python(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    # Another user's executable is not ours to read; its name and arguments are public.
    first = procfs.command_line(pid).partition(" ")[0]
    return name.startswith("python") or Path(first).name.startswith("python")


def _effective_user(pid: int, otherwise: int) -> int:
    # A process that is not dumpable has its /proc folder owned by root whoever it belongs to.
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])
    return otherwise


def _cgroup(pid: int) -> str:
    """Return the unified path, on a machine without one that of the first hierarchy."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    paths = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    unified = [path for number, _, path in paths if number == "0"]
    return (unified or [path for _, _, path in paths] or [""])[0]
