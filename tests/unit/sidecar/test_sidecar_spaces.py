"""Address spaces: kept current by records and by reading again, within bounds."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tracemalloc

import pytest

from quayscope.sidecar.native import maps
from quayscope.sidecar.native.maps import AddressSpace, Layout, Mapping, parse_maps, read_maps
from quayscope.sidecar.native.spaces import Spaces


class Processes:
    """Processes whose maps are what a test says, and a clock that it moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.mappings: dict[int, list[Mapping]] = {1: [Mapping(0x1000, 0x2000, 0, "/program")]}
        self.reads = 0
        self.takes = 0.0
        self.spaces = Spaces(read=self.read, clock=lambda: self.now)

    def read(self, pid: int) -> AddressSpace | None:
        self.reads += 1
        self.now += self.takes
        found = self.mappings.get(pid)
        return None if found is None else AddressSpace(pid, found)

    def path(self, pid: int, address: int) -> str | None:
        space = self.spaces.of(pid)
        assert space is not None
        assert space.pid == pid
        mapping = space.find(address)
        return None if mapping is None else mapping.path


@pytest.fixture
def processes() -> Processes:
    return Processes()


def test_read_once(processes: Processes) -> None:
    """A process is read when first asked for, and not again."""
    for _ in range(3):
        assert processes.path(1, 0x1800) == "/program"
    assert processes.reads == 1


def test_a_process_that_cannot_be_read(processes: Processes) -> None:
    """It is None and counted, and tried again after a while: it may have been starting."""
    assert processes.spaces.of(2) is None
    assert processes.spaces.of(2) is None
    assert (processes.reads, processes.spaces.unreadable) == (1, 1)
    processes.now += 0.3
    processes.mappings[2] = [Mapping(0x5000, 0x6000, 0, "/late")]
    assert processes.path(2, 0x5000) == "/late"


def test_read_again(processes: Processes) -> None:
    """An address in no mapping has the process read again, at most once in 200 ms."""
    processes.spaces.of(1)
    processes.mappings[1].append(Mapping(0x5000, 0x6000, 0, "/library"))
    assert processes.spaces.missed(1) is None
    processes.now += 0.21
    space = processes.spaces.missed(1)
    assert space is not None
    assert space is processes.spaces.of(1)
    assert processes.path(1, 0x5000) == "/library"
    for _ in range(10):
        assert processes.spaces.missed(1) is None
    assert processes.reads == 2
    processes.now += 0.21
    assert processes.spaces.missed(1) is None, "nothing has changed"
    assert processes.spaces.read_again == 2


def test_a_process_that_is_slow_to_read(processes: Processes) -> None:
    """Reading it takes at most a fiftieth of the time."""
    processes.takes = 0.1
    processes.spaces.of(1)
    for _ in range(1000):
        processes.now += 0.01
        processes.spaces.missed(1)
    assert processes.reads <= 3


def test_forks_share(processes: Processes) -> None:
    """A child has its parent's mappings without being read, until one of them changes."""
    processes.spaces.of(1)
    processes.spaces.forked(2, 1)
    child, parent = processes.spaces.of(2), processes.spaces.of(1)
    assert child is not None
    assert parent is not None
    assert child.layout is parent.layout
    processes.spaces.mapped(2, 0x5000, 0x1000, 0, "/plugin", True)
    assert processes.path(2, 0x5000) == "/plugin"
    assert processes.path(1, 0x5000) is None
    processes.spaces.forked(3, 2)
    assert processes.path(3, 0x5000) == "/plugin"
    assert processes.reads == 1


def test_descent(processes: Processes) -> None:
    """Whom a process descends from is known through forks, changes and other programs."""
    processes.spaces.of(1)
    processes.spaces.forked(2, 1)
    processes.spaces.forked(3, 2)
    processes.spaces.mapped(3, 0x5000, 0x1000, 0, "/plugin", True)
    processes.spaces.forked(4, 3)
    processes.spaces.executed(4)
    processes.spaces.mapped(4, 0x5000, 0x1000, 0, "/other", True)
    found = [processes.spaces.of(pid) for pid in (1, 2, 3, 4)]
    assert [space.ancestor for space in found if space is not None] == [0, 1, 1, 1]


def test_a_parent_that_is_not_known(processes: Processes) -> None:
    """Then the child is read itself; what an older process of its number had is forgotten."""
    processes.mappings[2] = [Mapping(0x7000, 0x8000, 0, "/child")]
    processes.spaces.mapped(2, 0x5000, 0x1000, 0, "/old", True)
    processes.spaces.forked(2, 9)
    assert processes.path(2, 0x5000) is None
    assert processes.path(2, 0x7000) == "/child"


def test_threads_are_no_forks(processes: Processes) -> None:
    """A record of a new thread changes nothing."""
    processes.spaces.mapped(1, 0x5000, 0x1000, 0, "/plugin", True)
    processes.spaces.forked(1, 1)
    assert processes.path(1, 0x5000) == "/plugin"


def test_another_program(processes: Processes) -> None:
    """After exec only what it maps from then on is there."""
    processes.spaces.of(1)
    processes.spaces.executed(1)
    processes.spaces.mapped(1, 0x9000, 0x1000, 0x400, "/other", True)
    processes.spaces.mapped(1, 0xB000, 0x1000, 0, "/data", False)
    assert processes.path(1, 0x1800) is None
    assert processes.path(1, 0x9000) == "/other"
    assert processes.path(1, 0xB000) is None
    assert processes.reads == 1


def test_an_ended_process_is_forgotten(processes: Processes) -> None:
    """Its number may come back as another."""
    processes.spaces.of(1)
    processes.spaces.ended(1)
    processes.mappings[1] = [Mapping(0x7000, 0x8000, 0, "/next")]
    assert processes.path(1, 0x1800) is None
    assert processes.path(1, 0x7000) == "/next"


