"""What the kernel writes into a ring, read into records.

Layouts: perf_event_open(2), "MMAP layout", for the sample types that `events` asks for: identifier, pid and
tid, time, period, the count where asked for, call chain, then user registers and stack where asked for. All
other records end in pid and tid, time, identifier.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from quayscope.sidecar.native.events import Form
from quayscope.sidecar.native.samples import DUMPED_AT, Dump, RawSample

__all__ = [
    "LOST",
    "SAMPLE",
    "THROTTLE",
    "Ended",
    "Executed",
    "Forked",
    "Mapped",
    "Parsed",
    "Record",
    "parse_lost",
    "parse_sample",
    "parse_task",
]

_MMAP2, LOST, _COMM, _EXIT, THROTTLE, _FORK, SAMPLE = 10, 2, 3, 4, 5, 7, 9
_COMM_EXEC = 1 << 13
_EXECUTABLE = 4
# With the count where it is asked for, and the length of the chain.
_SAMPLE, _COUNTED = struct.Struct("<QIIQQQ"), struct.Struct("<QIIQQQQ")
_SAMPLE_AT = 8
_COUNT = struct.Struct("<Q")
_LOST = struct.Struct("<QQ")
_TASK = struct.Struct("<IIII")
_COMM_HEAD = struct.Struct("<II")
_MAP = struct.Struct("<IIQQQ24xI4x")
_TRAILER = struct.Struct("<QQ")
_TRAILER_BYTES = 24
_CONTEXT_FLOOR = (1 << 64) - 4095
_CONTEXT_KERNEL = (1 << 64) - 128
_KERNEL_MARK = _COUNT.pack(_CONTEXT_KERNEL)
_MARKED = b"\xff" * 6
"""What every mark ends in, and few addresses have."""


class Parsed(NamedTuple):
    """A sample, the number of the event that took it, and that event's count where it was asked for."""

    event: int
    counted: int
    sample: RawSample


class Forked(NamedTuple):
    """A task began: a process of its own where `pid` is not `parent`, else a thread."""

    time_ns: int
    event: int
    pid: int
    parent: int
    tid: int
    parent_tid: int


class Ended(NamedTuple):
    """A task ended; the process with it where `tid` is `pid`."""

    time_ns: int
    event: int
    pid: int
    tid: int


class Executed(NamedTuple):
    """A process runs another program now."""

    time_ns: int
    event: int
    pid: int


class Mapped(NamedTuple):
    """Code was mapped: `length` bytes of `path` from `offset` lie at `start`."""

    time_ns: int
    event: int
    pid: int
    start: int
    length: int
    offset: int
    path: str
    executable: bool


Record = Forked | Ended | Executed | Mapped


def parse_sample(data: memoryview, at: int, size: int, form: Form, address: int = 0) -> Parsed | None:
    """Return the sample of a record at `at`, `size` bytes long; None when it contradicts itself.

    Its dump is a part of `data`, not a copy; `address` is where that lies in our own memory, 0 where nobody
    may read it there.
    """
    end = at + size
    count = 0
    kernel = user = b""
    dump = None
    try:
        if form.counted:
            event, pid, tid, time_ns, period, count, depth = _COUNTED.unpack_from(data, at + _SAMPLE_AT)
            at += _SAMPLE_AT + _COUNTED.size
        else:
            event, pid, tid, time_ns, period, depth = _SAMPLE.unpack_from(data, at + _SAMPLE_AT)
            at += _SAMPLE_AT + _SAMPLE.size
        if depth:
            if at + depth * 8 > end:
                return None
            kernel, user = _split_chain(bytes(data[at : at + depth * 8]))
            at += depth * 8
        if form.stack_bytes:
            (abi,) = _COUNT.unpack_from(data, at)
            at += 8
            registers = at
            at += DUMPED_AT if abi else 8
            (dumped,) = _COUNT.unpack_from(data, at - 8)
            valid = 0
            if dumped:
                if at + dumped + 8 > end:
                    return None
                (valid,) = _COUNT.unpack_from(data, at + dumped)
                if valid > dumped:
                    return None
            if abi:
                dump = Dump(data, registers, valid, address)
    except struct.error:
        return None
    return Parsed(event, count, RawSample(pid, tid, time_ns, period, kernel, user, dump))


def _split_chain(chain: bytes) -> tuple[bytes, bytes]:
    """Return the kernel's and the user's addresses of a chain that has a mark before each part."""
    if chain[:8] == _KERNEL_MARK and _MARKED not in chain[8:]:
        return chain[8:], b""
    kernel = bytearray()
    user = bytearray()
    into = user
    for (address,) in _COUNT.iter_unpack(chain):
        if address >= _CONTEXT_FLOOR:
            into = kernel if address == _CONTEXT_KERNEL else user
        else:
            into += _COUNT.pack(address)
    return bytes(kernel), bytes(user)


def parse_lost(data: memoryview, at: int) -> tuple[int, int]:
    """Return which event noticed the loss, and how many records were lost."""
    event, lost = _LOST.unpack_from(data, at + 8)
    return event, lost


def parse_task(data: memoryview, at: int, size: int, kind: int, misc: int) -> Record | None:
    """Return what happened to a task; None for records of no interest, or that are too short."""
    body, trailer = at + 8, at + size - _TRAILER_BYTES
    if trailer < body:
        return None
    try:
        time_ns, event = _TRAILER.unpack_from(data, trailer + 8)
        if kind in (_FORK, _EXIT):
            pid, parent, tid, parent_tid = _TASK.unpack_from(data, body)
            if kind == _EXIT:
                return Ended(time_ns, event, pid, tid)
            return Forked(time_ns, event, pid, parent, tid, parent_tid)
        if kind == _COMM:
            pid, _ = _COMM_HEAD.unpack_from(data, body)
            return Executed(time_ns, event, pid) if misc & _COMM_EXEC else None
        if kind == _MMAP2 and body + _MAP.size <= trailer:
            pid, _, start, length, offset, protection = _MAP.unpack_from(data, body)
            path = bytes(data[body + _MAP.size : trailer]).partition(b"\0")[0]
            executable = bool(protection & _EXECUTABLE)
            return Mapped(time_ns, event, pid, start, length, offset, os.fsdecode(path), executable)
    except struct.error:
        return None
    return None
