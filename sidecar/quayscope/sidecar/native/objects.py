"""Objects that processes have mapped, opened through the process and kept open.

A path means what it means to the process: /proc/PID/exe, /proc/PID/root and /proc/PID/map_files (proc(5))
reach into its mounts, and past a package upgrade that replaced the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import mmap
import os
import stat
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple, TypeVar

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.maps import Mapping, parse_maps

__all__ = ["VDSO", "Objects", "open_regular"]

log = logging.getLogger(__name__)

VDSO = "[vdso]"
_DELETED = " (deleted)"
_MAX_OBJECTS = 128
"""Objects held, each with one open descriptor: also what of removed files is kept on a disk."""
_MAX_FILES = 1024
_MAX_PLACES = 8192
_MAPS_FRESH_S = 1.0
_MAX_MAPS = 16 << 20
_IDENTITY_BYTES = 4096
_MAX_VDSO = 1 << 20

_FileKey = tuple[int, int, int, int]


class _File(NamedTuple):
    """A file that was looked at: what its object is held by, "" where it is none."""

    key: _FileKey
    identity: str


K = TypeVar("K")
V = TypeVar("V")


class Objects:
    """Parsed ELF objects, one per build-id (else per device, inode and time of change).

    At most 128 are held, with one descriptor each; one that is let go stays readable for who still has it.
    Any thread may ask. `malformed` counts files that are no ELF objects, `replaced` look-ups of a path at
    which another file lies now than the process has mapped, and the mapped one could not be reached.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[str, Elf] = OrderedDict()
        self._files: OrderedDict[_FileKey, _File] = OrderedDict()
        self._places: OrderedDict[tuple[int, str], _File] = OrderedDict()
        self._deleted = _DeletedMappings()
        self._lock = threading.Lock()
        self.malformed = 0
        self.replaced = 0

    def of(self, pid: int, path: str) -> Elf | None:
        """Return the object that process `pid` has mapped as `path`; None: unreadable, malformed, no file.

        `path` is as /proc/PID/maps has it, also `[vdso]`. Of a process that has ended, only what was asked
        for while it lived is known.
        """
        with self._lock:
            if path == VDSO:
                return self._vdso()
            return self._of(pid, path) if path.startswith("/") else None

    def _of(self, pid: int, path: str) -> Elf | None:
        place = (pid, path.removesuffix(_DELETED))
        try:
            descriptor = self._open(pid, path, place)
        except FileNotFoundError:
            known = None if Path(f"/proc/{pid}").exists() else self._places.get(place)
            return self._held.get(known.identity) if known is not None else None
        except OSError:
            return None
        try:
            return self._parsed(descriptor, place)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _open(self, pid: int, path: str, place: tuple[int, str]) -> int:
        plain = place[1]
        with contextlib.suppress(OSError):
            if str(Path(f"/proc/{pid}/exe").readlink()).removesuffix(_DELETED) == plain:
                return open_regular(f"/proc/{pid}/exe")
        descriptor = -1
        if path == plain:
            with contextlib.suppress(FileNotFoundError):
                descriptor = open_regular(f"/proc/{pid}/root{plain}")
        if descriptor >= 0:
            known = self._places.get(place)
            if known is not None and known.key == _file_key(os.fstat(descriptor)):
                return descriptor
        # First seen, or another file than last time: is it the one that is mapped?
        span = self._deleted.span(pid, plain)
        if span is None:
            if descriptor < 0:
                raise FileNotFoundError(plain)
            return descriptor
        if descriptor >= 0:
            os.close(descriptor)
        try:
            return open_regular(f"/proc/{pid}/map_files/{span[0]:x}-{span[1]:x}")
        except OSError:
            self.replaced += 1
            raise

    def _parsed(self, descriptor: int, place: tuple[int, str]) -> Elf | None:
        key = _file_key(os.fstat(descriptor))
        file = self._files.get(key)
        elf = self._held.get(file.identity) if file is not None else None
        if file is None or (file.identity and elf is None):
            elf = self._parse(descriptor, place[1])
            file = _File(key, "" if elf is None else _identity(elf, key))
            _remember(self._files, key, file, _MAX_FILES)
            if elf is not None:
                # The same build from another image layer: one object, one set of tables.
                elf = self._held.setdefault(file.identity, elf)
        if elf is None:
            return None
        self._held.move_to_end(file.identity)
        if len(self._held) > _MAX_OBJECTS:
            self._held.popitem(last=False)
        # Thousands of processes that come and go have the same few files: what is said of each is shared.
        _remember(self._places, (place[0], sys.intern(place[1])), file, _MAX_PLACES)
        return elf

    def _parse(self, descriptor: int, path: str) -> Elf | None:
        try:
            return Elf(descriptor)
        except MalformedElf as error:
            self.malformed += 1
            log.warning("object not readable", extra={"path": path, "error": str(error)})
            return None

    def held(self) -> list[Elf]:
        """Return the objects held, the least lately used first."""
        with self._lock:
            return list(self._held.values())

    def _vdso(self) -> Elf | None:
        """Return the vDSO, which is no file: every process of a kernel has the same, so it is our own."""
        if VDSO not in self._held:
            try:
                self._held[VDSO] = Elf(_read_vdso())
            except (OSError, MalformedElf):
                return None
        self._held.move_to_end(VDSO)
        return self._held[VDSO]


class _DeletedMappings:
    """Where a process has mapped files that are no longer under their name; asked anew after a second."""

    def __init__(self) -> None:
        self._pid = 0
        self._read_at = 0.0
        self._spans: dict[str, tuple[int, int]] = {}

    def span(self, pid: int, path: str) -> tuple[int, int] | None:
        """Return one mapping of a file that lay at `path` and does no more."""
        now = time.monotonic()
        if pid != self._pid or now > self._read_at + _MAPS_FRESH_S:
            # Line by line: map_files knows mappings as the kernel has them, not those merged.
            mappings: list[Mapping] = []
            with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
                mappings = parse_maps(maps.read(_MAX_MAPS))
            present = {mapping.path for mapping in mappings}
            self._spans = {
                plain: (mapping.start, mapping.end)
                for mapping in mappings
                if mapping.path.endswith(_DELETED)
                # Loaded anew after the upgrade as well: the path is the new file's.
                and (plain := mapping.path.removesuffix(_DELETED)) not in present
            }
            self._pid, self._read_at = pid, now
        return self._spans.get(path)


def open_regular(path: str) -> int:
    """Return a descriptor of a file to read. Raises OSError, also for what is no regular file.

    Looked at before it is opened: opening a pipe waits, and opening a device may do anything.
    """
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC), path)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _file_key(facts: os.stat_result) -> _FileKey:
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size


def _identity(elf: Elf, key: _FileKey) -> str:
    if not elf.build_id:
        return repr(key)
    # A stripped build keeps its build-id: the headers tell the two apart.
    head = hashlib.sha256(elf.read(0, min(_IDENTITY_BYTES, elf.size))).hexdigest()
    return f"{elf.build_id} {elf.size} {head}"


def _remember(held: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    held[key] = value
    held.move_to_end(key)
    if len(held) > most:
        held.popitem(last=False)


def _read_vdso() -> bytes:
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            if line.rstrip().endswith(VDSO.encode()):
                start, end = (int(part, 16) for part in line.split()[0].split(b"-"))
                break
        else:
            raise FileNotFoundError(VDSO)
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        return memory.read(min(end - start, _MAX_VDSO) // mmap.PAGESIZE * mmap.PAGESIZE)
