"""Resources of real processes in real cgroups: what is told is what the kernel and the process say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from measured_resources import MEGABYTE, Measured, Point, Told, descriptors, one, written
from own_cgroup import OwnCgroup, own_cgroup
from quayscope.sidecar.resources import Container, TierCpu

_UNIT = 1 << 16


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    """A folder on a file system that writes count on: no tmpfs."""
    with tempfile.TemporaryDirectory(prefix="quayscope-disk-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.mark.alone
def test_a_container_under_limits_is_told_as_its_cgroup_has_it(
    measured: Measured, cgroup: OwnCgroup, start: Callable[..., Told]
) -> None:
    """CPU, throttling, memory and run-queue delay lie between what the kernel says before and after."""
    cgroup.limit_cpu(0.25)
    cgroup.set("memory", "memory.limit_in_bytes", 256 * MEGABYTE)
    told = start(cgroup.entering)
    container = Container({"service_name": "quay-app", "container": "quay-app"}, told.pid)
    measured.tick(container)
    told.do(f"held = b'x' * {48 * MEGABYTE}")
    told.do(
        "end = time.process_time() + 0.15; [None for _ in iter(lambda: time.process_time() < end, False)]"
    )

    def kernel() -> tuple[float, float, float, float]:
        stat = dict(line.split() for line in cgroup.get("cpu", "cpu.stat").splitlines())
        delay = int(Path(f"/proc/{told.pid}/schedstat").read_text().split()[1])
        usage = sum(int(cgroup.get("cpuacct", f"cpuacct.usage_{mode}")) for mode in ("user", "sys"))
        return usage / 1e9, int(stat["throttled_time"]) / 1e9, int(stat["nr_periods"]), delay / 1e9

    before = kernel()
    points = measured.tick(container)
    after = kernel()
    cpu = sum(one(points, "container.cpu.time", **{"cpu.mode": mode}).value for mode in ("user", "system"))
    names = ("cpu.throttled_time", "cpu.periods", "cpu.delay")
    others = [one(points, f"quayscope.container.{name}").value for name in names]
    for low, value, high in zip(before, (cpu, *others), after, strict=True):
        assert low - 1e-9 <= value <= high + 1e-9
    assert cpu >= 0.15
    assert others[0] > 0
    assert one(points, "quayscope.container.cpu.limit").value == 0.25
    assert one(points, "quayscope.container.memory.limit").value == 256 * MEGABYTE
    usage = one(points, "container.memory.usage").value
    assert 48 * MEGABYTE <= usage <= 256 * MEGABYTE
    assert 0 < one(points, "container.memory.working_set").value <= usage
    assert one(points, "quayscope.container.processes").value == 1
    point = one(points, "quayscope.container.cpu.periods")
    assert point.labels == {"pod": "p1", **container.labels}
    assert point.start_ns < point.time_ns - 1_000_000
    held = {capability.name: capability for capability in measured.capabilities.all()}
    assert held["container_resources"].permitted
    assert held["container_pressure"].permitted == ("unified" in cgroup.directories)


_FIND = """
import json, sys
from quayscope.sidecar.resources.mounts import cgroup_directories
from quayscope.sidecar.resources.tried import Tried
print(json.dumps(cgroup_directories(int(sys.argv[1]), Tried(), "target")))
"""


def test_a_cgroup_is_found_by_its_containers_mounts_where_ours_do_not_reach_it(
    cgroup: OwnCgroup, start: Callable[..., Told]
) -> None:
    """A sidecar without mounts of cgroups reads a sibling's through the sibling's root, and only its own."""
    told = start(cgroup.contained)
    blind = ["unshare", "--mount", "/bin/sh", "-c", 'umount -l /sys/fs/cgroup/* && exec "$@"', "sh"]
    answer = subprocess.check_output([*blind, sys.executable, "-c", _FIND, str(told.pid)])
    found = json.loads(answer)
    assert found.keys() >= cgroup.directories.keys()
    for hierarchy, directory in cgroup.directories.items():
        assert found[hierarchy] == f"/proc/{told.pid}/root/sys/fs/cgroup/{hierarchy}"
        assert Path(found[hierarchy]).stat().st_ino == directory.stat().st_ino
    plain = start(cgroup.entering)
    assert json.loads(subprocess.check_output([sys.executable, "-c", _FIND, str(plain.pid)])) == {
        hierarchy: f"/proc/{plain.pid}/root{directory}" for hierarchy, directory in cgroup.directories.items()
    }


def test_pressure_of_a_v2_cgroup(measured: Measured, cgroup: OwnCgroup, start: Callable[..., Told]) -> None:
    """What the kernel says before and after; two processes that want one CPU stall each other."""
    if "unified" not in cgroup.directories or not Path("/proc/pressure/cpu").exists():
        pytest.skip("no cgroup v2, or a kernel without pressure")
    told = start(cgroup.entering)
    cpu = min(os.sched_getaffinity(0))
    told.do(f"os.sched_setaffinity(0, [{cpu}])")
    told.do("burn = lambda: [None for _ in iter(lambda: time.process_time() < 0.15, False)]")
    told.do("child = os.fork() or (burn(), os._exit(0)); burn(); os.waitpid(child, 0)")

    def kernel() -> float:
        some = cgroup.get("unified", "cpu.pressure").split("total=")[1].split()[0]
        return int(some) / 1e6

    before = kernel()
    wanted = {"quayscope.resource": "cpu", "quayscope.stalled": "some"}
    points = measured.tick(Container({"service_name": "quay-app"}, told.pid))
    value = one(points, "quayscope.container.pressure", **wanted).value
    assert 0 < before <= value <= kernel()


def test_two_programs_of_a_container_are_one_series_and_a_restart_begins_anew(
    measured: Measured, start: Callable[..., Told]
) -> None:
    """The first target's labels stand for the cgroup; a new one under them has lower sums, a later start."""
    with own_cgroup() as first:
        told = [start(first.entering), start(first.entering)]
        containers = [
            Container({"service_name": name}, program.pid) for name, program in zip("ab", told, strict=True)
        ]
        told[0].do(
            "end = time.process_time() + 0.1; [None for _ in iter(lambda: time.process_time() < end, False)]"
        )
        points = measured.tick(*containers)
        before = one(points, "container.cpu.time", **{"cpu.mode": "user"})
        assert before.labels["service_name"] == "a"
        assert one(points, "quayscope.container.processes").value == 2
        for program in told:
            program.end()
        gone = measured.tick(*containers)
        assert not [point for point in gone if point.name.startswith("container.")]
        assert measured.capabilities.permitted("container_resources")
    with own_cgroup() as second:
        again = start(second.entering)
        after = one(
            measured.tick(Container({"service_name": "a"}, again.pid)),
            "container.cpu.time",
            **{"cpu.mode": "user"},
        )
    assert after.value < before.value
    assert after.start_ns >= before.time_ns - 1_000_000_000 > before.start_ns


