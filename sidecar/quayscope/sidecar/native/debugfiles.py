"""Where else an object's names are: its mini-debuginfo, and separate files of debug information.

Conventions: GDB's manual, "MiniDebugInfo" and "Debugging Information in Separate Files".
"""

from __future__ import annotations

import contextlib
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.objects import open_regular

__all__ = ["debug_file", "mini_debuginfo"]

_DEBUG_ROOT = "usr/lib/debug"
_MAX_PACKED = 16 << 20
_MAX_MINI = 32 << 20
"""Mini-debuginfo is unpacked up to this many bytes, with as much memory for the unpacking."""
_MAX_CHECKED = 256 << 20
_CHUNK = 1 << 20


def mini_debuginfo(elf: Elf) -> Elf | None:
    """Return the object packed into `.gnu_debugdata`, None where there is none.

    Raises `MalformedElf` when it does not unpack, or to more than 32 MB.
    """
    packed = elf.content(".gnu_debugdata", _MAX_PACKED)
    if packed is None:
        return None
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_MINI)
    try:
        data = unpacker.decompress(packed, _MAX_MINI)
    except lzma.LZMAError as error:
        raise MalformedElf(f".gnu_debugdata does not unpack: {error}") from error
    if not unpacker.eof:
        raise MalformedElf(".gnu_debugdata is cut short, or too long")
    return Elf(data)


def debug_file(pid: int, path: str, elf: Elf) -> Elf | None:
    """Return the separate file of debug information that belongs to an object, None where none is found.

    Looked for in the file system of the process that has `path` mapped, then in our own: a file belongs when
    it has the same build-id, or else the checksum that `.gnu_debuglink` says. Raises `MalformedElf` for a
    link that is broken.
    """
    for root in (f"/proc/{pid}/root", ""):
        if len(elf.build_id) > 2:
            name = f"{elf.build_id[:2]}/{elf.build_id[2:]}.debug"
            found = _open(f"{root}/{_DEBUG_ROOT}/.build-id/{name}", elf, None)
            if found is not None:
                return found
        for candidate, checksum in _linked(root, path, elf):
            found = _open(candidate, elf, checksum)
            if found is not None:
                return found
    return None


def _linked(root: str, path: str, elf: Elf) -> Iterator[tuple[str, int]]:
    link = elf.content(".gnu_debuglink", 4096)
    if link is None:
        return
    end = link.find(b"\0")
    at = end + 4 & ~3
    name = os.fsdecode(link[:end])
    if end <= 0 or "/" in name or name in (".", "..") or len(link) < at + 4:
        raise MalformedElf(".gnu_debuglink is of an unknown form")
    checksum = int.from_bytes(link[at : at + 4], "little")
    folder = Path(path).parent
    for place in (folder, folder / ".debug", Path("/") / _DEBUG_ROOT / folder.relative_to("/")):
        yield f"{root}{place / name}", checksum


def _open(path: str, elf: Elf, checksum: int | None) -> Elf | None:
    with contextlib.suppress(OSError, MalformedElf):
        descriptor = open_regular(path)
        try:
            found = Elf(descriptor)
            if elf.build_id and found.build_id:
                return found if found.build_id == elf.build_id else None
            return found if checksum is not None and _checksum(descriptor, found.size) == checksum else None
        finally:
            os.close(descriptor)
    return None


def _checksum(descriptor: int, size: int) -> int | None:
    if size > _MAX_CHECKED:
        return None
    value = 0
    for at in range(0, size, _CHUNK):
        value = zlib.crc32(os.pread(descriptor, _CHUNK, at), value)
    return value
