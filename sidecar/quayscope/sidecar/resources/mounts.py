"""Where the files of a process's container are: its cgroup's directory in each hierarchy, v1 or v2.

A sibling container's cgroup is not below our own mount; the target's root (`/proc/PID/root`) reaches the one
that its runtime mounted for it. The kernel tells paths of cgroups and of the mounts' roots as our own cgroup
namespace sees them: both alike, so they can be compared. Formats: cgroups(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from quayscope.sidecar.resources.tried import CONTAINER, Tried

__all__ = ["UNIFIED", "Mount", "below", "cgroup_directories", "parse_cgroups", "parse_mounts"]

UNIFIED = "unified"
"""The name of the v2 hierarchy, beside v1's controllers."""


_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A mount of a hierarchy: `root` is the cgroup that is seen at `point`."""

    root: str
    point: str
    controllers: frozenset[str]


def parse_cgroups(text: str) -> dict[str, str]:
    """Return the path of the process's cgroup by controller, and by `UNIFIED`."""
    paths = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            names = [UNIFIED] if number == "0" and not controllers else controllers.split(",")
            paths.update(dict.fromkeys(names, path))
    return paths


def parse_mounts(text: str) -> list[Mount]:
    """Return the mounts of cgroup hierarchies."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(" ")
        try:
            end = fields.index("-", 6)
            root, point, kind, options = fields[3], fields[4], fields[end + 1], fields[end + 3]
        except (ValueError, IndexError):
            continue
        if kind == "cgroup2":
            mounts.append(Mount(_plain(root), _plain(point), frozenset({UNIFIED})))
        elif kind == "cgroup":
            mounts.append(Mount(_plain(root), _plain(point), frozenset(options.split(","))))
    return mounts


def _plain(path: str) -> str:
    return _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), path)


def cgroup_directories(pid: int, tried: Tried, name: str) -> dict[str, str]:
    """Return the directory of the container that `pid` lives in, by controller and `UNIFIED`.

    Only what is proven: a hierarchy whose mount does not reach it is left out, and so is one where the
    process is in the root cgroup, which is the node and no container. Both are noted in `tried` as `name`'s.
    """
    paths = parse_cgroups(tried.read(CONTAINER, f"/proc/{pid}/cgroup", f"{name}: /proc/PID/cgroup") or "")
    found: dict[str, str] = {}
    refusal = ""
    for owner, prefix in ((pid, f"/proc/{pid}/root"), (os.getpid(), "")):
        text = tried.read(CONTAINER, f"/proc/{owner}/mountinfo", f"{name}: /proc/PID/mountinfo")
        try:
            for controller, directory in below(parse_mounts(text or ""), paths, prefix):
                found.setdefault(controller, directory)
        except PermissionError as error:
            refusal = f"; /proc/PID/root: {error.strerror}"
    if not found and paths:
        tried.refused(CONTAINER, name, f"it is in the root cgroup, or in one that no mount reaches{refusal}")
    return found


def below(mounts: Iterable[Mount], paths: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield controller and directory where the mounts, found below `prefix`, show the cgroups at `paths`."""
    for mount in mounts:
        point = Path(prefix + mount.point)
        for controller in mount.controllers & paths.keys():
            path = paths[controller]
            if not _is_top(point):
                # What a container's own mount shows is its cgroup, even when the process is further below.
                if _within(path, mount.root):
                    yield controller, str(point)
            elif path != "/" and _within(path, "/") and (point / path[1:]).is_dir():
                yield controller, str(point / path[1:])


def _within(path: str, root: str) -> bool:
    """Whether a cgroup is `root` or below; `/..` leads out of our own namespace, so not below `/`."""
    if path == root:
        return True
    return path.startswith(root.rstrip("/") + "/") and path.startswith("/..") == root.startswith("/..")


def _is_top(directory: Path) -> bool:
    """Whether this is the root of its hierarchy, by files that only a root has (v1) or lacks (v2)."""
    if (directory / "cgroup.controllers").exists():
        return not (directory / "cgroup.type").exists()
    return (directory / "release_agent").exists() or not directory.is_dir()
