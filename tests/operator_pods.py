"""Pods as quay-operator's deployments make them, one for each component, and pods of its upgrade Jobs.

Written after the operator's kustomize components (github.com/quay/quay-operator, facts of its 3.x line).
"""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["COMPONENTS", "SETTINGS", "component_pod", "job_pod"]

COMPONENTS = ("quay-app", "quay-mirror", "clair-app", "postgres", "clair-postgres", "redis")
_CONTAINER = {"redis": "redis-master"}
_DATA = {"postgres": "/var/lib/pgsql/data", "clair-postgres": "/var/lib/pgsql/data"}
_CONFINED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
}
SETTINGS: dict[str, Any] = {
    "collector": "https://quayscope-collector.quayscope.svc:4040",
    "control": "https://quayscope-collector.quayscope.svc:4317",
    "agent_image": "registry.example/quayscope-agent:0.1.0",
    "sidecar_image": "registry.example/quayscope-sidecar:0.1.0",
    "ca_config_map": "openshift-service-ca.crt",
    "namespace": "quayscope",
    "uids": {"quay-database": 26, "clair-postgres": 26},
}


def component_pod(component: str, *, inject: str | None = "true") -> dict[str, Any]:
    """A Pod as the API server shows it to a webhook, at its creation."""
    name = _CONTAINER.get(component, component)
    container: dict[str, Any] = {
        "name": name,
        "image": f"registry.example/{component}:3.12",
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "terminationMessagePath": "/dev/termination-log",
        "imagePullPolicy": "IfNotPresent",
        "volumeMounts": [
            {
                "name": "kube-api-access-x",
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                "readOnly": True,
            }
        ],
    }
    volumes: list[dict[str, Any]] = [
        {
            "name": "kube-api-access-x",
            "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]},
        }
    ]
    if component in ("quay-app", "quay-mirror"):
        container["env"] = [
            {"name": "QE_K8S_CONFIG_SECRET", "value": "example-quay-config-secret"},
            {
                "name": "QE_K8S_NAMESPACE",
                "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            },
            {"name": "WORKER_COUNT_WEB", "value": "4"},
        ]
        container["securityContext"] = copy.deepcopy(_CONFINED)
        container["volumeMounts"].append({"name": "config", "mountPath": "/conf/stack"})
        volumes.append(
            {"name": "config", "projected": {"sources": [{"secret": {"name": "example-quay-config-secret"}}]}}
        )
    if component == "clair-app":
        container["command"] = ["clair", "-mode", "combo"]
        container["volumeMounts"].append({"name": "config", "mountPath": "/clair"})
        volumes.append({"name": "config", "secret": {"secretName": "example-clair-config-secret"}})
    if component in _DATA:
        container["env"] = [
            {"name": "POSTGRESQL_USER", "valueFrom": {"secretKeyRef": {"name": "db", "key": "user"}}}
        ]
        container["volumeMounts"].append({"name": "postgres-data", "mountPath": _DATA[component]})
        container["volumeMounts"].append(
            {
                "name": "postgres-conf-sample",
                "mountPath": "/usr/share/pgsql/postgresql.conf.sample",
                "subPath": "postgresql.conf.sample",
            }
        )
        volumes.append(
            {"name": "postgres-data", "persistentVolumeClaim": {"claimName": f"example-{component}-13"}}
        )
        volumes.append({"name": "postgres-conf-sample", "configMap": {"name": "conf"}})
    labels = {
        "quay-component": component,
        "quay-operator/quayregistry": "example",
        "pod-template-hash": "abc",
    }
    if inject is not None:
        labels["quayscope.io/inject"] = inject
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"example-{component}-abc-",
            "namespace": "quay",
            "labels": labels,
            "annotations": {"quay-registry-hostname": "quay.example"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "r",
                    "uid": "u",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "serviceAccountName": f"example-{component}",
            "containers": [container],
            "volumes": volumes,
            "securityContext": {"fsGroup": 1000680000, "seLinuxOptions": {"level": "s0:c26,c15"}},
            "restartPolicy": "Always",
        },
    }


def job_pod(component: str) -> dict[str, Any]:
    """A pod of an upgrade Job, which carries the registry's labels and whatever overrides.labels says."""
    pod = component_pod(component)
    pod["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": "example-quay-app-upgrade",
            "uid": "j",
            "controller": True,
        }
    ]
    pod["spec"]["restartPolicy"] = "Never"
    return pod
