"""The sampler on real programs: what it says of them is true, complete, and of nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.database import Database, DatabaseOptions
from quayscope.sidecar.errors import AlreadySampled
from quayscope.sidecar.native import tracked as tracked_module
from quayscope.sidecar.native.events import open_event
from quayscope.sidecar.native.report import ALL_CPU, CGROUP, capabilities
from quayscope.sidecar.native.ring import RingBudget
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Tracked
from sampler_targets import (
    BURN_SOURCE,
    FORKER_SOURCE,
    SHARES,
    SHARES_SOURCE,
    TestCgroup,
    build,
    count_of,
    cpu_of,
    end,
    own_cgroup,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="moves processes between cgroups")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs to be sampled, compiled."""
    folder = tmp_path_factory.mktemp("programs")
    sources = {"shares": SHARES_SOURCE, "forker": FORKER_SOURCE, "burn": BURN_SOURCE}
    return {name: build(source, folder, name) for name, source in sources.items()}


@pytest.fixture
def cgroup() -> Iterator[TestCgroup]:
    """A cgroup of our own."""
    with own_cgroup() as made:
        yield made


def target_of(process: subprocess.Popen[bytes], name: str = "it", **options: Any) -> SampledTarget:
    """The tree of a process as a target."""
    pid = process.pid
    return SampledTarget(name, pid, lambda: procfs.descendants(pid), lambda _: "main", "main", **options)


@contextlib.contextmanager
def sampling(
    *targets: SampledTarget, hz: int = 999
) -> Iterator[tuple[Sampler, list[Profile], list[Tracked]]]:
    """Sample targets; all profiles are there at the end."""
    out: list[Profile] = []
    sampler = Sampler(out.extend, hz=hz, window_s=1)
    sampler.start()
    try:
        yield sampler, out, [sampler.add(target) for target in targets]
    finally:
        sampler.close()
    assert sampler.faults == 0
    assert sampler.counts()["records_malformed"] == 0


def functions(profiles: list[Profile], wanted: dict[str, int]) -> Counter[str]:
    """CPU by the wanted function that is in the stack."""
    found: Counter[str] = Counter()
    for profile in profiles:
        for (stack, _), (_, cpu_ns) in profile.samples.items():
            names = {frame.function for frame in stack} & wanted.keys()
            found[names.pop() if names else "elsewhere"] += cpu_ns
    return found


def leaves_of_perf(data: Path) -> Counter[str]:
    """Samples by leaf function in what perf recorded."""
    command = ["perf", "script", "-i", str(data), "--no-inline", "--max-stack", "1", "-F", "ip,sym"]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return Counter(re.findall(r"^\s+[0-9a-f]+ (\S+)$", text, re.MULTILINE))


def test_truth(programs: dict[str, Path], cgroup: TestCgroup, full: bool, until: Any, tmp_path: Path) -> None:
    """Functions have the shares of CPU that they have, and perf, sampling beside us, says the same."""
    wanted = 5_000 if full else 1_500
    process = cgroup.start(programs["shares"], stdout=subprocess.PIPE)
    until(lambda: procfs.name(process.pid) == "shares", 5.0)
    record = ["perf", "record", "-q", "--call-graph", "dwarf,16384", "-e", "cpu-clock", "-F", "999"]
    data = tmp_path / "perf.data"
    perf = subprocess.Popen([*record, "-o", str(data), "-p", str(process.pid)])
    with sampling(target_of(process)) as (_, out, (tracked,)):
        assert tracked.source.kind == "cgroup"
        until(lambda: tracked.samples >= wanted, 120.0, "enough samples")
        perf.send_signal(signal.SIGINT)
        perf.wait(60)
    process.terminate()
    spent = [int(line) for line in process.communicate(timeout=10)[0].split()]
    seen = functions(out, SHARES)
    total = sum(seen.values())
    print(seen, spent)
    for name, ns in zip(SHARES, spent, strict=True):
        assert abs(seen[name] / total - ns / sum(spent)) < (0.02 if full else 0.035)
    ours: Counter[str] = Counter()
    for profile in out:
        for (stack, _), (count, _) in profile.samples.items():
            ours[stack[-1].function] += count
    theirs = leaves_of_perf(data)
    overlap = sum(
        min(ours[name] / ours.total(), theirs[name] / theirs.total()) for name in ours.keys() | theirs.keys()
    )
    print(overlap, ours, theirs)
    assert overlap >= 0.95


