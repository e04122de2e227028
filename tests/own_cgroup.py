"""A cgroup of a test's own, in each hierarchy that resources are read from; removed at the end.

v1's, and v2's beside them where it is mounted as `unified`: it has no controllers then, but pressure.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MOUNTS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "memory", "blkio")


class OwnCgroup:
    """Its directories by controller, all of one name."""

    def __init__(self, name: str) -> None:
        self.name = name
        hierarchies = [*CONTROLLERS, *(["unified"] if (MOUNTS / "unified" / "cgroup.procs").exists() else [])]
        self.directories = {hierarchy: MOUNTS / hierarchy / name for hierarchy in hierarchies}

    def set(self, controller: str, file: str, value: int | str) -> None:
        (self.directories[controller] / file).write_text(f"{value}\n")

    def get(self, controller: str, file: str) -> str:
        return (self.directories[controller] / file).read_text()

    def limit_cpu(self, share: float, period_us: int = 100_000) -> None:
        """Allow `share` of one CPU."""
        self.set("cpu", "cpu.cfs_period_us", period_us)
        self.set("cpu", "cpu.cfs_quota_us", int(share * period_us))

    def add(self, pid: int) -> None:
        """Move a process in; what it starts from then on is inside too."""
        for hierarchy in self.directories:
            self.set(hierarchy, "cgroup.procs", pid)

    def entering(self, *command: str) -> list[str]:
        """Return a command line that enters first, then becomes `command`."""
        enter = " && ".join(f"echo $$ > {path}/cgroup.procs" for path in self.directories.values())
        return ["/bin/sh", "-c", f'{enter} && exec "$@"', "sh", *command]

    def contained(self, *command: str) -> list[str]:
        """Return a command line that enters and sees only its own cgroups, as in a container."""
        binds = " && ".join(f"mount --bind {path} {path.parent}" for path in self.directories.values())
        return self.entering("unshare", "--mount", "/bin/sh", "-c", f'{binds} && exec "$@"', "sh", *command)

    def remove(self) -> None:
        """Move out who is left, and remove the directories; who is just ending may hold one a moment."""
        for controller, path in self.directories.items():
            deadline = time.monotonic() + 5
            while path.exists():
                with contextlib.suppress(OSError):
                    for pid in (path / "cgroup.procs").read_text().split():
                        (MOUNTS / controller / "cgroup.procs").write_text(pid)
                try:
                    path.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)


@contextlib.contextmanager
def own_cgroup() -> Iterator[OwnCgroup]:
    """Make one, or skip the test where cgroup v1 is not mounted or not ours to change."""
    made = OwnCgroup(f"qs-{os.getpid()}-{secrets.token_hex(4)}")
    missing = [name for name in CONTROLLERS if not os.access(MOUNTS / name, os.W_OK)]
    if missing:
        pytest.skip(f"no cgroup v1 to make a cgroup in: {', '.join(missing)}")
    try:
        for path in made.directories.values():
            path.mkdir()
        yield made
    finally:
        made.remove()
