"""Containers under plain runc, two and more in one pod, all removed at the end whatever happened.

Not podman: it gives a process that is not uid 0 the capabilities listed as ambient ones, which a kubelet's
runtimes do not, so what it permits proves nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from oci.bundle import Container, make_root, write_bundle

__all__ = ["Machine", "Pod", "machine"]

_PATIENCE_S = 60.0
_CGROUPS = Path("/sys/fs/cgroup")


class Machine:
    """A node: pods are started on it. `containers` is a folder for what they are made of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder / "root"
        self._state = folder / "state"
        self.name = f"quayscope-{uuid.uuid4().hex[:8]}"
        self._containers: list[str] = []
        make_root(self._root)

    def pod(self, name: str, uid: int = 65535) -> Pod:
        """Start a pod: an empty container that holds its namespaces, pid 1 of them, as the user `uid`."""
        pause = self.start(
            Container(
                f"{name}-pause",
                ["bash", "-c", "exec -a /pause sleep infinity"],
                uid=uid,
                cgroup=f"/{self.name}/{name}/pause",
            )
        )
        return Pod(self, name, pause)

    def start(self, container: Container) -> int:
        """Start a container and return its first process's pid; what it prints lands in its log."""
        identity, bundle = self._make(container)
        with self.log(container.name).open("wb") as log:
            self._runc("run", "--detach", "--bundle", str(bundle), identity, output=log.fileno())
        return int(json.loads(self._runc("state", identity))["pid"])

    def run(self, container: Container) -> tuple[int, bytes]:
        """Run a container to its end; returns its exit code and what it printed."""
        identity, bundle = self._make(container)
        with self.log(container.name).open("wb") as log:
            done = subprocess.run(
                [*self._command(), "run", "--bundle", str(bundle), identity],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=_PATIENCE_S,
            )
        self._containers.remove(identity)  # runc removes what it ran in the foreground
        return done.returncode, done.stdout

    def log(self, name: str) -> Path:
        """Where the messages of a container are."""
        return self._folder / f"{name}.log"

    def close(self) -> None:
        """End and remove every container, their cgroups and their folders."""
        # All at once: runc looks ten times a second whether what it killed has gone.
        removals = [
            subprocess.Popen(
                [*self._command(), "delete", "--force", identity],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for identity in self._containers
        ]
        for removal in removals:
            try:
                removal.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                removal.kill()
                removal.wait()
        _remove_cgroups(self.name)
        _remove_root(self._root)
        if not self._root.exists():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self, container: Container) -> tuple[str, Path]:
        identity = f"{self.name}-{container.name}"
        bundle = self._folder / container.name
        write_bundle(bundle, container.root or self._root, container)
        self._containers.append(identity)
        return identity, bundle

    def _command(self) -> list[str]:
        return ["runc", "--root", str(self._state)]

    def _runc(self, *arguments: str, output: int | None = None) -> str:
        # A detached container keeps the descriptors that runc had: a pipe would never end.
        done = subprocess.run(
            [*self._command(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.STDOUT if output is None else output,
            timeout=_PATIENCE_S,
            check=True,
        )
        return (done.stdout or b"").decode()


class Pod:
    """Containers that share the namespaces of processes, network and IPC, as `shareProcessNamespace` does."""

    def __init__(self, machine: Machine, name: str, pause: int) -> None:
        self._machine = machine
        self.name = name
        self.pause = pause
        self._joins = {
            kind: f"/proc/{pause}/ns/{file}"
            for kind, file in (("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
        }

    def start(self, container: Container) -> int:
        """Start a container of the pod; returns its first process's pid as this machine sees it."""
        return self._machine.start(self._placed(container))

    def run(self, container: Container) -> tuple[int, bytes]:
        """Run a container of the pod to its end; returns its exit code and what it printed."""
        return self._machine.run(self._placed(container))

    def _placed(self, container: Container) -> Container:
        cgroup = f"/{self._machine.name}/{self.name}/{container.name}"
        return replace(container, joins=self._joins, cgroup=cgroup)


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """A node for tests; everything on it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="quayscope-oci-"))
    folder.chmod(0o755)
    made = Machine(folder)
    try:
        yield made
    finally:
        made.close()


def _remove_cgroups(name: str) -> None:
    for hierarchy in (_CGROUPS, *_CGROUPS.glob("*/")):
        top = hierarchy / name
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def _remove_root(root: Path) -> None:
    """Remove empty folders and links alone: what would still be mounted there is the machine's."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in (*folders, *files):
            path = Path(folder) / name
            with contextlib.suppress(OSError):
                path.unlink() if path.is_symlink() else path.rmdir()
    with contextlib.suppress(OSError):
        root.rmdir()
