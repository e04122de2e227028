"""Where a container's cgroup is found, by mountinfo and cgroup as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.sidecar.resources.mounts import UNIFIED, below, parse_cgroups, parse_mounts

DOCKER_V1 = """\
600 599 0:60 / /sys/fs/cgroup rw,nosuid,nodev - tmpfs tmpfs rw,mode=755
601 600 0:30 /docker/f00 /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:11 - cgroup cgroup rw,cpu,cpuacct
602 600 0:31 /docker/f00 /sys/fs/cgroup/memory ro,nosuid master:12 - cgroup cgroup rw,memory
603 600 0:32 /docker/f00 /sys/fs/cgroup/systemd ro,nosuid - cgroup systemd rw,xattr,name=systemd
"""
POD_V2 = "700 699 0:27 {root} {point} ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n"


def test_cgroups_by_controller() -> None:
    """A line may name several controllers; line 0 is v2; a path may hold colons."""
    assert parse_cgroups("4:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c:d\nnonsense\n") == {
        "cpu": "/a",
        "cpuacct": "/a",
        "name=systemd": "/b",
        UNIFIED: "/c:d",
    }


def test_mounts_of_both_versions() -> None:
    """Optional fields may stand before the dash; other file systems are left out; blanks are escaped."""
    mounts = parse_mounts(DOCKER_V1 + POD_V2.format(root="/", point="/sys/fs/my\\040cgroup"))
    assert [(mount.root, mount.point) for mount in mounts] == [
        ("/docker/f00", "/sys/fs/cgroup/cpu,cpuacct"),
        ("/docker/f00", "/sys/fs/cgroup/memory"),
        ("/docker/f00", "/sys/fs/cgroup/systemd"),
        ("/", "/sys/fs/my cgroup"),
    ]
    assert {"cpu", "cpuacct"} <= mounts[0].controllers
    assert mounts[3].controllers == {UNIFIED}


def _container(root: Path, *points: str) -> None:
    """Make directories that look like cgroups below the root of their hierarchy."""
    for point in points:
        directory = root / point
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").touch()
        if "cpu" not in point and "memory" not in point:
            (directory / "cgroup.controllers").touch()
            (directory / "cgroup.type").touch()


def test_a_container_of_v1_with_its_cgroup_bound_into_its_mounts(tmp_path: Path) -> None:
    """The mount shows the container's cgroup, also when the process is in one below it."""
    _container(tmp_path, "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory")
    paths = parse_cgroups("4:cpu,cpuacct:/docker/f00\n3:memory:/docker/f00/inner\n0::/\n")
    assert dict(below(parse_mounts(DOCKER_V1), paths, str(tmp_path))) == {
        "cpu": f"{tmp_path}/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": f"{tmp_path}/sys/fs/cgroup/cpu,cpuacct",
        "memory": f"{tmp_path}/sys/fs/cgroup/memory",
    }


@pytest.mark.parametrize(
    ("root", "path", "found"),
    [
        ("/../sibling", "/../sibling", True),  # as a sidecar with a cgroup namespace sees its sibling's
        ("/", "/", True),  # its own
        ("/kubepods/pod1/c1", "/kubepods/pod1/c1", True),  # without a cgroup namespace
        ("/", "/../sibling", False),  # our own mount does not reach the sibling
        ("/kubepods/pod1/c1", "/kubepods/pod1/c10", False),
        ("/../a", "/../b", False),
    ],
)
def test_a_container_of_v2_only_where_its_mount_shows_it(
    tmp_path: Path, root: str, path: str, found: bool
) -> None:
    """Root and path are compared as the kernel tells both; what is another cgroup's mount is refused."""
    _container(tmp_path, "sys/fs/cgroup")
    mounts = parse_mounts(POD_V2.format(root=root, point="/sys/fs/cgroup"))
    expected = {UNIFIED: f"{tmp_path}/sys/fs/cgroup"} if found else {}
    assert dict(below(mounts, {UNIFIED: path}, str(tmp_path))) == expected


def test_a_host_whose_mount_is_the_root_of_the_hierarchy(tmp_path: Path) -> None:
    """There the process's own cgroup is the container; the root cgroup is the node, and none."""
    point = tmp_path / "sys/fs/cgroup"
    _container(tmp_path, "sys/fs/cgroup/system.slice/postgresql.service")
    (point / "cgroup.controllers").touch()
    mounts = parse_mounts(POD_V2.format(root="/", point="/sys/fs/cgroup"))
    assert dict(below(mounts, {UNIFIED: "/"}, str(tmp_path))) == {}
    assert dict(below(mounts, {UNIFIED: "/system.slice/gone.service"}, str(tmp_path))) == {}
    service = "/system.slice/postgresql.service"
    assert dict(below(mounts, {UNIFIED: service}, str(tmp_path))) == {UNIFIED: f"{point}{service}"}


@given(st.text())
def test_any_text_is_parsed(text: str) -> None:
    """No contents of these files raise."""
    parse_cgroups(text)
    parse_mounts(text)


@given(st.lists(st.sampled_from([*" \\040x/-,\n", "cgroup", "cgroup2", " - "]), max_size=60))
def test_any_line_of_mounts_is_parsed(pieces: list[str]) -> None:
    """Nor do lines that are nearly right."""
    parse_mounts("".join(pieces))
