"""What becomes of the operator's pods, one component at a time, in each mode."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from operator_pods import COMPONENTS, SETTINGS, component_pod, job_pod
from quayscope.injector.inject import inject
from quayscope.injector.pods import LeftAlone, Subject
from quayscope.injector.settings import MODES, Settings
from quayscope.sidecar.commands import sidecar as sidecar_command
from schemas.closed import VERSIONS, errors

PROFILED = tuple(component for component in COMPONENTS if component != "redis")
DATABASES = ("postgres", "clair-postgres")


def injected(pod: dict[str, Any], namespace: str = "quay", **changed: Any) -> tuple[dict[str, Any], Any]:
    """The pod as it is made."""
    return inject(pod, Settings(**{**SETTINGS, **changed}), namespace=namespace)


def named(pod: dict[str, Any], name: str) -> dict[str, Any]:
    """One container or init container."""
    spec = pod["spec"]
    return next(c for c in [*spec["containers"], *spec.get("initContainers", [])] if c["name"] == name)


def variables(container: dict[str, Any]) -> dict[str, Any]:
    """The environment by name, in its order."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.mark.parametrize("native", [False, True], ids=["plain", "native"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("component", PROFILED)
def test_result_is_valid(component: str, mode: str, native: bool) -> None:
    """The API server takes an injected pod: that of 1.25, and the newest, which alone has restart rules."""
    pod = component_pod(component)
    for version in VERSIONS:
        assert errors(pod, version) == []
    before = copy.deepcopy(pod)
    made, subject = injected(pod, mode=mode, native=native)
    assert isinstance(subject, Subject)
    assert pod == before
    assert errors(made, VERSIONS[-1]) == []
    old = errors(made, VERSIONS[0])
    assert [error.rpartition("/")[2] for error in old] == (["restartPolicy: unknown field"] if native else [])


@pytest.mark.parametrize("component", PROFILED)
def test_twice_is_once(component: str) -> None:
    """A second injection, of whatever mode, changes nothing."""
    made, _ = injected(component_pod(component))
    again, subject = injected(made, mode="full", native=True)
    assert again == made
    assert subject == LeftAlone("already")


@pytest.mark.parametrize(
    ("pod", "namespace", "outcome"),
    [
        (component_pod("redis"), "quay", "redis"),
        (component_pod("quay-app", inject=None), "quay", "not-asked"),
        (component_pod("quay-app", inject="false"), "quay", "not-asked"),
        (component_pod("quay-app"), "quayscope", "own-namespace"),
        (component_pod("quay-other"), "quay", "no-component"),
        (job_pod("quay-app"), "quay", "job"),
        (job_pod("postgres"), "quay", "job"),
        (job_pod("clair-postgres"), "quay", "job"),
    ],
)
def test_left_alone(pod: dict[str, Any], namespace: str, outcome: str) -> None:
    """Redis, Jobs, our own namespace and whoever did not ask stay as they are."""
    made, left = injected(pod, namespace)
    assert made is pod
    assert left.outcome == outcome


