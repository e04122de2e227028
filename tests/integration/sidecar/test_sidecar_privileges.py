"""What the doctor finds in containers of one pod, by what the pod spec gives them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci.bundle import Container, python_binds
from oci.runtime import Machine, Pod, machine

SPIN = "while True: pass"


@pytest.fixture(scope="module")
def node() -> Iterator[Machine]:
    """A node that runs containers."""
    if os.geteuid() != 0:
        pytest.skip("only root may start containers with runc")
    assert shutil.which("runc"), "no runc on PATH; next: apt-get install runc"
    with machine() as made:
        yield made


@pytest.fixture(scope="module")
def pod(node: Machine, checkout: Path) -> Pod:
    """A pod with a target of uid 1000, beside another pod on the same node that burns CPU too."""
    binds = python_binds(checkout)
    neighbour = node.pod("neighbour")
    neighbour.start(Container("stranger", [sys.executable, "-c", SPIN], binds=binds))
    made = node.pod("pod")
    made.start(Container("target", [sys.executable, "-c", SPIN], binds=binds))
    return made


def test_sees_processes_of_its_pod_alone(pod: Pod, checkout: Path) -> None:
    """Whatever it may do, a sidecar sees the processes of its own pod and of no other."""
    script = (
        "import json; from quayscope.sidecar import procfs;"
        "print(json.dumps([procfs.command_line(p) for p in procfs.pids()]))"
    )
    container = Container("looks", [sys.executable, "-c", script], binds=python_binds(checkout))
    code, printed = pod.run(container)
    assert code == 0
    seen = json.loads(printed)
    assert sum(SPIN in command for command in seen) == 1
