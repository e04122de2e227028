"""Series labels of a target: service_name, role, container, pod, namespace.

What is named outright wins: a `--label`, then the program's own variables, then the pod's component, then
what the program is. Components are the values of the operator's label `quay-component`; the operator's pods
have one container each, called as the component but for `_CONTAINERS` (quay/quay-operator).
"""

from __future__ import annotations

from collections.abc import Mapping

from quayscope.sidecar.targets.identify import MASTER, Identity
from quayscope.sidecar.targets.pod import Container, Pod

__all__ = ["SERVICES", "labels_of"]

SERVICES = {
    "quay-app": "quay-app",
    "quay-mirror": "quay-mirror",
    "clair-app": "clair-app",
    "clair-postgres": "clair-postgres",
    "postgres": "quay-database",
    "quay-database": "quay-database",
    "redis": "redis",
}
"""service_name by component; another component is its own."""
_CONTAINERS = {"redis": "redis-master"}
_SHOWN_ID = 12


def labels_of(
    identity: Identity,
    container: Container,
    environment: Mapping[str, str],
    pod: Pod,
    own_container: Container,
    given: Mapping[str, str],
) -> dict[str, str]:
    """Return a target's labels; those that nothing is known of are left out. `given` wins."""
    service = (
        environment.get("QUAYSCOPE_SERVICE_NAME")
        or environment.get("OTEL_SERVICE_NAME")
        or SERVICES.get(pod.component, pod.component)
        or identity.service
        or ("quay-database" if identity.kind == "postgres" else identity.program)
    )
    labels = {
        "service_name": service,
        "role": _role(identity, environment.get("QUAYSCOPE_ROLE", "")),
        "container": _container(container, own_container, pod),
        "pod": pod.name or environment.get("POD_NAME", ""),
        "namespace": pod.namespace or environment.get("POD_NAMESPACE", ""),
        **given,
    }
    return {name: value for name, value in labels.items() if value}


def _role(identity: Identity, named: str) -> str:
    if not named or identity.kind != "python":
        return identity.role
    return named + MASTER * identity.role.endswith(MASTER)


def _container(container: Container, own: Container, pod: Pod) -> str:
    if pod.operator and pod.component and container.path != own.path:
        return _CONTAINERS.get(pod.component, pod.component)
    return container.id[:_SHOWN_ID]
