"""The unwinder on recordings of real programs, beside perf's own stacks of the same samples."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dumps import Laid
from integration.sidecar.recorder import SUMMED, Database, mixed_load, prepare, record, recording
from perf_data import Files, Replay, perf_stacks
from quayscope.sidecar.native.events import DUMP_BYTES
from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.spaces import Spaces
from quayscope.sidecar.native.unwind import CfiUnwinder

DEBIAN = Path("/usr/lib/postgresql/15")


@dataclass
class Compared:
    """How stacks of ours compare with perf's; `examples` of those that are neither the same nor longer.

    `cut` ones are longer than what is recorded of a stack.
    """

    same: int = 0
    longer: int = 0
    other: int = 0
    cut: int = 0
    examples: list[tuple[list[int], list[int]]] = field(default_factory=list)

    @property
    def all(self) -> int:
        return self.same + self.longer + self.other


def in_file(space: AddressSpace, address: int) -> int:
    """Return an address as `perf script` prints it: within its file."""
    mapping = space.find(address)
    return address if mapping is None else address - mapping.start + mapping.offset


def compare(path: Path, replay: Replay, unwinder: CfiUnwinder) -> Compared:
    """Unwind every sample, twice alone and once with all others, and set it beside perf's stack of it."""
    found = Compared()
    theirs = perf_stacks(path)
    dumped = [(space, sample) for space, sample in replay if sample.registers]
    laid = Laid((sample.registers, sample.stack) for _, sample in dumped)
    together = unwinder.unwind_all(
        [(space, dump) for (space, _), dump in zip(dumped, laid.dumps, strict=True)]
    )
    unwinder.ends.clear()
    alone = [unwinder.unwind(space, sample.registers, sample.stack).packed() for space, sample in dumped]
    assert together == alone
    unwinder.ends.clear()
    for space, sample in replay:
        result = unwinder.unwind(space, sample.registers, sample.stack)
        assert unwinder.unwind(space, sample.registers, sample.stack) == result
        found.cut += result.end == "dump" and len(sample.stack) == DUMP_BYTES
        ours = [in_file(space, address) for address in result.addresses]
        wanted = theirs[sample.tid, sample.time_ns]
        # Where perf went astray it ends at an address that no file holds; where both did, ours leaves it out.
        while len(wanted) > 1 and wanted[-1] > 1 << 40 and wanted[-1] not in result.addresses:
            wanted.pop()
        if result.end == "unmapped":
            wanted = wanted[: max(len(ours), len(wanted) - 1)]
        alike = sum(1 for a, b in zip(wanted, ours, strict=False) if a in (b, b + 1))
        if alike == len(wanted) == len(ours):
            found.same += 1
        elif alike == len(wanted):
            found.longer += 1
        else:
            found.other += 1
            found.examples.append((wanted, ours))
    return found


@pytest.fixture(scope="module")
def cpu_s(full: bool) -> float:
    return 10.0 if full else 1.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


def test_postgres_without_frame_pointers(
    make_server: Callable[..., Database], folder: Path, cpu_s: float
) -> None:
    """Stacks of a mixed load are perf's, and reach their root; live maps and files give the same."""
    server = make_server("18")
    prepare(server)
    path = folder / "postgres"
    with recording(path, "-p", str(server.pid)), mixed_load(server, cpu_s) as pids:
        live = Spaces()
        spaces = {pid: live.of(pid) for pid in pids}
        unwinder = CfiUnwinder(Objects(), cache=None)
        # What is mapped is asked for while it lives; the objects stay open.
        for space in spaces.values():
            assert space is not None
            for mapping in space.mappings:
                unwinder.unwind(space, [mapping.start] * 17, b"")
    replay = Replay(path)
    assert len(replay) > 400 * cpu_s * 0.8
    recorded = CfiUnwinder(Files(), cache=None)
    found = compare(path, replay, recorded)
    print(found.same, found.longer, found.other, recorded.ends)
    assert found.other == 0, found.examples[:3]
    assert found.same >= 0.985 * found.all
    assert recorded.ends["root"] >= 0.99 * recorded.ends.total()
    assert recorded.malformed == 0
    checked = 0
    for space, sample in replay:
        own = spaces.get(sample.pid)
        if own is not None:
            expected = recorded.unwind(space, sample.registers, sample.stack)
            assert unwinder.unwind(own, sample.registers, sample.stack) == expected
            checked += 1
    assert checked > 0.8 * len(replay)


def test_backends_that_have_ended(make_server: Callable[..., Database], folder: Path, cpu_s: float) -> None:
    """Backends of a few milliseconds, all gone before they are looked at, still reach their root."""
    server = make_server("18")
    with server.connect() as connection:
        connection.execute(SUMMED)
    path = folder / "short"
    pids = set()
    with recording(path, "-p", str(server.pid)):
        for _ in range(int(40 * cpu_s)):
            with server.connect() as connection:
                pids.add(connection.info.backend_pid)
                connection.execute("SELECT sum(summed(i)) FROM generate_series(1, 1500) i")
    replay = Replay(path, Spaces())
    assert len({sample.pid for _, sample in replay} & pids) > 20
    unwinder = CfiUnwinder(Objects(), cache=None)
    found = compare(path, replay, unwinder)
    print(found.same, found.longer, found.other, found.cut, unwinder.ends)
    assert found.other == 0, found.examples[:3]
    # Each backend compiles the function once: two frames of that compiler have 12 and 8 kB, by their code.
    assert found.cut <= 0.05 * found.all
    assert unwinder.ends["root"] >= 0.99 * (unwinder.ends.total() - 2 * found.cut)