@pytest.mark.alone
def test_what_ended_children_wrote_is_told_once(
    measured: Measured, disk_folder: Path, start: Callable[..., Told]
) -> None:
    """Their bytes while they live, and in their parent only those that nobody saw before they ended."""
    told = start()
    target = Container({"service_name": "quay-database"}, told.pid)
    measured.tick(target)
    write = "os.write(os.open({!r}, os.O_CREAT | os.O_WRONLY), b'x' * {})"
    told.do("go, ready, more = os.pipe(), os.pipe(), os.pipe()")
    first, second = (
        write.format(str(disk_folder / name), size * MEGABYTE) for name, size in (("a", 3), ("b", 1))
    )
    child = f"({first}, os.write(ready[1], b'.'), os.read(go[0], 1), {second}, os._exit(0))"
    told.do(f"child = os.fork() or {child}")
    told.do("os.read(ready[0], 1)")
    seen = written(measured.tick(target))
    (pid,) = seen.keys() - {"", str(told.pid)}
    assert seen == {pid: 3, "": 0}
    told.do("os.write(go[1], b'.'); os.waitpid(child, 0)")
    assert written(measured.tick(target)) == {str(told.pid): 1, "": 0}
    told.do(write.format(str(disk_folder / "c"), 2 * MEGABYTE))
    assert written(measured.tick(target)) == {str(told.pid): 2, "": 0}
    assert written(measured.tick(target)) == {"": 0}


