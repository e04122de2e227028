"""Makes the pod that is wanted out of the one that was asked for."""

from __future__ import annotations

import copy
from typing import Any

from quayscope.injector import containers
from quayscope.injector.pods import INJECTED, OURS, LeftAlone, Subject, classify
from quayscope.injector.settings import Settings

__all__ = ["inject"]

_WITHOUT_DATA = ("configMap", "secret", "projected", "downwardAPI", "image")
"""Kinds of volumes that no database lies on."""
_OWN_PYTHONPATH = "QUAYSCOPE_OWN_PYTHONPATH"

Object = dict[str, Any]


def inject(pod: Object, settings: Settings, *, namespace: str) -> tuple[Object, Subject | LeftAlone]:
    """Return the pod as it should be and what it was taken for; the argument stays as it is.

    `pod` is a Pod object with mappings `metadata` and `spec`, `namespace` the one it is made in. The result
    depends on nothing else, and injecting it again changes nothing.
    """
    subject = classify(pod, settings.mode, settings.uids, namespace=namespace, own=settings.namespace)
    if isinstance(subject, LeftAlone):
        return pod, subject
    made = copy.deepcopy(pod)
    spec = made["spec"]
    application = spec["containers"][subject.container]
    before: list[Object] = []
    if subject.is_python:
        before.append(containers.agent_copier(settings, subject))
        before += _give_pythonpath(application, subject)
        _set(application, "QUAYSCOPE_SOCKET", containers.SOCKET)
        _set(application, "QUAYSCOPE_SERVICE_NAME", subject.service)
        _add(
            application,
            "volumeMounts",
            {**containers.mount("agent", containers.AGENT_FOLDER), "readOnly": True},
        )
        _add(application, "volumeMounts", containers.mount("run", "/run/quayscope"))
    else:
        spec["shareProcessNamespace"] = True
    if subject.is_database:
        _free_pid_1(spec)
        before.append(containers.pid_passer(settings, subject, _data_mounts(spec, application)))
    sidecar = containers.sidecar(settings, subject)
    if settings.native:
        before.append(sidecar)
    else:
        _add(spec, "containers", sidecar)
    # Ours first: what passes pids must have ended before anything that stays is started.
    spec["initContainers"] = [*before, *(spec.get("initContainers") or [])]
    for volume in containers.volumes(settings, subject):
        _add(spec, "volumes", volume)
    annotations = made["metadata"].get("annotations") or {}
    made["metadata"]["annotations"] = {**annotations, INJECTED: subject.mode}
    return made, subject


def _give_pythonpath(application: Object, subject: Subject) -> list[Object]:
    """Put the agent on the application's PYTHONPATH; return what must run before for that."""
    variables = application.get("env") or []
    application["env"] = variables
    own = next((one for one in variables if one.get("name") == "PYTHONPATH"), None)
    if own is None:
        if subject.pythonpath:
            path = f"{containers.AGENT_FOLDER}:{subject.pythonpath}"
            variables.append({"name": "PYTHONPATH", "value": path})
            return []
        variables.append({"name": "PYTHONPATH", "value": containers.AGENT_FOLDER})
        return [containers.pythonpath_writer(application)] if subject.pythonpath is None else []
    # The specification's own stands in for the image's already.
    if own.get("value"):
        own["value"] = f"{containers.AGENT_FOLDER}:{own['value']}"
    elif own.get("valueFrom"):
        place = variables.index(own)
        variables.insert(place, {"name": _OWN_PYTHONPATH, "valueFrom": own.pop("valueFrom")})
        own["value"] = f"{containers.AGENT_FOLDER}:$({_OWN_PYTHONPATH})"
    else:
        own["value"] = containers.AGENT_FOLDER
    return []


def _free_pid_1(spec: Object) -> None:
    """Have the pause container, pid 1 of the shared namespace, run as another user than Postgres.

    Postgres takes a postmaster.pid for stale when the process it names is another user's. Where it was pid 1
    of its own container, the file left behind names 1; and the pause container runs as the pod's user where
    there is one. So that user is written to each container instead, which is the same to them.
    """
    context = spec.get("securityContext") or {}
    moved = {key: context[key] for key in ("runAsUser", "runAsGroup") if key in context}
    if not moved:
        return
    spec["securityContext"] = {key: value for key, value in context.items() if key not in moved}
    for kind in ("initContainers", "containers"):
        for one in spec.get(kind) or ():
            one["securityContext"] = {**moved, **(one.get("securityContext") or {})}


def _data_mounts(spec: Object, application: Object) -> list[Object]:
    """Return the mounts of the container that a data directory may lie on."""
    others = {one["name"] for one in spec.get("volumes") or () if any(kind in one for kind in _WITHOUT_DATA)}
    return [
        one
        for one in application.get("volumeMounts") or ()
        if one.get("name") not in others and "subPathExpr" not in one and not one["name"].startswith(OURS)
    ]


def _set(container: Object, name: str, value: str) -> None:
    """Set a variable unless the container has one of that name."""
    if all(one.get("name") != name for one in container.get("env") or ()):
        _add(container, "env", {"name": name, "value": value})


def _add(holder: Object, key: str, one: Object) -> None:
    holder[key] = [*(holder.get(key) or []), one]
