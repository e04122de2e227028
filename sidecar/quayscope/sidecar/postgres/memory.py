"""The statement that a backend runs, read from its memory: whole, without a connection, in microseconds.

`debug_query_string` is an exported global of every Postgres (src/backend/tcop/postgres.c): a pointer to the
text that the client sent, null between statements. Functions that it calls do not change it; `FETCH` and
SQL-level `EXECUTE` show themselves.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

from quayscope.sidecar.errors import SidecarError
from quayscope.sidecar.native.maps import read_maps
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.targets import Postmaster

__all__ = ["MAX_STATEMENT", "BackendMemory", "IoVec", "held_readv", "process_vm_readv", "read_memory"]

MAX_STATEMENT = 65_536
"""Longest statement that is read, in bytes; a longer one is cut there."""
_POINTER = 8
_USUAL = 1024
"""Bytes of a statement that are read at once where the last one lay."""
_MAX_REMEMBERED = 4096
_PAGE = mmap.PAGESIZE
_SYMBOL = "debug_query_string"

_libc = ctypes.CDLL(None, use_errno=True)


class IoVec(ctypes.Structure):
    """A stretch of memory: struct iovec of readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


process_vm_readv = _libc.process_vm_readv
process_vm_readv.restype = ctypes.c_ssize_t
process_vm_readv.argtypes = (
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
)

held_readv = ctypes.PyDLL(None).process_vm_readv
"""The same for arguments that are C objects already, and without letting other threads run meanwhile: a
sample's thread would have to wait for them twice."""
held_readv.restype = ctypes.c_ssize_t


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Return up to `size` bytes of another process's memory, fewer where it ends.

    Raises OSError: EPERM not permitted, ESRCH gone, EFAULT nothing mapped there, ENOSYS by some filters.
    """
    buffer = ctypes.create_string_buffer(size)
    local = IoVec(ctypes.addressof(buffer), size)
    remote = IoVec(address, size)
    count = process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if count < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[:count]


class _Gather:
    """Reads several places of a process's memory in one call, into memory of its own; for one thread."""

    def __init__(self, places: int, size: int) -> None:
        self._buffer = ctypes.create_string_buffer(size)
        self._local = IoVec(ctypes.addressof(self._buffer), size)
        self._remote = (IoVec * places)()
        self._view = memoryview(self._buffer)

    def read(self, pid: int, *places: tuple[int, int]) -> bytes:
        """Return the bytes at all (address, size) in a row; OSError as `read_memory`, or when cut short."""
        wanted = 0
        for entry, (address, size) in zip(self._remote, places, strict=True):
            entry.base, entry.length = address, size
            wanted += size
        self._local.length = wanted
        count = process_vm_readv(pid, ctypes.byref(self._local), 1, self._remote, len(places), 0)
        if count != wanted:
            number = ctypes.get_errno() if count < 0 else errno.EFAULT
            raise OSError(number, os.strerror(number))
        return bytes(self._view[:wanted])


class BackendMemory:
    """Reads the statement of any process of one server; for one thread.

    Raises `SidecarError` when the server's executable does not show where to read, OSError when reading is
    refused. `torn` counts reads during which the statement changed, `invalid` those that found no text.
    """

    def __init__(self, server: Postmaster, address: int | None = None) -> None:
        self._server = server
        self._address = _locate(server) if address is None else address
        self._last: dict[int, int] = {}
        self._gather = _Gather(3, _USUAL + 2 * _POINTER)
        self.torn = 0
        self.invalid = 0
        # Tried on the postmaster once: permission is the same for all its children.
        self._pointer(server.pid)

    def another(self) -> BackendMemory:
        """Return one more of the same server, for another thread."""
        return BackendMemory(self._server, self._address)

    def statement(self, pid: int) -> str | None:
        """Return the text that `pid` runs at this moment, None when it runs none or is gone."""
        try:
            text = self._as_last_time(pid)
            if text is not None:
                return text.decode(errors="replace")
            for _ in range(2):
                address = self._pointer(pid)
                if not address:
                    return None
                text = self._text(pid, address)
                if self._pointer(pid) == address:
                    self._remember(pid, address)
                    return text.decode(errors="replace")
        except OSError as error:
            if error.errno != errno.ESRCH:
                self.invalid += 1
            return None
        self.torn += 1
        return None

    def _as_last_time(self, pid: int) -> bytes | None:
        """Return the text where the last one lay, read with the pointer before and after it in one call.

        None when it lies elsewhere now, or is longer than most: a backend that runs statements of one kind
        finds room for each at the same place.
        """
        address = self._last.get(pid)
        if address is None:
            return None
        size = min(_USUAL, _PAGE - address % _PAGE)
        pointer = (self._address, _POINTER)
        try:
            raw = self._gather.read(pid, pointer, (address, size), pointer)
        except OSError:
            del self._last[pid]
            return None
        expected = address.to_bytes(_POINTER, "little")
        if raw[:_POINTER] != expected or raw[-_POINTER:] != expected:
            return None
        text, zero, _ = raw[_POINTER:-_POINTER].partition(b"\0")
        return text if zero else None

    def _remember(self, pid: int, address: int) -> None:
        if len(self._last) >= _MAX_REMEMBERED:
            self._last.clear()
        self._last[pid] = address

    def _pointer(self, pid: int) -> int:
        raw = read_memory(pid, self._address, _POINTER)
        if len(raw) != _POINTER:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return int.from_bytes(raw, "little")

    @staticmethod
    def _text(pid: int, address: int) -> bytes:
        """Read up to the terminating zero, page by page: the page after the text may not be mapped."""
        parts: list[bytes] = []
        length = 0
        while length < MAX_STATEMENT:
            part = read_memory(
                pid, address + length, min(_PAGE - (address + length) % _PAGE, MAX_STATEMENT - length)
            )
            text, zero, _ = part.partition(b"\0")
            parts.append(text)
            length += len(part)
            if zero or not part:
                break
        return b"".join(parts)


def _locate(server: Postmaster) -> int:
    """Return the address of the pointer in every process of the server."""
    space = read_maps(server.pid)
    if space is None:
        raise SidecarError(f"/proc/{server.pid}/maps may not be read")
    program = f"/proc/{server.pid}/exe"
    try:
        path = str(Path(program).readlink())
    except OSError as error:
        raise SidecarError(f"{program} may not be read: {error.strerror}") from error
    elf = Objects().of(server.pid, path)
    symbol = elf.data_symbol(_SYMBOL) if elf is not None else None
    if elf is None or symbol is None:
        raise SidecarError(f"{path} does not export {_SYMBOL}")
    for mapping in space.mappings:
        if mapping.path == path:
            bias = elf.bias(mapping.start, mapping.offset)
            if bias is not None:
                return symbol.address + bias
    raise SidecarError(f"{path} is not mapped in its own process")
