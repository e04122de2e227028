"""Strict validation of Kubernetes objects: an unknown field, a wrong type or a missing field is an error.

The schemas are written by the program in generate/ from Go packages: Kubernetes' own (k8s.io/api), one file
for each version; those of OpenShift and cert-manager in others.json, and the QuayRegistry after
quay-operator's types. `source` in each says which versions; all of them are under the Apache License 2.0.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

__all__ = ["VERSIONS", "errors"]

VERSIONS = ("1.25", "1.37")
_FOLDER = Path(__file__).parent
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@functools.cache
def _schema(version: str) -> dict[str, Any]:
    read = json.loads((_FOLDER / f"kubernetes-{version}.json").read_text(encoding="utf-8"))
    others = json.loads((_FOLDER / "others.json").read_text(encoding="utf-8"))
    return {"kinds": {**read["kinds"], **others["kinds"]}, "types": {**read["types"], **others["types"]}}


def errors(document: Any, version: str) -> list[str]:
    """What is wrong with an object, each with its path; none for a valid one."""
    schema = _schema(version)
    kind = f"{document.get('apiVersion')}/{document.get('kind')}"
    if kind not in schema["kinds"]:
        return [f"{kind} is not known"]
    found: list[str] = []
    _check(document, schema["kinds"][kind], "", schema["types"], found)
    for spec, path in _pod_specs(document):
        claims = [one["metadata"]["name"] for one in document["spec"].get("volumeClaimTemplates") or ()]
        found += _of_pod(spec, path, claims)
    return found


def _check(value: Any, kind: str, path: str, types: dict[str, Any], found: list[str]) -> None:
    if kind == "any" or value is None:
        return
    if kind.startswith("[]"):
        if not isinstance(value, list):
            found.append(f"{path}: no list")
            return
        for i, one in enumerate(value):
            _check(one, kind[2:], f"{path}/{i}", types, found)
    elif kind.startswith("{}"):
        if not isinstance(value, dict):
            found.append(f"{path}: no map")
            return
        for key, one in value.items():
            _check(one, kind[2:], f"{path}/{key}", types, found)
    elif kind.startswith("#"):
        _check_object(value, types[kind], path, types, found)
    elif not _is_scalar(value, kind):
        found.append(f"{path}: {value!r} is no {kind}")


def _check_object(value: Any, fields: Any, path: str, types: dict[str, Any], found: list[str]) -> None:
    if not isinstance(value, dict):
        found.append(f"{path}: no object")
        return
    for key, one in value.items():
        if key not in fields:
            found.append(f"{path}/{key}: unknown field")
        else:
            _check(one, fields[key]["type"], f"{path}/{key}", types, found)
    found += [
        f"{path}/{key}: missing"
        for key, field in fields.items()
        if field.get("required") and key not in value
    ]


def _is_scalar(value: Any, kind: str) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": whole,
        "number": whole or isinstance(value, float),
        "int-or-string": whole or isinstance(value, str),
        "quantity": whole or (isinstance(value, str) and _QUANTITY.fullmatch(value) is not None),
    }[kind]


def _pod_specs(document: Any) -> list[tuple[Any, str]]:
    spec = document.get("spec") or {}
    if document["kind"] == "Pod":
        return [(spec, "/spec")]
    template = spec.get("template") if isinstance(spec, dict) else None
    return (
        [(template["spec"], "/spec/template/spec")]
        if isinstance(template, dict) and "spec" in template
        else []
    )


def _of_pod(spec: Any, path: str, claims: list[str]) -> list[str]:
    """What the API server checks beyond the types: names, references, contradictions."""
    found = []
    volumes = [*claims, *(one.get("name") for one in spec.get("volumes") or ())]
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    names = [one.get("name") for one in containers]
    for kind, values in (("volume", volumes), ("container", names)):
        found += [f"{path}: {kind} {name} twice" for name in {v for v in values if values.count(v) > 1}]
        found += [f"{path}: {name!r} is no name" for name in values if not _NAME.fullmatch(name or "")]
    for one in containers:
        mounts = one.get("volumeMounts") or ()
        found += [f"{path}: {m['name']} is no volume" for m in mounts if m["name"] not in volumes]
        paths = [m["mountPath"] for m in mounts]
        found += [f"{path}: {p} is mounted twice" for p in set(paths) if paths.count(p) > 1]
        asked, most = ((one.get("resources") or {}).get(k) or {} for k in ("requests", "limits"))
        found += [
            f"{path}: {one['name']} has no {r} limit"
            for r in asked
            if r not in most and one["name"].startswith("quayscope-")
        ]
    for one in spec.get("containers") or ():
        if "restartPolicy" in one:
            found.append(f"{path}: {one['name']}: restartPolicy is for init containers")
    for one in spec.get("volumes") or ():
        if len(one) != 2:
            found.append(f"{path}: volume {one.get('name')} is not of one kind")
    if spec.get("hostPID") and spec.get("shareProcessNamespace"):
        found.append(f"{path}: hostPID and shareProcessNamespace")
    for one in containers:
        context = one.get("securityContext") or {}
        if context.get("runAsNonRoot") and context.get("runAsUser") == 0:
            found.append(f"{path}: {one['name']} runs as root and not as root")
    return found
