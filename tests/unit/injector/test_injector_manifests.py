"""Every overlay builds with plain kubectl; what comes out is valid, complete and confined."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from quayscope.collector.commands import collector
from quayscope.injector.commands import injector
from schemas.closed import VERSIONS, errors

KUSTOMIZE = Path(__file__).parents[3] / "deploy" / "kustomize"
OVERLAYS = sorted(path.name for path in (KUSTOMIZE / "overlays").iterdir())
EXAMPLES = sorted(path.name for path in (KUSTOMIZE / "examples").iterdir())
WORKLOADS = ("Deployment", "StatefulSet")
MADE_BY_HAND = {"quayscope-tokens", "pyroscope-bucket"}
"""Secrets that docs/deploy.md has one make."""


@functools.cache
def built(overlay: str) -> list[dict[str, Any]]:
    """What kubectl makes of an overlay."""
    assert shutil.which("kubectl"), (
        "no kubectl of 1.27 or newer on PATH; next: https://kubernetes.io/docs/tasks/tools"
    )
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUSTOMIZE / "overlays" / overlay)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def workloads(overlay: str) -> list[dict[str, Any]]:
    """Its Deployments and StatefulSets."""
    return [one for one in built(overlay) if one["kind"] in WORKLOADS]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_valid(overlay: str, version: str) -> None:
    """Each object is one that the API server of either version takes, strictly; none is there twice."""
    found = built(overlay)
    assert found
    assert {one["metadata"]["name"]: errors(one, version) for one in found if errors(one, version)} == {}
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_complete(overlay: str) -> None:
    """Whatever an object refers to is there, made by something that is there, or by hand as the docs say."""
    found = built(overlay)
    held = {(one["kind"], one["metadata"]["name"]) for one in found}
    secrets = MADE_BY_HAND | {
        one["metadata"].get("annotations", {}).get("service.beta.openshift.io/serving-cert-secret-name")
        or one["spec"].get("secretName")
        for one in found
        if one["kind"] in ("Service", "Certificate")
    }
    for one in workloads(overlay):
        spec = one["spec"]["template"]["spec"]
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
        if "serviceAccountName" in spec:
            assert ("ServiceAccount", spec["serviceAccountName"]) in held
        for volume in spec["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in held
    for one in found:
        if one["kind"] in ("Service", "PodDisruptionBudget"):
            selector = one["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            assert any(
                selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
                for workload in workloads(overlay)
            ), one["metadata"]["name"]
        if one["kind"] == "MutatingWebhookConfiguration":
            service = one["webhooks"][0]["clientConfig"]["service"]
            assert ("Service", service["name"]) in held


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_confined(overlay: str) -> None:
    """Not root, nothing to write to but volumes, no capability, bounded: beyond the restricted standard."""
    for one in workloads(overlay):
        spec = one["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}
            image = container["image"]
            assert ":" in image.rpartition("/")[2]
            assert not image.endswith(":latest")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_webhook_never_stands_in_the_way(overlay: str) -> None:
    """Its failure is ignored within five seconds, and only pods that ask are sent to it, none of its own."""
    for one in built(overlay):
        if one["kind"] != "MutatingWebhookConfiguration":
            continue
        (hook,) = one["webhooks"]
        assert (hook["failurePolicy"], hook["timeoutSeconds"], hook["sideEffects"]) == ("Ignore", 5, "None")
        (rule,) = hook["rules"]
        assert (rule["operations"], rule["resources"]) == (["CREATE"], ["pods"])
        assert hook["objectSelector"] == {"matchLabels": {"quayscope.io/inject": "true"}}
        (expression,) = hook["namespaceSelector"]["matchExpressions"]
        assert expression["operator"] == "NotIn"
        assert "quayscope" in expression["values"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_is_given_more_than_is_used(overlay: str) -> None:
    """There is no role at all; network policies select our own pods alone."""
    for one in built(overlay):
        assert one["kind"] not in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
        if one["kind"] == "NetworkPolicy":
            assert one["metadata"]["namespace"] in ("quayscope", "quayscope-demo")
            name = one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
            assert name.partition("-")[0] in ("quayscope", "pyroscope")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_programs_take_their_arguments(overlay: str) -> None:
    """The command lines in the manifest are ones that the programs understand."""
    for one in workloads(overlay):
        if one["metadata"]["name"] == "quayscope-collector":
            (container,) = one["spec"]["template"]["spec"]["containers"]
            assert container["command"] == ["quayscope", "collector"]
            collector.make_context("collector", list(container["args"]))
        if one["metadata"]["name"] != "quayscope-injector":
            continue
        (container,) = one["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["quayscope", "injector"]
        context = injector.make_context("injector", list(container["args"]))
        assert context.params["token_secret"] == "quayscope-token"


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_is_valid(example: str) -> None:
    """Each example is what the operator takes."""
    for one in yaml.safe_load_all((KUSTOMIZE / "examples" / example).read_text()):
        assert errors(one, VERSIONS[-1]) == []


@pytest.mark.parametrize("component", ["token-review", "driver-to-clair"])
def test_component_builds_on_every_platform(component: str, tmp_path: Path) -> None:
    """A component goes on top of an overlay, and the result is valid."""
    shutil.copytree(KUSTOMIZE, tmp_path / "kustomize")
    top = tmp_path / "kustomize" / "overlays" / "mine"
    top.mkdir()
    (top / "kustomization.yaml").write_text(
        f"resources: [../openshift]\ncomponents: [../../components/{component}]\n"
    )
    done = subprocess.run(["kubectl", "kustomize", str(top)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = list(yaml.safe_load_all(done.stdout))
    assert [errors(one, version) for one in found for version in VERSIONS if errors(one, version)] == []
    if component == "token-review":
        assert "--token-secret" not in done.stdout
        roles = [one["rules"] for one in found if one["kind"] == "ClusterRole"]
        assert roles == [
            [{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}]
        ]
