"""Runs a Pod object as containers under plain runc, with exactly what the object says of each of them.

Users, capabilities, variables, volumes and commands come from the object; an image is what `Image` says:
programs of this machine under another environment. Nothing is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from oci.bundle import Container
from oci.runtime import Machine, Pod

__all__ = ["Image", "StartFailed", "Started", "as_container", "start_pod", "write_podinfo"]

_PAUSE_UID = 65535
_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True)
class Image:
    """What an image brings: its environment, files (read-only), user and command."""

    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    uid: int = 0
    command: tuple[str, ...] = ()


class Started(NamedTuple):
    """A running pod, and the first process of each container that stays, as this machine sees it."""

    pod: Pod
    pids: dict[str, int]


class StartFailed(Exception):
    """An init container ended with another code than 0."""


def start_pod(
    node: Machine,
    name: str,
    pod: Mapping[str, Any],
    images: Mapping[str, Image],
    volumes: Mapping[str, Path],
    connect: Callable[[Pod], None] = lambda _: None,
) -> Started:
    """Start a pod as a kubelet does: pause, init containers one after the other, then the others.

    `volumes` are folders for the volumes by name; each must be there, open to whom it is for. `connect` is
    called once the pod has its network, before anything of it runs.
    """
    spec = pod["spec"]
    context = spec.get("securityContext") or {}
    # A container runtime gives the pause container the pod's user, where there is one.
    made = node.pod(name, context.get("runAsUser", _PAUSE_UID))
    started = Started(made, {})
    connect(made)
    for one in spec.get("initContainers") or ():
        container = as_container(name, pod, one, images, volumes)
        if one.get("restartPolicy") == "Always":
            started.pids[one["name"]] = made.start(container)
            continue
        code, printed = made.run(container)
        if code != 0:
            said = node.log(container.name).read_text()
            raise StartFailed(f"{one['name']} ended with {code}: {said}{printed.decode()}")
    for one in spec["containers"]:
        started.pids[one["name"]] = made.start(as_container(name, pod, one, images, volumes))
    return started


def as_container(
    name: str,
    pod: Mapping[str, Any],
    one: Mapping[str, Any],
    images: Mapping[str, Image],
    volumes: Mapping[str, Path],
) -> Container:
    """Return what runs for the container `one` of a pod, that is called `name` here."""
    image = images[one["image"]]
    context = {**(pod["spec"].get("securityContext") or {}), **(one.get("securityContext") or {})}
    environment = dict(image.environment)
    for variable in one.get("env") or ():
        environment[variable["name"]] = _value(variable, pod, environment)
    uid = context.get("runAsUser", image.uid)
    if context.get("runAsNonRoot") and uid == 0:
        raise StartFailed(f"{one['name']}: runAsNonRoot, and the image's user is root")
    read_only, writable = dict(image.files), dict[str, Path]()
    for mount in one.get("volumeMounts") or ():
        folder = volumes[mount["name"]] / mount.get("subPath", "")
        (read_only if mount.get("readOnly") else writable)[mount["mountPath"]] = folder
    capabilities = context.get("capabilities") or {}
    assert not capabilities or capabilities.get("drop") == ["ALL"], capabilities
    command = one.get("command") or image.command
    return Container(
        f"{name}-{one['name']}",
        [_expanded(part, environment) for part in (*command, *(one.get("args") or ()))],
        uid=uid,
        capabilities=capabilities.get("add", ()),
        escalation=context.get("allowPrivilegeEscalation", True),
        environment=environment,
        binds=read_only,
        volumes=writable,
    )


def _value(variable: Mapping[str, Any], pod: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    if "valueFrom" not in variable:
        return _expanded(variable.get("value", ""), environment)
    path = variable["valueFrom"]["fieldRef"]["fieldPath"].split(".")
    return str(pod[path[0]].get(path[1], ""))


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: environment.get(match[1], match[0]), text)


def write_podinfo(folder: Path, pod: Mapping[str, Any]) -> None:
    """Write labels and annotations as the downward API does."""
    for kind in ("labels", "annotations"):
        entries = pod["metadata"].get(kind) or {}
        text = "".join(f"{key}={json.dumps(value)}\n" for key, value in sorted(entries.items()))
        (folder / kind).write_text(text, encoding="utf-8")
