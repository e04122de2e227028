"""One container, second by second: its cgroup, and what its processes did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.busiest import Busiest
from quayscope.sidecar.resources.cgroup import Cgroup
from quayscope.sidecar.resources.counters import Counters, boot_ns
from quayscope.sidecar.resources.mounts import cgroup_directories
from quayscope.sidecar.resources.processes import Process, Processes, Used
from quayscope.sidecar.resources.tried import PROCESS_IO, Tried

__all__ = ["Container", "ContainerWatch"]

_LOCATE_EVERY = 10


class Container(NamedTuple):
    """A container to measure: the series labels it is known by, and the pid of a process that lives in it."""

    labels: Mapping[str, str]
    pid: int


class ContainerWatch:
    """Measures what is known by one set of labels, whichever process and cgroup that is at the time.

    Its sums go on where a new process lives in the same cgroup, and begin anew where the cgroup is a new one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._counters = Counters(boot_ns())
        self._living: tuple[int, int] = (0, 0)
        self._located_for = 0
        self._cgroup = Cgroup({}, self._counters, name)
        self._delay_ns = 0
        self._busiest = Busiest()
        self.identity: tuple[int, int] | None = None
        """The cgroup, however its path is written; None where there is none."""

    def locate(self, process: Process, tried: Tried) -> None:
        """Find the cgroup of a process: when it is another one than before, and now and then."""
        living = (process.pid, process.start_ticks)
        self._located_for += 1
        if living == self._living and self._located_for < _LOCATE_EVERY and self.identity is not None:
            return
        self._living, self._located_for = living, 0
        directories = cgroup_directories(process.pid, tried, self._name)
        self._cgroup = Cgroup(directories, self._counters, self._name)
        self.identity = _identity(directories)

    def readings(
        self, process: Process, processes: Processes, tried: Tried, disks: Mapping[str, str]
    ) -> list[Reading]:
        """Return the container's second. Without a cgroup it is `process` and all below it."""
        found = self._cgroup.readings(tried, disks)
        inside = processes.chosen(self._cgroup.pids(tried)) or processes.tree(process.pid)
        busy: list[tuple[Process, Used]] = []
        for one in inside:
            used = processes.used(one, tried)
            self._delay_ns += used.delay_ns
            if used.read or used.written:
                busy.append((one, used))
        found.append(names.CONTAINER_PROCESSES.now(len(inside)))
        found.append(self._counters.at(names.CONTAINER_DELAY, self._delay_ns / 1e9))
        if tried.permitted(PROCESS_IO):
            found += self._busiest.readings(busy)
        return found


def _identity(directories: Mapping[str, str]) -> tuple[int, int] | None:
    for _, directory in sorted(directories.items()):
        try:
            facts = Path(directory).stat()
        except OSError:
            continue
        return facts.st_dev, facts.st_ino
    return None
