"""Finding a target's own cgroup: recorded trees of both versions, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quayscope.sidecar.errors import NoCgroup
from quayscope.sidecar.native import cgroups
from quayscope.sidecar.native.cgroups import Mount

V2_MOUNT = "30 24 0:26 {root} {point} rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 none rw\n"
V1_MOUNT = "35 30 0:31 {root} {point} rw,relatime - cgroup cgroup rw,{controllers}\n"
HYBRID = """\
12:perf_event:/kubepods/pod1/abc
7:cpu,cpuacct:/kubepods/pod1/abc
1:name=systemd:/kubepods/pod1/abc
0::/system.slice/kubelet.service
"""


@pytest.mark.parametrize(
    ("text", "controller", "found"),
    [
        ("0::/kubepods.slice/pod1/cri-abc.scope\n", "perf_event", ("/kubepods.slice/pod1/cri-abc.scope", 2)),
        (HYBRID, "perf_event", ("/kubepods/pod1/abc", 1)),
        (HYBRID, "cpuacct", ("/kubepods/pod1/abc", 1)),
        ("0::/../cri-container-def.scope\n", "perf_event", ("/../cri-container-def.scope", 2)),
        ("4:memory:/a:b\n0::/a:b\n", "perf_event", ("/a:b", 2)),
        ("4:memory:/x\n", "perf_event", None),
        ("", "perf_event", None),
        ("garbage\n::\n", "perf_event", None),
    ],
)
def test_hierarchy(text: str, controller: str, found: tuple[str, int] | None) -> None:
    """Version 1's hierarchy where the controller is in one, else version 2's."""
    assert cgroups.parse_hierarchy(text, controller) == found


def test_mounts() -> None:
    """Only mounts of the hierarchy count; odd characters in their paths come back."""
    text = (
        V2_MOUNT.format(root="/", point="/sys/fs/cgroup/unified")
        + V1_MOUNT.format(root="/pod\\0401", point="/sys/fs/cgroup/perf_event", controllers="perf_event")
        + V1_MOUNT.format(root="/", point="/sys/fs/cgroup/memory", controllers="memory")
        + "cut short\n36 35 0:1 / /proc rw - proc proc rw\n"
    )
    assert cgroups.parse_mounts(text, 2) == [Mount("/", "/sys/fs/cgroup/unified", 2)]
    assert cgroups.parse_mounts(text, 1) == [Mount("/pod 1", "/sys/fs/cgroup/perf_event", 1)]
    assert cgroups.parse_mounts(text, 1, "memory") == [Mount("/", "/sys/fs/cgroup/memory", 1)]


class Tree:
    """A /proc and the cgroups that it leads to, as files."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"

    def process(self, pid: int, cgroup: str, mounts: str) -> Path:
        """Add a process; returns the folder that is its root directory."""
        here = self.proc / str(pid)
        root = here / "root"
        root.mkdir(parents=True)
        (here / "cgroup").write_text(cgroup)
        (here / "mountinfo").write_text(mounts)
        return root

    def cgroup(self, directory: Path, pids: str, *files: str) -> Path:
        """Add a cgroup's directory."""
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text(pids)
        for file in files:
            (directory / file).write_text(
                "usage_usec 12345\nuser_usec 1\n" if file == "cpu.stat" else "777\n"
            )
        return directory


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.process("self", "0::/\n", "")  # type: ignore[arg-type]  # /proc/self
    return made


def test_own_namespace_of_a_sibling(tree: Tree) -> None:
    """A container with a cgroup namespace of its own: its mount's root is its cgroup, a sibling of ours."""
    mounts = V2_MOUNT.format(root="/../cri-def.scope", point="/sys/fs/cgroup")
    root = tree.process(7, "0::/../cri-def.scope\n", mounts)
    own = tree.cgroup(root / "sys/fs/cgroup", "7\n8\n", "cgroup.events", "cpu.stat")
    found = cgroups.find(7, proc=tree.proc)
    assert found.directory.samefile(own)
    assert found.version == 2
    assert found.cpu_ns() == 12_345_000