@pytest.fixture
def debian_postgres(binaries: dict[str, Path], make_server: Callable[..., Any]) -> Any:
    """Debian's server."""
    binaries.setdefault("15", Path("/usr/lib/postgresql/15"))
    return make_server("15")


def pgbench(server: Any, *options: str) -> list[str]:
    """The command line of a pgbench against a server."""
    return ["pgbench", "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", *options, "postgres"]


def test_reconnect_storm_is_complete(
    debian_postgres: Any, programs: dict[str, Path], cgroup: TestCgroup, full: bool, until: Any
) -> None:
    """Of thousands of backends that live for milliseconds all CPU is sampled, and nobody else's."""
    server = debian_postgres
    wanted, most_off = (10_000, 0.05) if full else (1_500, 0.08)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(pgbench(server, "-i", "-q"), check=True, **quiet)
    cgroup.adopt(server.pid)
    with own_cgroup() as other:
        neighbour = other.start(programs["burn"])
        load = subprocess.Popen(pgbench(server, "-C", "-c", "2", "-T", "300", "-S"), **quiet)
        with sampling(target_of(server.process)) as (sampler, out, (tracked,)):
            assert tracked.source.kind == "cgroup"
            began_ns = cgroup.cpu_ns()
            until(lambda: tracked.samples >= wanted, 200.0, "enough samples")
            load.terminate()
            load.wait(10)
            measured_ns = cgroup.cpu_ns() - began_ns
        pids = {attributes.pid for profile in out for _, attributes in profile.samples}
        print(len(pids), "processes", cpu_of(out) / measured_ns, count_of(out), sampler.counts())
        assert len(pids) > wanted / 50
        assert sampler.counts()["samples_without_maps"] < wanted / 100
        assert not {neighbour.pid, load.pid, os.getpid()} & pids
        assert abs(cpu_of(out) / measured_ns - 1) < most_off
        end([neighbour])


def test_database_in_its_cgroup(debian_postgres: Any, cgroup: TestCgroup, until: Any) -> None:
    """The database's own rings take its cgroup too: what short backends ran is noted at the sample."""
    server = debian_postgres
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(pgbench(server, "-i", "-q"), check=True, **quiet)
    cgroup.adopt(server.pid)
    out: list[Profile] = []
    capabilities = Capabilities()
    options = DatabaseOptions(str(server.pid), "", "db", {}, 499, 1)
    sampler = Sampler(out.extend, hz=499, window_s=1)
    sampler.start()
    database = Database(options, capabilities, out.extend, lambda _: None, sampler)
    load = subprocess.Popen(pgbench(server, "-C", "-c", "2", "-T", "300", "-S"), **quiet)
    try:
        database.start()
        (tracked,) = sampler.targets
        assert tracked.source.kind == "cgroup"
        until(lambda: tracked.samples >= 400, 60.0, "enough samples")
    finally:
        load.terminate()
        load.wait(10)
        database.close()
        sampler.close()
    roles, kinds = Counter[str](), Counter[str]()
    for profile in out:
        for (stack, _), (count, _) in profile.samples.items():
            roles[profile.labels["role"]] += count
            kinds["sql"] += count * any(frame.kind == "sql" for frame in stack)
    print(roles, kinds, sampler.counts())
    # Before it has a title, a backend cannot be told: most of a short one's life is its start.
    assert roles["client backend"] > 20
    assert roles["postmaster"] > 0
    assert kinds["sql"] > 10
    assert sampler.faults == 0
    assert database.counts()["faults"] == 0


