"""Readings of one container's cgroup, from trees of files as kernels write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources.cgroup import Cgroup, parse_blkio, parse_flat, parse_io_stat
from quayscope.sidecar.resources.counters import Counters
from quayscope.sidecar.resources.mounts import UNIFIED
from quayscope.sidecar.resources.names import CONTAINER_PRESSURE
from quayscope.sidecar.resources.pressure import pressure
from quayscope.sidecar.resources.tried import CONTAINER, PRESSURE, Tried

PRESSURE_FILE = (
    "some avg10=12.50 avg60=3.11 avg300=0.70 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"
)
V2 = {
    "cgroup.procs": "17\n0\n23\n",
    "cpu.stat": "usage_usec 9500000\nuser_usec 7250000\nsystem_usec 2250000\ncore_sched.force_idle_usec 0\n"
    "nr_periods 400\nnr_throttled 120\nthrottled_usec 3600000\nnr_bursts 0\nburst_usec 0\n",
    "cpu.max": "150000 100000\n",
    "memory.current": "734003200\n",
    "memory.max": "1073741824\n",
    "memory.stat": "anon 402653184\nfile 318767104\ninactive_anon 0\nactive_anon 402653184\n"
    "inactive_file 209715200\nactive_file 109051904\n",
    "memory.events": "low 0\nhigh 0\nmax 41\noom 2\noom_kill 1\noom_group_kill 0\n",
    "io.stat": "253:16 \n259:0 rbytes=4096000 wbytes=8192000 rios=100 wios=250 dbytes=0 dios=0\n"
    "8:0 rbytes=512 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
    "cpu.pressure": PRESSURE_FILE.format(4_100_000, 0),
    "io.pressure": PRESSURE_FILE.format(700_000, 350_000),
    "memory.pressure": PRESSURE_FILE.format(0, 0),
}
V1 = {
    "cpu/cgroup.procs": "17\n",
    "cpu/cpu.stat": "nr_periods 400\nnr_throttled 120\nthrottled_time 3600000000\n",
    "cpu/cpu.cfs_quota_us": "150000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "cpuacct/cpuacct.usage_user": "7250000000\n",
    "cpuacct/cpuacct.usage_sys": "2250000000\n",
    "memory/memory.usage_in_bytes": "734003200\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.stat": "cache 318767104\ninactive_file 1\nhierarchical_memory_limit 1073741824\n"
    "total_inactive_file 209715200\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "259:0 Read 4096000\n259:0 Write 8192000\n"
    "259:0 Sync 0\n259:0 Async 12288000\n259:0 Discard 0\n259:0 Total 12288000\n"
    "8:0 Read 512\n8:0 Write 0\nTotal 12288512\n",
    "blkio/blkio.throttle.io_serviced_recursive": "259:0 Read 100\n259:0 Write 250\n8:0 Read 1\n8:0 Write 0\n"
    "Total 351\n",
}
DISKS = {"259:0": "nvme0n1"}


def _tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _read(directories: Mapping[str, str], tried: Tried | None = None) -> list[Reading]:
    return Cgroup(directories, Counters(1), "postgres").readings(tried or Tried(), DISKS)


def _v1(root: Path) -> dict[str, str]:
    return {name: str(root / name) for name in ("cpu", "cpuacct", "memory", "blkio")}


def _values(readings: list[Reading]) -> dict[str, float]:
    return {" ".join([reading.name, *reading.attributes.values()]): reading.value for reading in readings}


COMMON = {
    "container.cpu.time user": 7.25,
    "container.cpu.time system": 2.25,
    "quayscope.container.cpu.limit": 1.5,
    "quayscope.container.cpu.periods": 400,
    "quayscope.container.cpu.throttled_periods": 120,
    "quayscope.container.cpu.throttled_time": 3.6,
    "container.memory.usage": 734003200,
    "container.memory.working_set": 524288000,
    "quayscope.container.memory.limit": 1073741824,
    "quayscope.container.memory.oom_kills": 1,
    "container.disk.io nvme0n1 read": 4096000,
    "container.disk.io nvme0n1 write": 8192000,
    "container.disk.io 8:0 read": 512,
    "container.disk.io 8:0 write": 0,
    "quayscope.container.disk.operations nvme0n1 read": 100,
    "quayscope.container.disk.operations nvme0n1 write": 250,
    "quayscope.container.disk.operations 8:0 read": 1,
    "quayscope.container.disk.operations 8:0 write": 0,
}
PRESSURES = {
    "quayscope.container.pressure cpu some": 4.1,
    "quayscope.container.pressure cpu full": 0.0,
    "quayscope.container.pressure io some": 0.7,
    "quayscope.container.pressure io full": 0.35,
    "quayscope.container.pressure memory some": 0.0,
    "quayscope.container.pressure memory full": 0.0,
}


def test_v2_is_read_whole(tmp_path: Path) -> None:
    """Every number of a v2 tree, in seconds, bytes and CPUs; devices have their names."""
    _tree(tmp_path, V2)
    tried = Tried()
    assert _values(_read({UNIFIED: str(tmp_path)}, tried)) == {**COMMON, **PRESSURES}
    assert tried.permitted(CONTAINER)
    assert tried.permitted(PRESSURE)


def test_v1_gives_the_same_numbers_and_says_that_it_has_no_pressure(tmp_path: Path) -> None:
    """Four hierarchies, other units and names, the limit from above: the same readings, but pressure."""
    _tree(tmp_path, V1)
    tried = Tried()
    capabilities = Capabilities()
    assert _values(_read(_v1(tmp_path), tried)) == COMMON
    tried.report(capabilities)
    held = {capability.name: capability for capability in capabilities.all()}
    assert held[CONTAINER].permitted
    assert not held[PRESSURE].permitted
    assert "v2" in held[PRESSURE].detail


def test_hybrid_takes_pressure_from_v2_and_the_rest_from_v1(tmp_path: Path) -> None:
    """Where both are mounted, each is asked for what only it has."""
    _tree(tmp_path, V1)
    _tree(tmp_path / "unified", {name: V2[name] for name in V2 if "pressure" in name})
    directories = {**_v1(tmp_path), UNIFIED: str(tmp_path / "unified")}
    assert _values(_read(directories)) == {**COMMON, **PRESSURES}


def test_processes_of_the_cgroup_and_those_just_below(tmp_path: Path) -> None:
    """0 is a process that our pid namespace does not show."""
    _tree(tmp_path, {**V2, "init.scope/cgroup.procs": "1\n", "app/cgroup.procs": "42\n43\n"})
    cgroup = Cgroup({UNIFIED: str(tmp_path)}, Counters(1), "postgres")
    assert sorted(cgroup.pids(Tried())) == [1, 17, 23, 42, 43]


def test_without_limits_none_is_told(tmp_path: Path) -> None:
    """`max` in v2, -1 and the largest number in v1; the cgroup of a pod without limits never throttles."""
    _tree(
        tmp_path / "2", {**V2, "cpu.max": "max 100000\n", "memory.max": "max\n", "cpu.stat": "usage_usec 1\n"}
    )
    free = {"cpu/cpu.cfs_quota_us": "-1\n", "memory/memory.stat": "total_inactive_file 0\n"}
    _tree(tmp_path / "1", {**V1, **free})
    for directories in ({UNIFIED: str(tmp_path / "2")}, _v1(tmp_path / "1")):
        names = {reading.name for reading in _read(directories)}
        assert names
        assert not {name for name in names if name.endswith(".limit")}


@pytest.mark.parametrize("missing", sorted(V2))
def test_a_missing_file_costs_its_own_readings_and_is_said(tmp_path: Path, missing: str) -> None:
    """The other files are read all the same, and the capability's detail names the file."""
    _tree(tmp_path, {name: text for name, text in V2.items() if name != missing})
    tried, capabilities = Tried(), Capabilities()
    cgroup = Cgroup({UNIFIED: str(tmp_path)}, Counters(1), "postgres")
    readings = cgroup.readings(tried, DISKS)
    cgroup.pids(tried)
    tried.report(capabilities)
    expected = {**COMMON, **PRESSURES}
    assert _values(readings).items() <= expected.items() | {("container.memory.working_set", 734003200)}
    assert len(readings) < len(expected) or missing in ("cpu.max", "cgroup.procs", "memory.max")
    refused = [capability for capability in capabilities.all() if not capability.permitted]
    assert [missing in capability.detail for capability in refused] == [True]


