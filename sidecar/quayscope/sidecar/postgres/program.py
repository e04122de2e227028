"""The running server's program: its major, its exported globals, and what its postmaster has mapped."""

from __future__ import annotations

import contextlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedElf, SidecarError
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.maps import read_maps
from quayscope.sidecar.postgres.enums import MAJORS
from quayscope.sidecar.targets import Postmaster

__all__ = ["Program", "Region", "Unreadable", "is_mapped", "program_of", "regions"]

_LINE = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) (....) [0-9a-f]{1,16} [0-9a-f]+:[0-9a-f]+ ([0-9]+) *([^\n]*)$",
    re.MULTILINE,
)
_MAX_MAPS = 4 << 20
_GLOBALS = (
    "MaxBackends",
    "MyBEEntry",
    "MyProc",
    "MyProcPid",
    "ProcGlobal",
    "my_wait_event_info",
    "pgstat_track_activity_query_size",
)
"""Exported by stripped builds too; 13 has neither `MyBEEntry` nor `my_wait_event_info`."""


class Unreadable(SidecarError):
    """A server whose shared memory cannot be read, or is not laid out as expected; the text says why."""


class Region(NamedTuple):
    """A mapping of a process: [start, end), permissions as `rw-s`, the inode behind it, its path."""

    start: int
    end: int
    permissions: str
    inode: int
    path: str


class Program(NamedTuple):
    """What the executable exports.

    `addresses` are those of the globals in every process of the server; `data` are the writable stretches of
    the executable as they are mapped, first to last address.
    """

    major: int
    addresses: dict[str, int]
    data: tuple[tuple[int, int], ...]


def regions(pid: int) -> list[Region]:
    """Return all mappings of a process, in order of address; raises OSError."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        text = file.read(_MAX_MAPS)
    return [
        Region(int(start, 16), int(end, 16), permissions.decode(), int(inode), os.fsdecode(path))
        for start, end, permissions, inode, path in _LINE.findall(text)
    ]


def is_mapped(pid: int, start: int, end: int, inode: int) -> bool:
    """Return whether a process has exactly this mapping of this file; raises OSError.

    It is asked each second: all mappings with what they are would take milliseconds then, this 20 us, or
    150 where the file behind a mapping is not shown (proc_pid_map_files(5)).
    """
    with contextlib.suppress(OSError):
        path = f"/proc/{pid}/map_files/{start:x}-{end:x}"
        return os.stat(path).st_ino == inode  # noqa: PTH116 - a Path takes longer than the call
    with open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
        text = b"\n" + file.readall()
    at = text.find(f"\n{start:08x}-{end:08x} ".encode())
    return at >= 0 and int(text[at + 1 :].split(maxsplit=5)[4]) == inode


@lru_cache(maxsize=8)
def _globals(_device: int, _inode: int, _changed_ns: int, path: str) -> tuple[dict[str, int], Elf]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        elf = Elf(descriptor)
    finally:
        os.close(descriptor)
    found = {name: symbol.address for name in _GLOBALS if (symbol := elf.data_symbol(name)) is not None}
    return found, elf


def _major(server: Postmaster) -> int:
    # The working directory of a postmaster is its data directory.
    try:
        text = Path(f"/proc/{server.pid}/cwd/PG_VERSION").read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise Unreadable(f"PG_VERSION of postmaster {server.pid} cannot be read: {error}") from error
    if not text.isdigit() or int(text) not in MAJORS:
        raise Unreadable(f"PostgreSQL {text[:20]!r} is not one of {MAJORS[0]} to {MAJORS[-1]}")
    return int(text)


def program_of(server: Postmaster) -> Program:
    """Return what the server's executable exports; raises `Unreadable`."""
    major = _major(server)
    # Through /proc/PID/exe: the file that runs, also when a package upgrade has replaced it.
    path = f"/proc/{server.pid}/exe"
    try:
        facts = Path(path).stat()
        symbols, elf = _globals(facts.st_dev, facts.st_ino, facts.st_mtime_ns, path)
        name = str(Path(path).readlink())
        mapped = regions(server.pid)
    except MalformedElf as error:
        raise Unreadable(f"the executable of postmaster {server.pid}: {error}") from error
    except OSError as error:
        raise Unreadable(f"the executable of postmaster {server.pid}: {error.strerror}") from error
    space = read_maps(server.pid)
    code = [] if space is None else [mapping for mapping in space.mappings if mapping.path == name]
    biases = [bias for one in code if (bias := elf.bias(one.start, one.offset)) is not None]
    if not biases:
        raise Unreadable(f"{name} is not mapped in its own process")
    return Program(major, {key: value + biases[0] for key, value in symbols.items()}, _data(mapped, name))


def _data(mapped: list[Region], name: str) -> tuple[tuple[int, int], ...]:
    """Return the executable's writable mappings, and the nameless one after them: what starts as zeros."""
    found: list[tuple[int, int]] = []
    for region in mapped:
        follows = bool(found) and found[-1][1] == region.start and not region.path
        if region.permissions.startswith("rw") and (region.path == name or follows):
            found.append((region.start, region.end))
    return tuple(found)