def test_shortfall_is_told(programs: dict[str, Path], until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Task by task, children that live for a millisecond are hardly seen: it is measured, and said."""
    monkeypatch.setattr(tracked_module, "_MEASURE_EVERY_S", 1.0)
    process = subprocess.Popen([programs["forker"], "1000"])
    steady = subprocess.Popen([programs["burn"]])
    try:
        with sampling(target_of(process, cgroup=False), hz=99) as (sampler, _, (tracked,)):
            assert tracked.source.kind == "task"
            until(lambda: tracked.coverage.share < 0.9, 20.0, "a shortfall")
            held = {capability.name: capability for capability in capabilities(sampler.targets)}
            assert not held[ALL_CPU].permitted
            assert "hardly seen" in held[ALL_CPU].detail
            assert not held[CGROUP].permitted
        with sampling(target_of(steady, cgroup=False), hz=99) as (sampler, _, (tracked,)):
            until(lambda: tracked.coverage.measured_ns > 500_000_000, 20.0, "measured")
            held = {capability.name: capability for capability in capabilities(sampler.targets)}
            assert held[ALL_CPU].permitted, held[ALL_CPU]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        end([process, steady])


def test_lost_samples_are_counted(programs: dict[str, Path], until: Any) -> None:
    """While nobody reads, the ring runs over: what is lost stands in the profiles.

    With what is not it is what a sampler has that lost nothing: where a virtual CPU is taken away for a while
    both have one sample for many periods.
    """
    process = subprocess.Popen([programs["burn"]])
    out: list[Profile] = []
    whole: list[Profile] = []
    sampler = Sampler(out.extend, hz=999, window_s=1, budget=RingBudget(2 << 20))
    beside = Sampler(whole.extend, hz=999, window_s=1)
    rings = sampler.open_rings()
    fits = rings.size // 16_000
    try:
        beside.start()
        sampler.add(target_of(process, cgroup=False), rings)
        beside.add(target_of(process, cgroup=False))
        until(lambda: beside.counts()["samples"] > 3 * fits, 60.0)
        # The kernel tells of the loss with the next record that it has room for.
        sampler.start()
        until(lambda: sampler.counts()["samples_lost"] > 0, 20.0, "a loss")
        for one in (sampler, beside):
            one.set_rate(19)
        # Nothing is lost any more, so what was is told.
        (tracked,) = sampler.targets
        until(partial(_more, tracked, tracked.samples + 3), 30.0)
    finally:
        end([process])
        sampler.close()
        beside.close()
    lost = sum(profile.losses.lost for profile in out)
    assert lost > 0
    assert sampler.counts()["samples_lost"] == lost
    assert beside.counts()["samples_lost"] == 0
    print(f"{lost} lost, {count_of(out)} not; {count_of(whole)} beside")
    assert abs((lost + count_of(out)) / count_of(whole) - 1) < 0.3


def _more(tracked: Tracked, samples: int) -> bool:
    return tracked.samples > samples


def test_rate_at_run_time(programs: dict[str, Path], cgroup: TestCgroup, until: Any) -> None:
    """The rate changes while it samples, for both kinds of source; a second of CPU has as many samples."""
    inside, beside = cgroup.start(programs["burn"]), subprocess.Popen([programs["burn"]])
    until(lambda: procfs.name(inside.pid) == "burn", 5.0)
    try:
        targets = target_of(inside, "inside"), target_of(beside, "beside", cgroup=False)
        with sampling(*targets, hz=19) as (sampler, out, both):
            assert [tracked.source.kind for tracked in both] == ["cgroup", "task"]
            for bad in (18, 1_000):
                with pytest.raises(ValueError, match="19 to 999"):
                    sampler.set_rate(bad)
            for hz in (499, 99):
                sampler.set_rate(hz)
                for tracked in both:  # past the period that had begun
                    until(partial(_more, tracked, tracked.samples + 3), 30.0)
                before = [(tracked.samples, tracked.cpu_ns) for tracked in both]
                for tracked, (samples, cpu_ns) in zip(both, before, strict=True):
                    until(partial(_more, tracked, samples + 60), 30.0)
                    rate = (tracked.samples - samples) / (tracked.cpu_ns - cpu_ns) * 1e9
                    # A virtual CPU that is taken away for a while makes samples late.
                    assert 0.6 < rate / hz < 1.2, tracked.target.service
        assert {profile.period for profile in out} >= {1_000_000_000 // 99}
    finally:
        end([inside, beside])


def test_somebody_moves_in(programs: dict[str, Path], cgroup: TestCgroup, until: Any) -> None:
    """A cgroup that others are in is not sampled as one, nor is one any longer that they move into."""
    process, stranger = cgroup.start(programs["burn"]), subprocess.Popen([programs["burn"]])
    until(lambda: procfs.name(process.pid) == "burn", 5.0)
    try:
        with sampling(target_of(process)) as (sampler, out, (tracked,)):
            until(lambda: tracked.samples > 20, 20.0)
            source = tracked.source
            assert source.kind == "cgroup"
            cgroup.adopt(stranger.pid)
            source._verify_at = 0.0  # type: ignore[union-attr]  # due now, not in ten seconds
            until(lambda: tracked.source.kind == "task", 5.0, "left the cgroup")
            assert str(stranger.pid) in tracked.why_not_cgroup
            sampler.remove(tracked)
            out.clear()
            again = sampler.add(target_of(process))
            assert again.source.kind == "task"
            until(lambda: again.samples > 20, 20.0)
        pids = {attributes.pid for profile in out for _, attributes in profile.samples}
        assert pids == {process.pid}
    finally:
        end([process, stranger])


def perf_descriptors() -> int:
    """How many perf events and cgroups this process has open."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(path.readlink()))
    return sum("perf_event" in link or "/cgroup" in link for link in links)


def test_nobody_is_sampled_twice(programs: dict[str, Path], cgroup: TestCgroup, until: Any) -> None:
    """A second target in a cgroup that is sampled, or around one that is, would be counted twice: refused."""
    first, second = cgroup.start(programs["burn"]), cgroup.start(programs["burn"])
    until(lambda: {procfs.name(first.pid), procfs.name(second.pid)} == {"burn"}, 5.0)
    try:
        before = perf_descriptors()
        both = SampledTarget("both", first.pid, lambda: [second.pid], lambda _: "main", "main")
        alone = target_of(second, "alone", cgroup=False)
        for one, other in ((both, alone), (alone, both), (both, both)):
            with sampling(one) as (sampler, _, _), pytest.raises(AlreadySampled, match="sampled as"):
                sampler.add(other)
        assert perf_descriptors() == before
    finally:
        end([first, second])


def test_more_than_the_kernel_samples(programs: dict[str, Path]) -> None:
    """Asked for a rate beyond the kernel's limit, the answer names the limit."""
    limit = int(Path("/proc/sys/kernel/perf_event_max_sample_rate").read_text())
    with pytest.raises(OSError, match=f"perf_event_max_sample_rate .{limit}."):
        open_event(os.getpid(), 0, limit + 1, kernel=False)


def test_unprivileged(
    programs: dict[str, Path], plain_python: Any, open_folder: Path, checkout: Path
) -> None:
    """A plain user with 64 kB of locked memory samples its own processes, and is told what is less."""
    script = """
import atexit, json, subprocess, sys, time
from quayscope.sidecar.native.events import open_event
from quayscope.sidecar.native.report import capabilities
from quayscope.sidecar.native.ring import RingBudget
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
out = []
sampler = Sampler(out.extend, hz=99, window_s=1)
sampler.start()
processes = [subprocess.Popen([sys.argv[1]]) for _ in range(2)]
atexit.register(lambda: [process.kill() for process in processes])
rings = [sampler.open_rings(each=True) for _ in range(2)]
def target(process): return SampledTarget("it", process.pid, lambda: [], lambda _: "main", "main")
both = [sampler.add(target(process), one) for process, one in zip(processes, rings)]
end = time.monotonic() + 30
while any(one.samples < 5 for one in both) and time.monotonic() < end:
    for ring in [one.ring(cpu) for one in rings for cpu in one.cpus]: ring.noted = ring.head()
    time.sleep(0.05)
held = {one.name: [one.permitted, one.detail] for one in capabilities(sampler.targets)}
print(json.dumps([[one.samples, one.source.kind] for one in both] + [held, [one.size for one in rings]]))
sampler.close()
"""
    # What a user may lock is counted over all its programs: this one has no others.
    number = 61_000 + os.getpid() % 1_000
    user: dict[str, Any] = {"user": number, "group": number, "extra_groups": []}
    program = open_folder / "burn"
    program.write_bytes(programs["burn"].read_bytes())
    program.chmod(0o755)
    command = f'ulimit -l 64; exec "{plain_python.executable}" - {program}'
    done = subprocess.run(
        ["bash", "-c", command],
        input=script,
        text=True,
        capture_output=True,
        timeout=60,
        env=plain_python.environment,
        cwd=open_folder,
        **user,
    )
    assert done.returncode == 0, done.stderr
    first, second, held, sizes = json.loads(done.stdout)
    print(held, sizes)
    assert first[0] >= 5
    assert second[0] >= 5
    assert first[1] == second[1] == "task"
    assert sizes[1] < 512 << 10
    assert not held["ring_memory"][0]
    assert f"{sizes[1] // 1024} kB" in held["ring_memory"][1]
