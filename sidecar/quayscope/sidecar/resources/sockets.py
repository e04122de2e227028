"""The accept queues of listening sockets, Unix and TCP, by sock_diag netlink.

nginx's 502 "Resource temporarily unavailable" is a Unix socket whose queue is longer than its backlog, which
no counter of the kernel shows; this does. Formats: sock_diag(7), `linux/unix_diag.h`, `linux/inet_diag.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.tried import SOCKETS, Tried

__all__ = [
    "MOST_SOCKETS",
    "Address",
    "Listener",
    "SocketDiagnosis",
    "parse_inet",
    "parse_unix",
    "queue_readings",
    "split_messages",
]

MOST_SOCKETS = 256
"""As many are told by one sidecar in its life, the fullest first; those beyond are counted as left out."""
_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_DONE, _ERROR = 3, 2
_REQUEST_DUMP = 0x301
_INTERRUPTED = 0x10
_HEADER = struct.Struct("=IHHII")
_LISTENING = 1 << 10
_SHOW_NAME_AND_QUEUE = 0x01 | 0x10
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
_UNIX_MESSAGE = struct.Struct("=BBBBI8s")
_INET_REQUEST = struct.Struct("=BBBBI48s")
_INET_PORT = struct.Struct(">H")
_INET_SOURCE, _INET_QUEUES, _INET_SIZE = 8, 56, 72
_ATTRIBUTE = struct.Struct("=HH")
_NAME, _QUEUE = 0, 4
_PATIENCE_S = 0.2
_MOST_MESSAGES = 4096
_ATTEMPTS = 3
_CLONE_NEWNET = 0x40000000
_FAMILIES = {"Unix": socket.AF_UNIX, "IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}


Address = tuple[str, str, int | None]
"""Transport, address and port."""


class Listener(NamedTuple):
    """A listening socket: `queue` connections wait for accept(2); when more than `backlog` do, it is full."""

    transport: str
    address: str
    port: int | None
    queue: int
    backlog: int


class SocketDiagnosis:
    """A netlink socket in one network namespace: that of `pid`, or our own where `pid` is None.

    Raises OSError where the namespace may not be entered or netlink is refused.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._sequence = 0
        self._socket = _open() if pid is None else _open_inside(pid)
        self._socket.settimeout(_PATIENCE_S)

    def close(self) -> None:
        """Leave the namespace: an open socket keeps it alive."""
        self._socket.close()

    def listeners(self, family: int) -> list[Listener]:
        """Return every listening socket of a family. Raises OSError: refused, not known, or answered late."""
        if family == socket.AF_UNIX:
            request = _UNIX_REQUEST.pack(family, 0, 0, _LISTENING, 0, _SHOW_NAME_AND_QUEUE, 0, 0)
            parse = parse_unix
        else:
            request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _LISTENING, b"")
            parse = parse_inet
        for _ in range(_ATTEMPTS):
            try:
                answers = self._dump(request)
            except InterruptedError:
                continue
            return [listener for body in answers if (listener := parse(body)) is not None]
        raise InterruptedError(errno.EINTR, "the sockets changed while they were listed")

    def _dump(self, request: bytes) -> list[bytes]:
        self._sequence += 1
        size = _HEADER.size + len(request)
        header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, self._sequence, 0)
        self._socket.send(header + request)
        answers: list[bytes] = []
        interrupted = 0
        for _ in range(_MOST_MESSAGES):
            for kind, flags, sequence, body in split_messages(self._socket.recv(1 << 16)):
                if sequence != self._sequence:
                    continue  # of a dump that was given up
                interrupted |= flags & _INTERRUPTED
                if kind == _DONE:
                    if interrupted:
                        raise InterruptedError
                    return answers
                if kind == _ERROR:
                    number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    raise OSError(number, os.strerror(number))
                answers.append(body)
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))


def split_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield kind, flags, sequence and body of each netlink message in a datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        yield kind, flags, sequence, data[at + _HEADER.size : at + length]
        at += max(_HEADER.size, (length + 3) & ~3)


def parse_unix(body: bytes) -> Listener | None:
    """Return the socket of one answer; None for one without a name, which nobody can connect to."""
    name = b""
    queue = backlog = None
    at = _UNIX_MESSAGE.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        value = body[at + _ATTRIBUTE.size : at + length]
        if kind == _NAME:
            name = value
        elif kind == _QUEUE and len(value) >= 8:
            queue, backlog = struct.unpack_from("=II", value)
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    if not name or queue is None or backlog is None:
        return None
    # An abstract name begins with a zero byte, and is shown as ss(8) does.
    text = ("@" + name[1:].decode(errors="replace")) if name[:1] == b"\0" else name.decode(errors="replace")
    return Listener("unix", text.rstrip("\0"), None, queue, backlog)


def parse_inet(body: bytes) -> Listener | None:
    """Return the socket of one answer; None for a short one."""
    if len(body) < _INET_SIZE:
        return None
    family, size = (socket.AF_INET6, 16) if body[0] == socket.AF_INET6 else (socket.AF_INET, 4)
    address = socket.inet_ntop(family, body[_INET_SOURCE : _INET_SOURCE + size])
    queue, backlog = struct.unpack_from("=II", body, _INET_QUEUES)
    return Listener("tcp", address, _INET_PORT.unpack_from(body, 4)[0], queue, backlog)


def queue_readings(
    diagnosis: SocketDiagnosis, known: set[Address], tried: Tried
) -> tuple[list[Reading], int]:
    """Return queue and backlog of each listening socket, and how many beyond the bound were left out.

    `known` are the addresses told so far, which are added to: each is a series for good.
    """
    listeners: list[Listener] = []
    for name, family in _FAMILIES.items():
        try:
            listeners += diagnosis.listeners(family)
        except OSError as error:
            tried.refused(SOCKETS, f"sock_diag of {name} sockets", error)
        else:
            tried.worked(SOCKETS)
    # Several sockets may share an address (SO_REUSEPORT): a connection is lost when one of them is full.
    fullest: dict[Address, Listener] = {}
    for listener in sorted(listeners, key=lambda listener: listener.queue - listener.backlog):
        fullest.pop(listener[:3], None)
        fullest[listener[:3]] = listener
    readings = []
    left_out = 0
    for address, listener in reversed(fullest.items()):
        # Half of the room is for those in which somebody waits: names of idle ones may be without end.
        room = MOST_SOCKETS if listener.queue else MOST_SOCKETS // 2
        if address not in known and len(known) >= room:
            left_out += 1
            continue
        known.add(address)
        attributes = {"network.transport": listener.transport, "server.address": listener.address}
        if listener.port is not None:
            attributes["server.port"] = str(listener.port)
        readings.append(names.ACCEPT_QUEUE.now(listener.queue, attributes))
        readings.append(names.ACCEPT_BACKLOG.now(listener.backlog, attributes))
    return readings, left_out


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)


def _open_inside(pid: int) -> socket.socket:
    """Open the socket on a thread that enters the namespace and ends there: none of ours changes its own."""
    outcome: list[socket.socket | OSError] = []

    def enter() -> None:
        try:
            with open(f"/proc/{pid}/ns/net", "rb") as namespace:
                _setns(namespace.fileno())
            outcome.append(_open())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=enter, name="netns", daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]


def _setns(descriptor: int) -> None:
    # os.setns is there from 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