def test_generated_code(
    make_server: Callable[..., Database], binaries: dict[str, Path], folder: Path, cpu_s: float
) -> None:
    """Debian's Postgres with its JIT: stacks with generated code, where perf's end, reach the root."""
    if not (DEBIAN / "bin" / "postgres").is_file():
        pytest.skip(f"no Postgres in {DEBIAN}")
    binaries.setdefault("15", DEBIAN)
    server = make_server("15", "-c", "jit=on", "-c", "jit_above_cost=0", "-c", "max_parallel_workers=0")
    prepare(server)
    path = folder / "generated"
    statements = [
        """SELECT sum(id * 3 + length(name)), sum(CASE WHEN id % 7 = 3 THEN amount ELSE 1 END)
        FROM account x, generate_series(1, 8) WHERE id % 3 > 0 AND length(name) > 5 AND id * 2 > 100"""
    ]
    with recording(path, "-p", str(server.pid)), mixed_load(server, cpu_s, statements):
        pass
    replay = Replay(path)
    unwinder = CfiUnwinder(Files(), cache=None)
    found = compare(path, replay, unwinder)
    generated: Counter[str] = Counter()
    for space, sample in replay:
        result = unwinder.unwind(space, sample.registers, sample.stack)
        mappings = [space.find(address) for address in result.addresses]
        if any(mapping is not None and not mapping.path for mapping in mappings):
            generated[result.end] += 1
    print(found.same, found.longer, found.other, unwinder.ends, generated)
    assert found.other <= 0.005 * found.all, found.examples[:3]
    assert unwinder.ends["root"] >= 0.99 * unwinder.ends.total()
    assert generated.total() > 50
    assert generated["root"] >= 0.98 * generated.total()


@pytest.fixture(scope="module")
def program(checkout: Path, folder: Path) -> Path:
    """The C++ program that makes unwinding hard, without frame pointers."""
    source = checkout / "tests" / "targets" / "unwinding.cpp"
    command = ["g++", "-O2", "-fomit-frame-pointer", "-pthread", "-o", str(folder / "program"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "program"


def test_a_program_of_threads_and_exceptions(program: Path, folder: Path, cpu_s: float) -> None:
    """Recursion, exceptions, realigned stacks, signals, libraries: the same as perf's, or longer."""
    path = folder / "threads"
    record(path, str(program), str(cpu_s))
    replay = Replay(path)
    unwinder = CfiUnwinder(Files(), cache=None)
    found = compare(path, replay, unwinder)
    print(found.same, found.longer, found.other, unwinder.ends)
    assert len(replay) > 400 * cpu_s * 0.8
    assert found.other <= 0.005 * found.all, found.examples[:3]
    assert found.same >= 0.985 * found.all
    # A signal on a stack of its own hides what it interrupted: once in 64 turns.
    assert unwinder.ends["root"] >= 0.97 * unwinder.ends.total()


def test_go(checkout: Path, folder: Path, cpu_s: float) -> None:
    """A stripped Go program goes by its frame pointers, where perf has one frame."""
    source = checkout / "tests" / "targets" / "unwinding.go"
    command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(folder / "go"), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    path = folder / "goroutines"
    record(path, str(folder / "go"), str(cpu_s))
    replay = Replay(path)
    unwinder = CfiUnwinder(Files(), cache=None)
    found = compare(path, replay, unwinder)
    print(found.same, found.longer, found.other, unwinder.ends)
    assert len(replay) > 400 * cpu_s * 0.8
    assert found.longer >= 0.95 * found.all
    assert unwinder.ends["root"] >= 0.98 * unwinder.ends.total()


def test_a_second_start(
    make_server: Callable[..., Database], folder: Path, tmp_path: Path, cpu_s: float
) -> None:
    """With the rules of the first one it gives the same stacks, and decodes next to nothing."""
    path = folder / "postgres"
    if not path.is_file():
        test_postgres_without_frame_pointers(make_server, folder, cpu_s)
    replay = Replay(path)
    first = CfiUnwinder(Files(), cache=tmp_path)
    stacks = [first.unwind(space, sample.registers, sample.stack) for space, sample in replay]
    first.close()
    sizes = {file: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes
    assert sum(sizes.values()) < 4 << 20
    second = CfiUnwinder(Files(), cache=tmp_path)
    assert [second.unwind(space, sample.registers, sample.stack) for space, sample in replay] == stacks
    second.close()
    assert (second.corrupted, second.malformed) == (0, 0)
    assert {file: file.stat().st_size for file in tmp_path.iterdir()} == sizes