@pytest.mark.alone
def test_the_busiest_20_processes_are_told_and_the_others_summed(
    measured: Measured, disk_folder: Path, start: Callable[..., Told]
) -> None:
    """Also where descriptors are too few to hold the processes' files open; none is left open afterwards."""
    opened = descriptors()
    few = Measured()
    few.processes._room = 3
    told = start()
    target = Container({"service_name": "quay-app"}, told.pid)
    told.do("ready, go, folder = os.pipe(), os.pipe(), " + repr(str(disk_folder)))
    told.do(
        f"write = lambda n: (os.write(os.open(folder + '/' + str(n), os.O_CREAT | os.O_WRONLY), "
        f"b'x' * {_UNIT} * n), "
        "os.write(ready[1], b'.'), os.read(go[0], 1), os._exit(0))"
    )
    for made in (measured, few):
        made.tick(target)
    told.do("children = [os.fork() or write(n) for n in range(1, 26)]")
    told.do("[os.read(ready[0], 1) for _ in children]")
    for made in (measured, few):
        seen = written(made.tick(target), _UNIT)
        assert seen.pop("") == sum(range(1, 6))
        assert sorted(seen.values()) == list(range(6, 26))
    told.do("os.write(go[1], b'.' * 25); [os.waitpid(child, 0) for child in children]")
    for made in (measured, few):
        assert written(made.tick(target), _UNIT) == {"": 0}
        made.close()
    told.end()
    assert descriptors() <= opened


def test_a_storm_of_short_lived_processes_leaves_nothing_behind(measured: Measured) -> None:
    """Who ends while being looked at: no error, no descriptor left open, and the tree's CPU only grows."""
    tiers = TierCpu(measured.processes)
    opened = descriptors()
    with subprocess.Popen(["/bin/sh", "-c", "while :; do /bin/true; /bin/true & done"]) as storm:
        target = Container({"service_name": "quay-app"}, storm.pid)
        cpu = []
        for _ in range(20):
            assert one(measured.tick(target), "quayscope.container.processes").value >= 1
            (quay,) = [r for r in tiers.readings(None, storm.pid) if r.attributes["tier"] == "quay"]
            cpu.append(quay.value)
        storm.kill()
    assert cpu == sorted(cpu)
    assert cpu[-1] > cpu[0]
    measured.tick(target)
    measured.close()
    assert descriptors() <= opened


def test_the_delay_of_all_threads_is_told(
    measured: Measured, cgroup: OwnCgroup, start: Callable[..., Told]
) -> None:
    """Threads come and go: the sum is that of the living, and never falls."""
    told = start(cgroup.entering)
    target = Container({"service_name": "quay-app"}, told.pid)
    told.do("import threading; stop = threading.Event()")
    told.do("burn = lambda: [None for _ in iter(lambda: sum(range(99)) and not stop.is_set(), False)]")
    told.do("threads = [threading.Thread(target=burn) for _ in range(4)]; [t.start() for t in threads]")

    def kernel() -> float:
        delays = [path.read_text().split()[1] for path in Path(f"/proc/{told.pid}/task").glob("*/schedstat")]
        return sum(map(int, delays)) / 1e9

    for _ in range(2):
        told.do("time.sleep(0.05)")
        before = kernel()
        value = one(measured.tick(target), "quayscope.container.cpu.delay").value
        assert before <= value <= kernel()
        assert value > 0
    told.do("stop.set(); [t.join() for t in threads]")
    assert one(measured.tick(target), "quayscope.container.cpu.delay").value >= value


def test_disks_tell_what_was_on_disks(measured: Measured, disk_folder: Path) -> None:
    """Bytes at least as many as were synced, a latency for them, and a utilisation that is a share."""
    if not measured.tick() or not measured.capabilities.permitted("disk_statistics"):
        pytest.skip("no /proc/diskstats")

    def on_disks(points: list[Point]) -> float:
        wanted = {"disk.io.direction": "write"}
        return sum(
            p.value for p in points if p.name == "system.disk.io" and wanted.items() <= p.attributes.items()
        )

    before = on_disks(measured.tick())
    with (disk_folder / "synced").open("wb") as file:
        file.write(os.urandom(4 * MEGABYTE))
        file.flush()
        os.fsync(file.fileno())
    points = measured.tick()
    assert on_disks(points) - before >= 4 * MEGABYTE
    latencies = [point.value for point in points if point.name == "quayscope.system.disk.latency"]
    assert latencies
    assert all(0 <= latency < 10 for latency in latencies)

    def busiest(points: list[Point]) -> float:
        return max(point.value for point in points if point.name == "quayscope.system.disk.utilization")

    # The kernel counts the ticks of its clock in which a disk was busy: a fast one may be so between two.
    found = busiest(points)
    for _ in range(20):
        if found:
            break
        with (disk_folder / "synced").open("wb") as file:
            file.write(os.urandom(16 * MEGABYTE))
            file.flush()
            os.fsync(file.fileno())
        found = busiest(measured.tick())
    assert 0 < found <= 1