def test_version_1(tree: Tree) -> None:
    """perf_event in a hierarchy of version 1, the CPU counted in another one; below what the mount shows."""
    mounts = V1_MOUNT.format(root="/kubepods", point="/sys/fs/cgroup/perf_event", controllers="perf_event")
    mounts += V1_MOUNT.format(root="/kubepods", point="/sys/fs/cgroup/cpu", controllers="cpu,cpuacct")
    root = tree.process(7, HYBRID, mounts)
    own = tree.cgroup(root / "sys/fs/cgroup/perf_event/pod1/abc", "7\n")
    tree.cgroup(root / "sys/fs/cgroup/cpu/pod1/abc", "7\n", "cpuacct.usage")
    found = cgroups.find(7, proc=tree.proc)
    assert (found.directory.samefile(own), found.version, found.cpu_ns()) == (True, 1, 777)


def test_root_is_refused(tree: Tree) -> None:
    """The root cgroup holds everybody: never it, whatever it is called where it is seen."""
    root = tree.process(7, "0::/\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.cgroup(root / "sys/fs/cgroup", "7\n", "cpu.stat")  # a root has no cgroup.events
    with pytest.raises(NoCgroup, match="root cgroup"):
        cgroups.find(7, proc=tree.proc)
    mounts = V1_MOUNT.format(root="/", point="/sys/fs/cgroup/perf_event", controllers="perf_event")
    root = tree.process(8, "12:perf_event:/\n0::/x\n", mounts)
    tree.cgroup(root / "sys/fs/cgroup/perf_event", "8\n", "release_agent")
    with pytest.raises(NoCgroup, match="root cgroup"):
        cgroups.find(8, proc=tree.proc)


def test_unreachable(tree: Tree) -> None:
    """Not mounted, mounted elsewhere, or another one of the same name: said, never guessed."""
    with pytest.raises(NoCgroup, match="process 9"):
        cgroups.find(9, proc=tree.proc)
    tree.process(10, "0::/a\n", "")
    with pytest.raises(NoCgroup, match="mounted nowhere"):
        cgroups.find(10, proc=tree.proc)
    root = tree.process(11, "0::/a\n", V2_MOUNT.format(root="/b", point="/sys/fs/cgroup"))
    tree.cgroup(root / "sys/fs/cgroup", "11\n", "cgroup.events")
    with pytest.raises(NoCgroup, match="mounted nowhere"):
        cgroups.find(11, proc=tree.proc)
    root = tree.process(12, "0::/a\n", V2_MOUNT.format(root="/", point="/sys/fs/cgroup"))
    tree.cgroup(root / "sys/fs/cgroup/a", "1\n", "cgroup.events")
    with pytest.raises(NoCgroup, match="mounted nowhere"):
        cgroups.find(12, proc=tree.proc)


def _space(proc: Path, pid: int, name: str) -> None:
    link = proc / str(pid) / "ns"
    link.mkdir(parents=True)
    (link / "mnt").symlink_to(f"mnt:[{name}]")


@pytest.mark.parametrize(
    ("listed", "spaces", "refused"),
    [
        ("7\n8\n", {}, None),
        ("7\n1\n", {7: "1", 1: "1"}, None),  # run in the container by hand
        ("7\n1\n", {7: "1", 1: "2"}, "process 1 "),
        ("7\n1\n", {7: "9", 1: "9"}, "process 1 "),  # everybody shares ours
        ("7\n1\n", {7: "1"}, "process 1 "),
        ("7\n0\n", {7: "1"}, "not visible"),
        ("7\n{own}\n", {}, "the sidecar itself"),
        ("7\n2147483647\n", {}, None),  # ended since
    ],
)
def test_foreign_processes(tmp_path: Path, listed: str, spaces: dict[int, str], refused: str | None) -> None:
    """Whoever is neither the target's nor in its container makes the cgroup one not to be sampled."""
    directory = tmp_path / "cgroup"
    below = directory / "init"
    below.mkdir(parents=True)
    (directory / "cgroup.procs").write_text("")
    (below / "cgroup.procs").write_text(listed.format(own=os.getpid()))
    proc = tmp_path / "proc"
    for pid, name in {os.getpid(): "9", **spaces}.items():
        _space(proc, pid, name)
    if refused is None:
        cgroups.refuse_foreign(directory, 7, lambda: [8], proc=proc)
    else:
        with pytest.raises(NoCgroup, match=refused):
            cgroups.refuse_foreign(directory, 7, lambda: [8], proc=proc)


def test_too_many_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of cgroups without end is no target's."""
    monkeypatch.setattr(cgroups, "_MAX_DIRECTORIES", 4)
    for number in range(5):
        (tmp_path / str(number)).mkdir()
    (tmp_path / "cgroup.procs").write_text("")
    with pytest.raises(NoCgroup, match="too many"):
        cgroups.members(tmp_path)
