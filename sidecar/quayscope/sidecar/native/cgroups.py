"""The cgroup that a process lives in, as a directory that perf events can be opened on.

Reaches into the target's own mounts: in a shared pid namespace a sibling container's cgroup is not in ours,
but `/proc/PID/root/sys/fs/cgroup` shows it. Formats: cgroups(7), "/proc files"; proc_pid_mountinfo(5). Both
files name paths relative to the reader's own cgroup namespace, so they may begin with `/..`.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from quayscope.sidecar import procfs
from quayscope.sidecar.errors import NoCgroup

__all__ = ["Cgroup", "Mount", "find", "members", "parse_hierarchy", "parse_mounts", "refuse_foreign"]

_MAX_MEMBERS = 65_536
_MAX_DIRECTORIES = 4_096
_MAX_BYTES = 4 << 20


class Mount(NamedTuple):
    """Where a hierarchy is mounted: `root` of it lies at `point`."""

    root: str
    point: str
    version: int


class Cgroup(NamedTuple):
    """A cgroup's directory as we reach it; `usage` is the file that counts its CPU."""

    directory: Path
    version: int
    usage: Path

    def cpu_ns(self) -> int:
        """Return the CPU that it and those below it have used; OSError or ValueError when it is gone."""
        text = _read(self.usage)
        if self.usage.name == "cpu.stat":
            fields = text.split()
            return int(fields[fields.index("usage_usec") + 1]) * 1000
        return int(text)


def parse_hierarchy(text: str, controller: str = "perf_event") -> tuple[str, int] | None:
    """Return the path and version of the hierarchy that a controller goes by, of a /proc/PID/cgroup.

    That is version 1's where the controller is in one, else version 2's. None: neither is there.
    """
    unified = None
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return path, 1
        if number == "0" and not controllers and path:
            unified = path
    return None if unified is None else (unified, 2)


def parse_mounts(text: str, version: int, controller: str = "perf_event") -> list[Mount]:
    """Return where that hierarchy is mounted, of a /proc/PID/mountinfo."""
    found = []
    for line in text.splitlines():
        front, separator, back = line.partition(" - ")
        before, after = front.split(" "), back.split(" ")
        if not separator or len(before) < 5 or len(after) < 3:
            continue
        kind, options = after[0], after[2].split(",")
        if (kind, version) == ("cgroup2", 2) or (kind == "cgroup" and version == 1 and controller in options):
            found.append(Mount(_unescape(before[3]), _unescape(before[4]), version))
    return found


def _unescape(path: str) -> str:
    # mountinfo writes space, tab, newline and backslash as three octal digits.
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(octal, character)
    return path


def _inside(path: str, root: str) -> str | None:
    """Return `path` relative to `root`, None when it lies elsewhere."""
    relative = posixpath.relpath(posixpath.normpath(path), posixpath.normpath(root))
    return None if relative.startswith("..") else relative


def find(pid: int, *, proc: Path = Path("/proc")) -> Cgroup:
    """Return the cgroup of a process that perf events go by, through its own mounts, else through ours.

    Raises `NoCgroup` when it cannot be reached, or is the root, which holds everybody.
    """
    directory, version = _reach(pid, "perf_event", proc)
    _refuse_root(directory, version)
    usage = directory / "cpu.stat"
    if version == 1:
        # The CPU is counted in another hierarchy, unless both are mounted together.
        usage = _reach(pid, "cpuacct", proc)[0] / "cpuacct.usage"
    return Cgroup(directory, version, usage)


def _reach(pid: int, controller: str, proc: Path) -> tuple[Path, int]:
    try:
        held = parse_hierarchy(_read(proc / str(pid) / "cgroup"), controller)
    except OSError as error:
        raise NoCgroup(f"cgroup of process {pid}: {error.strerror}") from error
    if held is None:
        raise NoCgroup(f"process {pid} is in no cgroup of {controller}")
    path, version = held
    for where, through in ((str(pid), proc / str(pid) / "root"), ("self", Path("/"))):
        with contextlib.suppress(OSError):
            for mount in parse_mounts(_read(proc / where / "mountinfo"), version, controller):
                inside = _inside(path, mount.root)
                if inside is None:
                    continue
                directory = through / mount.point.lstrip("/") / inside
                if _holds(directory, pid):
                    return directory, version
    raise NoCgroup(f"cgroup {path} of process {pid} is mounted nowhere that can be reached")


def _read(path: Path) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(_MAX_BYTES)


def _holds(directory: Path, pid: int) -> bool:
    return pid in _listed(directory)


def _refuse_root(directory: Path, version: int) -> None:
    # Only a root has release_agent (version 1), and only a root lacks cgroup.events (version 2); a root of a
    # cgroup namespace looks like any other from the outside.
    root = (
        (directory / "release_agent").exists() if version == 1 else not (directory / "cgroup.events").exists()
    )
    if root:
        raise NoCgroup("it is in the root cgroup, which holds everybody's processes")


def members(directory: Path) -> set[int]:
    """Return the processes of a cgroup and those below it; 0 stands for one that we cannot see.

    Raises `NoCgroup` when there are more than 65,536 of them or 4,096 cgroups, OSError when it is gone.
    """
    found: set[int] = set()
    pending = [directory]
    seen = 0
    while pending:
        seen += 1
        here = pending.pop()
        found |= _listed(here)
        with os.scandir(here) as entries:
            pending += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        if len(found) > _MAX_MEMBERS or seen + len(pending) > _MAX_DIRECTORIES:
            raise NoCgroup("the cgroup has too many processes to check whose they are")
    return found


def _listed(directory: Path) -> set[int]:
    return {int(line) for line in _read(directory / "cgroup.procs").split()}


def refuse_foreign(
    directory: Path,
    root_pid: int,
    pids: Callable[[], Collection[int]],
    *,
    proc: Path = Path("/proc"),
) -> None:
    """Raise `NoCgroup` unless every process in it belongs to the container of `root_pid`.

    Those are its descendants, `pids`, and whoever shares its mount namespace, where that is not also ours.
    """
    own = {root_pid, *pids()}
    others = members(directory) - own
    if os.getpid() in others:
        raise NoCgroup("the sidecar itself is in it")
    if not others:
        return
    space = _mounts_of(root_pid, proc)
    apart = space is not None and space != _mounts_of(os.getpid(), proc)
    others -= set(procfs.descendants(root_pid))
    for pid in sorted(others):
        if apart and _mounts_of(pid, proc) == space:
            continue
        # It may have ended since the list was read.
        if pid == 0 or (procfs.stat(pid) is not None and pid in members(directory)):
            raise NoCgroup(f"process {pid or '(not visible)'} is in it and does not belong to the target")


def _mounts_of(pid: int, proc: Path) -> str | None:
    with contextlib.suppress(OSError):
        return str((proc / str(pid) / "ns" / "mnt").readlink())
    return None
