"""The containers and volumes that go into a pod, as the Pod API has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quayscope.injector.pods import OURS, PYTHON, Subject
from quayscope.injector.settings import CAPABILITIES, Settings

__all__ = [
    "AGENT_FOLDER",
    "SOCKET",
    "agent_copier",
    "mount",
    "pid_passer",
    "pythonpath_writer",
    "sidecar",
    "volumes",
]

AGENT_FOLDER = "/quayscope"
SOCKET = "/run/quayscope/agent.sock"
_IN_IMAGE = "/opt/quayscope/agent"
_READY = "/run/quayscope/ready.json"
_SPOOL = "/var/spool/quayscope"
_PODINFO = f"{AGENT_FOLDER}/podinfo"
_CREDENTIALS = "/var/run/secrets/quayscope"
_TOKEN, _CA = f"{_CREDENTIALS}/token", f"{_CREDENTIALS}/ca.crt"
_TOKEN_S = 3600
_SMALL = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}
_WRITE_PYTHONPATH = f"printf '%s\\n' \"$PYTHONPATH\" > {AGENT_FOLDER}/pythonpath"
_HEALTHY = f"test ! -e {_READY} || test -S {SOCKET}"

Object = dict[str, Any]


def agent_copier(settings: Settings, subject: Subject) -> Object:
    """Return the init container that copies the agent into its volume."""
    return {
        "name": f"{OURS}agent",
        "image": settings.agent_image,
        "command": ["cp", "-R", f"{_IN_IMAGE}/.", AGENT_FOLDER],
        "resources": _SMALL,
        "securityContext": _confined(subject.uid),
        "volumeMounts": [mount("agent", AGENT_FOLDER)],
    }


def pythonpath_writer(application: Mapping[str, Any]) -> Object:
    """Return the init container that writes down the PYTHONPATH of the application's own image.

    It runs that image as the application does, with what `envFrom` gives it and no variable of its own.
    """
    made: Object = {
        "name": f"{OURS}pythonpath",
        "image": application["image"],
        "command": ["/bin/sh", "-c", _WRITE_PYTHONPATH],
        "resources": _SMALL,
        "volumeMounts": [mount("agent", AGENT_FOLDER)],
    }
    for key in ("imagePullPolicy", "securityContext", "envFrom"):
        if key in application:
            made[key] = application[key]
    return made


def pid_passer(settings: Settings, subject: Subject, mounts: Sequence[Mapping[str, Any]]) -> Object:
    """Return the init container that leaves no pid to us which a stale postmaster.pid may name.

    `mounts` are the database container's own; each is seen read-only.
    """
    folders = []
    seen = []
    for place, one in enumerate(mounts):
        folder = f"{AGENT_FOLDER}/data/{place}"
        folders.append(folder)
        kept = {key: one[key] for key in ("name", "subPath") if key in one}
        seen.append({**kept, "mountPath": folder, "readOnly": True})
    return {
        "name": f"{OURS}pids",
        "image": settings.sidecar_image,
        "command": ["quayscope", "sidecar", "pass-pids", *folders],
        "resources": _SMALL,
        "securityContext": _confined(subject.uid),
        "volumeMounts": seen,
    }


def sidecar(settings: Settings, subject: Subject) -> Object:
    """Return the sidecar; among the init containers where `settings.native`."""
    command = ["quayscope", "sidecar", "--socket", SOCKET, "--collector", settings.collector]
    if settings.control:
        command += ["--control", settings.control]
    command += ["--token-file", _TOKEN]
    if settings.ca_config_map:
        command += ["--ca-file", _CA]
    if settings.insecure:
        command.append("--insecure")
    command += ["--keep", "--wait-for-files", "--ready-file", _READY]
    command += ["--label", "namespace=$(POD_NAMESPACE)", "--label", "pod=$(POD_NAME)"]
    command += ["--podinfo", _PODINFO]
    command += ["--spool", f"{_SPOOL}/out", "--spool-size", "64", "--cache", f"{_SPOOL}/rules"]
    if subject.is_database:
        command += ["--postgres", "auto", "--database-service", subject.service]
    else:
        command += ["--postgres", "off"]
    made: Object = {
        "name": f"{OURS}sidecar",
        "image": settings.sidecar_image,
        "command": command,
        "env": [
            _from_field("POD_NAME", "metadata.name"),
            _from_field("POD_NAMESPACE", "metadata.namespace"),
            _from_field("POD_UID", "metadata.uid"),
        ],
        "resources": {"requests": dict(settings.requests), "limits": dict(settings.limits)},
        "securityContext": _sidecar_context(subject),
        "livenessProbe": {
            "exec": {"command": ["/bin/sh", "-c", _HEALTHY]},
            "initialDelaySeconds": 30,
            "periodSeconds": 60,
            "timeoutSeconds": 5,
            "failureThreshold": 5,
        },
        "volumeMounts": [
            mount("run", "/run/quayscope"),
            mount("tmp", "/tmp"),  # noqa: S108 - the container's own volume
            mount("spool", _SPOOL),
            {**mount("credentials", _CREDENTIALS), "readOnly": True},
            {**mount("podinfo", _PODINFO), "readOnly": True},
        ],
    }
    if settings.native:
        made["restartPolicy"] = "Always"
    return made


def volumes(settings: Settings, subject: Subject) -> list[Object]:
    """Return the volumes that these containers mount."""
    made: list[Object] = [
        {"name": f"{OURS}run", "emptyDir": {"sizeLimit": "16Mi"}},
        {"name": f"{OURS}tmp", "emptyDir": {"sizeLimit": "256Mi"}},
        # Rules take 64 MB, the spool what its flag says: far less, since a pod beyond a limit is evicted.
        {"name": f"{OURS}spool", "emptyDir": {"sizeLimit": "512Mi"}},
        {"name": f"{OURS}credentials", "projected": {"sources": _credentials(settings)}},
        {
            "name": f"{OURS}podinfo",
            "downwardAPI": {
                "items": [
                    {"path": name, "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.{name}"}}
                    for name in ("labels", "annotations")
                ]
            },
        },
    ]
    if subject.is_python:
        made.insert(0, {"name": f"{OURS}agent", "emptyDir": {"sizeLimit": "16Mi"}})
    return made


def mount(volume: str, path: str) -> Object:
    """Return the mount of a volume of ours."""
    return {"name": f"{OURS}{volume}", "mountPath": path}


def _credentials(settings: Settings) -> list[Object]:
    # Optional, both: a pod must start where they were forgotten; the sidecar waits for them and says so.
    if settings.token_secret:
        items = [{"key": "token", "path": "token"}]
        sources: list[Object] = [
            {"secret": {"name": settings.token_secret, "items": items, "optional": True}}
        ]
    else:
        token = {"audience": settings.token_audience, "expirationSeconds": _TOKEN_S, "path": "token"}
        sources = [{"serviceAccountToken": token}]
    if settings.ca_config_map:
        items = [{"key": settings.ca_key, "path": "ca.crt"}]
        sources.append({"configMap": {"name": settings.ca_config_map, "items": items, "optional": True}})
    return sources


def _from_field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _confined(uid: int | None) -> Object:
    """Return what OpenShift's restricted-v2 and Kubernetes' restricted standard allow.

    Where no user is given the platform or the image says which.
    """
    made: Object = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if uid is not None:
        made["runAsUser"] = uid
        made["runAsNonRoot"] = uid != 0
    return made


def _sidecar_context(subject: Subject) -> Object:
    made = _confined(subject.uid)
    if subject.service in PYTHON:
        return made  # the agent brings what it measures: no privilege buys more
    added = CAPABILITIES[subject.mode]
    if added:
        made["capabilities"] = {"drop": ["ALL"], "add": list(added)}
    if subject.mode == "full":
        made.update(runAsUser=0, runAsNonRoot=False)
    return made
