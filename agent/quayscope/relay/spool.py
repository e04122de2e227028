"""What could not be sent yet, on disk: append-only segment files that outlive the process.

A file `NUMBER.spool` is a header of 64 bytes and frames of one kind. The header: a magic, how far the frames
were sent, how far the group reached that was last being sent, and their kind; a frame: the body's length, a
CRC-32, its kind, the body; all little-endian. Groups are kept because a receiver knows spans and metrics that
come twice by their bytes: after a restart the same messages must go together again.

An append is in the kernel's hands when it returns (it outlives a kill -9), and on disk once `sync` returned.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["MAX_BYTES", "Batch", "Entry", "Position", "Spool"]

MAX_BYTES = 256 << 20
_MAGIC = b"QSSPOOL1"
_STATE = struct.Struct("<QQI")
_KIND_AT = len(_MAGIC) + _STATE.size
_FRAME = struct.Struct("<IIB")
_START = 64
_SEGMENTS = 64
"""Into how many files the room is divided: what is dropped at once when it is full."""
_SMALLEST_SEGMENT = 4096
_KINDS = {"profiles": 1, "spans": 2, "metrics": 3}
_NAMES = {number: name for name, number in _KINDS.items()}
_ALONE = 0x80
_SUFFIX = ".spool"


class Entry(NamedTuple):
    """One message and where its frame ends in the segment."""

    kind: str
    body: bytes
    end: int


class Batch(NamedTuple):
    """Messages of one kind to send together."""

    segment: int
    entries: list[Entry]


class Position(NamedTuple):
    """Where an append ended."""

    segment: int
    end: int


class _Segment:
    """One file. Offsets are bytes from its start; frames lie from `sent` to `end` that are still to go."""

    def __init__(self, path: Path, number: int, kind: str = "") -> None:
        self.path = path
        self.kind = kind
        self.number = number
        self.end = self.sent = _START
        self.cut = 0
        self.synced = 0
        self.busy = False

    def read_header(self, file: int) -> bool:
        """Take up where the process before ended; False where this is no segment."""
        self.end = self.synced = os.fstat(file).st_size
        header = os.pread(file, _START, 0)
        kind = _NAMES.get(header[_KIND_AT]) if len(header) == _START else None
        if not header.startswith(_MAGIC) or kind is None:
            return False
        self.kind = kind
        sent, cut, check = _STATE.unpack_from(header, len(_MAGIC))
        if check == zlib.crc32(header[len(_MAGIC) : _KIND_AT - 4]) and _START <= sent <= self.end:
            self.sent, self.cut = sent, min(cut, self.end)
        return True

    def state(self) -> bytes:
        """Return what the header says behind the magic."""
        numbers = struct.pack("<QQ", self.sent, self.cut)
        return numbers + struct.pack("<I", zlib.crc32(numbers))


class Spool:
    """Messages in order, in `directory`, at most `max_bytes` of files; thread-safe.

    When it is full the oldest segment goes, and its messages are counted in `dropped`; frames that a crash
    or the disk left broken are passed over and counted in `torn`. Two lanes are read apart: `backlog`, what
    lay there when it was opened or last `set_aside`, and `live`, what came since; each of them by kind.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._segment_bytes = max(_SMALLEST_SEGMENT, max_bytes // _SEGMENTS)
        self._segments: dict[int, _Segment] = {}
        self._next = self._live_from = 1
        self._open: dict[str, tuple[_Segment, int]] = {}
        self._lock_file = -1
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self.dropped = 0
        self.torn = 0

    def open(self) -> None:
        """Make the directory ours and take up what lies there.

        Raises OSError: not writable, or another process holds it (BlockingIOError).
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_file = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(error.errno, "another process holds the folder") from error
            with self._lock:
                self._find()
                self._make_room(0)
        except OSError:
            os.close(self._lock_file)
            self._lock_file = -1
            raise

    def append(self, kind: str, body: bytes, *, alone: bool = False) -> Position:
        """Add a message; with `alone` it is never sent together with others.

        Raises OSError, with nothing changed, for a full or broken disk and for what can never fit.
        """
        mark = _KINDS[kind] | (_ALONE if alone else 0)
        frame = _FRAME.pack(len(body), zlib.crc32(body, mark), mark)
        size = len(frame) + len(body)
        with self._lock:
            if self._lock_file < 0:
                raise OSError("the spool is not open")
            if size + 2 * _START > self._max_bytes:
                raise OSError(f"a message of {size} bytes is more than the spool holds")
            segment, file = self._writable(kind, size)
            try:
                _write(file, frame + body, segment.end)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, segment.end)
                raise
            segment.end += size
            return Position(segment.number, segment.end)

    def sync(self, position: tuple[int, int]) -> None:
        """Wait until what was appended up to `position` is on disk; raises OSError.

        Those who wait at the same time share one wait.
        """
        number, wanted = position
        with self._sync_lock:
            with self._lock:
                segment = self._segments.get(number)
                if segment is None or segment.synced >= wanted:
                    return
                if not self._is_open(segment):
                    return
                file, end = os.dup(self._open[segment.kind][1]), segment.end
            try:
                os.fdatasync(file)
            finally:
                os.close(file)
            segment.synced = end

    def unsent(self) -> int:
        """Return the bytes that are still to be sent."""
        with self._lock:
            return sum(segment.end - segment.sent for segment in self._segments.values())

    def set_aside(self) -> None:
        """Make all that lies here the backlog: what comes from now on does not wait behind it.

        A little is not worth files of its own.
        """
        with self._lock:
            live = [segment for segment in self._segments.values() if segment.number >= self._live_from]
            if sum(segment.end - segment.sent for segment in live) >= self._segment_bytes // 4:
                self._close_files()
                self._live_from = self._next

    def take(self, lane: str, kind: str, max_bytes: int) -> Batch | None:
        """Return the oldest messages of a kind in `lane` (`backlog` or `live`); None where there are none.

        One message may be larger than `max_bytes`. What was taken stays until `done`. A segment that cannot
        be read is given up, and counts as one torn frame.
        """
        with self._lock:
            for segment in list(self._segments.values()):
                if segment.kind != kind or segment.busy:
                    continue
                if (segment.number < self._live_from) != (lane == "backlog"):
                    continue
                try:
                    entries = self._read(segment, max_bytes)
                except OSError:
                    self.torn += 1
                    self._segments.pop(segment.number)
                    continue
                if entries:
                    segment.busy = True
                    segment.cut = entries[-1].end
                    self._write_state(segment)
                    return Batch(segment.number, entries)
                self._remove_finished(segment)
        return None

    def done(self, batch: Batch, count: int, *, regroup: bool = False) -> None:
        """Forget the first `count` messages of the batch; the others are to be sent again.

        They come as one group, or with `regroup` together with what follows them.
        """
        with self._lock:
            segment = self._segments.get(batch.segment)
            if segment is None:
                return
            segment.busy = False
            if count:
                segment.sent = batch.entries[count - 1].end
            if regroup:
                segment.cut = 0
            self._write_state(segment)
            self._remove_finished(segment)

    def take_counts(self) -> tuple[int, int]:
        """Return messages dropped and frames torn since the last call."""
        with self._lock:
            counts = self.dropped, self.torn
            self.dropped = self.torn = 0
        return counts

    def close(self) -> None:
        """Put everything on disk and let go of the directory."""
        with self._lock:
            self._close_files()
            for segment in list(self._segments.values()):
                self._remove_finished(segment)
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    def _find(self) -> None:
        numbers = sorted(
            int(path.stem) for path in self._directory.glob(f"*{_SUFFIX}") if path.stem.isdecimal()
        )
        for number in numbers:
            segment = _Segment(self._path(number), number)
            with _opened(segment.path, os.O_RDONLY) as file:
                whole = segment.read_header(file)
            if whole:
                self._segments[number] = segment
                self._remove_finished(segment)
                continue
            self.torn += 1
            if segment.end < _START:
                segment.path.unlink()
        self._next = self._live_from = (numbers[-1] if numbers else 0) + 1

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:016d}{_SUFFIX}"

    def _is_open(self, segment: _Segment) -> bool:
        opened = self._open.get(segment.kind)
        return opened is not None and opened[0] is segment

    def _writable(self, kind: str, size: int) -> tuple[_Segment, int]:
        if kind in self._open and self._open[kind][0].end + size > self._segment_bytes:
            self._close_file(kind)
        self._make_room(size if kind in self._open else size + _START)
        if kind not in self._open:
            segment = _Segment(self._path(self._next), self._next, kind)
            file = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            header = _MAGIC + segment.state() + bytes([_KINDS[kind]])
            try:
                _write(file, header.ljust(_START, b"\0"), 0)
            except OSError:
                os.close(file)
                with contextlib.suppress(OSError):
                    segment.path.unlink()
                raise
            self._next += 1
            self._segments[segment.number] = segment
            self._open[kind] = (segment, file)
        return self._open[kind]

    def _close_files(self) -> None:
        for kind in list(self._open):
            self._close_file(kind)

    def _close_file(self, kind: str) -> None:
        segment, file = self._open.pop(kind)
        with contextlib.suppress(OSError):
            os.fdatasync(file)
        segment.synced = segment.end
        os.close(file)
        self._remove_finished(segment)

    def _make_room(self, size: int) -> None:
        total = sum(segment.end for segment in self._segments.values())
        for segment in list(self._segments.values()):
            if total + size <= self._max_bytes:
                return
            # What is being sent now stays: it would be counted as dropped, and as sent.
            if segment.busy:
                continue
            if self._is_open(segment):
                self._close_file(segment.kind)
            if segment.number in self._segments:
                self.dropped += self._count(segment)
                self._remove(segment)
            total -= segment.end

    def _count(self, segment: _Segment) -> int:
        """Return how many messages of a segment are still to be sent, from the frames' lengths alone."""
        count, at = 0, segment.sent
        with contextlib.suppress(OSError), _opened(segment.path, os.O_RDONLY) as file:
            while at + _FRAME.size <= segment.end:
                length = _FRAME.unpack(os.pread(file, _FRAME.size, at))[0]
                at += _FRAME.size + length
                count += at <= segment.end
        return count

    def _read(self, segment: _Segment, max_bytes: int) -> list[Entry]:
        """Return the next group; `segment.sent` moves past frames that are broken."""
        if segment.sent >= segment.end:
            return []
        entries: list[Entry] = []
        grouped = segment.cut > segment.sent
        limit = segment.cut if grouped else segment.end
        at, size = segment.sent, 0
        with _opened(segment.path, os.O_RDONLY) as file:
            while at < limit:
                length, check, mark = _frame(os.pread(file, _FRAME.size, at))
                end = at + _FRAME.size + length
                if mark == 0 or end > segment.end:
                    # A write that a crash cut off: nothing can follow it.
                    self._torn_at(segment, at)
                    break
                full = bool(entries) and size + length > max_bytes and not grouped
                if full or (entries and mark & _ALONE):
                    break
                body = os.pread(file, length, at + _FRAME.size)
                at = end
                if (
                    mark & ~_ALONE != _KINDS[segment.kind]
                    or len(body) < length
                    or zlib.crc32(body, mark) != check
                ):
                    self.torn += 1
                    if not entries:
                        segment.sent = at
                    continue
                entries.append(Entry(segment.kind, body, at))
                size += length
                if mark & _ALONE:
                    break
        return entries

    def _torn_at(self, segment: _Segment, at: int) -> None:
        self.torn += 1
        segment.end = at
        with contextlib.suppress(OSError):
            os.truncate(segment.path, at)

    def _write_state(self, segment: _Segment) -> None:
        # A state that is not written means sending again what the receiver knows: no loss.
        with contextlib.suppress(OSError), _opened(segment.path, os.O_WRONLY) as file:
            os.pwrite(file, segment.state(), len(_MAGIC))

    def _remove_finished(self, segment: _Segment) -> None:
        if segment.sent >= segment.end and not self._is_open(segment) and not segment.busy:
            self._remove(segment)

    def _remove(self, segment: _Segment) -> None:
        self._segments.pop(segment.number, None)
        with contextlib.suppress(OSError):
            segment.path.unlink()


def _frame(header: bytes) -> tuple[int, int, int]:
    if len(header) < _FRAME.size:
        return 0, 0, 0
    length, check, mark = _FRAME.unpack(header)
    return length, check, mark


def _write(file: int, data: bytes, at: int) -> None:
    """Write all of it; raises OSError where only a part could be."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(file, rest, at)
        rest, at = rest[count:], at + count


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)
