"""The pod that the sidecar is in, and the container that a process is in.

The downward API gives POD_NAME, POD_NAMESPACE and POD_UID as variables, and labels and annotations as files
(a line each, `key="value"` with Go's escapes) in a volume. A container is known by its process's cgroup path:
`kubelet` names the pod's folder `pod<UID>` or `kubepods-...-pod<UID with _>.slice`, and the runtime the
container's folder by its 64 hexadecimal digits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Container", "Pod", "container_of", "environment_of", "parse_cgroup", "parse_podinfo", "read_pod"]

PODINFO = Path("/etc/podinfo")
"""Where the pod spec mounts the downward-API volume, by default."""
COMPONENT_LABEL = "quay-component"
OPERATOR_LABEL = "quay-operator/quayregistry"
COMPONENT_ANNOTATION = "quayscope.io/component"
_POD_UID = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")
_CONTAINER_ID = re.compile(r"(?:^|[/-])([0-9a-f]{64})(?:\.scope)?(?:/|$)")
_MAX_FILE = 1 << 20
_MAX_ENVIRONMENT = 128 << 10
_READ_VARIABLES = frozenset(
    ("POD_NAME", "POD_NAMESPACE", "QUAYSCOPE_ROLE", "QUAYSCOPE_SERVICE_NAME", "OTEL_SERVICE_NAME")
)
"""All that is ever kept of another process's environment."""


class Pod(NamedTuple):
    """What is known of the pod; empty strings where it is not. `inside`: we run in one."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    component: str = ""
    operator: bool = False
    inside: bool = False


class Container(NamedTuple):
    """`pod_uid` and `id` (64 hexadecimal digits) from a cgroup path; empty where it does not say.

    `path` is the path itself: two processes of one container have the same.
    """

    pod_uid: str = ""
    id: str = ""
    path: str = ""


def read_pod(environment: Mapping[str, str], podinfo: Path = PODINFO, component: str = "") -> Pod:
    """Return the pod from the sidecar's own environment and downward-API volume.

    `component` given wins over the operator's label, and that over the annotation. Files that are missing or
    not readable say nothing.
    """
    labels = parse_podinfo(_read(podinfo / "labels"))
    annotations = parse_podinfo(_read(podinfo / "annotations"))
    own = container_of("self")
    return Pod(
        environment.get("POD_NAME", ""),
        environment.get("POD_NAMESPACE", ""),
        environment.get("POD_UID", "") or own.pod_uid,
        component or labels.get(COMPONENT_LABEL) or annotations.get(COMPONENT_ANNOTATION, ""),
        OPERATOR_LABEL in labels,
        "KUBERNETES_SERVICE_HOST" in environment or bool(environment.get("POD_NAME") or own.pod_uid),
    )


def parse_podinfo(text: str) -> dict[str, str]:
    """Return the entries of a downward-API file of labels or annotations; broken lines are passed over."""
    entries = {}
    for line in text.splitlines():
        key, equals, quoted = line.partition("=")
        if not equals:
            continue
        try:
            value = json.loads(quoted)
        except ValueError:
            continue
        if isinstance(value, str):
            entries[key] = value
    return entries


def parse_cgroup(text: str) -> Container:
    """Return the container that a /proc/PID/cgroup names, v1 or v2: the line that says most."""
    best = Container()
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        uid = _POD_UID.search(path)
        ids = _CONTAINER_ID.findall(path)
        # The innermost one: a container may run containers.
        found = Container(uid[1].replace("_", "-") if uid else "", ids[-1] if ids else "", path)
        if (bool(found.id) + bool(found.pod_uid), found.path != "/") > (
            bool(best.id) + bool(best.pod_uid),
            best.path not in ("", "/"),
        ):
            best = found
    return best


def container_of(pid: int | str) -> Container:
    """Return the container of a process; an empty one when it is gone or in none."""
    return parse_cgroup(_read(Path(f"/proc/{pid}/cgroup")))


def environment_of(pid: int) -> dict[str, str]:
    """Return the few variables that name a process's pod and role, where its environment may be read.

    Nothing else of it is kept, and nothing of it is logged or sent but as these labels.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            raw = file.read(_MAX_ENVIRONMENT)
    except OSError:
        return {}
    found = {}
    for entry in raw.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        key = name.decode("ascii", "replace")
        if equals and key in _READ_VARIABLES:
            found[key] = value.decode(errors="replace")[:200]
    return found


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_FILE)
    except OSError:
        return ""
