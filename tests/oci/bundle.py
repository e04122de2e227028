"""What an OCI runtime needs to start a container: a root folder and a configuration.

The root is this machine's own programs, bound read-only: no image is fetched, and what the tests run inside
is what they run outside. Format: the OCI runtime specification 1.0.2, config.md and config-linux.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oci.seccomp import default_filter

__all__ = ["Container", "make_root", "write_bundle"]

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc", "opt")
_MASKED = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass(frozen=True)
class Container:
    """One container as a pod spec would describe it.

    `capabilities` are what `securityContext.capabilities.add` names after `drop: [ALL]`: like a kubelet's
    runtime, they are bounding, permitted and effective, never ambient, so that they do nothing for a process
    that is not uid 0. `joins` are paths of namespaces by their kind; a kind with an empty path is made anew.
    """

    name: str
    arguments: Sequence[str]
    uid: int = 1000
    capabilities: Sequence[str] = ()
    escalation: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    joins: Mapping[str, str] = field(default_factory=dict)
    cgroup: str = ""
    binds: Mapping[str, Path] = field(default_factory=dict)
    """Read-only: where in the container, and which folder of ours."""
    volumes: Mapping[str, Path] = field(default_factory=dict)
    """The same, to be written to."""
    root: Path | None = None
    """The files of a built image; None: this machine's own programs."""


def make_root(folder: Path) -> None:
    """Make the root folder that all containers may share: mount points, and links as on this machine."""
    folder.mkdir()
    for name in _SYSTEM:
        original = Path("/") / name
        if original.is_symlink():
            (folder / name).symlink_to(original.readlink())
        elif original.is_dir():
            (folder / name).mkdir()
    for name in ("proc", "dev", "sys", "run"):
        (folder / name).mkdir()
    # What is mounted on a folder gets the folder's mode.
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)


def python_binds(checkout: Path) -> dict[str, Path]:
    """Return what our code needs in a container: the interpreter, its packages and the checkout, in place."""
    wanted = [Path(sys.base_prefix), Path(sys.prefix), checkout]
    return {str(path): path for path in wanted if path.parts[1] not in _SYSTEM}


def write_bundle(folder: Path, root: Path, container: Container) -> None:
    """Write the container's configuration as `config.json` in `folder`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_configuration(root, container)), encoding="utf-8")


def _configuration(root: Path, container: Container) -> dict[str, Any]:
    capabilities = [f"CAP_{name}" for name in container.capabilities]
    # By path, so that one within another is mounted after it.
    folders = [(path, source, "ro") for path, source in container.binds.items()]
    folders += [(path, source, "rw") for path, source in container.volumes.items()]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", **container.environment}
    namespaces = [{"type": "mount"}, {"type": "cgroup"}]
    for kind in ("pid", "network", "ipc", "uts"):
        path = container.joins.get(kind, "")
        namespaces.append({"type": kind, "path": path} if path else {"type": kind})
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": container.uid, "gid": container.uid},
            "args": list(container.arguments),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "permitted", "effective"), capabilities),
            "noNewPrivileges": not container.escalation,
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": [
            *_mounts(container),
            *(_bind(*mount) for mount in sorted(folders)),
        ],
        "linux": {
            "cgroupsPath": container.cgroup,
            "namespaces": namespaces,
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
            "seccomp": default_filter(container.capabilities),
        },
    }


def _mounts(container: Container) -> list[dict[str, Any]]:
    fresh = ["nosuid", "nodev"]
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*fresh, "mode=1777"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*fresh, "noexec", "ro"]},
        # Where perf_event is a hierarchy of its own, a container sees that of version 1.
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup" if Path("/sys/fs/cgroup/perf_event").is_dir() else "cgroup2",
            "source": "cgroup",
            "options": [*fresh, "noexec", "ro", "relatime"],
        },
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [*fresh, "mode=1777"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": [*fresh, "mode=755"]},
    ]
    if container.root is not None:
        return mounts
    # Where a container has a folder of its own in one of this machine's, that is not bound.
    covered = {Path(path).parts[1] for path in container.binds if Path(path).parts[1] == "opt"}
    for name in _SYSTEM:
        original = Path("/") / name
        if original.is_dir() and not original.is_symlink() and name not in covered:
            mounts.append(_bind(f"/{name}", original, "ro"))
    return mounts


def _bind(path: str, source: Path, access: str) -> dict[str, Any]:
    return {
        "destination": path,
        "type": "bind",
        "source": os.fspath(source),
        "options": ["rbind", access, "nosuid", "nodev", "rprivate"],
    }