@pytest.mark.parametrize("component", ["quay-app", "quay-mirror"])
def test_agent_goes_into_quay(component: str) -> None:
    """The agent is copied, the image writes its own PYTHONPATH down, the application finds both."""
    pod = component_pod(component)
    made, _ = injected(pod, mode="full")
    names = [one["name"] for one in made["spec"]["initContainers"]]
    assert names == ["quayscope-agent", "quayscope-pythonpath"]
    writer = named(made, "quayscope-pythonpath")
    application = named(made, component)
    assert writer["image"] == application["image"]
    assert "env" not in writer
    assert writer["securityContext"] == application["securityContext"]
    found = variables(application)
    assert found["PYTHONPATH"] == "/quayscope"
    assert found["QUAYSCOPE_SOCKET"] == "/run/quayscope/agent.sock"
    assert found["QUAYSCOPE_SERVICE_NAME"] == component
    assert found["WORKER_COUNT_WEB"] == "4"
    assert "shareProcessNamespace" not in made["spec"]
    assert named(made, "quayscope-sidecar")["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_own_pythonpath_stays_behind() -> None:
    """A pod's own PYTHONPATH, written or taken from elsewhere, is kept behind the agent's folder."""
    pod = component_pod("quay-app")
    pod["spec"]["containers"][0]["env"].append({"name": "PYTHONPATH", "value": "/a:/b"})
    made, _ = injected(pod)
    assert variables(named(made, "quay-app"))["PYTHONPATH"] == "/quayscope:/a:/b"
    assert [one["name"] for one in made["spec"]["initContainers"]] == ["quayscope-agent"]

    source = {"configMapKeyRef": {"name": "paths", "key": "python"}}
    pod = component_pod("quay-app")
    pod["spec"]["containers"][0]["env"].append({"name": "PYTHONPATH", "valueFrom": source})
    made, _ = injected(pod)
    found = variables(named(made, "quay-app"))
    assert found["QUAYSCOPE_OWN_PYTHONPATH"] == source
    assert found["PYTHONPATH"] == "/quayscope:$(QUAYSCOPE_OWN_PYTHONPATH)"
    assert list(found).index("QUAYSCOPE_OWN_PYTHONPATH") < list(found).index("PYTHONPATH")
    assert errors(made, VERSIONS[0]) == []


def test_pythonpath_annotation_replaces_the_writer() -> None:
    """Where the image's path is given nobody runs the image for it."""
    pod = component_pod("quay-app")
    pod["metadata"]["annotations"]["quayscope.io/pythonpath"] = "/quay-registry"
    made, _ = injected(pod)
    assert variables(named(made, "quay-app"))["PYTHONPATH"] == "/quayscope:/quay-registry"
    assert [one["name"] for one in made["spec"]["initContainers"]] == ["quayscope-agent"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("component", DATABASES)
def test_database_starts_after_pids_are_passed(component: str, mode: str) -> None:
    """First a container sees the data read-only, as the database's user; the sidecar is as the mode says."""
    pod = component_pod(component)
    pod["spec"]["initContainers"] = [{"name": "theirs", "image": "i"}]
    made, _ = injected(pod, mode=mode, native=True, uids={"quay-database": 26, "clair-postgres": 26})
    names = [one["name"] for one in made["spec"]["initContainers"]]
    assert names == ["quayscope-pids", "quayscope-sidecar", "theirs"]
    assert made["spec"]["shareProcessNamespace"] is True
    passer = named(made, "quayscope-pids")
    seen = [one for one in passer["volumeMounts"] if one["name"] == "postgres-data"]
    assert [one["readOnly"] for one in seen] == [True]
    assert [one["mountPath"] for one in seen] == passer["command"][3:]
    assert passer["securityContext"]["runAsUser"] == 26
    context = named(made, "quayscope-sidecar")["securityContext"]
    added = context["capabilities"].get("add", [])
    assert context["allowPrivilegeEscalation"] is False
    expected = {
        "restricted": (26, []),
        "perfmon": (26, ["PERFMON"]),
        "full": (0, ["PERFMON", "SYS_PTRACE", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH"]),
    }
    assert (context["runAsUser"], added) == expected[mode]
    command = named(made, "quayscope-sidecar")["command"]
    sidecar_command.make_context("sidecar", command[2:])
    assert command[command.index("--control") + 1] == SETTINGS["control"]
    assert command[-1] == {"postgres": "quay-database"}.get(component, component)


def test_pause_container_is_not_the_databases_user() -> None:
    """The whole pod's user, which the pause container would have too, is given to each container instead."""
    pod = component_pod("postgres")
    pod["spec"]["securityContext"].update(runAsUser=26, runAsGroup=26)
    pod["spec"]["containers"].append({"name": "exporter", "image": "e", "securityContext": {"runAsUser": 27}})
    made, _ = injected(pod)
    assert made["spec"]["securityContext"] == component_pod("postgres")["spec"]["securityContext"]
    users = {one["name"]: one["securityContext"]["runAsUser"] for one in made["spec"]["containers"]}
    assert users == {"postgres": 26, "exporter": 27, "quayscope-sidecar": 26}
    assert named(made, "postgres")["securityContext"]["runAsGroup"] == 26


def test_odd_pods_are_right_or_untouched() -> None:
    """hostPID, Windows, no shared processes, names of ours, two candidates: left alone, and said why."""
    changes: dict[str, Any] = {
        "not-shared": {"hostPID": True},
        "windows": {"nodeSelector": {"kubernetes.io/os": "windows"}},
        "name-taken": {"volumes": [{"name": "quayscope-run", "emptyDir": {}}]},
        "no-container": {"containers": [{"name": "a", "image": "a"}, {"name": "b", "image": "b"}]},
    }
    for outcome, change in changes.items():
        pod = component_pod("postgres")
        pod["spec"].update(change)
        made, left = injected(pod)
        assert made is pod
        assert (left.outcome, bool(left.warning)) == (outcome, True)
    pod = component_pod("postgres")
    pod["spec"]["shareProcessNamespace"] = False
    assert injected(pod)[1].outcome == "not-shared"
    assert injected(component_pod("postgres"), mode="full", uids={})[1].outcome == "no-user"
    for name, value in (("mode", "root"), ("run-as-user", "postgres")):
        pod = component_pod("postgres")
        pod["metadata"]["annotations"][f"quayscope.io/{name}"] = value
        assert injected(pod)[1].outcome == "bad-annotation"


def test_unlabelled_pod_is_named_by_annotations() -> None:
    """A Postgres that no operator made takes part by annotations, which choose container and mode too."""
    pod = component_pod("postgres")
    del pod["metadata"]["labels"]["quay-component"]
    pod["spec"]["containers"] = [{"name": "a", "image": "a"}, {"name": "db", "image": "pg"}]
    pod["metadata"]["annotations"] = {
        "quayscope.io/component": "quay-database",
        "quayscope.io/container": "db",
        "quayscope.io/mode": "perfmon",
        "quayscope.io/run-as-user": "999",
    }
    made, subject = injected(pod)
    assert subject == Subject("quay-database", 1, "perfmon", None, 999)
    assert named(made, "quayscope-sidecar")["securityContext"]["runAsUser"] == 999
    assert errors(made, VERSIONS[0]) == []


@pytest.mark.parametrize("component", COMPONENTS)
def test_removal_leaves_no_trace(component: str) -> None:
    """Once the label is gone, and once the webhook is, pods are made as they were before the install."""
    before = component_pod(component, inject=None)
    during, _ = injected(component_pod(component, inject="true"))
    assert (during == before) is False
    after, left = injected(component_pod(component, inject=None))
    assert after == before
    assert left == LeftAlone("not-asked")
    switched_off, left = injected(component_pod(component, inject="false"))
    assert switched_off["spec"] == before["spec"]
    assert left.warning == ""
