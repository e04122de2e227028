"""What a pod is to us: one to inject, and as which component, or one to leave alone, and why.

Labels and container names are quay-operator's: `quay-component` is quay-app, quay-mirror, clair-app, postgres
(Quay's database), clair-postgres or redis; the container is named as the component (docs of the operator,
kustomize/components in its sources).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from quayscope.injector.settings import MODES

__all__ = [
    "COMPONENT",
    "CONTAINER",
    "INJECT",
    "INJECTED",
    "MODE",
    "PYTHONPATH",
    "RUN_AS_USER",
    "LeftAlone",
    "Subject",
    "classify",
]

INJECT = "quayscope.io/inject"
"""Label: "true" asks for injection, anything else does not."""
COMPONENT = "quayscope.io/component"
CONTAINER = "quayscope.io/container"
MODE = "quayscope.io/mode"
PYTHONPATH = "quayscope.io/pythonpath"
RUN_AS_USER = "quayscope.io/run-as-user"
INJECTED = "quayscope.io/injected"
"""Annotation on a pod that was injected, its value the mode; such a pod is never touched again."""

OURS = "quayscope-"
"""How the name of each container and volume of ours begins."""
PYTHON = ("quay-app", "quay-mirror")
DATABASES = ("quay-database", "clair-postgres")
_SERVICES = {
    "quay-app": "quay-app",
    "quay-mirror": "quay-mirror",
    "clair-app": "clair-app",
    "postgres": "quay-database",
    "quay-database": "quay-database",
    "clair-postgres": "clair-postgres",
}
_CONTAINERS = {"quay-database": ("postgres", "quay-database")}
_MAX_UID = 2**31 - 1
Object = Mapping[str, Any]


class LeftAlone(NamedTuple):
    """A pod that is not changed. `outcome` counts it; `warning` is for whoever asked for injection."""

    outcome: str
    warning: str = ""


class Subject(NamedTuple):
    """A pod to inject: the service it is, which of its containers, how, and what annotations said."""

    service: str
    container: int
    mode: str
    pythonpath: str | None
    uid: int | None

    @property
    def is_python(self) -> bool:
        """Whether the agent goes into it."""
        return self.service in PYTHON

    @property
    def is_database(self) -> bool:
        """Whether a Postgres starts in it."""
        return self.service in DATABASES


def classify(
    pod: Object, mode: str, uids: Mapping[str, int], *, namespace: str, own: str
) -> Subject | LeftAlone:
    """Decide on one pod. `namespace` is the pod's, `own` the injector's.

    The pod is a Pod object whose `metadata` and `spec` are mappings; whatever else is wrong with it is for
    the API server to refuse.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    labels = _texts(metadata.get("labels"))
    annotations = _texts(metadata.get("annotations"))
    if labels.get(INJECT) != "true":
        return LeftAlone("not-asked")
    if own and namespace == own:
        return LeftAlone("own-namespace")
    if INJECTED in annotations:
        return LeftAlone("already")
    if _of_a_job(metadata, labels):
        return LeftAlone("job")
    name = labels.get("quay-component") or annotations.get(COMPONENT, "")
    if name == "redis":
        return LeftAlone("redis")
    service = _SERVICES.get(name)
    if service is None:
        what = f"{name!r} is no component" if name else f"no label quay-component or annotation {COMPONENT}"
        return LeftAlone("no-component", f"{what}: expected one of {', '.join(sorted(set(_SERVICES)))}")
    return _examine(spec, annotations, service, mode, uids)


def _examine(
    spec: Object, annotations: Mapping[str, str], service: str, mode: str, uids: Mapping[str, int]
) -> Subject | LeftAlone:
    if _is_windows(spec):
        return LeftAlone("windows", "Windows has no perf events")
    if service not in PYTHON and (spec.get("hostPID") or spec.get("shareProcessNamespace") is False):
        return LeftAlone(
            "not-shared",
            "the sidecar needs shareProcessNamespace, which hostPID or this pod itself rules out",
        )
    for kind in ("containers", "initContainers", "volumes"):
        for one in spec.get(kind) or ():
            if str(one.get("name", "")).startswith(OURS):
                return LeftAlone("name-taken", f"{kind} has a {one['name']!r} that is not ours")
    wanted = annotations.get(MODE, mode)
    if wanted not in MODES:
        return LeftAlone("bad-annotation", f"{MODE} is {wanted!r}: expected one of {', '.join(MODES)}")
    containers = list(spec.get("containers") or ())
    names = [one.get("name") for one in containers]
    candidates = (
        (annotations[CONTAINER],) if CONTAINER in annotations else _CONTAINERS.get(service, (service,))
    )
    found = [names.index(name) for name in candidates if name in names]
    if not found and CONTAINER not in annotations and len(names) == 1:
        found = [0]
    if not found:
        return LeftAlone("no-container", f"no container {' or '.join(candidates)}: name it with {CONTAINER}")
    place = found[0]
    asked = annotations.get(RUN_AS_USER)
    if asked is not None and not (asked.isascii() and asked.isdigit() and 0 < int(asked) <= _MAX_UID):
        return LeftAlone("bad-annotation", f"{RUN_AS_USER} is {asked!r}: expected the number of a user")
    pythonpath = annotations.get(PYTHONPATH)
    uid = _uid(spec, containers[place], int(asked) if asked else uids.get(service))
    if wanted == "full" and service in DATABASES and uid is None:
        # A sidecar that is root takes the pod out of reach of the platform that chose its user, and
        # a database whose user changes cannot read its data.
        return LeftAlone("no-user", f"full needs to know the database's user: say it with {RUN_AS_USER}")
    return Subject(service, place, wanted, pythonpath, uid)


def _uid(spec: Object, container: Object, otherwise: int | None) -> int | None:
    """Return the user that the container runs as, where the specification says it."""
    for holder in (container, spec):
        uid = (holder.get("securityContext") or {}).get("runAsUser")
        if isinstance(uid, int):
            return uid
    return otherwise


def _of_a_job(metadata: Object, labels: Mapping[str, str]) -> bool:
    owners = metadata.get("ownerReferences") or ()
    return (
        any(owner.get("kind") in ("Job", "CronJob") for owner in owners)
        or "job-name" in labels
        or "batch.kubernetes.io/job-name" in labels
    )


def _is_windows(spec: Object) -> bool:
    selector = _texts(spec.get("nodeSelector"))
    return "windows" in (
        (spec.get("os") or {}).get("name"),
        selector.get("kubernetes.io/os"),
        selector.get("beta.kubernetes.io/os"),
    )


def _texts(found: object) -> Mapping[str, str]:
    return found if isinstance(found, Mapping) else {}