@pytest.mark.parametrize(
    "text", ["", "\n", "garbage\n", "usage_usec\nuser_usec x\n8:0 rbytes=\n", "\x00\xff 1 2 3\n"]
)
def test_files_that_say_nothing_give_no_readings(tmp_path: Path, text: str) -> None:
    """Bad contents are no numbers; they never raise."""
    _tree(tmp_path, dict.fromkeys(V2, text))
    _tree(tmp_path, dict.fromkeys(V1, text))
    assert _read({UNIFIED: str(tmp_path)}) == []
    assert _read(_v1(tmp_path)) == []


@given(st.text())
def test_parsers_take_any_text(text: str) -> None:
    """No contents of a file make a parser raise."""
    for parse in (parse_flat, parse_io_stat, parse_blkio):
        parse(text)
    list(pressure(text, "cpu", CONTAINER_PRESSURE, Counters(1)))


@given(st.dictionaries(st.integers(0, 999), st.integers(0, 1 << 62), max_size=200))
def test_devices_are_bounded(devices: dict[int, int]) -> None:
    """More than 64 devices are not kept, in either version."""
    v1 = "".join(f"8:{minor} Read {value}\n" for minor, value in devices.items())
    v2 = "".join(f"8:{minor} rbytes={value}\n" for minor, value in devices.items())
    kept = dict(list(devices.items())[:64])
    assert parse_blkio(v1) == {f"8:{minor}": {"Read": value} for minor, value in kept.items()}
    assert parse_io_stat(v2) == {f"8:{minor}": {"rbytes": value} for minor, value in kept.items()}
