r"""Build information of Go programs: which module an executable was built from, stripped or not.

Source of the format: Go's `debug/buildinfo`. The blob begins with `\xff Go buildinf:` at a 16-byte boundary
of the section `.go.buildinfo`; since Go 1.18 (flag 2) the version and the module text follow it in place,
each after its length as a varint, the text between two 16-byte sentinels.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from typing import NamedTuple

__all__ = ["BuildInfo", "BuildInfos", "read_build_info"]

_MAGIC = b"\xff Go buildinf:"
_ALIGN = 16
_HEADER_BYTES = 32
_INLINE = 2
_SENTINEL = 16
_CHUNK = 1 << 20
_MAX_SEARCHED = 64 << 20
"""Bytes of data segments that are searched where the section headers are gone."""
_MAX_TEXT = 1 << 20
_MAX_HEADERS = 1024
_ELF = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_PT_LOAD, _EXECUTABLE = 1, 1
_REMEMBERED = 256


class BuildInfo(NamedTuple):
    """What a Go executable says of itself.

    `path` is the main package, `module` and `version` its module; empty where the build left them out.
    """

    go_version: str
    path: str = ""
    module: str = ""
    version: str = ""


def read_build_info(descriptor: int) -> BuildInfo | None:
    """Return an open executable's build information; None when it is no Go program.

    A file that is broken or cannot be read is none either.
    """
    try:
        for offset, size in _candidates(descriptor):
            found = _search(descriptor, offset, size)
            if found is not None:
                return found
    except (struct.error, IndexError, OverflowError, OSError):
        # Offsets that no file has among them.
        return None
    return None


def _candidates(descriptor: int) -> list[tuple[int, int]]:
    """Return the file ranges to look into: the section, else the data segments."""
    header = _ELF.unpack(os.pread(descriptor, _ELF.size, 0))
    magic, segments_at, sections_at = header[0], header[5], header[6]
    segment_size, segment_count, section_size, section_count, names_index = header[9:14]
    if magic[:6] != b"\x7fELF\x02\x01" or segment_size != _SEGMENT.size:
        return []
    ranges = []
    if sections_at and section_size == _SECTION.size and 0 < section_count <= _MAX_HEADERS:
        raw = os.pread(descriptor, section_count * section_size, sections_at)
        sections = list(_SECTION.iter_unpack(raw[: len(raw) // section_size * section_size]))
        names_at, names_size = sections[names_index][4:6]
        names = os.pread(descriptor, min(names_size, _MAX_TEXT), names_at)
        for section in sections:
            if names[section[0] : section[0] + 14] == b".go.buildinfo\0":
                ranges.append((section[4], min(section[5], _MAX_SEARCHED)))
    if ranges or segment_count > _MAX_HEADERS:
        return ranges
    raw = os.pread(descriptor, segment_count * segment_size, segments_at)
    budget = _MAX_SEARCHED
    for kind, flags, offset, _, _, size, _, _ in _SEGMENT.iter_unpack(raw):
        if kind == _PT_LOAD and not flags & _EXECUTABLE and budget > 0:
            ranges.append((offset, min(size, budget)))
            budget -= size
    return ranges


def _search(descriptor: int, offset: int, size: int) -> BuildInfo | None:
    end = offset + size
    while offset < end:
        chunk = os.pread(descriptor, min(_CHUNK + _ALIGN, end - offset), offset)
        at = chunk.find(_MAGIC)
        while at >= 0:
            if (offset + at) % _ALIGN == 0:
                found = _parse(os.pread(descriptor, _MAX_TEXT, offset + at))
                if found is not None:
                    return found
            at = chunk.find(_MAGIC, at + 1)
        if len(chunk) <= _CHUNK:
            return None
        offset += _CHUNK
    return None


def _parse(blob: bytes) -> BuildInfo | None:
    flags = blob[15]
    if not flags & _INLINE:
        # Before Go 1.18 pointers stand here, which only a loader can follow: Go all the same.
        return BuildInfo("")
    version, position = _text(blob, _HEADER_BYTES)
    if not version.startswith(b"go") and not version.startswith(b"devel"):
        return None
    text, _ = _text(blob, position)
    fields: dict[str, list[str]] = {}
    for line in text[_SENTINEL:-_SENTINEL].decode(errors="replace").splitlines():
        name, *values = line.split("\t")
        fields.setdefault(name, values)
    module = [*fields.get("mod", []), "", ""]
    path = (fields.get("path") or [""])[0]
    return BuildInfo(version.decode(errors="replace")[:80], path[:300], module[0][:300], module[1][:80])


def _text(blob: bytes, position: int) -> tuple[bytes, int]:
    length = shift = 0
    while True:
        byte = blob[position]
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 28:
            raise IndexError("a length of more than 32 bits")
    if position + length > len(blob):
        raise IndexError("a text that ends beyond the blob")
    return blob[position : position + length], position + length


class BuildInfos:
    """Remembers the last 256 executables, Go or not, by file: an image's programs start again and again."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[int, int, int, int], BuildInfo | None] = OrderedDict()

    def of(self, pid: int) -> BuildInfo | None:
        """Return what a process's executable says; None when it is no Go program or may not be read."""
        try:
            descriptor = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            facts = os.fstat(descriptor)
            key = (facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size)
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            found = self._held[key] = read_build_info(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        if len(self._held) > _REMEMBERED:
            self._held.popitem(last=False)
        return found