def test_what_is_mapped_over(processes: Processes) -> None:
    """A new mapping takes the place of what it covers, and leaves the rest with its offsets."""
    processes.mappings[1] = [Mapping(0x1000, 0x9000, 0x100000, "/file"), Mapping(0x9000, 0xA000, 0, "/next")]
    processes.spaces.mapped(1, 0x3000, 0x2000, 0, "//anon", True)
    processes.spaces.mapped(1, 0x8000, 0x1800, 0x40, "/over", True)
    space = processes.spaces.of(1)
    assert space is not None
    assert list(space.mappings) == [
        Mapping(0x1000, 0x3000, 0x100000, "/file"),
        Mapping(0x3000, 0x5000, 0, ""),
        Mapping(0x5000, 0x8000, 0x104000, "/file"),
        Mapping(0x8000, 0x9800, 0x40, "/over"),
        Mapping(0x9800, 0xA000, 0x800, "/next"),
    ]


def test_bounds(processes: Processes) -> None:
    """Processes and mappings that nobody asks for do not pile up."""
    for pid in range(10_000):
        processes.spaces.mapped(pid, 0x5000, 0x1000, 0, "/plugin", True)
    assert len(processes.spaces) == 4096
    for number in range(10_000):
        processes.spaces.mapped(1, 0x10000 + number * 0x2000, 0x1000, 0, f"/{number}", True)
    space = processes.spaces.of(1)
    assert space is not None
    assert len(space.mappings) < 2000


def test_huge_processes(processes: Processes) -> None:
    """Those with tens of thousands of mappings are held as long as there is room for them."""
    for pid in range(10, 30):
        place = 0x10000 + pid
        processes.mappings[pid] = [
            Mapping(place + number * 0x2000, place + 0x1000 + number * 0x2000, 0, "/file")
            for number in range(20_000)
        ]
        assert processes.path(pid, place) == "/file"
    processes.spaces.of(1)
    assert len(processes.spaces) == 1 + 262_144 // 20_000
    reads = processes.reads
    processes.spaces.of(29)
    assert processes.reads == reads
    processes.spaces.of(10)
    assert processes.reads == reads + 1


def text_of(count: int, permissions: bytes = b"r-xp") -> bytes:
    return b"".join(
        b"%x-%x %s 00000000 fd:01 %d                    /usr/lib/x86_64-linux-gnu/library-%d.so\n"
        % (start, start + 0x2000, permissions, 1000 + number % 40, number % 40)
        for number in range(count)
        for start in [0x7F0000000000 + number * 0x4000]
    )


def test_50_000_entries() -> None:
    """They take a bounded amount of memory, each path is kept once, and addresses are found."""
    text = text_of(50_000)
    tracemalloc.start()
    space = AddressSpace(1, parse_maps(text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
    assert len(space.mappings) == 50_000
    assert len({id(mapping.path) for mapping in space.mappings}) == 40
    found = space.find(0x7F0000000000 + 49_999 * 0x4000 + 5)
    assert found is not None
    assert found.path.endswith("library-39.so")


def test_more_entries_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest ones are."""
    monkeypatch.setattr(maps, "MAX_MAPPINGS", 100)
    assert len(AddressSpace(1, parse_maps(text_of(500))).mappings) == 100


def test_a_process_with_many_mappings() -> None:
    """A real one with 25,000 of them, every second of its pages executable, is read and searched."""
    script = (
        "import ctypes, mmap, os, sys\n"
        "area = mmap.mmap(-1, 25000 * mmap.PAGESIZE)\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(area))\n"
        "protect = ctypes.CDLL(None).mprotect\n"
        "protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n"
        "for page in range(0, 25000, 2):\n"
        "    assert protect(start + page * mmap.PAGESIZE, mmap.PAGESIZE, 5) == 0\n"
        "print(start, flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    start = int(process.stdout.readline())
    spaces = Spaces()
    space = spaces.of(process.pid)
    assert space is not None
    assert len(space.mappings) > 12_500
    assert space.find(start + 24_998 * mmap.PAGESIZE) is not None
    assert space.find(start + 24_999 * mmap.PAGESIZE) is None
    process.communicate()
    assert spaces.missed(process.pid) is None
    assert read_maps(process.pid) is None


def test_neighbours_are_one() -> None:
    """Mappings of one file that continue each other are one; others are not."""
    space = AddressSpace(
        1,
        [
            Mapping(0x3000, 0x4000, 0x2000, "/file"),
            Mapping(0x1000, 0x3000, 0, "/file"),
            Mapping(0x4000, 0x5000, 0, "/file"),
            Mapping(0x5000, 0x6000, 0x1000, "/other"),
            Mapping(0x7000, 0x8000, 0x2000, "/other"),
            Mapping(0x8000, 0x9000, 0, ""),
            Mapping(0x9000, 0xA000, 0, ""),
        ],
    )
    assert [(mapping.start, mapping.end) for mapping in space.mappings] == [
        (0x1000, 0x4000),
        (0x4000, 0x5000),
        (0x5000, 0x6000),
        (0x7000, 0x8000),
        (0x8000, 0xA000),
    ]


def test_equal_layouts_are_one_object() -> None:
    """So what was learned of one process serves the others; not where their files differ."""
    text = text_of(10)
    assert Layout.of(parse_maps(text)) is Layout.of(parse_maps(text))
    assert Layout.of(parse_maps(text), 1) is not Layout.of(parse_maps(text), 2)
    own = read_maps(os.getpid())
    again = read_maps(os.getpid())
    assert own is not None
    assert again is not None
    assert own.layout is again.layout
