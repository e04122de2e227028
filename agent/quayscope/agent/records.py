"""Writes records to the relay's socket without ever waiting (docs/wire.md)."""

from __future__ import annotations

import _socket
import errno
import json
import time
from collections.abc import Iterator
from typing import Any, Callable

from quayscope.agent.faults import add

__all__ = ["MAX_PACKET", "RecordWriter"]

MAX_PACKET = 16_000
"""Bytes of one record; thirteen of them fill a socket's default queue."""
_SEQPACKET = 5
"""`SOCK_SEQPACKET` on Linux; the `socket` module is not imported, gevent may not have patched it yet."""
_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False)
_RECEIVE_BYTES = 4_096
_BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)


def encode(record: Any) -> bytes:
    """Return a record, or a part of one, as it travels."""
    return _JSON.encode(record).encode("utf-8", "replace")


class RecordWriter:
    """One connection to the relay, opened anew with a back-off. Uses the plain C socket, not gevent's."""

    def __init__(self, path: str, hello: Callable[[], dict[str, Any]]) -> None:
        self._path = path
        self._hello = hello
        self._socket: _socket.socket | None = None
        self._failures = 0
        self._next_try = 0.0
        self.alone = False
        """Whether the last try found nobody listening."""
        self.connections = 0
        """How many connections were made: a new one means a reader that knows no frames."""

    def connect(self) -> bool:
        """Have a connection if one can be had now; returns whether there is one."""
        if self._socket is not None:
            return True
        now = time.monotonic()
        if now < self._next_try:
            return False
        connection = _socket.socket(_socket.AF_UNIX, _SEQPACKET, 0)
        try:
            connection.setblocking(False)
            connection.connect(self._path)
            connection.send(encode(self._hello()))
        except OSError:
            connection.close()
            self._next_try = now + _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
            self._failures += 1
            self.alone = True
            return False
        self._socket = connection
        self.alone = False
        self._failures = 0
        self.connections += 1
        return True

    def send(self, packet: bytes) -> bool:
        """Write one packet; False when the queue is full. Raises `OSError` when the reader is gone."""
        if self._socket is None:
            raise OSError(errno.ENOTCONN, "no reader")
        try:
            self._socket.send(packet)
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            raise
        return True

    def receive(self) -> bytes | None:
        """Return a packet from the relay, None when there is none or the connection ended."""
        if self._socket is None:
            return None
        try:
            packet = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        if not packet:
            self.close()
            return None
        return packet

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._socket is not None

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def packets(head: dict[str, Any], name: str, rows: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield (packet, rows in it) of records `head` + {name: encoded rows}, each within `MAX_PACKET` bytes.

    A single row that is too large for a packet is dropped and counted.
    """
    start = encode(head)[:-1] + f',"{name}":['.encode()
    parts: list[bytes] = []
    size = len(start) + 2
    for part in rows:
        if len(start) + len(part) + 2 > MAX_PACKET:
            add("records_dropped")
            continue
        if parts and size + len(part) + 1 > MAX_PACKET:
            yield start + b",".join(parts) + b"]}", len(parts)
            parts, size = [], len(start) + 2
        parts.append(part)
        size += len(part) + 1
    if parts:
        yield start + b",".join(parts) + b"]}", len(parts)
