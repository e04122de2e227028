"""A reader of perf.data files with register and stack dumps, and what they need to be unwound again.

Format: tools/perf/Documentation/perf.data-file-format.txt and perf_event_open(2). Records are returned in the
order of time, whatever buffer they came through.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.maps import AddressSpace, Mapping
from quayscope.sidecar.native.spaces import Spaces

_TID, _TIME, _ADDR, _CALLCHAIN, _ID, _CPU = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 7
_IP, _PERIOD, _STREAM, _REGS, _STACK, _IDENTIFIER = 1 << 0, 1 << 8, 1 << 9, 1 << 12, 1 << 13, 1 << 16
_MMAP, _LOST, _COMM, _EXIT, _FORK, _SAMPLE, _MMAP2 = 1, 2, 3, 4, 7, 9, 10
_COMM_EXEC = 1 << 13
_DWARF_OF_PERF = (0, 3, 2, 1, 4, 5, 6, 7, 16, *[-1] * 7, 8, 9, 10, 11, 12, 13, 14, 15)
"""DWARF numbers of perf's x86-64 registers, in its order; -1: flags and segments."""


class Event(NamedTuple):
    """Something other than a sample: `arguments` are those of the method of `Spaces` called `what`."""

    what: str
    arguments: tuple[int | str | bool, ...]


class Sample(NamedTuple):
    """A sample; registers by DWARF number as in `RawSample`, empty where none were dumped."""

    pid: int
    tid: int
    time_ns: int
    registers: tuple[int, ...]
    stack: bytes


def read(path: Path) -> list[Event | Sample]:
    """Return all records of a file that was written with one event and `--call-graph dwarf`."""
    data = path.read_bytes()
    magic, _, _, attributes_at, _, at, size = struct.unpack_from("<8s6Q", data)
    assert magic == b"PERFILE2"
    (kind,) = struct.unpack_from("<Q", data, attributes_at + 24)
    (mask,) = struct.unpack_from("<Q", data, attributes_at + 80)
    numbers = [_DWARF_OF_PERF[bit] for bit in range(24) if mask >> bit & 1]
    records: list[tuple[int, Event | Sample]] = []
    end = at + size
    while at < end:
        what, flags, length = struct.unpack_from("<IHH", data, at)
        if what == _SAMPLE:
            sample = _sample(data, at + 8, kind, numbers)
            records.append((sample.time_ns, sample))
        else:
            event = _event(what, flags, data[at + 8 : at + length])
            if event is not None:
                records.append((_time(data, at + length, kind), event))
        at += length
    return [record for _, record in sorted(records, key=lambda pair: pair[0])]


def _time(data: bytes, end: int, kind: int) -> int:
    after = sum(8 for field in (_ID, _STREAM, _CPU, _IDENTIFIER) if kind & field)
    return int(struct.unpack_from("<Q", data, end - after - 8)[0])


def _event(what: int, flags: int, body: bytes) -> Event | None:
    if what in (_MMAP, _MMAP2):
        pid, _, start, length, offset = struct.unpack_from("<IIQQQ", body)
        name_at, executable = (32, True) if what == _MMAP else (64, bool(body[56] & 4))
        name = os.fsdecode(body[name_at : body.index(b"\0", name_at)])
        return Event("mapped", (pid, start, length, offset, name, executable))
    if what in (_FORK, _EXIT):
        pid, parent, tid, _ = struct.unpack_from("<IIII", body)
        if what == _FORK:
            return Event("forked", (pid, parent)) if pid != parent else None
        return Event("ended", (pid,)) if pid == tid else None
    if what == _COMM and flags & _COMM_EXEC:
        return Event("executed", struct.unpack_from("<I", body))
    assert what != _LOST or struct.unpack_from("<QQ", body)[1] < 1000, "perf lost samples"
    return None


def _sample(data: bytes, at: int, kind: int, numbers: Sequence[int]) -> Sample:
    at += 8 * bool(kind & _IDENTIFIER) + 8 * bool(kind & _IP)
    pid, tid, time_ns = struct.unpack_from("<IIQ", data, at)
    at += 16
    at += sum(8 for field in (_ADDR, _ID, _STREAM, _CPU, _PERIOD) if kind & field)
    if kind & _CALLCHAIN:
        at += 8 + 8 * int(struct.unpack_from("<Q", data, at)[0])
    registers = [0] * 17
    (abi,) = struct.unpack_from("<Q", data, at)
    at += 8
    if not abi:
        return Sample(pid, tid, time_ns, (), b"")
    for number, value in zip(numbers, struct.unpack_from(f"<{len(numbers)}Q", data, at), strict=True):
        if number >= 0:
            registers[number] = value
    at += 8 * len(numbers)
    (size,) = struct.unpack_from("<Q", data, at)
    at += 8
    dumped = int(struct.unpack_from("<Q", data, at + size)[0]) if size else 0
    return Sample(pid, tid, time_ns, tuple(registers), data[at : at + dumped])


class Files:
    """Objects by path alone: of processes that have ended. Files that are no objects are none."""

    def __init__(self) -> None:
        self._held: dict[str, Elf | None] = {}

    def of(self, pid: int, path: str) -> Elf | None:
        if path not in self._held:
            self._held[path] = _vdso() if path == "[vdso]" else _open(path)
        return self._held[path]


def _open(path: str) -> Elf | None:
    if not Path(path).is_file():
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return Elf(descriptor)
    finally:
        os.close(descriptor)


def _vdso() -> Elf:
    """The vDSO, which is the kernel's: it is the same in every process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(start)
                return Elf(memory.read(end - start))
    raise AssertionError("no vDSO")


class Replay:
    """The samples of a recorded file with the address spaces that held when they were taken.

    Those come from the file's records alone unless `spaces` are given.
    """

    def __init__(self, path: Path, spaces: Spaces | None = None) -> None:
        spaces = spaces or Spaces(read=lambda _: None)
        self.samples: list[tuple[AddressSpace, Sample]] = []
        for record in read(path):
            if isinstance(record, Event):
                getattr(spaces, record.what)(*record.arguments)
            elif record.registers:
                space = spaces.of(record.pid)
                if space is not None:
                    self.samples.append((space, record))

    def __iter__(self) -> Iterator[tuple[AddressSpace, Sample]]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


_HEAD = re.compile(r"^\s*(\d+)/(\d+)\s+(\d+)\.(\d{9}):")
_FRAME = re.compile(r"^\s+([0-9a-f]+) ?")


def perf_stacks(path: Path) -> dict[tuple[int, int], list[int]]:
    """Return perf's own user stacks of a file, leaf first, by (tid, time in nanoseconds)."""
    command = ["perf", "script", "-i", str(path), "--no-inline", "--ns", "-F", "pid,tid,time,ip"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    stacks: dict[tuple[int, int], list[int]] = {}
    stack: list[int] = []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            stack = stacks[int(head[2]), int(head[3]) * 10**9 + int(head[4])] = []
            continue
        frame = _FRAME.match(line)
        if frame and int(frame[1], 16) < 1 << 63:
            stack.append(int(frame[1], 16))
    return stacks


__all__ = ["Event", "Files", "Mapping", "Replay", "Sample", "perf_stacks", "read"]