def test_the_blkio_controller_tells_a_containers_disk(
    measured: Measured, cgroup: OwnCgroup, disk_folder: Path, start: Callable[..., Told]
) -> None:
    """Bytes and operations by device, where the kernel counts them: from the first rule on."""
    device = disk_folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        cgroup.set("blkio", "blkio.throttle.write_bps_device", f"{number} 10000000000")
    except OSError as error:
        pytest.skip(f"no rule for {number}: {error}")
    told = start(cgroup.entering)
    target = Container({"service_name": "quay-database"}, told.pid)
    direct = f"f = os.open({str(disk_folder / 'direct')!r}, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)"
    told.do(f"import mmap; page = mmap.mmap(-1, {MEGABYTE}); {direct}; os.write(f, page)")
    points = measured.tick(target)
    wanted = {"disk.io.direction": "write"}
    assert one(points, "container.disk.io", **wanted).value == MEGABYTE
    assert one(points, "quayscope.container.disk.operations", **wanted).value >= 1
    name = one(points, "container.disk.io", **wanted).attributes["system.device"]
    assert Path(f"/sys/dev/block/{number}").resolve().name == name


def test_the_node_is_told(measured: Measured) -> None:
    """CPU by mode as the kernel counts it, memory, pressure where there is any; nothing is left out."""
    points = measured.tick()
    modes = {p.attributes["cpu.mode"]: p.value for p in points if p.name == "system.cpu.time"}
    assert modes.keys() == {"user", "nice", "system", "idle", "iowait", "interrupt", "softirq", "steal"}
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    assert abs(sum(modes.values()) - sum(ticks) / os.sysconf("SC_CLK_TCK")) < 2
    states = sum(p.value for p in points if p.name == "system.memory.usage")
    assert states == one(points, "system.memory.limit").value
    assert one(points, "system.memory.linux.available").value < states
    pressures = {p.attributes["quayscope.resource"] for p in points if p.name == "quayscope.system.pressure"}
    assert pressures == ({"cpu", "io", "memory"} if Path("/proc/pressure").exists() else set())
    assert {p.value for p in points if p.name == "quayscope.resources.left_out"} == {0}


def test_more_than_the_bounds_is_counted(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers and processes beyond them are left out, and said to be."""
    monkeypatch.setattr("quayscope.sidecar.resources.processes.MOST_PROCESSES", 2)
    containers = [Container({"service_name": str(number)}, os.getpid()) for number in range(70)]
    left_out = {
        point.attributes["quayscope.kind"]: point.value
        for point in measured.tick(*containers)
        if point.name == "quayscope.resources.left_out"
    }
    assert left_out["containers"] == 6
    assert left_out["processes"] > 0
    assert left_out["disks"] == left_out["sockets"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of another user")
def test_without_permission_the_rest_is_measured_and_the_missing_is_said(
    run_sidecar: Any, receiver: Any, until: Any, start: Callable[..., Told], cgroup: OwnCgroup
) -> None:
    """A plain user, a target of root's: no I/O by process, no namespace; each is a capability, no fault."""
    told = start(cgroup.entering)
    run_sidecar("--postgres", "off", "--quay-pid", str(told.pid), plain=True)
    received = receiver.received
    until(lambda: len(received.metrics["quayscope.container.cpu.delay"]) >= 3, 15.0, "three seconds")
    until(lambda: "process_io" in received.capabilities(), 5.0, "capabilities")
    held = received.capabilities()
    assert not held["process_io"][0]
    assert "EACCES" in held["process_io"][1]["detail"]
    assert "SYS_PTRACE" in held["process_io"][1]["remedy"]
    assert not held["accept_queues"][0]
    assert "own namespace" in held["accept_queues"][1]["detail"]
    assert held["node_resources"][0]
    assert not received.metrics["process.disk.io"]
    assert received.metrics["quayscope.socket.accept_queue"]
    assert {value for _, value, _ in received.metrics["quayscope.sidecar.faults"]} == {0}
