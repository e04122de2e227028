"""Rules kept between runs: one small file per object, named by its build-id.

Compiling rules is most of what the first samples of a process cost. A file holds, little-endian: a header
(magic, checksum of what follows the header, checksum of the object's table of functions, counts of functions
and rows), the functions (start, size, first row, count of rows) and the rows (distance from the start, kind,
step, save, as in `rules`).
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Stored", "StoredFunction", "StoredRow", "StoredRules"]

log = logging.getLogger(__name__)

_MAGIC = b"QSRULES1"
_HEADER = struct.Struct("<8sIIII")
_FUNCTION = struct.Struct("<QIII")
_ROW = struct.Struct("<IiiB")
_DISTANCE = struct.Struct("<I")
_SUFFIX = ".rules"
_BUILD_ID = re.compile(r"[0-9a-f]{16,128}")
_MAX_FILE = 8 << 20
_MAX_FUNCTIONS = 32_768
_MAX_DISTANCE = (1 << 32) - 1
_KINDS = frozenset({0, 1, 2, 5, 6, 8})
"""The kinds that come from call frame information; the others are never stored."""

StoredRow = tuple[int, int, int, int]
StoredFunction = tuple[int, int, list[StoredRow]]


class Stored(NamedTuple):
    """The rules of one object as they lie in its file."""

    starts: Sequence[int]
    functions: list[tuple[int, int, int, int]]
    rows: bytes

    def function(self, start: int) -> tuple[int, list[StoredRow]] | None:
        """Return the size and the rows of the function that starts at a virtual address, None if not kept."""
        index = bisect.bisect_left(self.starts, start)
        if index == len(self.starts) or self.starts[index] != start:
            return None
        _, size, first, count = self.functions[index]
        rows = memoryview(self.rows)[first * _ROW.size : (first + count) * _ROW.size]
        return size, [(at, kind, step, save) for at, step, save, kind in _ROW.iter_unpack(rows)]

    def row(self, start: int, distance: int) -> tuple[int, StoredRow, int] | None:
        """Return a function's size, its row at a distance from its start, and at which the row ends.

        `start` is its virtual address. None if it is not kept. Nothing is unpacked but what is asked for.
        """
        index = bisect.bisect_left(self.starts, start)
        if index == len(self.starts) or self.starts[index] != start:
            return None
        _, size, first, count = self.functions[index]
        low, high = first, first + count
        while high - low > 1:
            middle = (low + high) // 2
            if _DISTANCE.unpack_from(self.rows, middle * _ROW.size)[0] <= distance:
                low = middle
            else:
                high = middle
        at, step, save, kind = _ROW.unpack_from(self.rows, low * _ROW.size)
        end = size if low + 1 == first + count else _DISTANCE.unpack_from(self.rows, (low + 1) * _ROW.size)[0]
        return size, (at, kind, step, save), end


class StoredRules:
    """The directory of such files, at most `most` bytes of them: the least lately used go first.

    `corrupted` counts files that were not what they should be, and were passed over; `failed` those that
    could not be written.
    """

    def __init__(self, directory: Path, most: int = 64 << 20) -> None:
        self._directory = directory
        self._most = most
        self.corrupted = 0
        self.failed = 0

    def load(self, build_id: str, checksum: int) -> Stored | None:
        """Return what is kept for an object whose table of functions has this checksum; None: nothing."""
        if not _BUILD_ID.fullmatch(build_id):
            return None
        path = self._directory / (build_id + _SUFFIX)
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE + 1)
            os.utime(path)
        except OSError:
            return None
        stored = _parse(data, checksum)
        if stored is None:
            self.corrupted += 1
            log.warning("stored rules passed over", extra={"path": str(path)})
        return stored

    def save(self, build_id: str, checksum: int, functions: Sequence[StoredFunction]) -> Stored | None:
        """Write an object's rules, the first 32,768 functions; the file is there whole or not at all.

        Returns them as `load` would, None where nothing was written.
        """
        data = _pack(checksum, functions[:_MAX_FUNCTIONS])
        if not _BUILD_ID.fullmatch(build_id) or len(data) > _MAX_FILE:
            return None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._directory, suffix=".part")
            try:
                with open(handle, "wb") as file:
                    file.write(data)
                Path(name).replace(self._directory / (build_id + _SUFFIX))
            except BaseException:
                Path(name).unlink()
                raise
            self._trim()
        except OSError as error:
            self.failed += 1
            log.warning("rules not stored", extra={"error": str(error)})
            return None
        return _parse(data, checksum)

    def _trim(self) -> None:
        files = []
        for path in self._directory.glob("*" + _SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                files.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._most:
                break
            path.unlink(missing_ok=True)
            total -= size


def _pack(checksum: int, functions: Sequence[StoredFunction]) -> bytes:
    index, rows = bytearray(), bytearray()
    count = kept = 0
    for start, size, found in sorted(functions):
        if not 0 < size <= _MAX_DISTANCE or any(row[0] > _MAX_DISTANCE or row[0] < 0 for row in found):
            continue
        index += _FUNCTION.pack(start, size, count, len(found))
        for distance, kind, step, save in found:
            rows += _ROW.pack(distance, step, save, kind)
        count += len(found)
        kept += 1
    body = bytes(index + rows)
    return _HEADER.pack(_MAGIC, zlib.crc32(body), checksum, kept, count) + body


def _parse(data: bytes, checksum: int) -> Stored | None:
    if len(data) < _HEADER.size or len(data) > _MAX_FILE:
        return None
    magic, body_sum, table_sum, count, row_count = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    middle = count * _FUNCTION.size
    if magic != _MAGIC or table_sum != checksum or len(body) != middle + row_count * _ROW.size:
        return None
    if zlib.crc32(body) != body_sum:
        return None
    functions = list(_FUNCTION.iter_unpack(body[:middle]))
    # The sum tells that the file is as it was written, not that whoever wrote it was right.
    if any(first + rows > row_count or not rows for _, _, first, rows in functions):
        return None
    rows = body[middle:]
    if not _KINDS.issuperset(rows[_ROW.size - 1 :: _ROW.size]):
        return None
    starts = [function[0] for function in functions]
    return Stored(starts, functions, rows) if starts == sorted(starts) else None
