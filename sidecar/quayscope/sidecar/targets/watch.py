"""Every process of the pod as a target, kept current at a cost that does not grow with their number.

A scan lists /proc (0.1 ms for 150 processes) and looks only into what is new (0.15 ms each). A pid that was
given again shows a new inode number in that list, and the start time settles it. A process that became
another program (exec) shows another name or other arguments: the young ones are asked for these with each
scan until they are 3 s old, and five of the old ones in turn (20 us each).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from quayscope.sidecar import procfs
from quayscope.sidecar.targets.golang import BuildInfos
from quayscope.sidecar.targets.identify import POSTMASTER, Identity, identify
from quayscope.sidecar.targets.labels import labels_of
from quayscope.sidecar.targets.pod import Container, Pod, container_of, environment_of
from quayscope.sidecar.targets.postgres import UNKNOWN_BACKEND

__all__ = ["MAX_TARGETS", "Changes", "Target", "TargetWatch"]

MAX_TARGETS = 4096
"""Processes that are held; what comes beyond is counted in `passed_over`."""
MAX_ROLES = 128
"""Roles told apart at once: a series each; what comes beyond has the role `other`."""
YOUNG_S = 3.0
_SWEPT = 5
_MAX_LOOKS = 512
"""New processes looked into in one scan, 0.1 to 0.3 ms each; the rest waits for the next."""


class Target(NamedTuple):
    """A process of the pod. `labels` are its series labels; `start_ticks` as in `procfs.Stat`."""

    pid: int
    start_ticks: int
    parent: int
    identity: Identity
    container: Container
    labels: Mapping[str, str]

    @property
    def kind(self) -> str:
        """One of `identify.KINDS`."""
        return self.identity.kind

    @property
    def role(self) -> str:
        """The label `role`."""
        return self.labels.get("role", "")


class Changes(NamedTuple):
    """What a scan found: targets that came or became something else, and targets that went."""

    came: list[Target]
    gone: list[Target]


class _Process(NamedTuple):
    inode: int
    start_ticks: int
    name: str
    arguments: int
    target: Target | None


class TargetWatch:
    """Holds the pod's targets. `scan` and `targets` are for one thread; a target is a value.

    `given` are labels that win over all others. Of a node whose processes are all visible, only those of the
    own pod are targets. The sidecar and what it starts are none.
    """

    def __init__(
        self,
        pod: Pod,
        given: Mapping[str, str] | None = None,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._pod = pod
        self._given = dict(given or {})
        self._clock = clock
        self._own = os.getpid()
        self._own_container = container_of("self")
        self._build_infos = BuildInfos()
        self._held: dict[int, _Process] = {}
        self._young: set[int] = set()
        self._queue: deque[int] = deque()
        self._roles: set[str] = set()
        self.passed_over = 0

    def targets(self) -> list[Target]:
        """Return what the last scan left, by pid."""
        return [process.target for _, process in sorted(self._held.items()) if process.target is not None]

    def __len__(self) -> int:
        return len(self._held)

    def scan(self) -> Changes:
        """Look at /proc again; returns what changed."""
        listed = _listed()
        before: dict[int, Target] = {}
        held = self._held
        for pid in held.keys() - listed.keys():
            self._drop(pid, before)
        looks = [pid for pid, inode in listed.items() if pid not in held or held[pid].inode != inode]
        looks += [pid for pid in self._young if pid in held]
        looks += self._swept()
        touched = set()
        for pid in looks[:_MAX_LOOKS]:
            if pid not in touched and pid in listed:
                touched.add(pid)
                self._look(pid, listed[pid], before)
        came = [
            process.target
            for pid in touched
            if (process := held.get(pid)) is not None
            and process.target is not None
            and before.get(pid) != process.target
        ]
        gone = [old for pid, old in before.items() if not self._is_same(old)]
        return Changes(came, gone)

    def _is_same(self, old: Target) -> bool:
        process = self._held.get(old.pid)
        return process is not None and process.start_ticks == old.start_ticks and process.target is not None

    def _drop(self, pid: int, before: dict[int, Target]) -> None:
        process = self._held.pop(pid)
        self._young.discard(pid)
        if process.target is not None:
            before[pid] = process.target

    def _swept(self) -> Collection[int]:
        """Return the next few of the old processes."""
        if not self._queue:
            self._queue.extend(self._held)
        return [self._queue.popleft() for _ in range(min(_SWEPT, len(self._queue)))]

    def _look(self, pid: int, inode: int, before: dict[int, Target]) -> None:
        facts = procfs.stat(pid)
        held = self._held.get(pid)
        if facts is None or facts.state in "ZX":
            if held is not None:
                self._drop(pid, before)
            return
        arguments = hash(tuple(procfs.arguments(pid)))
        if held is not None and not _is_another(held, facts, arguments):
            self._held[pid] = held._replace(inode=inode)
            self._note_age(pid, facts)
            return
        if held is None and len(self._held) >= MAX_TARGETS:
            self.passed_over += 1
            return
        if held is not None and held.target is not None:
            before[pid] = held.target
        target = self._target(pid, facts)
        self._held[pid] = _Process(inode, facts.start_ticks, facts.name, arguments, target)
        self._note_age(pid, facts)

    def _note_age(self, pid: int, facts: procfs.Stat) -> None:
        if self._clock() - facts.start_ticks * procfs.TICK_NS / 1e9 < YOUNG_S:
            self._young.add(pid)
        else:
            self._young.discard(pid)

    def _target(self, pid: int, facts: procfs.Stat) -> Target | None:
        if pid == self._own or facts.parent == self._own:
            return None
        identity = identify(pid, facts, self._build_infos)
        if identity is None:
            return None
        container = container_of(pid)
        if self._is_foreign(container):
            return None
        labels = labels_of(
            identity, container, environment_of(pid), self._pod, self._own_container, self._given
        )
        if "role" in labels:
            labels["role"] = self._bounded(labels["role"])
        return Target(pid, facts.start_ticks, facts.parent, identity, container, labels)

    def _is_foreign(self, container: Container) -> bool:
        """Whether a process is another pod's. Seen from a cgroup namespace, only others show a pod."""
        return self._pod.inside and bool(container.pod_uid) and container.pod_uid != self._pod.uid

    def _bounded(self, role: str) -> str:
        if role not in self._roles and len(self._roles) >= MAX_ROLES:
            held = {process.target.role for process in self._held.values() if process.target is not None}
            self._roles = held & self._roles
        if role in self._roles or len(self._roles) < MAX_ROLES:
            self._roles.add(role)
            return role
        return "other"


def _is_another(held: _Process, facts: procfs.Stat, arguments: int) -> bool:
    """Whether a pid is not the process, or not the program, that it was."""
    if held.start_ticks != facts.start_ticks or held.name != facts.name:
        return True
    target = held.target
    if target is not None and target.kind == "postgres":
        # Its title changes with each statement; only what it is at all is still to be seen.
        return target.identity.role in (UNKNOWN_BACKEND, POSTMASTER) and held.arguments != arguments
    return held.arguments != arguments


def _listed() -> dict[int, int]:
    """Return the inode number of each process's folder, by pid: one listing, no look into any."""
    with os.scandir("/proc") as entries:
        return {int(entry.name): entry.inode() for entry in entries if entry.name.isdigit()}
