"""What there is to capture: the workers with an agent, the database, and the programs that are watched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Protocol

from quayscope.profile.control import Target
from quayscope.relay import ConnectedWorker
from quayscope.sidecar import procfs
from quayscope.sidecar.python import PythonTarget
from quayscope.sidecar.targets import Postmaster
from quayscope.sidecar.targets.watch import Target as WatchedTarget

__all__ = ["Inventory"]

MAX_TARGETS = 1_024
"""Told to the collector; what comes beyond cannot be captured."""
_QUAY = "quay-app"


class _Workers(Protocol):
    def workers(self) -> list[ConnectedWorker]: ...


class _Database(Protocol):
    server: Postmaster | None


class _Programs(Protocol):
    chosen: tuple[WatchedTarget, ...]


class Inventory:
    """Answers for the moment it is asked, from any thread. `labels` are the pod's."""

    def __init__(
        self,
        labels: Mapping[str, str],
        workers: _Workers,
        database: _Database,
        database_service: str,
        programs: _Programs,
        python: Iterable[PythonTarget] = (),
    ) -> None:
        self._labels = dict(labels)
        self._workers = workers
        self._database = database
        self._database_service = database_service
        self._programs = programs
        self._python = list(python)

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the pod."""
        return dict(self._labels)

    def targets(self) -> tuple[Target, ...]:
        """Return them by pid."""
        found: dict[int, Target] = {}
        for one in self._programs.chosen:
            # A server's processes are captured with it, not one by one.
            if one.kind != "postgres":
                found[one.pid] = Target(one.pid, one.kind, {**self._labels, **one.labels})
        for given in self._python:
            if given.pid not in found and procfs.cpu_ns(given.pid) is not None:
                labels = {**self._labels, "service_name": _QUAY, "role": given.role}
                found[given.pid] = Target(given.pid, "python", labels)
        for worker in self._workers.workers():
            known = found[worker.pid].labels if worker.pid in found else {}
            labels = {**known, **self._labels, "service_name": worker.service, "role": worker.role}
            found[worker.pid] = Target(worker.pid, "python", labels)
        server = self._database.server
        if server is not None:
            labels = {**self._labels, "service_name": self._database_service}
            found[server.pid] = Target(server.pid, "postgres", labels)
        return tuple(found[pid] for pid in sorted(found)[:MAX_TARGETS])


def pod_labels(given: Mapping[str, str], name: str, namespace: str) -> dict[str, str]:
    """Return the labels of the pod: those given, else what is known of it, its host name at least."""
    known = {"namespace": namespace, "pod": name or os.uname().nodename}
    return {**{label: value for label, value in known.items() if value}, **given}
